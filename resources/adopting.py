"""A home that lies elsewhere than where it was made: looked over, and made a home of its own.

MLflow records where each run's and model's files lie, as absolute addresses. A copy of a home would
log into the home that it was copied from and load its models from there; so it is refused
(`Home.require`) until it was adopted.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from platform_assets.domain.errors import HomeError, RefusedError
from platform_assets.domain.partition import PartitionKey
from resources.home import Home
from resources.lake import found_dataset
from resources.ledger.engine import reading
from resources.ledger.tables import tables

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's schema keeps addresses of files."""

COPY_AGAIN = (
    "copy the home again with `signalbox copy FOLDER`, run on the original, or after everything "
    "that works on it has ended"
)


def databases(root: Path) -> list[Path]:
    """The SQLite databases of a home."""
    return sorted(path for path in root.rglob("*.db") if path.is_file())


def require_settled(root: Path) -> None:
    """Refuse a copy that may have been made while somebody wrote to a database.

    A database and its log are two files. Copied one after the other, they may be of different
    moments, and SQLite then shows a mixture that no check of its own has to find.

    Raises:
        RefusedError: a database has a log beside it, so it was in use, or its user was killed.
    """
    for path in databases(root):
        for ending in ("-wal", "-journal"):
            log = path.with_name(path.name + ending)
            if log.exists() and log.stat().st_size:
                raise RefusedError(
                    f"{path} was in use when it was copied ({log.name} is beside it), so it may "
                    f"be a mixture of two moments; {COPY_AGAIN}, or say --was-idle if nothing "
                    "worked on the home while it was copied"
                )


def require_sound(root: Path) -> None:
    """Refuse a copy with a damaged database.

    Raises:
        HomeError: SQLite finds one damaged.
    """
    for path in databases(root):
        damage = "; ".join(_damage(path))
        if damage:
            raise HomeError(f"{path} is damaged ({damage}), the copy is torn; {COPY_AGAIN}")


def require_whole(home: Home) -> None:
    """Refuse a copy of which a part is missing, or older than what the ledger names.

    Raises:
        HomeError: the lake or the registry lacks what the ledger names.
        RefusedError: an entry of a table's log is gone.
    """
    missing = [*_missing_rows(home), *_missing_models(home)]
    if missing:
        more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise HomeError(
            f"{home.root} is a torn copy ({'; '.join(missing[:3])}{more}); {COPY_AGAIN}"
        )


def rewrite_locations(home: Home, made_at: str, owner_tag: tuple[str, str, str]) -> int:
    """Have MLflow's records name the files of this home; returns how many were rewritten.

    Args:
        made_at: the folder that they name now.
        owner_tag: key of the tag that says whose runs these are, its value there and here.
    """
    path = _mlflow_file(home)
    if path is None:
        return 0
    count = 0
    old, new = Path(made_at), home.root
    with closing(sqlite3.connect(path, timeout=30)) as database, database:
        for table, column in LOCATIONS:
            for before, after in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
                count += database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"WHERE substr({column}, 1, ?) = ?",
                    (f"{after}/", len(before) + 2, len(before) + 1, f"{before}/"),
                ).rowcount
        key, theirs, ours = owner_tag
        database.execute(
            "UPDATE tags SET value = ? WHERE key = ? AND value = ?", (ours, key, theirs)
        )
    return count


def _mlflow_file(home: Home) -> Path | None:
    path = home.root / "mlflow" / "mlflow.db"
    return path if home.mlflow_uri == f"sqlite:///{path}" and path.exists() else None


def _damage(path: Path) -> list[str]:
    try:
        with closing(sqlite3.connect(path, timeout=30)) as database:
            found = [row[0] for row in database.execute("PRAGMA integrity_check(3)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if found == ["ok"] else found


def _missing_rows(home: Home) -> Iterator[str]:
    """What the ledger says is in a table on this disk, and is not."""
    import sqlalchemy as sa

    if home.lake_url:
        return
    t = tables().partition_versions
    newest = (
        sa.select(t.c.asset, t.c.partition, sa.func.max(t.c.table_version))
        .where(t.c.asset.like("%/features"), t.c.table_version.is_not(None))
        .group_by(t.c.asset, t.c.partition)
    )
    datasets: dict[str, dict[PartitionKey, int]] = {}
    with reading(home.ledger_url) as connection:
        for asset, partition, version in connection.execute(newest):
            datasets.setdefault(asset, {})[PartitionKey.parse(partition)] = int(version)
    for asset, named in datasets.items():
        dataset = found_dataset(home.dataset_path(asset.split("/")[0]))
        wanted: dict[str, int] = {}
        for key, version in named.items():
            path = dataset.table_of(key).path
            wanted[path] = max(version, wanted.get(path, 0))
        for path, version in wanted.items():
            yield from _missing_in_table(asset, path, version)


def _missing_in_table(asset: str, path: str, version: int) -> Iterator[str]:
    from resources.delta import open_table
    from resources.files import Files
    from resources.vacuum import read_log

    table = open_table(path)
    if table is None or table.version() < version:
        found = "no table" if table is None else f"version {table.version()}"
        yield f"{asset} is at version {version} in the ledger, {path} has {found}"
        return
    for _ in read_log(Files(path), table.version()):
        pass
    for address in table.file_uris():
        if not Path(address).exists():
            yield f"{address} is missing"


def _missing_models(home: Home) -> Iterator[str]:
    """Models that the ledger names and the registry of this home has not, or not their files."""
    import sqlalchemy as sa

    path = _mlflow_file(home)
    if path is None:
        return
    t = tables().partition_versions
    with reading(home.ledger_url) as connection:
        rows = connection.execute(
            sa.select(t.c.asset, t.c.detail).where(t.c.asset.like("%/model"))
        ).all()
    with closing(sqlite3.connect(path, timeout=30)) as database:
        # One that was deleted keeps its row, and need not have its files.
        places: dict[int, list[str]] = {}
        for number, stage, place in database.execute(
            "SELECT version, current_stage, coalesce(storage_location, source) FROM model_versions"
        ):
            own = places.setdefault(int(number), [])
            own += [] if stage == "Deleted_Internal" else [place]
    for asset, detail in rows:
        found = detail if isinstance(detail, dict) else json.loads(detail)
        if int(found["model_version"]) not in places:
            yield f"{asset} has model version {found['model_version']}, MLflow's registry has not"
    for number, known in places.items():
        for place in known:
            local = urlparse(place)
            if local.scheme == "file" and not Path(url2pathname(local.path)).exists():
                yield f"the files of model version {number} are missing, {place}"
