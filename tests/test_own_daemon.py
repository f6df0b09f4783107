"""The daemon with quick backfills, and the parts of Dagster that it leans on."""

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._cli.proxy_server_manager import ProxyServerManager
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.test_utils import create_run_for_test
from dagster._daemon import backfill, controller, sensor
from dagster._daemon.daemon import BackfillDaemon, IntervalDaemon, SensorDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

from platform_assets.cli.lanes import stale_daemons
from platform_assets.demo.daemons import RESOURCE
from platform_assets.domain.lanes import LANE_TAG, Lane
from platform_assets.domain.lease import Holder
from platform_assets.domain.ticks import IDLE_SECONDS
from platform_assets.instance import daemon
from platform_assets.instance.coordinator import HURRY
from platform_assets.instance.daemon import (
    PromptQueueDaemon,
    PunctualSensorDaemon,
    QuickBackfillDaemon,
    look,
    own_daemons,
)
from platform_assets.instance.whereabouts import tag_of
from resources.giving_way import Patience
from resources.home import Home
from resources.ledger.leases import Leases
from resources.processes import holder, machine

ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("l"), "r"), "j")


@pytest.fixture
def instance(home: Home) -> Any:
    with dg.DagsterInstance.from_config(str(home.dagster)) as found:
        yield found


def test_dagsters_own_tick_is_what_ours_replaces() -> None:
    """If this fails, see whether the tick can be set by now, and whether ours is still needed."""
    assert controller.DEFAULT_DAEMON_INTERVAL_SECONDS == IDLE_SECONDS == 30
    assert "DEFAULT_DAEMON_INTERVAL_SECONDS" in inspect.getsource(
        backfill.execute_backfill_iteration_loop
    )


def test_what_makes_dagsters_sensors_late_is_there() -> None:
    """If this fails, see whether a sensor is punctual by now, and whether ours is still needed."""
    assert sensor.MIN_INTERVAL_LOOP_TIME == 5
    assert "MIN_INTERVAL_LOOP_TIME" in inspect.getsource(sensor.execute_sensor_iteration_loop)
    own = inspect.getsource(SensorDaemon.core_loop)
    assert "execute_sensor_iteration_loop(" in own


