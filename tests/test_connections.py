"""Connections to Dagster's SQLite files that a run and the daemon keep open."""

import importlib
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.test_utils import create_run_for_test
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from platform_assets.instance import connections, preload
from platform_assets.instance.connections import (
    SHARED,
    KeptConnection,
    close_kept,
    connected,
    keep_connections,
)
from platform_assets.instance.rehearsal import rehearse, rehearse_expressions
from platform_assets.instance.zygote import foreign_threads
from tests.conftest import ON_POSTGRES
from tests.test_storage import opened, tell, told

pytestmark = pytest.mark.skipif(ON_POSTGRES, reason="of the embedded home")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    close_kept()
    connections._kept_names = frozenset()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (n INTEGER)")
    return path


def add(path: Path, number: int) -> None:
    with connected(str(path)) as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))


def read(path: Path) -> list[int]:
    with connected(str(path)) as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT n FROM t ORDER BY n")]


def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened from here on."""
    found: list[str] = []
    connect = sqlite3.connect

    def counting(path: str, **named: object) -> sqlite3.Connection:
        found.append(Path(path).name)
        return connect(path, **named)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(connections.sqlite3, "connect", counting)
    return found


def test_a_file_is_opened_once_where_connections_are_kept_and_each_time_where_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opens(monkeypatch)
    for number in range(3):
        add(file, number)
    assert found == ["a.db"] * 3
    keep_connections()
    for number in range(3, 6):
        add(file, number)
    assert found == ["a.db"] * 4
    assert read(file) == list(range(6))


def test_the_daemon_keeps_those_to_shared_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, ours=True) as instance:
        run = create_run_for_test(instance)
        instance.report_engine_event("first", run)
        keep_connections(SHARED)
        found = opens(monkeypatch)
        for _ in range(3):
            instance.report_engine_event("again", run)
            instance.get_run_by_id(run.run_id)
            tell(instance, "a")
        assert found.count("runs.db") == 1
        assert found.count("index.db") == 1
        assert found.count(f"{run.run_id}.db") == 3
        assert set(told(instance)) == {"a"}


def test_what_is_written_is_seen_by_others_at_once_and_lies_in_the_file_at_the_end(
    file: Path,
) -> None:
    keep_connections()
    add(file, 1)
    with closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT n FROM t").fetchall() == [(1,)]
        other.execute("INSERT INTO t VALUES (2)")  # nothing is locked between two uses
        other.commit()
    assert read(file) == [1, 2]
    assert Path(f"{file}-wal").exists()
    close_kept()
    assert not Path(f"{file}-wal").exists()


def test_who_watches_a_run_is_told_of_what_a_kept_connection_writes(tmp_path: Path) -> None:
    """The file itself changes at a checkpoint only; without a nudge the UI would wait for it."""
    heard: list[str | None] = []
    enough = threading.Event()

    def hear(entry: dg.EventLogEntry, _: str) -> None:
        heard.append(entry.message)
        if len(heard) == 4:
            enough.set()

    with opened(tmp_path, ours=True) as reader, opened(tmp_path, ours=True) as writer:
        run = create_run_for_test(writer)
        keep_connections()
        writer.report_engine_event("before", run)
        writer.report_engine_event("opened", run)
        reader.event_log_storage.watch(run.run_id, None, hear)
        writer.report_engine_event("one", run)
        writer.report_engine_event("two", run)
        assert enough.wait(30)
        reader.event_log_storage.end_watch(run.run_id, hear)
    assert heard == ["before", "opened", "one", "two"]


def test_a_runs_file_changes_with_each_event_and_not_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, ours=True) as instance:
        run = create_run_for_test(instance)
        keep_connections()
        instance.report_engine_event("opened", run)
        path = tmp_path / "history" / "runs" / f"{run.run_id}.db"

        def changes() -> bool:
            os.utime(path, (1, 1))
            instance.report_engine_event("more", run)
            return path.stat().st_mtime != 1

        assert changes()
        os.utime(path, (1, 1))
        instance.all_logs(run.run_id)
        assert path.stat().st_mtime == 1
        monkeypatch.setattr(connections, "_tell_watchers", lambda _: None)
        assert not changes()  # what it is there for


def nonsense(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t SELECT n FROM t UNION SELECT nonsense FROM t")


def interrupt(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t VALUES (2)")
    raise KeyboardInterrupt


def know_the_run(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t VALUES (2)")
    raise DagsterRunAlreadyExists("it is there")


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
@pytest.mark.parametrize(
    ("go_wrong", "error"),
    [
        (nonsense, OperationalError),
        (interrupt, KeyboardInterrupt),
        (know_the_run, DagsterRunAlreadyExists),
    ],
)
def test_after_an_error_the_connection_is_not_used_again_and_the_error_is_seen(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
    go_wrong: Callable[[Connection], None],
    error: type[BaseException],
) -> None:
    if kept:
        keep_connections()
    add(file, 1)
    found = opens(monkeypatch)
    with pytest.raises(error), connected(str(file)) as connection:
        go_wrong(connection)
    assert read(file) == [1]
    assert found == ["a.db"] * (1 if kept else 2)


def test_a_locked_file_is_said_to_be_locked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SQLITE_BUSY_TIMEOUT_SECONDS", 0)
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="database is locked"):
            add(file, 1)


def test_another_file_in_its_place_is_opened_anew(file: Path) -> None:
    keep_connections()
    add(file, 1)
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (n INTEGER)")
    add(file, 2)
    assert read(file) == [2]
    close_kept()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(2,)]


def test_a_fork_inherits_no_open_connection(file: Path) -> None:
    keep_connections()
    add(file, 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = Path("/proc/self/fd").iterdir()
            inherited = [str(fd.readlink()) for fd in own if fd.exists()]
            add(file, 2)
            close_kept()
            code = 2 if str(file) in inherited else 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    add(file, 3)
    assert read(file) == [1, 2, 3]


def test_a_fork_forgets_what_was_given_back_while_it_began(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, after what was idle had been closed and before the process was copied."""
    keep_connections()
    add(file, 1)
    plain = KeptConnection.really_close

    def meanwhile(self: KeptConnection) -> None:
        plain(self)
        monkeypatch.undo()
        add(file, 2)

    monkeypatch.setattr(KeptConnection, "really_close", meanwhile)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (there,) = connections._inherited[-1][str(file)]
            left = any(connections._idle.values())
            add(file, 3)
            (mine,) = connections._idle[str(file)]
            close_kept()
            # Not closed either: that would copy the log of its parent, and delete it.
            code = 2 if left or mine is there else 0 if there.execute("SELECT 1") else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read(file) == [1, 2, 3]


