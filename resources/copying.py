"""A copy of a home that is whole, also while others work on it.

What one store names must be in the copy of the other. The ledger names table versions and models
that were there before it did: so it is copied before them. Dagster comes first of all, since it is
told of a partition last. What is newer in a later store than in an earlier one looks as if a run
had been killed between two writes, which the line survives anyway.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from platform_assets.domain.errors import HomeError, RefusedError
from resources.adopting import databases
from resources.home import LOCK, MARKER, Home

DELTA_LOG = "_delta_log"
LAST_CHECKPOINT = "_last_checkpoint"


def copy_home(home: Home, target: Path) -> Home:
    """Copy a home; the copy is refused until it was adopted.

    Args:
        home: an initialised home that keeps everything in its folder.
        target: a folder that does not exist.

    Raises:
        RefusedError: part of the home lies elsewhere, or the target is there already.
        HomeError: the target cannot be written.
    """
    place = Home.locate(target).root
    if home.lake_url or home.dagster_url or not home.ledger_url.startswith("sqlite:"):
        raise RefusedError(
            f"the ledger, Dagster's storage or the lake of {home.root} lie elsewhere; copy them by "
            "their own means, this copies homes that keep everything in their folder"
        )
    if place.exists() or home.root in place.parents:
        raise RefusedError(
            f"{place} is there already or lies in the home; name a folder that does not exist"
        )
    try:
        place.mkdir(parents=True)
        for path in sorted(databases(home.root), key=lambda found: _rank(home, found)):
            _copy_database(path, place / path.relative_to(home.root))
        for path in _files(home.root):
            with suppress(FileNotFoundError):  # replaced or removed meanwhile: looked at later
                _copy_file(path, place / path.relative_to(home.root))
        shutil.copy2(home.root / MARKER, place / MARKER)
    except (OSError, sqlite3.Error) as error:
        raise HomeError(
            f"{home.root} could not be copied to {place} ({error}); remove what is there, free "
            "some space or choose another folder, and try again"
        ) from error
    return Home.locate(place)


def _rank(home: Home, path: Path) -> tuple[int, str]:
    """Dagster, the ledger, MLflow: see the module."""
    parts = path.relative_to(home.root).parts
    return (0 if parts[0] == "dagster" else 2 if parts[0] == "mlflow" else 1), str(path)


def _copy_database(source: Path, target: Path) -> None:
    """As of one moment, whatever is written to it meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=30)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


def _files(root: Path) -> Iterator[Path]:
    """Everything but the databases; the logs of tables before the files that they name.

    What comes later is listed only when everything before it was copied: a commit in between would
    bring a log entry into the copy whose files were looked for before they were there.
    """
    skipped = {LOCK, MARKER}
    for part in (_is_pointer, _is_log, _is_neither):
        yield from sorted(
            path
            for path in root.rglob("*")
            if part(path)
            and not (path.parent == root and path.name in skipped)
            and ".db" not in {path.suffix, Path(path.name.rpartition("-")[0]).suffix}
        )


def _is_pointer(path: Path) -> bool:
    """It names a checkpoint of its log."""
    return path.name == LAST_CHECKPOINT


def _is_log(path: Path) -> bool:
    return DELTA_LOG in path.parts and not _is_pointer(path)


def _is_neither(path: Path) -> bool:
    return DELTA_LOG not in path.parts and not _is_pointer(path)


def _copy_file(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif source.is_file():  # no sockets, no pipes
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