def test_what_is_used_of_dagsters_internals_is_there() -> None:
    def names(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(backfill.execute_backfill_iteration) == [
        "workspace_process_context",
        "logger",
        "threadpool_executor",
        "submit_threadpool_executor",
        "backfill_futures",
        "debug_crash_flags",
    ]
    assert names(sensor.execute_sensor_iteration) == [
        "workspace_process_context",
        "logger",
        "threadpool_executor",
        "submit_threadpool_executor",
        "sensor_tick_futures",
        "debug_crash_flags",
        "instrument_elapsed",
    ]
    assert names(SensorDaemon.core_loop) == ["self", "workspace_process_context", "shutdown_event"]
    assert {"instance", "workspace_load_target", "gen_daemons"} <= {
        *names(controller.daemon_controller_from_instance)
    }
    assert names(BackfillDaemon.core_loop) == [
        "self",
        "workspace_process_context",
        "shutdown_event",
    ]
    assert names(ProxyServerManager.__init__)[:4] == [
        "self",
        "instance",
        "workspace_load_target",
        "code_server_log_level",
    ]
    made = BackfillDaemon(settings={"use_threads": True})
    assert made._threadpool_executor is not None
    assert made._submit_threadpool_executor is None
    own = inspect.getsource(BackfillDaemon.core_loop)
    assert "execute_backfill_iteration_loop(" in own


def test_all_of_dagsters_daemons_run_and_only_three_differ(instance: dg.DagsterInstance) -> None:
    ours = {type(made).daemon_type(): type(made) for made in own_daemons(instance)}
    theirs = {
        type(made).daemon_type(): type(made)
        for made in controller.create_daemons_from_instance(instance)
    }
    assert theirs.pop("BACKFILL") is BackfillDaemon
    assert ours.pop("BACKFILL") is QuickBackfillDaemon
    assert theirs.pop("SENSOR") is SensorDaemon
    assert ours.pop("SENSOR") is PunctualSensorDaemon
    assert theirs.pop("QUEUED_RUN_COORDINATOR") is QueuedRunCoordinatorDaemon
    assert ours.pop("QUEUED_RUN_COORDINATOR") is PromptQueueDaemon
    assert ours == theirs


class Looks:
    """A loop of the queue in a thread of its own, and how often it has looked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.said, self.ended = 0, "", threading.Event()
        monkeypatch.setattr(QueuedRunCoordinatorDaemon, "run_iteration", self.iteration)
        # Nobody waits for so long: what looks again was woken.
        self.queue = PromptQueueDaemon(interval_seconds=3600)

    def iteration(self, *_: Any, **__: Any) -> Any:
        self.count += 1
        if self.count == 2:
            raise RuntimeError("the storage is away")
        yield None

    def run(self) -> None:
        with self.queue as made:
            for said in made.core_loop(Context(None), self.ended):  # type: ignore[arg-type]
                self.said += str(said)

    def reach(self, count: int) -> None:
        until = time.monotonic() + 60
        while self.count < count:
            assert time.monotonic() < until, f"{self.count} looks"
            time.sleep(0.01)


def test_the_queue_looks_at_once_when_a_run_in_a_hurry_is_submitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Looks(monkeypatch)
    thread = threading.Thread(target=looks.run)
    thread.start()
    try:
        for count in (1, 2, 3, 4):
            looks.reach(count)
            HURRY.set()
        looks.reach(5)
    finally:
        looks.ended.set()
        thread.join(60)
    assert not thread.is_alive()
    assert "the storage is away" in looks.said


FROM_A_SENSOR = {"dagster/sensor_name": "flights_readiness"}
BY_LANE = {
    Lane.DAILY: FROM_A_SENSOR,
    Lane.LATE: FROM_A_SENSOR,
    Lane.BACKFILL: {"dagster/backfill": "b"},
    Lane.ADHOC: {},
}


@pytest.mark.parametrize("lane", Lane)
def test_all_but_a_backfills_runs_are_in_a_hurry(instance: dg.DagsterInstance, lane: Lane) -> None:
    """A backfill's come by the hundred, and the queue would look after each."""
    run = create_run_for_test(
        instance,
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags={LANE_TAG: lane.value, "dagster/partition": "2013-01-05", **BY_LANE[lane]},
        remote_job_origin=ORIGIN,
    )
    HURRY.clear()
    submitted = instance.run_coordinator.submit_run(SubmitRunContext(run, None))  # type: ignore[union-attr, arg-type]
    assert submitted.tags[LANE_TAG] == lane
    assert HURRY.is_set() == (lane is not Lane.BACKFILL)


def test_dagsters_own_queue_looks_once_an_interval() -> None:
    """If this fails, see whether ours is still needed."""
    own = inspect.getsource(IntervalDaemon.core_loop)
    assert "while time.time() - start_time < interval" in own
    assert QueuedRunCoordinatorDaemon.core_loop is IntervalDaemon.core_loop


def add(instance: dg.DagsterInstance, name: str) -> None:
    instance.add_backfill(
        PartitionBackfill(
            backfill_id=name,
            status=BulkActionStatus.REQUESTED,
            from_failure=False,
            tags={},
            backfill_timestamp=1.0,
            partition_names=[],
        )
    )


def test_a_look_sees_what_goes_on(instance: dg.DagsterInstance) -> None:
    assert look(instance) == {}
    add(instance, "b")
    own = {"dagster/backfill": "b"}
    queued = create_run_for_test(
        instance, status=dg.DagsterRunStatus.QUEUED, tags=own, remote_job_origin=ORIGIN
    )
    started = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=own)
    create_run_for_test(instance, status=dg.DagsterRunStatus.SUCCESS, tags=own)
    create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
    found = look(instance)["b"]
    assert (found.status, found.queued) == ("REQUESTED", 1)
    assert found.unfinished == {queued.run_id, started.run_id}


class Context:
    """What the loop asks of a workspace."""

    def __init__(self, instance: dg.DagsterInstance | None) -> None:
        self.instance = instance


