"""Delta tables as delta-rs opens them, and what its errors mean."""

import json
import os
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import HomeError, SignalboxError, TransientError
from resources.content import is_plain

if TYPE_CHECKING:
    from deltalake import DeltaTable

LOG = "_delta_log"
"""The folder of a table's log."""

CHECKPOINT_INTERVAL = 10
"""A checkpoint is written after so many commits."""

KEPT = 64
"""How many tables a thread keeps open, at the most; the one that was used longest ago is closed."""

_kept = threading.local()


def open_table(path: str, version: int | None = None) -> "DeltaTable | None":
    """A table at a version, its newest by default; None if there is no table."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(path, version=version)
    except TableNotFoundError:
        return None


def newest_table(path: str) -> "DeltaTable | None":
    """The table at its newest version, to write on or to look at.

    Opening one reads what it holds of every partition; so it is kept open, by thread, and brought
    up to date by what was committed since. A folder that was deleted or put back is another table.
    """
    from deltalake.exceptions import DeltaError

    born = _born(path)
    kept: dict[str, tuple[tuple[int, ...], int, DeltaTable]] = _kept.__dict__
    before, checkpoint, table = kept.pop(path, (None, 0, None))
    if table is not None and born is not None and before == born:
        with suppress(DeltaError):
            if Path(path, LOG, f"{table.version() + 1:020}.json").exists():
                table.update_incremental()  # costs as much as the table is large
            if table.version() // CHECKPOINT_INTERVAL == checkpoint:
                kept[path] = (born, checkpoint, table)
                return table
    table = open_table(path)
    if table is not None and born is not None:
        kept[path] = (born, table.version() // CHECKPOINT_INTERVAL, table)
        while len(kept) > KEPT:
            del kept[next(iter(kept))]
    return table


def first_configuration(path: str) -> dict[str, str] | None:
    """The properties that a local table was made with; None where its first entry does not say.

    Without delta-rs: a process that has used that must not fork, and this is asked for names.
    """
    born = _born(path)
    return None if born is None else _configured(path, born)


@lru_cache
def _configured(path: str, born: tuple[int, ...]) -> dict[str, str] | None:
    """Of one file, which never changes; `born` tells it from another of its name."""
    try:
        lines = Path(path, LOG, f"{0:020}.json").read_text().splitlines()
        (found,) = [
            entry["metaData"]["configuration"]
            for entry in map(json.loads, lines)
            if "metaData" in entry
        ]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dict(found)


def close_tables() -> None:
    """Keep none open in this thread any more."""
    _kept.__dict__.clear()


def _born(path: str) -> tuple[int, ...] | None:
    """Which table this is, by the file of its first version; None where nobody can tell."""
    if "://" in path:
        return None
    try:
        first = Path(path, LOG, f"{0:020}.json").stat()
    except OSError:
        return None
    return os.getpid(), first.st_dev, first.st_ino, first.st_mtime_ns


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_FULL = ("no space left", "os error 28", "file too large", "os error 27", "quota", "os error 122")
_FORBIDDEN = ("permission denied", "os error 13", "read-only file system", "os error 30")
_IN_THE_WAY = ("not a directory", "os error 20", "notadirectory")


def translated(error: BaseException, path: str) -> SignalboxError | None:
    """Delta's errors carry the cause in their text only."""
    text = str(error).lower()
    if any(sign in text for sign in _FULL):
        return TransientError(
            f"the disk under {path} is full, nothing was committed and the older versions stand; "
            "free some space and try again"
        )
    if any(sign in text for sign in _FORBIDDEN):
        return HomeError(f"{path} may not be written; give this user the right to, and try again")
    if any(sign in text for sign in _IN_THE_WAY):
        return HomeError(f"{path} cannot be a folder, a file is in the way; move the file away")
    return None


def filesystem(path: str) -> Any:
    """Where pyarrow finds a local table, whatever its path is; None for a remote one."""
    if "://" in path:
        return None
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    return SubTreeFileSystem(str(Path(path).absolute()), LocalFileSystem())


def is_storable(kind: Any) -> bool:
    """Whether a type comes back from Delta as it went in."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_timestamp(kind):
        return bool(kind == pa.timestamp("us", "UTC"))
    return bool(types.is_string(kind) or (is_plain(kind) and not types.is_unsigned_integer(kind)))


def literal(text: str) -> str:
    """A text in a predicate."""
    return "'" + text.replace("'", "''") + "'"


def column(name: str) -> str:
    """A column in a predicate."""
    return '"' + name.replace('"', '""') + '"'
