"""Retries and re-executions: Dagster's own keep their lane, a person's are a click as any."""

from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import MagicMock

import dagster as dg
import pytest
from dagster._core.storage import tags as dagster_tags
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import retry_run

from platform_assets.domain.lanes import Lane
from platform_assets.instance.coordinator import wanted_tags
from resources.home import Home
from resources.lanes import load_lanes
from tests.queueing import ORIGIN, lanes, start, submit

LANES = load_lanes()


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """The instance of a home, as its daemon opens it."""
    with dg.DagsterInstance.get() as opened:
        yield opened


def child_of(
    instance: dg.DagsterInstance, parent: DagsterRun, tags: Mapping[str, str]
) -> DagsterRun:
    """A run that is a retry or re-execution of another one; not submitted yet."""
    group = {"parent_run_id": parent.run_id, "root_run_id": parent.root_run_id or parent.run_id}
    return create_run_for_test(
        instance,
        tags={**tags, **{f"dagster/{name}": value for name, value in group.items()}},
        remote_job_origin=ORIGIN,
        **group,
    )


def executed_again(instance: dg.DagsterInstance, parent: DagsterRun) -> DagsterRun:
    """As the UI does for chosen steps: with every tag of the parent, whoever put it there."""
    tags = stored(instance, parent).tags
    copied = {name: value for name, value in tags.items() if name not in dagster_tags.BACKFILL_TAGS}
    return submit(instance, {}, run=child_of(instance, parent, copied))


def launched_again(instance: dg.DagsterInstance, parent: DagsterRun) -> DagsterRun:
    """By the code of Dagster's daemon, whose code location is a stand-in."""
    made: list[DagsterRun] = []

    def create(*, parent_run: DagsterRun, extra_tags: Mapping[str, str], **_: Any) -> DagsterRun:
        omitted = dagster_tags.TAGS_TO_MAYBE_OMIT_ON_RETRY
        kept = {name: value for name, value in parent_run.tags.items() if name not in omitted}
        made.append(child_of(instance, parent_run, {**kept, **extra_tags}))
        return made[-1]

    def enqueue(run_id: str, workspace: Any) -> None:
        submit(instance, {}, run=stored(instance, made[-1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance, "create_reexecuted_run", create)
        patch.setattr(instance, "submit_run", enqueue)
        workspace = MagicMock()
        workspace.instance = instance
        retry_run(stored(instance, parent), workspace)
    return stored(instance, made[-1])


def stored(instance: dg.DagsterInstance, run: DagsterRun) -> DagsterRun:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def test_what_dagster_launches_again_by_itself_keeps_its_lane(
    instance: dg.DagsterInstance,
) -> None:
    for sensor, lane in (("flights_readiness", "daily"), ("flights_late_data", "late")):
        first = submit(instance, {"dagster/sensor_name": sensor})
        second = launched_again(instance, first)
        assert second.parent_run_id == first.run_id
        assert second.tags["dagster/retry_number"]
        assert (second.tags["signalbox/lane"], second.tags["dagster/priority"]) == (
            lane,
            first.tags["dagster/priority"],
        )
        third = launched_again(instance, second)
        assert third.tags["signalbox/lane"] == lane
        # At its execution too, where the lane is asked for once more.
        assert wanted_tags(instance, LANES, third) == {}


@pytest.mark.parametrize(
    ("tags", "lane"),
    [
        ({"dagster/sensor_name": "flights_readiness"}, "adhoc"),
        ({"dagster/sensor_name": "flights_late_data"}, "adhoc"),
        ({}, "adhoc"),
        ({"dagster/backfill": "abc"}, "backfill"),
    ],
)
def test_what_a_person_executes_again_is_a_click(
    instance: dg.DagsterInstance, tags: dict[str, str], lane: str
) -> None:
    """Also of a run that was Dagster's own retry, whose tags are copied with its number."""
    retried = launched_again(instance, submit(instance, tags))
    again = executed_again(instance, retried)
    assert again.tags["signalbox/lane"] == lane
    assert int(again.tags["dagster/priority"]) == LANES.priority(Lane(lane))
    # As a re-execution of all of it: none of the parent's tags, but its id.
    bare = submit(instance, {}, run=child_of(instance, retried, {}))
    assert bare.tags["signalbox/lane"] == lane
    # Dagster's own retry of that stays where it is.
    assert launched_again(instance, again).tags["signalbox/lane"] == lane
    gone = {"dagster/parent_run_id": "deleted", **tags}
    assert submit(instance, gone).tags["signalbox/lane"] == lane


def test_todays_training_does_not_wait_for_all_that_somebody_executes_again(
    instance: dg.DagsterInstance,
) -> None:
    failed = [submit(instance, {"dagster/sensor_name": "flights_readiness"}) for _ in range(9)]
    for run in failed:
        instance.report_run_failed(run)
    again = [executed_again(instance, run) for run in failed]
    assert again[0].tags["signalbox/lane_overridden"].startswith("daily: a re-execution of run ")
    submit(instance, {"dagster/sensor_name": "flights_readiness"})
    assert lanes(start(instance)) == ["adhoc", "adhoc", "daily"]
