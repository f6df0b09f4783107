"""The queue with lanes: Dagster's own daemon decides what starts, on a real instance."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import ConcurrencyConfig
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage import tags as dagster_tags
from dagster._core.storage.dagster_run import DagsterRun
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

from platform_assets.domain import lanes as lane_tags
from platform_assets.domain.lane_limits import size_of
from platform_assets.instance.coordinator import LaneRunCoordinator
from platform_assets.instance.steered import SignalboxInstance
from resources.home import Home
from resources.lanes import load_lanes
from resources.ledger.backfills import PAUSED, RUNNING, Backfills
from resources.ledger.records import BackfillRecord
from tests.queueing import ORIGIN, backfill, lanes, next_to_start, start, submit

LANES = load_lanes()
PLAIN = {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"}


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """The instance of a home, as its daemon opens it."""
    with dg.DagsterInstance.get() as opened:
        yield opened


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with Dagster's own queue: six slots, two of them for backfills."""
    document: dict[str, Any] = {
        "run_coordinator": PLAIN,
        "concurrency": {
            "runs": {
                "max_concurrent_runs": LANES.slots,
                "tag_concurrency_limits": [
                    {"key": "signalbox/lane", "value": "backfill", "limit": 2}
                ],
            }
        },
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(document))
    with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
        yield opened


# --- the coordinator --------------------------------------------------------------------------


def test_the_home_has_the_queue_with_lanes(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance, SignalboxInstance)
    assert isinstance(instance.run_coordinator, LaneRunCoordinator)
    assert instance.run_coordinator.dequeue_interval_seconds == 1


