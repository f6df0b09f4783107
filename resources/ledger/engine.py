"""Connections to the ledger's database, its schema, and what its errors mean."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import HomeError, TransientError
from resources.ledger.tables import SCHEMA

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

BUSY_SECONDS = 30
UPGRADE_LOCK = 0x516E41
"""Number of the advisory lock that whoever changes a Postgres schema holds: any that is ours."""
MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class _Opened:
    engine: "Engine"
    file: tuple[int, int] | None
    """Device and inode of a SQLite file: another one in its place is another database."""


_engines: dict[str, "_Opened"] = {}
_inherited: list["_Opened"] = []
_guard = threading.Lock()


def _before_fork() -> None:
    # SQLite keeps its locks by process: a child must not inherit an open connection.
    for opened in list(_engines.values()):
        opened.engine.dispose()


def _after_fork() -> None:
    # What another thread of the parent still had open is kept unused, so that nothing closes it.
    global _guard
    _guard = threading.Lock()
    _inherited.extend(_engines.values())
    _engines.clear()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


@contextmanager
def reading(url: str) -> Iterator["Connection"]:
    """A transaction that reads; errors come as HomeError or TransientError."""
    with explained(url), _engine(url).begin() as connection:
        yield connection


@contextmanager
def writing(url: str) -> Iterator["Connection"]:
    """A transaction that writes; SQLite takes its write lock at the beginning of it.

    A reading transaction that turns into a writing one fails at once when somebody else wrote in
    between, whatever the busy timeout is.
    """
    with explained(url):
        engine = _engine(url).execution_options(signalbox_writes=True)
        with engine.begin() as connection:
            yield connection


@contextmanager
def alone(url: str) -> Iterator["Connection"]:
    """A connection of one's own, without a transaction: its locks end with it, whoever ends it."""
    from sqlalchemy.exc import DBAPIError

    connection = _engine(url).connect().execution_options(isolation_level="AUTOCOMMIT")
    # What is set on it and locked by it must not come back to the pool.
    connection.detach()
    try:
        yield connection
    finally:
        with suppress(DBAPIError):
            connection.close()


def upgrade(url: str) -> None:
    """Bring the schema of a database up to date, in one transaction; creates a SQLite file.

    Raises:
        HomeError: the database cannot be used, or a newer version wrote it.
        TransientError: the disk is full, or the database is locked.
    """
    if _is_current(url):
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with explained(url):
        engine = _create_engine(url)
        try:
            if engine.dialect.name == "sqlite":
                with engine.connect() as connection:
                    raw = connection.connection.driver_connection
                    assert raw is not None
                    _use_wal(raw)
            with engine.execution_options(signalbox_writes=True).begin() as connection:
                if engine.dialect.name == "postgresql":
                    # SQLite has its write lock by now; here two upgrades at once would collide.
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise HomeError(
                f"the ledger {_shown(url)} has a schema that this version does not know "
                f"({error}); use the version that wrote it, or another SIGNALBOX_HOME"
            ) from error
        finally:
            engine.dispose()


def _use_wal(raw: Any) -> None:
    """Turn the write-ahead log on; of several at once SQLite refuses all but one, without waiting.

    Raises:
        sqlite3.OperationalError: it was refused for as long as a writer waits.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            raw.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _is_current(url: str) -> bool:
    """Whether there is nothing to do, found without half a second of imports."""
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error:
        return False  # said better by whoever tries to use it
    return found == [(SCHEMA,)]


def _engine(url: str) -> "Engine":
    opened = _engines.get(url)
    if opened is None or opened.file != _identity(opened.engine):
        with _guard:
            opened = _engines.get(url)
            if opened is None or opened.file != _identity(opened.engine):
                if opened is not None:
                    opened.engine.dispose()
                engine = _create_engine(url)
                file = _identity(engine)
                _require_schema(engine, url)
                _engines[url] = opened = _Opened(engine, file)
    return opened.engine


def _identity(engine: "Engine") -> tuple[int, int] | None:
    if engine.dialect.name != "sqlite":
        return None
    try:
        state = Path(str(engine.url.database)).stat()
    except OSError as error:
        # SQLite would create an empty database, or go on writing into one that was deleted.
        raise HomeError(
            f"there is no ledger at {engine.url.database} ({error.strerror}); run `signalbox init`"
        ) from error
    return state.st_dev, state.st_ino


def _create_engine(url: str) -> "Engine":
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
        engine = sa.create_engine(parsed, pool_pre_ping=backend == "postgresql")
    except (sa.exc.ArgumentError, ImportError) as error:
        raise HomeError(_bad_url(str(error))) from error
    if backend == "postgresql":
        return engine
    if backend != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise HomeError(_bad_url(f"found {parsed}"))

    @sa.event.listens_for(engine, "connect")
    def configure(raw: Any, _: Any) -> None:
        # Without this, Python's driver begins transactions by itself, and never before DDL.
        raw.isolation_level = None
        raw.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        raw.execute("PRAGMA foreign_keys = ON")
        raw.execute("PRAGMA synchronous = NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: "Connection") -> None:
        writes = connection.get_execution_options().get("signalbox_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _bad_url(why: str) -> str:
    return (
        f"SIGNALBOX_LEDGER_URL cannot be used ({why}); allowed are sqlite:////folder/file.db and "
        "postgresql://user@host/database"
    )


def _require_schema(engine: "Engine", url: str) -> None:
    import sqlalchemy as sa

    with engine.begin() as connection:
        found = None
        if sa.inspect(connection).has_table("alembic_version"):
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    if found != SCHEMA:
        raise HomeError(
            f"the ledger {_shown(url)} has schema {found or 'none'}, this version needs {SCHEMA}; "
            "run `signalbox init`, or use the version that wrote it"
        )


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn a database error that a person can act on into one of the project's own."""
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        mine = _explain(error, url)
        if mine is None:
            raise
        raise mine from error


def _explain(error: Exception, url: str) -> HomeError | TransientError | None:
    from sqlalchemy.exc import OperationalError

    where = f"the ledger {_shown(url)}"
    if url.startswith("sqlite"):
        return explain_sqlite(error, where)
    if isinstance(error, OperationalError):
        cause = " ".join(str(error.orig).split())
        return TransientError(
            f"{where} does not answer ({cause}); see that its server runs and that "
            "SIGNALBOX_LEDGER_URL names it, then try again"
        )
    return None


def explain_sqlite(error: BaseException, what: str) -> HomeError | TransientError | None:
    """The project's own error for a SQLite error in a chain of causes, if a person can act on it.

    Args:
        error: what was caught.
        what: the database, as the subject of the sentence.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = cause.__cause__ or cause.__context__
    code = (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return TransientError(
            f"{what} could not be written ({cause}), nothing was recorded; free some disk space "
            "and try again"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TransientError(
            f"{what} was locked by another process for {BUSY_SECONDS} s, nothing was recorded; "
            "try again"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return HomeError(
            f"{what} cannot be written ({cause}); give yourself the right to write it, or choose "
            "another SIGNALBOX_HOME"
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return HomeError(
            f"{what} is damaged ({cause}); restore it from a copy, or choose another SIGNALBOX_HOME"
        )
    return None


def _shown(url: str) -> str:
    from sqlalchemy import make_url

    shown = make_url(url)
    return str(shown.database) if shown.get_backend_name() == "sqlite" else str(shown)
