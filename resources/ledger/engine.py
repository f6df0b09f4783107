"""Connections to the ledger's database, its schema, and what its errors mean."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import HomeError, TransientError
from resources.ledger.tables import SCHEMA

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import DBAPIError

BUSY_SECONDS = 30
MIGRATIONS = Path(__file__).parent / "migrations"

_engines: dict[str, "Engine"] = {}
_inherited: list["Engine"] = []
_guard = threading.Lock()


def _before_fork() -> None:
    # SQLite keeps its locks by process: a child must not inherit an open connection.
    for engine in list(_engines.values()):
        engine.dispose()


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


def upgrade(url: str) -> None:
    """Bring the schema of a database up to date, in one transaction; creates a SQLite file.

    Raises:
        HomeError: the database cannot be used, or a newer version wrote it.
        TransientError: the disk is full, or the database is locked.
    """
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
                    raw.execute("PRAGMA journal_mode = WAL")
            with engine.execution_options(signalbox_writes=True).begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise HomeError(
                f"the ledger {_shown(url)} has a schema that this version does not know "
                f"({error}); use the version that wrote it, or another SIGNALBOX_HOME"
            ) from error
        finally:
            engine.dispose()


def _engine(url: str) -> "Engine":
    engine = _engines.get(url)
    if engine is None:
        with _guard:
            engine = _engines.get(url)
            if engine is None:
                engine = _create_engine(url)
                _require_schema(engine, url)
                _engines[url] = engine
    return engine


def _create_engine(url: str) -> "Engine":
    import sqlalchemy as sa

    engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name != "sqlite":
        return engine

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


def _require_schema(engine: "Engine", url: str) -> None:
    import sqlalchemy as sa

    database = engine.url.database
    is_file = engine.dialect.name == "sqlite" and database not in (None, "", ":memory:")
    if is_file and not Path(str(database)).exists():
        # SQLite would create an empty database in its place.
        raise HomeError(f"there is no ledger at {database}; run `signalbox init`")
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
    except DBAPIError as error:
        mine = _explain(error, url)
        if mine is None:
            raise
        raise mine from error


def _explain(error: "DBAPIError", url: str) -> HomeError | TransientError | None:
    import sqlite3

    where, cause = _shown(url), error.orig
    if not isinstance(cause, sqlite3.Error):
        if error.connection_invalidated or type(cause).__name__ == "OperationalError":
            return TransientError(f"the ledger {where} does not answer ({cause}); try again later")
        return None
    code = (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return TransientError(
            f"the ledger {where} could not be written ({cause}), nothing was recorded; free some "
            "disk space and try again"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TransientError(
            f"the ledger {where} was locked by another process for {BUSY_SECONDS} s, nothing was "
            "recorded; try again"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return HomeError(
            f"the ledger {where} cannot be written ({cause}); give yourself the right to write "
            "it, or choose another SIGNALBOX_HOME"
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return HomeError(
            f"the ledger {where} is damaged ({cause}); restore it from a copy, or choose another "
            "SIGNALBOX_HOME"
        )
    return None


def _shown(url: str) -> str:
    from sqlalchemy import make_url

    shown = make_url(url)
    return str(shown.database) if shown.get_backend_name() == "sqlite" else str(shown)