def test_a_run_has_the_tags_of_its_lane_before_it_is_enqueued(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    enqueue = QueuedRunCoordinator.submit_run

    def spy(self: Any, context: SubmitRunContext) -> DagsterRun:
        stored = instance.get_run_by_id(context.dagster_run.run_id)
        assert stored is not None
        seen.append((stored.status, dict(stored.tags)))
        return enqueue(self, context)

    monkeypatch.setattr(QueuedRunCoordinator, "submit_run", spy)
    tags = {"dagster/backfill": "abc", "signalbox/lane": "daily", "dagster/priority": "99"}
    run = submit(instance, {**tags, "dagster/partition": "JFK|2013-01-01"})
    ((status, before),) = seen
    assert status is dg.DagsterRunStatus.NOT_STARTED
    assert run.status is dg.DagsterRunStatus.QUEUED
    for found in (before, run.tags):
        assert found["signalbox/lane"] == "backfill"
        assert found["dagster/priority"] == "-10"
        assert found["signalbox/lane_overridden"].startswith("daily: a run of backfill abc")
        assert found["signalbox/lane_key"] == "backfill/flights/JFK"
    assert instance.get_runs(dg.RunsFilter(tags={"signalbox/lane": "daily"})) == []


def test_a_run_that_was_submitted_already_is_left_alone(instance: dg.DagsterInstance) -> None:
    first = submit(instance, {})
    events = instance.all_logs(first.run_id)
    submit(instance, {}, run=first)
    assert len(instance.all_logs(first.run_id)) == len(events)


# --- who starts -------------------------------------------------------------------------------


def test_a_backfill_with_the_daily_tag_takes_every_slot_of_a_plain_queue(
    plain: dg.DagsterInstance,
) -> None:
    """The accident: runs of a backfill that say they are daily, and then today's training."""
    for tags in backfill("abc", LANES.slots, **{"signalbox/lane": "daily"}):
        submit(plain, tags)
    assert len(start(plain)) == LANES.slots
    submit(plain, {"dagster/sensor_name": "flights_readiness", "dagster/priority": "10"})
    assert next_to_start(plain) == []


def test_a_daily_run_starts_while_the_others_fill_their_lanes(instance: dg.DagsterInstance) -> None:
    for tags in backfill("abc", 3, **{"signalbox/lane": "daily"}):
        submit(instance, tags)
    for _ in range(2):
        submit(instance, {"dagster/sensor_name": "flights_late_data"})
    for _ in range(3):
        submit(instance, {"signalbox/lane": "daily", "dagster/priority": "999"})
    assert lanes(start(instance)) == ["adhoc", "adhoc", "backfill", "backfill", "late"]
    assert next_to_start(instance) == []
    submit(instance, {"dagster/sensor_name": "flights_readiness"})
    assert lanes(start(instance)) == ["daily"]
    assert next_to_start(instance) == []


def test_daily_runs_go_before_whatever_waits(instance: dg.DagsterInstance) -> None:
    for tags in backfill("abc", 2):
        submit(instance, tags)
    for _ in range(LANES.slots):
        submit(instance, {"dagster/sensor_name": "flights_readiness"})
    assert lanes(start(instance)) == ["daily"] * LANES.slots


def test_of_one_airport_one_run_of_a_backfill_at_a_time(instance: dg.DagsterInstance) -> None:
    for day in range(1, 4):
        submit(instance, {"dagster/backfill": "abc", "dagster/partition": f"JFK|2013-01-{day:02}"})
    (jfk,) = start(instance)
    assert jfk.tags["signalbox/lane_key"] == "backfill/flights/JFK"
    submit(instance, {"dagster/backfill": "def", "dagster/partition": "LGA|2013-01-01"})
    (lga,) = start(instance)
    assert lga.tags["signalbox/lane_key"] == "backfill/flights/LGA"


# --- steering ---------------------------------------------------------------------------------


def steer(home: Home, name: str, state: str, max_runs: int | None) -> None:
    now = datetime.now(UTC)
    store = Backfills(home.ledger_url)
    store.put(BackfillRecord(name, "flights", state, max_runs, {}, "me", now, now, "me"))
    store.set_state(name, state, "me")
    store.set_size(name, max_runs, "me")


def test_a_paused_backfill_waits_and_another_goes_on(
    home: Home, instance: dg.DagsterInstance
) -> None:
    for tags in [*backfill("abc", 2), *backfill("def", 2)]:
        submit(instance, tags)
    steer(home, "abc", PAUSED, None)
    assert {run.tags["dagster/backfill"] for run in next_to_start(instance)} == {"def"}
    steer(home, "def", PAUSED, 2)
    assert next_to_start(instance) == []
    steer(home, "abc", RUNNING, 1)
    assert [run.tags["dagster/backfill"] for run in next_to_start(instance)] == ["abc"]
    steer(home, "abc", RUNNING, None)
    assert [run.tags["dagster/backfill"] for run in next_to_start(instance)] == ["abc", "abc"]


def test_a_size_that_a_backfill_was_launched_with_counts_from_its_first_run(
    home: Home, instance: dg.DagsterInstance
) -> None:
    """Nobody has recorded it: who launched it was stopped before it knew the id."""
    for tags in backfill("abc", 2, **{lane_tags.SIZE_TAG: "1"}):
        submit(instance, tags)
    assert len(next_to_start(instance)) == 1
    store = Backfills(home.ledger_url)
    store.set_size("abc", None, "me")
    cast(LaneRunCoordinator, instance.run_coordinator)._sized.clear()  # the daemon starts again
    for tags in backfill("abc", 1, **{lane_tags.SIZE_TAG: "1"}):
        submit(instance, tags)
    assert len(next_to_start(instance)) == 2, "how it was steered since counts"
    # Without the tag nothing holds the second run back.
    for tags in backfill("def", 2):
        submit(instance, tags)
    assert store.find("def") is None
    steer(home, "abc", PAUSED, None)
    assert [run.tags["dagster/backfill"] for run in next_to_start(instance)] == ["def", "def"]


@pytest.mark.parametrize(("said", "size"), [("2", 2), ("0", 1), ("-3", 1), ("many", 1), ("²", 1)])
def test_a_size_that_is_no_number_counts_as_the_least(said: str, size: int) -> None:
    assert size_of({lane_tags.SIZE_TAG: said}) == size
    assert size_of({}) is None


def test_another_process_sees_it_at_its_next_look(home: Home, instance: dg.DagsterInstance) -> None:
    """The daemon opened its instance long before somebody pauses a backfill."""
    before = instance.get_concurrency_config().run_queue_config
    steer(home, "abc", PAUSED, None)
    after = instance.get_concurrency_config().run_queue_config
    assert before is not None
    assert after is not None
    steered = {"key": "dagster/backfill", "value": "abc", "limit": 0}
    assert [*before.tag_concurrency_limits, steered] == after.tag_concurrency_limits
    assert before._replace(tag_concurrency_limits=[]) == after._replace(tag_concurrency_limits=[])


def test_without_the_instances_own_class_the_queue_would_not_ask(
    home: Home, instance: dg.DagsterInstance
) -> None:
    """The limits of `concurrency` come before the coordinator's: why there is an instance_class."""
    steer(home, "abc", PAUSED, None)
    config = dg.DagsterInstance.get_concurrency_config(instance)
    assert config.run_queue_config is not None
    values = [rule["value"] for rule in config.run_queue_config.tag_concurrency_limits]
    assert "abc" not in values


@pytest.mark.embedded
def test_while_the_ledger_does_not_answer_the_last_steering_counts(
    home: Home, instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    for tags in [*backfill("abc", 1), *backfill("def", 2)]:
        submit(instance, tags)
    submit(instance, {"dagster/sensor_name": "flights_readiness"})
    steer(home, "abc", PAUSED, None)
    expected = [run.run_id for run in next_to_start(instance)]
    ledger = Path(home.ledger_url.removeprefix("sqlite:///"))
    ledger.rename(ledger.with_suffix(".away"))
    assert [run.run_id for run in next_to_start(instance)] == expected
    next_to_start(instance)
    said = [record.getMessage() for record in caplog.records if "how fast" in record.getMessage()]
    assert len(said) == 1, "it is said once, not at every look"
    assert "1 steered backfill(s) go on as last known" in said[0]


@pytest.mark.embedded
def test_a_queue_that_never_knew_lets_all_but_backfills_go(
    home: Home, instance: dg.DagsterInstance
) -> None:
    ledger = Path(home.ledger_url.removeprefix("sqlite:///"))
    for tags in backfill("abc", 3):
        submit(instance, tags)
    submit(instance, {"dagster/sensor_name": "flights_readiness"})
    ledger.rename(ledger.with_suffix(".away"))
    assert lanes(next_to_start(instance)) == ["daily"]
    ledger.with_suffix(".away").rename(ledger)
    assert lanes(next_to_start(instance)) == ["backfill", "backfill", "daily"]


# --- pools, and runs that they block ----------------------------------------------------------


def pooled(pool: str | None) -> dg.JobDefinition:
    """A job of one asset, in a pool or in none."""

    @dg.asset(name="pooled", pool=pool)
    def asset() -> None: ...

    return dg.Definitions([asset]).resolve_implicit_global_asset_job_def()


def of_job(instance: dg.DagsterInstance, job: dg.JobDefinition, **tags: str) -> DagsterRun:
    run = instance.create_run_for_job(
        job, tags={k.replace("__", "/"): v for k, v in tags.items()}, remote_job_origin=ORIGIN
    )
    return submit(instance, {}, run=run)


def test_runs_that_a_pool_blocks_eat_the_slots_of_an_unrelated_backfill(
    plain: dg.DagsterInstance,
) -> None:
    """The trap: two runs that wait for a pool count against their tag although they do not run."""
    plain.event_log_storage.set_concurrency_slots("champion", 1)
    daily = of_job(plain, pooled("champion"))
    assert start(plain) == [daily], "it holds the pool"
    job = pooled("champion")
    for _ in range(2):
        of_job(plain, job, signalbox__lane="backfill", dagster__backfill="abc")
    of_job(plain, pooled(None), signalbox__lane="backfill", dagster__backfill="def")
    assert next_to_start(plain) == [], "no run of a backfill is in progress, and none starts"


def test_no_asset_of_signalbox_is_in_a_pool_so_that_none_is_blocked_by_one(
    instance: dg.DagsterInstance,
) -> None:
    from platform_assets.definitions import defs
    from platform_assets.instance.pools import pools_of

    assert pools_of(defs) == {}
    instance.event_log_storage.set_concurrency_slots("champion", 1)
    of_job(instance, pooled(None), dagster__sensor_name="flights_readiness")
    assert len(start(instance)) == 1
    for name in ("abc", "abc", "def"):
        of_job(instance, pooled(None), dagster__backfill=name)
    assert len(start(instance)) == 2


def test_runs_of_somebody_elses_pool_cannot_keep_the_daily_lane_waiting(
    instance: dg.DagsterInstance,
) -> None:
    """They eat slots of their own lane; the daily one has no limit that they could count for."""
    instance.event_log_storage.set_concurrency_slots("theirs", 1)
    job = pooled("theirs")
    of_job(instance, job)
    assert len(start(instance)) == 1
    for _ in range(2):
        of_job(instance, job, dagster__backfill="abc")
        of_job(instance, job)
    of_job(instance, pooled(None), dagster__sensor_name="flights_readiness")
    assert lanes(next_to_start(instance)) == ["daily"]


# --- what is leant on -------------------------------------------------------------------------


def test_the_tags_are_those_that_dagster_puts_onto_runs() -> None:
    assert lane_tags.BACKFILL_TAG == dagster_tags.BACKFILL_ID_TAG
    assert lane_tags.PARENT_TAG == dagster_tags.PARENT_RUN_ID_TAG
    assert lane_tags.AUTO_RETRY_TAG == dagster_tags.AUTO_RETRY_RUN_ID_TAG
    assert lane_tags.PRIORITY_TAG == dagster_tags.PRIORITY_TAG
    assert lane_tags.SENSOR_TAG == dagster_tags.SENSOR_NAME_TAG
    assert lane_tags.SCHEDULE_TAG == dagster_tags.SCHEDULE_NAME_TAG
    assert lane_tags.AUTOMATION_TAGS == (
        dagster_tags.AUTOMATION_CONDITION_TAG,
        dagster_tags.AUTO_MATERIALIZE_TAG,
    )
    assert lane_tags.PARTITION_TAGS == (
        dagster_tags.PARTITION_NAME_TAG,
        dagster_tags.ASSET_PARTITION_RANGE_START_TAG,
        dagster_tags.ASSET_PARTITION_RANGE_END_TAG,
    )


def test_dagster_asks_its_instance_for_the_limits_at_every_look(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ConcurrencyConfig] = []
    real = SignalboxInstance.get_concurrency_config

    def spy(self: SignalboxInstance) -> ConcurrencyConfig:
        asked.append(real(self))
        return asked[-1]

    monkeypatch.setattr(SignalboxInstance, "get_concurrency_config", spy)

    class Workspace:
        pass

    workspace = Workspace()
    workspace.instance = instance  # type: ignore[attr-defined]
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        for looks in (1, 2):
            list(daemon.run_iteration(cast(Any, workspace)))
            assert len(asked) >= looks