def test_what_the_collector_closes_in_the_middle_does_not_wait_for_itself(file: Path) -> None:
    keep_connections()
    connections._place.path = str(file)
    forgotten = connections._open()

    def collect() -> None:
        with connections._guard:  # where it may run: in the thread that puts another one aside
            forgotten.close()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(10)
    if thread.is_alive():  # it holds what everybody else would wait for
        connections._guard = type(connections._guard)()
        pytest.fail("it waits for itself")
    assert connections._idle[str(file)] == [forgotten]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_killed_process_leaves_its_log_and_what_it_wrote_is_read(file: Path) -> None:
    """Nobody has copied the log into the file: the next one who opens it reads both."""
    pid = os.fork()
    if pid == 0:
        keep_connections()
        for number in (1, 2):
            add(file, number)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    log = Path(f"{file}-wal")
    assert log.stat().st_size > 0
    keep_connections()
    assert read(file) == [1, 2]
    add(file, 3)
    close_kept()
    assert not log.exists()
    with closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT n FROM t").fetchall() == [(1,), (2,), (3,)]


def open_files() -> set[str]:
    """By number and name, what this process has open."""
    found = set()
    for number in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"{number.name} {number.readlink()}")
    return found


def test_many_threads_share_what_is_kept(file: Path) -> None:
    keep_connections()
    threads = [
        threading.Thread(target=lambda n=n: [add(file, 10 * n + i) for i in range(10)])
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(file) == list(range(60))
    assert 1 <= len(connections._idle[str(file)]) <= 6


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_rehearsal_goes_well_and_leaves_no_thread_and_no_connection(
    capfd: pytest.CaptureFixture[str],
) -> None:
    importlib.import_module("pandas")  # OpenBLAS has threads, which it ends before a fork
    assert rehearse()  # what it imports reads files of its own
    before, files = set(foreign_threads()), open_files()
    assert rehearse()
    rehearse_expressions()
    assert set(foreign_threads()) <= before
    assert open_files() == files
    assert capfd.readouterr() == ("", "")


def test_a_rehearsal_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preload, "load_catalog", dict)
    monkeypatch.setattr(preload, "rehearse_expressions", lambda: None)
    for went_well in (True, False):
        monkeypatch.setattr(preload, "rehearse", lambda well=went_well: well)
        caplog.clear()
        preload.preload()
        assert ("its job failed" in caplog.text) is not went_well
