"""Runs that no queue has started: what waits for its lane takes no slot of the daily one."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

from platform_assets.cli.lanes import live_differences
from platform_assets.domain.lanes import Lane
from platform_assets.factory.backfills import read_queue
from platform_assets.instance.steered import limits_in_force
from resources.home import Home
from resources.lanes import load_lanes
from tests.queueing import ORIGIN, backfill, lanes, next_to_start, past_the_queue, start, submit

LANES = load_lanes()


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """The instance of a home, as its daemon opens it."""
    with dg.DagsterInstance.get() as opened:
        yield opened


def fill_the_lanes(instance: dg.DagsterInstance) -> None:
    """As many runs in progress as the lanes but the daily one allow."""
    for tags in backfill("abc", 2):
        submit(instance, tags)
    submit(instance, {"dagster/sensor_name": "flights_late_data"})
    for _ in range(2):
        submit(instance, {})
    assert lanes(start(instance)) == ["adhoc", "adhoc", "backfill", "backfill", "late"]


def without_the_guard(instance: dg.DagsterInstance) -> list[DagsterRun]:
    """What the daemon would start by the limits alone."""
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        return daemon._get_runs_to_dequeue(
            instance, limits_in_force(instance), fixed_iteration_time=None
        )


@pytest.mark.parametrize("tags", [{"signalbox__lane": "adhoc"}, {}], ids=["waits", "imports"])
def test_a_run_that_waits_for_its_lane_past_the_queue_takes_no_slot_of_the_daily_one(
    instance: dg.DagsterInstance, tags: dict[str, str]
) -> None:
    fill_the_lanes(instance)
    past_the_queue(instance, **tags)
    submit(instance, {"dagster/sensor_name": "flights_readiness"})
    submit(instance, {})
    for more in backfill("def", 1):
        submit(instance, more)
    assert without_the_guard(instance) == [], "six are in progress to Dagster, though one waits"
    assert lanes(start(instance)) == ["daily"], "and nobody else has a slot more"
    submit(instance, {"dagster/sensor_name": "flights_readiness"})
    assert next_to_start(instance) == [], "one slot was left, and is taken"


def test_six_runs_past_the_queue_leave_the_daily_lane_what_two_would(
    instance: dg.DagsterInstance,
) -> None:
    for _ in range(LANES.slots):
        past_the_queue(instance)
    for _ in range(LANES.slots):
        submit(instance, {"dagster/sensor_name": "flights_readiness"})
    assert without_the_guard(instance) == []
    adhoc = LANES.limit(Lane.ADHOC)
    assert lanes(start(instance)) == ["daily"] * (LANES.slots - adhoc)
    assert next_to_start(instance) == []


def test_what_was_queued_before_there_were_lanes_makes_no_room_for_more(
    instance: dg.DagsterInstance,
) -> None:
    """It has no tag either until it claims; each that has started would let another one start."""
    for _ in range(LANES.slots + 1):
        run = create_run_for_test(instance, remote_job_origin=ORIGIN)
        event = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job_name=run.job_name)
        instance.report_dagster_event(event, run_id=run.run_id)
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert queue.max_concurrent_runs == LANES.slots


def test_the_slots_that_were_added_are_no_difference_and_in_no_plan(
    instance: dg.DagsterInstance,
) -> None:
    for _ in range(LANES.slots):
        past_the_queue(instance)
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert queue.max_concurrent_runs > LANES.slots
    assert live_differences(instance, LANES) == []
    assert read_queue(instance).slots == LANES.slots


def test_while_slots_are_free_a_look_reads_no_runs(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(LANES.slots - 1):
        past_the_queue(instance)
    asked: list[Any] = []
    real = instance.get_runs

    def spy(*how: Any, **more: Any) -> Any:
        asked.append(how)
        return real(*how, **more)

    monkeypatch.setattr(instance, "get_runs", spy)
    instance.get_concurrency_config()
    assert asked == []
    past_the_queue(instance)
    instance.get_concurrency_config()
    assert len(asked) == 1