def test_the_loop_evaluates_at_news_and_survives_errors(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []

    def iteration(context: Any, *_: Any, **__: Any) -> Any:
        evaluated.append(len(evaluated))
        if len(evaluated) == 1:
            raise RuntimeError("the code server is away")
        yield None

    monkeypatch.setattr(daemon, "execute_backfill_iteration", iteration)
    monkeypatch.setattr(daemon, "TICK_SECONDS", 0.0)
    add(instance, "b")
    create_run_for_test(
        instance, status=dg.DagsterRunStatus.STARTED, tags={"dagster/backfill": "b"}
    )
    ended = threading.Event()
    with QuickBackfillDaemon(settings={}) as made:
        loop = made.core_loop(Context(instance), ended)  # type: ignore[arg-type]
        said = [next(loop) for _ in range(8)]
        assert evaluated == [0], "the run goes on, nothing has changed"
        assert any("the code server is away" in str(one) for one in said)
        add(instance, "c")
        for _ in range(4):
            next(loop)
        assert len(evaluated) >= 2
        ended.set()
        loop.close()


def test_what_can_wait_waits_while_a_run_in_a_hurry_is_at_work(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[Patience] = []
    asked: list[Patience] = []
    hurry = True

    def iteration(*_: Any, **__: Any) -> Any:
        evaluated.append(asked[-1] if asked else Patience())
        yield None

    def why_not_begin(patience: Patience) -> str | None:
        asked.append(patience)
        patience.stands(hurry)
        return "hurry" if hurry else None

    monkeypatch.setattr(daemon, "execute_backfill_iteration", iteration)
    monkeypatch.setattr(daemon, "why_not_begin", why_not_begin)
    monkeypatch.setattr(daemon, "TICK_SECONDS", 0.0)
    add(instance, "b")
    own = {"dagster/backfill": "b"}
    runs = [
        create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=own)
        for _ in range(2)
    ]
    ended = threading.Event()
    with QuickBackfillDaemon(settings={}) as made:
        loop = made.core_loop(Context(instance), ended)  # type: ignore[arg-type]

        def turn() -> int:
            for _ in range(6):
                next(loop)
            return len(evaluated)

        assert turn() == 1, "one that is new does not wait"
        assert not asked
        instance.report_run_canceled(runs[0])
        assert turn() == 1, "what its run has made possible does"
        assert asked[-1].aside
        hurry = False
        assert turn() == 2
        hurry = True
        instance.report_run_canceled(runs[1])
        assert turn() == 2
        assert asked[-1].aside
        instance.update_backfill(
            instance.get_backfill("b").with_status(BulkActionStatus.CANCELING)  # type: ignore[union-attr]
        )
        assert turn() > 2, "nor does one that is being ended"
        assert not evaluated[2].aside, "it goes on, and its patience grows again"
        ended.set()
        loop.close()


class Sensors:
    """A workspace with one sensor that is due every 10 s, and how often its loop ticks it."""

    def __init__(self, looks_every: float) -> None:
        self.now, self.looks_every = 0.0, looks_every
        self.ticks: list[float] = []

    def iterate(self, *_: Any, **__: Any) -> Any:
        # Dagster notes a tick's beginning in the thread that evaluates, a little after the look.
        if not self.ticks or self.now - self.ticks[-1] >= 10:
            self.ticks.append(self.now + 0.02)
        yield None

    def wait(self, _: float) -> None:
        self.now += self.looks_every

    def is_set(self) -> bool:
        return self.now > 65


def test_a_sensor_ticks_when_it_is_due_and_not_half_an_interval_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gaps(found: Sensors) -> set[int]:
        pairs = zip(found.ticks, found.ticks[1:], strict=False)
        return {round(after - before) for before, after in pairs}

    theirs = Sensors(sensor.MIN_INTERVAL_LOOP_TIME)
    while not theirs.is_set():
        list(theirs.iterate())
        theirs.wait(0)
    assert gaps(theirs) == {15}
    ours = Sensors(daemon.SENSOR_SECONDS)
    monkeypatch.setattr(daemon, "execute_sensor_iteration", ours.iterate)
    with PunctualSensorDaemon(settings={}) as made:
        list(made.core_loop(Context(None), ours))  # type: ignore[arg-type]
    assert gaps(ours) == {11}


@pytest.mark.heavy
@pytest.mark.embedded
def test_the_daemon_runs_as_a_command_and_ends_with_ctrl_c(
    home: Home, instance: dg.DagsterInstance
) -> None:
    log, leases = home.root / "log", Leases(home.ledger_url)
    tag = tag_of(Holder("", machine(), os.getpid(), "before"))
    killed = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=tag)
    with log.open("wb") as out:
        command = [sys.executable, "-c", "from platform_assets.cli import main; main(['daemon'])"]
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            cwd=Path(__file__).parents[1],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        deadline = threading.Event()
        for _ in range(600):
            if b"QuickBackfillDaemon" in log.read_bytes() or process.poll() is not None:
                break
            deadline.wait(0.1)
        assert process.poll() is None, log.read_text()
        assert [record.holder for record in leases.held(RESOURCE)] == [
            holder(RESOURCE, process.pid)
        ]
        assert list(stale_daemons(home)) == []
        later = time.time() + 60
        os.utime(home.dagster / "dagster.yaml", (later, later))
        assert list(stale_daemons(home)) == [process.pid], "the doctor knows it"
        found = instance.get_run_by_id(killed.run_id)
        assert found is not None
        assert found.status is dg.DagsterRunStatus.FAILURE, "its process has gone"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    assert "QuickBackfillDaemon" in log.read_text()
    assert leases.held(RESOURCE) == []


def test_mlflows_migrations_are_read_once_where_that_is_asked_for() -> None:
    code = """
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config, _get_latest_schema_revision
from platform_assets.instance.migrations import remember_migrations, remember_migrations_of_mlflow

def read():
    return ScriptDirectory.from_config(_get_alembic_config(""))

newest = _get_latest_schema_revision()
remember_migrations()
assert read() is not read(), "there would be nothing to remember"
remember_migrations_of_mlflow()
assert read() is read()
assert _get_latest_schema_revision() == newest
"""
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
    )


def test_dagsters_migrations_are_read_once_and_nobody_elses_kept() -> None:
    code = """
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.sql import get_alembic_config
from platform_assets.instance.migrations import remember_migrations
from resources.ledger.engine import MIGRATIONS

def heads():
    theirs = ScriptDirectory.from_config(get_alembic_config(sqlite_event_log.__file__))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    ours = ScriptDirectory.from_config(config)
    return theirs, theirs.as_revision_number("head"), ours, ours.as_revision_number("head")

kept = [heads(), heads()]
assert kept[0][0] is not kept[1][0], "there would be nothing to remember"
remember_migrations()
after = [heads(), heads()]
assert after[0][0] is after[1][0], "Dagster's are kept"
assert {found[1] for found in kept + after} == {kept[0][1]}
assert after[0][3] == after[1][3] == kept[0][3]
"""
    # In a process of its own: it changes alembic for good.
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
    )
