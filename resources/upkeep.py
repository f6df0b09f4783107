"""Looking after a Delta table: compaction, a checkpoint, and files that no version ever had.

Nothing that any version of the table holds is removed: models are repeated from them.
"""

import json
from dataclasses import dataclass
from urllib.parse import unquote

from resources.delta import LOG, close_tables, open_table, translated
from resources.files import Files, Listed
from resources.vacuum import data_files, read_log

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
        return int(json.loads(Files(path).read(f"{LOG}/_last_checkpoint"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def orphans(path: str, now: float) -> list[Listed]:
    """The data files that no commit of a table ever added, and that are older than a day.

    Args:
        path: a folder, or its URL.
        now: seconds since the epoch.

    Raises:
        RefusedError: the log is not whole, so that nobody can tell.
    """
    files = Files(path)
    if open_table(path) is None:
        return []
    # Listed before the log is read: what is committed in between is found in the log.
    old = [file for file in data_files(files) if now - file.modified > ORPHAN_SECONDS]
    newest = open_table(path)
    assert newest is not None
    known = _ever_added(files, newest.version())
    return [file for file in old if file.name not in known]


def _ever_added(files: Files, version: int) -> set[str]:
    return {
        unquote(action["add"]["path"])
        for _, actions in read_log(files, version)
        for action in actions
        if action.get("add")
    }
