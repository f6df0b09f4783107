"""Looking after a Delta table: compaction, a checkpoint, and files that no version ever had.

Nothing that any version of the table holds is removed: models are repeated from them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from resources.delta import LOG, close_tables, open_table, translated
from resources.vacuum import read_log

ORPHAN_SECONDS = 24 * 3600.0
"""A file that no version has is left alone for a day: its writer may be about to commit it."""


@dataclass(frozen=True)
class Compacted:
    """What became of the files of a table.

    Attributes:
        added, removed: files at the newest version; older versions keep theirs.
        conflict: a writer was faster, it is to be tried again later.
    """

    added: int
    removed: int
    conflict: bool = False


def compact(path: str) -> Compacted:
    """Make one file of each partition that has several, and write a checkpoint if there is news.

    Raises:
        TransientError: the disk is full.
    """
    from deltalake.exceptions import CommitFailedError

    table = open_table(path)
    if table is None:
        return Compacted(0, 0)
    try:
        done = table.optimize.compact()
        if _checkpoint(path) != table.version():
            table.create_checkpoint()
    except CommitFailedError:
        return Compacted(0, 0, conflict=True)
    except Exception as error:
        known = translated(error, path)
        if known is None:
            raise
        raise known from error
    finally:
        close_tables()
    return Compacted(int(done["numFilesAdded"]), int(done["numFilesRemoved"]))


def _checkpoint(path: str) -> int | None:
    """The version of the newest checkpoint; None where there is none, or nobody can tell."""
    try:
        return int(json.loads(Path(path, LOG, "_last_checkpoint").read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def orphans(path: str, now: float) -> list[Path]:
    """The data files that no commit of a table ever added, and that are older than a day.

    Args:
        path: a local folder; of a remote one nothing is known.
        now: seconds since the epoch.

    Raises:
        RefusedError: the log is not whole, so that nobody can tell.
    """
    root = Path(path)
    table = None if "://" in path else open_table(path)
    if table is None:
        return []
    # Listed before the log is read: what is committed in between is found in the log.
    listed = [f for f in root.rglob("*.parquet") if "_delta_log" not in f.relative_to(root).parts]
    old = [f for f in listed if now - f.stat().st_mtime > ORPHAN_SECONDS]
    newest = open_table(path)
    assert newest is not None
    known = _ever_added(root, newest.version())
    return sorted(f for f in old if f.relative_to(root).as_posix() not in known)


def _ever_added(root: Path, version: int) -> set[str]:
    return {
        unquote(action["add"]["path"])
        for _, actions in read_log(root, version)
        for action in actions
        if action.get("add")
    }
