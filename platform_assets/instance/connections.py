"""Connections to Dagster's SQLite files: one engine a process, and kept open where that is asked.

Opening a SQLite file reads its schema; the last one who closes it copies the write-ahead log into
the file, waits for the disk twice and deletes the log. Dagster does both at each event. A forked
run keeps its connections until it ends, and the daemon those to the files that all runs share;
every other process opens and closes as Dagster does (docs/adr/0013-one-engine.md).
"""

import atexit
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import PurePath
from typing import Any

from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

STATEMENTS = 2000
"""Compiled statements that are kept; Dagster has some hundreds."""

SHARED = frozenset({"index.db", "runs.db", "schedules.db"})
"""What all runs write into. The other files are a run's own, and are watched for changes."""

MOST_IDLE = 8
"""Connections to one file that are kept while nobody uses them."""

_place = threading.local()
# The collector may close a connection that was forgotten, in the middle of what is done under it.
_guard = threading.RLock()
_idle: dict[str, list["KeptConnection"]] = {}
_inherited: list[dict[str, list["KeptConnection"]]] = []
_kept_names: frozenset[str] | None = frozenset()
"""Names of the files whose connections are kept; None: of all."""


class KeptConnection(sqlite3.Connection):
    """One that is put aside where it would be closed, for whoever wants the same file next."""

    path = ""
    file: tuple[int, int] | None = None
    usable = True
    _functions: frozenset[str] = frozenset()

    def create_function(self, name: str, *arguments: Any, **named: Any) -> None:
        # SQLAlchemy defines its own at each use; a second time it makes all statements stale.
        if name not in self._functions:
            super().create_function(name, *arguments, **named)
            self._functions |= {name}

    def close(self) -> None:
        with _guard:
            there = _idle.setdefault(self.path, [])
            if self.usable and not self.in_transaction and len(there) < MOST_IDLE:
                there.append(self)
                return
        super().close()

    def really_close(self) -> None:
        self.usable = False
        with suppress(sqlite3.Error):
            super().close()


def keep_connections(names: frozenset[str] | None = None) -> None:
    """From here on this process keeps its connections until it ends.

    Args:
        names: of the files that this holds for; None for all, which is for a process that has
            few of them: a run's.
    """
    global _kept_names
    _kept_names = names
    atexit.register(close_kept)


def close_kept() -> None:
    """Close what is kept and not in use; what a run has written is in its file then."""
    global _idle
    with _guard:
        found, _idle = _idle, {}
    for connection in chain.from_iterable(found.values()):
        connection.really_close()


def _after_fork() -> None:
    """Forget in the child what another thread gave back between `close_kept` and the fork.

    It is set aside, for to close it would touch the locks and the log that its parent uses.
    """
    global _guard, _idle
    _guard = threading.RLock()
    _inherited.append(_idle)
    _idle = {}


# SQLite keeps its locks by process: a child must not inherit an open connection.
os.register_at_fork(before=close_kept, after_in_child=_after_fork)


def _is_kept(path: str) -> bool:
    return _kept_names is None or PurePath(path).name in _kept_names


def _identity(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)  # noqa: PTH116 - at each event
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _open() -> sqlite3.Connection:
    path = _place.path
    if not _is_kept(path):
        return sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)
    file = _identity(path)
    while True:
        with _guard:
            there = _idle.get(path)
            found = there.pop() if there else None
        if found is None:
            break
        if found.file == file:
            return found
        found.really_close()  # another file lies there by now
    made = sqlite3.connect(
        path,
        timeout=SQLITE_BUSY_TIMEOUT_SECONDS,
        factory=KeptConnection,
        # One thread at a time has it: whoever took it out of what is idle.
        check_same_thread=False,
    )
    made.path, made.file = path, file or _identity(path)
    return made


@cache
def _engine() -> Engine:
    """The one engine; it holds no connection, so it survives a fork."""
    return create_engine(
        "sqlite://", creator=_open, poolclass=NullPool, query_cache_size=STATEMENTS
    )


@contextmanager
def connected(path: str) -> Iterator[Connection]:
    """A connection to a file with a transaction begun, committed and given back at the end."""
    _place.path = path
    with _engine().connect() as connection:
        raw: Any = connection.connection.driver_connection
        before = raw.total_changes
        try:
            with connection.begin():
                yield connection
        except BaseException:
            if isinstance(raw, KeptConnection):
                raw.usable = False
            raise
        if isinstance(raw, KeptConnection) and raw.total_changes != before:
            _tell_watchers(path)


def _tell_watchers(path: str) -> None:
    """Have a run's file change, as it does where its log is copied into it at once.

    Dagster's webserver reads a run's new events when its file changes.
    """
    if PurePath(path).name not in SHARED:
        with suppress(OSError):
            os.utime(path)
