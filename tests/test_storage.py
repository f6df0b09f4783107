"""Dagster's SQLite storage with one engine: the same semantics and the same files as Dagster's."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.test_utils import create_run_for_test
from sqlalchemy.sql.compiler import SQLCompiler

from platform_assets.factory.instance import POSTGRES_STORAGE, dagster_yaml
from platform_assets.instance.storage import OneEngineEventLogStorage
from tests.conftest import ON_POSTGRES

pytestmark = pytest.mark.skipif(ON_POSTGRES, reason="of the embedded home")

OURS = "instance_class:\n  module: platform_assets.instance.steered\n  class: SignalboxInstance\n"
KEY = dg.AssetKey(["flights", "features"])


@contextmanager
def opened(folder: Path, *, ours: bool) -> Iterator[dg.DagsterInstance]:
    """An instance in a folder: Signalbox's, or Dagster's own."""
    folder.mkdir(exist_ok=True)
    (folder / "dagster.yaml").write_text(OURS if ours else "telemetry:\n  enabled: false\n")
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        kind = OneEngineEventLogStorage if ours else SqliteEventLogStorage
        assert type(instance.event_log_storage) is kind
        yield instance


def tell(instance: dg.DagsterInstance, partition: str) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(KEY, partition=partition, tags={"dagster/data_version": partition})
    )


def told(instance: dg.DagsterInstance) -> list[str | None]:
    found = instance.fetch_materializations(KEY, limit=100, ascending=True)
    return [record.partition_key for record in found.records]


def shape(path: Path) -> set[tuple[str, str | None]]:
    """Tables and indices of a SQLite file, the revision, and how it is journaled."""
    with closing(sqlite3.connect(path)) as connection:
        found = set(connection.execute("SELECT name, sql FROM sqlite_master"))
        found |= {("revision", r[0]) for r in connection.execute("SELECT * FROM alembic_version")}
        return found | {("mode", connection.execute("PRAGMA journal_mode").fetchone()[0])}


def test_the_home_uses_it_and_one_on_postgres_does_not(tmp_path: Path) -> None:
    text = dagster_yaml().read_text()
    (tmp_path / "dagster.yaml").write_text(text)
    found = InstanceRef.from_dir(str(tmp_path)).storage_data
    assert found is not None
    assert found.class_name == "OneEngineStorage"
    (tmp_path / "dagster.yaml").write_text(text + POSTGRES_STORAGE)
    named = InstanceRef.from_dir(str(tmp_path)).storage_data
    assert named is not None
    assert named.class_name == "DagsterPostgresStorage"


@pytest.mark.parametrize("ours_first", [True, False])
def test_what_one_has_written_the_other_reads_and_goes_on_with(
    tmp_path: Path, ours_first: bool
) -> None:
    with opened(tmp_path, ours=ours_first) as instance:
        run = create_run_for_test(instance, tags={"signalbox/lane": "daily"})
        instance.report_engine_event("first", run)
        tell(instance, "a")
    with opened(tmp_path, ours=not ours_first) as instance:
        instance.report_engine_event("second", run)
        tell(instance, "b")
        other = create_run_for_test(instance)
        instance.report_engine_event("third", other)
    with opened(tmp_path, ours=ours_first) as instance:
        assert told(instance) == ["a", "b"]
        assert [entry.message for entry in instance.all_logs(run.run_id)] == ["first", "second"]
        assert [entry.message for entry in instance.all_logs(other.run_id)] == ["third"]
        tagged = instance.get_runs(dg.RunsFilter(tags={"signalbox/lane": "daily"}))
        assert [found.run_id for found in tagged] == [run.run_id]


def test_a_runs_file_is_as_dagster_makes_it(tmp_path: Path) -> None:
    shapes = {}
    for ours in (True, False):
        folder = tmp_path / str(ours)
        with opened(folder, ours=ours) as instance:
            run = create_run_for_test(instance)
            instance.report_engine_event("something", run)
            tell(instance, "a")
            instance.all_instigator_state()
        files = {
            "run": folder / "history" / "runs" / f"{run.run_id}.db",
            "index": folder / "history" / "runs" / "index.db",
            "runs": folder / "history" / "runs.db",
            "schedules": folder / "schedules" / "schedules.db",
        }
        shapes[ours] = {name: shape(path) for name, path in files.items()}
        left = [path.name for path in files["run"].parent.iterdir() if path.name.startswith(".new")]
        assert left == []
    assert shapes[True] == shapes[False]


def test_cursors_go_forward_and_checks_are_found(tmp_path: Path) -> None:
    with opened(tmp_path, ours=True) as instance:
        for partition in "abc":
            tell(instance, partition)
        first = instance.fetch_materializations(KEY, limit=2, ascending=True)
        assert first.has_more
        rest = instance.fetch_materializations(KEY, limit=2, ascending=True, cursor=first.cursor)
        assert [record.partition_key for record in rest.records] == ["c"]
        assert not rest.has_more
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=KEY, check_name="clear", passed=False)
        )
        checks = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(KEY, "clear"), limit=5
        )
        assert [record.status.value for record in checks] == ["FAILED"]
        run = create_run_for_test(instance)
        instance.report_run_failed(run)
        changes = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=5)
        assert [record.run_id for record in changes.records] == [run.run_id]
        instance.wipe()
        assert told(instance) == []
        tell(instance, "d")
        assert told(instance) == ["d"]


def test_who_watches_a_run_is_told_of_what_another_writes(tmp_path: Path) -> None:
    """As the UI does: the file of the run must change on the disk at each event."""
    heard: list[str | None] = []
    enough = threading.Event()

    def hear(entry: dg.EventLogEntry, _: str) -> None:
        heard.append(entry.message)
        if len(heard) == 3:
            enough.set()

    with opened(tmp_path, ours=True) as reader, opened(tmp_path, ours=True) as writer:
        run = create_run_for_test(writer)
        writer.report_engine_event("before", run)
        reader.event_log_storage.watch(run.run_id, None, hear)
        writer.report_engine_event("one", run)
        writer.report_engine_event("two", run)
        assert enough.wait(30)
        reader.event_log_storage.end_watch(run.run_id, hear)
    assert heard == ["before", "one", "two"]


def compiled(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> int:
    """How many statements are compiled meanwhile."""
    count = 0
    make = SQLCompiler.__init__

    def counting(self: SQLCompiler, *args: object, **kwargs: object) -> None:
        nonlocal count
        count += 1
        make(self, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SQLCompiler, "__init__", counting)
        work()
    return count


def test_statements_are_compiled_once_where_dagster_does_at_each_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = 2

    def work(instance: dg.DagsterInstance) -> None:
        for _ in range(events):
            run = create_run_for_test(instance)
            instance.report_engine_event("something", run)
            tell(instance, "a")
            instance.get_run_by_id(run.run_id)

    with opened(tmp_path / "dagster", ours=False) as instance:
        work(instance)
        assert compiled(monkeypatch, lambda: work(instance)) > 5 * events
    with opened(tmp_path / "ours", ours=True) as instance:
        work(instance)
        # An insert of tags has as many rows as there are tags, and is not kept by SQLAlchemy.
        assert compiled(monkeypatch, lambda: work(instance)) <= events


def test_many_threads_and_homes_at_once_mix_nothing(tmp_path: Path) -> None:
    """One engine serves all files of a process: each connection is to its own."""
    with (
        opened(tmp_path / "x", ours=True) as x,
        opened(tmp_path / "y", ours=True) as y,
        ThreadPoolExecutor(8) as pool,
    ):
        homes = {"x": x, "y": y}

        def write(number: int) -> tuple[str, str]:
            name = "xy"[number % 2]
            run = create_run_for_test(homes[name])
            homes[name].report_engine_event(f"{name}{number}", run)
            tell(homes[name], f"{name}{number}")
            return name, run.run_id

        written = list(pool.map(write, range(24)))
        for number, (name, run_id) in enumerate(written):
            assert [e.message for e in homes[name].all_logs(run_id)] == [f"{name}{number}"]
        for name, home in homes.items():
            wanted = {f"{name}{n}" for n, (own, _) in enumerate(written) if own == name}
            assert set(told(home)) == wanted
            assert {run.run_id for run in home.get_runs()} == {r for n, r in written if n == name}


def test_a_new_runs_file_that_several_make_at_once_is_made_once(tmp_path: Path) -> None:
    with opened(tmp_path, ours=True):
        pass
    run_id = "11111111-1111-1111-1111-111111111111"
    barrier = threading.Barrier(6)

    def write(number: int) -> None:
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            storage = instance.event_log_storage
            assert isinstance(storage, SqliteEventLogStorage)
            barrier.wait()
            with storage.run_connection(run_id) as connection:
                connection.exec_driver_sql(
                    "INSERT INTO event_logs (run_id, event, timestamp) VALUES (?, ?, ?)",
                    (run_id, str(number), "2013-01-01 00:00:00"),
                )

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    with closing(sqlite3.connect(tmp_path / "history" / "runs" / f"{run_id}.db")) as connection:
        assert connection.execute("SELECT count(*) FROM event_logs").fetchone()[0] == 6
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone()[0] == 1


def test_a_fork_of_a_process_that_has_used_it_uses_it_too(tmp_path: Path) -> None:
    with opened(tmp_path, ours=True) as instance:
        tell(instance, "parent")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                tell(instance, "child")
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        tell(instance, "parent again")
        assert told(instance) == ["parent", "child", "parent again"]
