"""Dagster's SQLite storage, whose statements are compiled once a process and not at each event.

Dagster makes an engine of SQLAlchemy for every connection, and one connection for every event:
each compiles its statements anew and asks SQLite for its version first. A third of what a small
run cost was that. Here all connections of a process come from one engine, and are kept open by runs
and the daemon (platform_assets/instance/connections.py); what Dagster looks up at each event and
what cannot change back (that a table is there) is looked up once; and a new run's file is a copy of
an empty one. What is stored, and how, is Dagster's own: a home may be used
with and without (docs/adr/0013-one-engine.md).
"""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    INDEX_SHARD_NAME,
    SqliteEventLogStorage,
)
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS, create_db_conn_string
from dagster._core.storage.sqlite_storage import (
    DagsterSqliteStorage,
    _event_logs_directory,
    _runs_directory,
    _schedule_directory,
)
from dagster._serdes import ConfigurableClassData
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

from platform_assets.instance.connections import connected

SQLITE = "sqlite:///"


def path_of(conn_string: str) -> str:
    """The file of `sqlite:////home/history/runs.db`."""
    return "/" + conn_string.removeprefix(SQLITE).lstrip("/")


def is_stamped(path: str) -> bool:
    """Whether Dagster has made its tables in a file: it writes their revision last."""
    if not os.path.exists(path):  # noqa: PTH110 - at each start of a run
        return False
    with closing(sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)) as connection:
        try:
            return connection.execute("SELECT 1 FROM alembic_version").fetchone() is not None
        except sqlite3.OperationalError:
            return False  # there is no such table yet


class OneEngineEventLogStorage(SqliteEventLogStorage):
    """Dagster's event log in SQLite: an index, and a file a run."""

    _empty: bytes | None = None

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._tables_there: set[str] = set()
        self._has_index_columns = False
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            if shard not in self._initialized_dbs:
                self._make(shard)
                self._initialized_dbs.add(shard)
            with connected(self.path_for_shard(shard)) as connection:
                yield connection

    def _make(self, shard: str) -> None:
        path = self.path_for_shard(shard)
        if is_stamped(path):
            return
        if shard == INDEX_SHARD_NAME or os.path.exists(path):  # noqa: PTH110
            self._initdb(_engine_of(self.conn_string_for_shard(shard)))
            return
        with tempfile.NamedTemporaryFile(dir=self._base_dir, prefix=".new-") as file:
            file.write(self._empty_shard())
            file.flush()
            with suppress(FileExistsError):  # another process was faster, with the same
                os.link(file.name, path)

    def _empty_shard(self) -> bytes:
        """What Dagster makes a run's file of, made once a process."""
        cls = type(self)
        if cls._empty is None:
            with tempfile.TemporaryDirectory(prefix="signalbox-") as folder:
                engine = _engine_of(create_db_conn_string(folder, "empty"))
                self._initdb(engine)
                engine.dispose()
                cls._empty = Path(folder, "empty.db").read_bytes()
        return cls._empty

    def has_table(self, table_name: str) -> bool:
        if table_name not in self._tables_there and super().has_table(table_name):
            self._tables_there.add(table_name)
        return table_name in self._tables_there

    def _has_asset_key_index_cols_on_connection(self, conn: Connection) -> bool:
        if not self._has_index_columns:
            self._has_index_columns = super()._has_asset_key_index_cols_on_connection(conn)
        return self._has_index_columns


class OneEngineRunStorage(SqliteRunStorage):
    """Dagster's runs in SQLite."""

    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> Self:
        conn_string = create_db_conn_string(base_dir, "runs")
        if is_stamped(path_of(conn_string)):
            return cls(conn_string, inst_data)
        return super().from_local(base_dir, inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with connected(path_of(self._conn_string)) as connection:
            yield connection


class OneEngineScheduleStorage(SqliteScheduleStorage):
    """Dagster's schedules and sensors in SQLite."""

    @classmethod
    def from_local(
        cls, base_dir: str, inst_data: ConfigurableClassData | None = None
    ) -> "SqliteScheduleStorage":
        conn_string = create_db_conn_string(base_dir, "schedules")
        if is_stamped(path_of(conn_string)):
            return cls(conn_string, inst_data)
        return super().from_local(base_dir, inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with connected(path_of(self._conn_string)) as connection:
            yield connection


class OneEngineStorage(DagsterSqliteStorage):
    """All three, in the places where Dagster's are."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        # Not Dagster's own __init__: it would open its own three first.
        self.base_dir = base_dir
        self._run_storage = OneEngineRunStorage.from_local(_runs_directory(base_dir))
        self._event_log_storage = OneEngineEventLogStorage(_event_logs_directory(base_dir))
        self._schedule_storage = OneEngineScheduleStorage.from_local(_schedule_directory(base_dir))
        self._inst_data = inst_data
        super(DagsterSqliteStorage, self).__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "OneEngineStorage":
        return cls.from_local(inst_data=inst_data, **config_value)


def _engine_of(conn_string: str) -> Engine:
    """An engine as Dagster makes one, to create tables with."""
    return create_engine(
        conn_string, poolclass=NullPool, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS}
    )
