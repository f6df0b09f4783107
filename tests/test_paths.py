"""Every way into a training, on a real Dagster instance: what is not whole does not leave."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.execution.execution_result import ExecutionResult

import platform_assets.factory.assets
import platform_assets.factory.events
from platform_assets.domain.errors import RefusedError, TransientError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.factory import grid
from platform_assets.factory.events import NO_AUTOMATIC_EVENT, RESTATE_TAG
from platform_assets.line.crowning import CHAMPION_ALIAS
from platform_assets.line.features import build_features
from platform_assets.line.projection import reconcile
from platform_assets.line.services import Outcome, Services
from resources.content import content_digest
from resources.home import Home
from tests.careless import SENSOR, careless
from tests.small import (
    END,
    HELD,
    START,
    Line,
    Templates,
    copied,
    failure_of,
    opened,
    reexecute,
    small_spec,
)

PARTIAL = "JFK|2013-01-04"
"""Landed until 18:00: 18 of 24 hours."""


@pytest.fixture
def templates(shared_folder: Path, home_template: Path) -> Templates:
    return Templates(shared_folder, home_template)


@pytest.fixture
def line(home: Home) -> Iterator[Line]:
    """A line with nothing landed."""
    with opened(home) as found:
        yield found


@pytest.fixture
def partial(line: Line) -> Line:
    """2013-01-04 as it stands at 18:00."""
    line.land("2013-01-04", until_hour=18)
    return line


@pytest.fixture
def built(templates: Templates, tmp_path: Path) -> Iterator[Line]:
    """All features of 2013-01-02 to 2013-01-09 that are whole, and the roll-ups."""
    with copied(templates.features, tmp_path) as found:
        yield found


@pytest.fixture
def trained(templates: Templates, tmp_path: Path) -> Iterator[Line]:
    """And the models of 2013-01-04, 05, 07 and 08, none of them judged."""
    with copied(templates.models, tmp_path) as found:
        yield found


# --- the accident, and what Signalbox makes of it ---------------------------------------------


Way = Callable[[dg.Definitions, str, dg.DagsterInstance, dg.AssetKey, str], ExecutionResult]


def in_ui(
    defs: dg.Definitions, job: str, instance: dg.DagsterInstance, asset: dg.AssetKey, key: str
) -> ExecutionResult:
    """One partition, materialized by hand."""
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, partition_key=key, asset_selection=[asset], raise_on_error=False
    )


def in_range(
    defs: dg.Definitions, job: str, instance: dg.DagsterInstance, asset: dg.AssetKey, key: str
) -> ExecutionResult:
    """A run whose tags carry a range, here of one partition; of three see below."""
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        tags={START: key, END: key},
        asset_selection=[asset],
        raise_on_error=False,
    )


def in_backfill(
    defs: dg.Definitions, job: str, instance: dg.DagsterInstance, asset: dg.AssetKey, key: str
) -> ExecutionResult:
    """A run with the tags of a native backfill; a real one is in test_every_path.py."""
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        tags={START: key, END: key, "dagster/backfill": "wxyzabcd"},
        asset_selection=[asset],
        raise_on_error=False,
    )


def in_schedule(
    defs: dg.Definitions, job: str, instance: dg.DagsterInstance, asset: dg.AssetKey, key: str
) -> ExecutionResult:
    """A run of a job that a schedule launched for the partition."""
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        partition_key=key,
        tags={"dagster/schedule_name": "every_midnight"},
        raise_on_error=False,
    )


def requested(defs: dg.Definitions, instance: dg.DagsterInstance, key: str) -> dg.RunRequest:
    """What one tick of the plain sensor asks for of a partition."""
    with dg.build_sensor_context(
        instance=instance, repository_def=defs.get_repository_def(), sensor_name=SENSOR
    ) as context:
        data = defs.resolve_sensor_def(SENSOR).evaluate_tick(context)
    (found,) = [r for r in data.run_requests or () if r.partition_key == key]
    return found


def in_sensor(
    defs: dg.Definitions, job: str, instance: dg.DagsterInstance, asset: dg.AssetKey, key: str
) -> ExecutionResult:
    """The run that a plain sensor asks for; Signalbox's asks for none: as if it had."""
    tags = {"signalbox/lane": "daily", "dagster/sensor_name": "x", "dagster/run_key": "x"}
    if any(sensor.name == SENSOR for sensor in defs.sensors or ()):
        request = requested(defs, instance, key)
        job, key = request.job_name or job, str(request.partition_key)
        tags = {**request.tags, "dagster/sensor_name": SENSOR, "dagster/run_key": key}
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance, partition_key=key, tags=tags, raise_on_error=False
    )


WAYS = pytest.mark.parametrize("way", [in_ui, in_range, in_backfill, in_schedule, in_sensor])


@WAYS
def test_the_accident(partial: Line, way: Way) -> None:
    """Plain Dagster: 18 of 24 hours have landed, the training runs and says SUCCESS."""
    ran = way(
        careless(partial.home, partial.spec),
        "careless_job",
        partial.instance,
        dg.AssetKey("careless_model"),
        partial.dagster_key(PARTIAL),
    )
    assert ran.success
    (event,) = ran.asset_materializations_for_node("careless_model")
    assert event.metadata["hours"].value == 18
    partial.land("2013-01-04")
    whole = partial.services.zone
    whole.refresh(date(2013, 1, 4), date(2013, 1, 4))
    assert event.metadata["rows"].value < whole.read("flights", "JFK", date(2013, 1, 4)).num_rows


@WAYS
def test_signalbox_refuses_what_the_accident_trained_on(partial: Line, way: Way) -> None:
    ran = way(
        partial.defs,
        "flights_features",
        partial.instance,
        partial.key("features"),
        partial.dagster_key(PARTIAL),
    )
    assert_refused(partial, ran, "features", PARTIAL)
    said = failure_of(ran)
    assert "flights 18 of 24 hours, not due yet 18:00-23:00" in said
    assert "weather 18 of 24 hours, not due yet 18:00-23:00" in said
    assert partial.services.dataset.versions() == {}


RANGE = ("JFK|2013-01-02", "JFK|2013-01-03", "JFK|2013-01-04")
"""Two whole days, and the one of 18 hours."""


@pytest.mark.parametrize("backfill", [{}, {"dagster/backfill": "wxyzabcd"}])
def test_the_accident_in_a_range_of_three(line: Line, backfill: dict[str, str]) -> None:
    """Plain Dagster: 66 of 72 hours, one run over three partitions, SUCCESS for each."""
    line.land("2013-01-02", "2013-01-04", until_hour=18)
    keys = [line.dagster_key(key) for key in RANGE]
    careless_job = careless(line.home, line.spec).resolve_implicit_global_asset_job_def()
    ran = careless_job.execute_in_process(
        instance=line.instance,
        tags={START: keys[0], END: keys[-1], **backfill},
        asset_selection=[dg.AssetKey("careless_model")],
        raise_on_error=False,
    )
    assert ran.success
    events = ran.asset_materializations_for_node("careless_model")
    assert sorted(str(event.partition) for event in events) == sorted(keys)
    assert {event.metadata["hours"].value for event in events} == {24 + 24 + 18}


@pytest.mark.parametrize("backfill", [{}, {"dagster/backfill": "wxyzabcd"}])
def test_of_a_range_of_three_the_whole_ones_leave_and_the_held_one_is_named(
    line: Line, backfill: dict[str, str]
) -> None:
    line.land("2013-01-02", "2013-01-04", until_hour=18)
    ran = line.run("features", span=(RANGE[0], RANGE[-1]), tags=backfill)
    assert_refused(line, ran, "features", RANGE[-1])
    assert "flights 18 of 24 hours, not due yet 18:00-23:00" in failure_of(ran)
    for key in RANGE[:2]:
        assert [version.run_id for version in line.history("features", key)] == [ran.run_id]
    told = {event.partition for event in line.materializations("features")}
    assert told == {line.dagster_key(key) for key in RANGE[:2]}


def test_a_refused_run_tells_of_what_has_landed(partial: Line) -> None:
    """The source's partition is seen to fill, and materialized by its producer once it is whole."""
    source = partial.key("landed_flights")

    def observed() -> list[Any]:
        records = partial.instance.fetch_observations(source, limit=9).records
        events = [record.asset_observation for record in records]
        return [(e.partition, e.metadata["hours"].value) for e in events if e]

    partial.run("features", partition=PARTIAL)
    assert observed() == [(PARTIAL, "18 of 24")]
    # A look that nobody is told of must not use the change up.
    partial.land("2013-01-04", until_hour=20)
    partial.run("day", partition="2013-01-04")
    partial.run("features", partition=PARTIAL)
    partial.run("features", partition=PARTIAL)
    assert observed() == [(PARTIAL, "20 of 24"), (PARTIAL, "18 of 24")]
    assert partial.materializations("landed_flights") == []
    partial.land("2013-01-04")
    partial.must("features", partition=PARTIAL)
    assert [e.partition for e in partial.materializations("landed_flights")] == [PARTIAL]


def assert_refused(line: Line, ran: ExecutionResult, stage: str, *partitions: str) -> None:
    """The run failed, named the partitions, and left no trace that could be taken for a result."""
    assert not ran.success
    run = line.instance.get_run_by_id(ran.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    said = failure_of(ran)
    check = line.check(stage)
    assert not check.passed
    held: Any = check.metadata["held"].value
    for partition in partitions:
        assert partition in said
        assert partition in held
        assert line.history(stage, partition) == []
        names = {event.partition for event in line.materializations(stage)}
        assert line.dagster_key(partition) not in names
    assert not [event for event in ran.all_events if event.is_step_up_for_retry]


def test_an_hour_that_is_overdue_is_named_as_missing(line: Line) -> None:
    """The clock has passed the day: the same hours are no longer "not due" but missing."""
    line.land("2013-01-04", until_hour=18, airports=["JFK"])
    line.land("2013-01-05", airports=["LGA"])
    ran = line.run("features", partition=PARTIAL)
    assert_refused(line, ran, "features", PARTIAL)
    assert "flights 18 of 24 hours, missing 18:00-23:00" in failure_of(ran)


def test_a_re_execution_is_held_as_well_and_leaves_once_the_hours_are_there(partial: Line) -> None:
    first = partial.run("features", partition=PARTIAL)
    again = reexecute(partial.instance, first.run_id)
    assert_refused(partial, again, "features", PARTIAL)
    partial.land("2013-01-04")
    third = reexecute(partial.instance, again.run_id)
    assert third.success, failure_of(third)
    assert [version.run_id for version in partial.history("features", PARTIAL)] == [third.run_id]
    assert partial.check("features").passed


@pytest.mark.parametrize("broken", [False, True])
def test_a_refusal_is_not_tried_again(partial: Line, broken: bool) -> None:
    """Trying again brings no hour; a job that retries its ops does so for other failures only."""
    job = dg.define_asset_job(
        "persistent",
        selection=[partial.key("features")],
        op_retry_policy=dg.RetryPolicy(max_retries=1),
    )
    if broken:
        partial.land("2013-01-04")
        # A lake that cannot be written is no refusal.
        (partial.home.lake / "flights").write_text("in the way")
    partial.defs = dg.Definitions.merge(partial.defs, dg.Definitions(jobs=[job]))
    ran = partial.run(job="persistent", partition=PARTIAL)
    assert not ran.success
    retried = [event for event in ran.all_events if event.is_step_up_for_retry]
    assert len(retried) == (1 if broken else 0)


# --- many partitions in one run ---------------------------------------------------------------


def test_one_held_partition_does_not_hold_its_neighbours(line: Line) -> None:
    line.land("2013-01-04", "2013-01-09", airports=["LGA"])
    ran = line.run("features", span=("LGA|2013-01-04", "LGA|2013-01-09"))
    assert_refused(line, ran, "features", HELD)
    assert "weather 23 of 24 hours, missing 06:00" in failure_of(ran)
    days = ("2013-01-04", "2013-01-05", "2013-01-07", "2013-01-08", "2013-01-09")
    clear = {f"LGA|{day}" for day in days}
    assert set(line.versions("features")) == clear
    assert line.instance.get_materialized_partitions(line.key("features")) == {
        line.dagster_key(partition) for partition in clear
    }
    check = line.check("features")
    assert check.description == "5 of 6 partition(s) were clear"
    held: Any = check.metadata["held"].value
    assert list(held) == [HELD]


class Disturbed:
    """build_features that fails at first for one partition, however it is asked for."""

    def __init__(self, partition: str, error: Exception, times: int) -> None:
        self.partition, self.error, self.left = partition, error, times

    def __call__(self, services: Services, key: PartitionKey, *others: Any) -> Outcome:
        if str(key) == self.partition and self.left:
            self.left -= 1
            raise self.error
        return build_features(services, key, *others)


def test_a_partition_that_fails_does_not_fail_its_neighbours(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.land("2013-01-04", "2013-01-07", airports=["LGA"])
    disturbed = Disturbed("LGA|2013-01-04", ZeroDivisionError("nobody expected this"), 9)
    monkeypatch.setattr(platform_assets.factory.assets, "build_features", disturbed)
    ran = line.run("features", span=("LGA|2013-01-04", "LGA|2013-01-07"))
    assert not ran.success
    assert "nobody expected this" in failure_of(ran)
    assert not [event for event in ran.all_events if event.is_step_up_for_retry]
    assert set(line.versions("features")) == {"LGA|2013-01-05", "LGA|2013-01-07"}
    assert not line.check("features").passed


@pytest.mark.parametrize("error", [ZeroDivisionError("unexpected"), TransientError("disk is full")])
def test_of_held_broken_and_clear_each_is_named(
    line: Line, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    line.land("2013-01-05", "2013-01-07", airports=["LGA"])
    disturbed = Disturbed("LGA|2013-01-05", error, 9)
    monkeypatch.setattr(platform_assets.factory.assets, "build_features", disturbed)
    monkeypatch.setattr(platform_assets.factory.events, "RETRY_SECONDS", 0.1)
    ran = line.run("features", span=("LGA|2013-01-05", "LGA|2013-01-07"))
    assert not ran.success
    (failed,) = [event for event in ran.all_events if event.is_step_failure]
    data = failed.step_failure_data
    assert data.user_failure_data is not None
    said = str(data.user_failure_data.description)
    assert f"held for 1 partition(s), nothing was written for them. {HELD}: " in said
    assert f"failed for 1 partition(s). LGA|2013-01-05: {type(error).__name__}: {error}" in said
    assert "LGA|2013-01-07" not in said
    # The error itself is its cause, with its own stack.
    assert data.error is not None
    cause = data.error
    while cause.cause is not None:
        cause = cause.cause
    assert cause.cls_name == type(error).__name__
    assert set(line.versions("features")) == {"LGA|2013-01-07"}
    check = line.check("features")
    assert list(check.metadata["held"].value) == [HELD]  # type: ignore[call-overload]
    assert list(check.metadata["failed"].value) == ["LGA|2013-01-05"]  # type: ignore[call-overload]


def test_a_transient_error_is_tried_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.land("2013-01-04", "2013-01-05", airports=["LGA"])
    disturbed = Disturbed("LGA|2013-01-04", TransientError("the disk is full"), 1)
    monkeypatch.setattr(platform_assets.factory.assets, "build_features", disturbed)
    monkeypatch.setattr(platform_assets.factory.events, "RETRY_SECONDS", 0.1)
    ran = line.run("features", span=("LGA|2013-01-04", "LGA|2013-01-05"))
    assert ran.success, failure_of(ran)
    assert len([event for event in ran.all_events if event.is_step_up_for_retry]) == 1
    assert set(line.versions("features")) == {"LGA|2013-01-04", "LGA|2013-01-05"}
    assert line.check("features").passed


@pytest.mark.parametrize("job", [None, "flights_train"])
def test_a_held_snapshot_does_not_hold_the_models_of_its_neighbours(
    built: Line, job: str | None
) -> None:
    """One run over both: a failed step would keep Dagster from the next one altogether."""
    stages = () if job else ("snapshot", "model")
    ran = built.run(*stages, span=("2013-01-05", "2013-01-07"), job=job)
    assert_refused(built, ran, "snapshot", "2013-01-06")
    assert_refused(built, ran, "model", "2013-01-06")
    assert f"its own day is held: {HELD}: " in failure_of(ran)
    for stage in ("snapshot", "model"):
        assert set(built.versions(stage)) == {"2013-01-05", "2013-01-07"}
        assert built.instance.get_materialized_partitions(built.key(stage)) == {
            "2013-01-05",
            "2013-01-07",
        }


def test_a_model_is_not_trained_on_a_snapshot_that_was_refused_since(trained: Line) -> None:
    """It is there, but it reads what its date would no longer be trained on."""
    with opened(trained.home, small_spec(model={"min_days": 3})) as line:
        before = len(line.history("model", "2013-01-07"))
        told = len(line.materializations("model"))
        ran = line.run("snapshot", "model", span=("2013-01-04", "2013-01-07"))
        assert not ran.success
        assert "2013-01-07: 2 of 3 days are whole" in failure_of(ran)
        assert len(line.history("model", "2013-01-07")) == before
        # The others of the run are told, as made of the same: what a window must have is not in it.
        new = line.materializations("model")[told:]
        assert {m.partition for m in new} == {"2013-01-04", "2013-01-05"}


def test_a_snapshot_that_is_refused_beside_its_neighbours_fails_the_run(
    trained: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a lost lease nothing is recorded: the model would be trained on what was there before."""
    build = platform_assets.factory.assets.build_snapshot

    def sleeps(services: Services, key: PartitionKey, run_id: str) -> Outcome:
        if str(key) == "2013-01-05":
            raise RefusedError("the lease was taken over")
        return build(services, key, run_id)

    monkeypatch.setattr(platform_assets.factory.assets, "build_snapshot", sleeps)
    before = len(trained.materializations("model"))
    ran = trained.run("snapshot", "model", span=("2013-01-04", "2013-01-05"))
    assert not ran.success
    assert "2013-01-05: the lease was taken over" in failure_of(ran)
    assert not trained.check("snapshot").passed
    assert len(trained.materializations("model")) == before


def automatic(line: Line, quiet: bool) -> dg.Definitions:
    """A plain asset that reports each partition of its run, and then yields its result."""

    @dg.asset(
        name="plain", partitions_def=grid.daily(line.spec, date(2013, 1, 2), date(2013, 1, 9))
    )
    def plain(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        for key in context.partition_keys:
            tags = {
                "dagster/data_version": f"content of {key}",
                "dagster/data_version_is_user_provided": "true",
            }
            context.log_event(dg.AssetMaterialization("plain", partition=key, tags=tags))
        return dg.MaterializeResult(metadata={NO_AUTOMATIC_EVENT: True} if quiet else {})

    return dg.Definitions(assets=[plain])


@pytest.mark.parametrize("quiet", [False, True])
def test_what_dagster_would_add_by_itself(line: Line, quiet: bool) -> None:
    """The metadata key that silences it is Dagster's own, and not promised: this watches it."""
    assert NO_AUTOMATIC_EVENT == SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
    job = automatic(line, quiet).resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        instance=line.instance, tags={START: "2013-01-02", END: "2013-01-04"}, raise_on_error=True
    )
    records = line.instance.fetch_materializations(dg.AssetKey("plain"), limit=100).records
    events = [record.asset_materialization for record in records]
    counts = Counter(event.partition for event in events if event)
    newest: dict[str | None, str] = {}
    for event in reversed(events):
        assert event is not None
        assert event.tags is not None
        newest[event.partition] = event.tags["dagster/data_version"]
    ours = {key: f"content of {key}" for key in ("2013-01-02", "2013-01-03", "2013-01-04")}
    if quiet:
        assert counts == dict.fromkeys(ours, 1)
        assert newest == ours
    else:
        # Without it each partition has two events, the later one with a version that is not ours.
        assert counts == dict.fromkeys(ours, 2)
        assert not set(newest.values()) & set(ours.values())


def assert_told_once(line: Line, stage: str, partitions: set[str]) -> None:
    """One event a partition, with the data version and the rows that the ledger has."""
    events = line.materializations(stage)
    assert Counter(event.partition for event in events) == dict.fromkeys(
        (line.dagster_key(partition) for partition in partitions), 1
    )
    for event in events:
        assert event.tags is not None
        (version,) = line.history(stage, str(PartitionKey.parse(str(event.partition))))
        assert event.tags["dagster/data_version"] == version.data_version
        assert event.metadata["dagster/row_count"].value == version.rows
        assert event.tags["dagster/code_version"]
    assert len({event.tags["dagster/data_version"] for event in events if event.tags}) == len(
        partitions
    )


def test_each_partition_of_a_run_is_told_once_with_its_own_data_version(trained: Line) -> None:
    """Of features, roll-ups, snapshots and models, all made by runs over several partitions."""
    days = [f"2013-01-0{n}" for n in range(2, 10)]
    features = {f"{key}|{day}" for key in ("JFK", "LGA") for day in days} - {HELD}
    assert_told_once(trained, "features", features)
    assert_told_once(trained, "day", set(days))
    # A run over [snapshot, model] did both, one after the other.
    models = {"2013-01-04", "2013-01-05", "2013-01-07", "2013-01-08"}
    assert_told_once(trained, "snapshot", models)
    assert_told_once(trained, "model", models)
    for stage in ("snapshot", "model"):
        assert trained.check(stage).passed
    runs = {version.run_id for version in trained.versions("model").values()}
    assert runs == {version.run_id for version in trained.versions("snapshot").values()}
    assert len(runs) == 2


def test_the_input_of_each_event_is_the_output_of_the_one_before(trained: Line) -> None:
    name = "dagster/input_data_version/flights/snapshot"
    snapshots = trained.versions("snapshot")
    for event in trained.materializations("model"):
        assert event.tags is not None
        assert event.tags[name] == snapshots[str(event.partition)].data_version


# --- replays ----------------------------------------------------------------------------------


def test_an_identical_replay_commits_nothing(built: Line) -> None:
    dataset, partition = built.services.dataset, "JFK|2013-01-04"
    version, told = dataset.versions(), len(built.materializations("features"))
    built.land("2013-01-04")
    built.must("features", partition=partition)
    assert dataset.versions() == version
    assert len(built.history("features", partition)) == 1
    event = built.materializations("features")[-1]
    assert len(built.materializations("features")) == told + 1
    assert event.metadata["committed"].value is False


def test_a_changed_delivery_is_a_version_of_its_own(built: Line) -> None:
    partition = "JFK|2013-01-04"
    table = built.services.dataset.table_of(PartitionKey.parse(partition))
    before, old = table.version(), built.versions("features")[partition]
    thin(built, "JFK", date(2013, 1, 4))
    built.must("features", partition=partition)
    assert before is not None
    assert table.version() == before + 1
    assert len(built.history("features", partition)) == 2
    new = built.versions("features")[partition]
    assert new.rows < old.rows
    assert new.data_version != old.data_version
    assert built.materializations("features")[-1].metadata["committed"].value is True
    # The lake holds exactly what the ledger says.
    import deltalake

    rows = deltalake.DeltaTable(table.path).to_pyarrow_table(
        partitions=[("airport", "=", "JFK"), ("date", "=", "2013-01-04")]
    )
    assert content_digest(rows) == new.data_version


def test_a_lake_that_was_lost_is_built_anew(trained: Line) -> None:
    """The digests are the same, but the versions that the ledger names must be ones that exist."""
    shutil.rmtree(trained.home.lake / "flights" / "features")
    # The model stands, and is not trained again by itself; made to, it refuses.
    again = {RESTATE_TAG: "true"}
    assert not trained.run("model", partition="2013-01-04", tags=again).success
    for key in ("JFK", "LGA"):
        trained.must("features", span=(f"{key}|2013-01-02", f"{key}|2013-01-04"))
        for day in ("2013-01-02", "2013-01-03", "2013-01-04"):
            first, second = trained.history("features", f"{key}|{day}")
            assert first.data_version == second.data_version
            assert second.table_version is not None
    trained.must("snapshot", "model", partition="2013-01-04", tags=again)
    first, second = trained.history("model", "2013-01-04")
    assert first.data_version == second.data_version


def thin(line: Line, key: str, day: date) -> None:
    """Deliver the day's hour with the most flights again, with half of them."""
    zone = line.services.zone
    records = line.services.ledger.arrivals(
        "flights", "flights", key, *local_hours(day, line.spec.partitions.timezone)[::23]
    )
    fullest = max(records, key=lambda record: record.rows)
    rows = zone.read("flights", key, day)
    own = rows.filter([hour == fullest.hour for hour in rows["time_hour"].to_pylist()])
    zone.deliver("flights", key, fullest.hour, own.slice(0, own.num_rows // 2))


# --- snapshots --------------------------------------------------------------------------------


def test_no_snapshot_of_a_window_that_the_start_of_the_data_clips(built: Line) -> None:
    """Dagster's own mapping would clip the window without a word; here its date does not exist."""
    for job in (
        built.defs.resolve_job_def("flights_train"),
        built.defs.resolve_implicit_global_asset_job_def(),
    ):
        with pytest.raises(dg.DagsterUnknownPartitionError, match="2013-01-03"):
            job.execute_in_process(
                instance=built.instance,
                partition_key="2013-01-03",
                asset_selection=[built.key("snapshot"), built.key("model")],
            )
    assert built.versions("snapshot") == {}


def test_no_snapshot_of_a_day_that_is_held_itself(built: Line) -> None:
    ran = built.run("snapshot", partition="2013-01-06")
    assert_refused(built, ran, "snapshot", "2013-01-06")
    assert f"its own day is held: {HELD}: " in failure_of(ran)
    assert "weather 23 of 24 hours, missing 06:00" in failure_of(ran)


def test_no_snapshot_over_a_day_that_could_be_built_and_was_not(built: Line) -> None:
    """Else the model would depend on the order of the runs."""
    built.land("2013-01-10", "2013-01-11")
    built.must("features", span=("JFK|2013-01-11", "JFK|2013-01-11"))
    built.must("features", span=("LGA|2013-01-11", "LGA|2013-01-11"))
    ran = built.run("snapshot", partition="2013-01-11")
    assert_refused(built, ran, "snapshot", "2013-01-11")
    assert "not built (2013-01-10); backfill flights/features for them first" in failure_of(ran)


def test_a_snapshot_lists_the_held_days_of_its_window(trained: Line) -> None:
    event = next(e for e in trained.materializations("snapshot") if e.partition == "2013-01-07")
    held: Any = event.metadata["held"].value
    assert list(held) == ["2013-01-06"]
    assert held["2013-01-06"].startswith(f"{HELD}: flights 24 of 24 hours; weather 23 of 24")
    assert event.metadata["days"].value == 2
    model = next(e for e in trained.materializations("model") if e.partition == "2013-01-07")
    assert model.metadata["held"].value == held


def test_no_snapshot_with_too_few_whole_days(built: Line, tmp_path: Path) -> None:
    strict = small_spec(model={"min_days": 3})
    with opened(built.home, strict) as line:
        ran = line.run("snapshot", partition="2013-01-07")
        assert_refused(line, ran, "snapshot", "2013-01-07")
        assert "2 of 3 days are whole, at least 3 are needed" in failure_of(ran)
        assert "held: 2013-01-06" in failure_of(ran)


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_manifest_that_is_not_the_recorded_one_is_refused(trained: Line, harm: str) -> None:
    (path,) = (trained.home.lake / "flights" / "snapshots" / "2013-01-04").glob("*.json")
    if harm == "changed":
        manifest = json.loads(path.read_text())
        manifest["partitions"] = manifest["partitions"][1:]
        path.write_text(json.dumps(manifest))
    else:
        path.unlink()
    before = len(trained.history("model", "2013-01-04"))
    ran = trained.run("model", partition="2013-01-04")
    assert not ran.success
    assert ("was changed by hand" if harm == "changed" else "cannot be read") in failure_of(ran)
    assert "materialize flights/snapshot for 2013-01-04 again" in failure_of(ran)
    assert len(trained.history("model", "2013-01-04")) == before
    trained.must("snapshot", "model", partition="2013-01-04")
    assert trained.versions("model")["2013-01-04"].data_version == (
        trained.history("model", "2013-01-04")[0].data_version
    )


# --- models -----------------------------------------------------------------------------------


def test_no_model_without_a_snapshot(built: Line) -> None:
    ran = built.run("model", partition="2013-01-04")
    assert not ran.success
    assert "materialize flights/snapshot for 2013-01-04 first" in failure_of(ran)
    assert built.versions("model") == {}
    assert not built.check("model").passed


@pytest.mark.heavy
def test_the_same_snapshot_gives_the_same_model_in_any_process(trained: Line) -> None:
    (first,) = trained.history("model", "2013-01-04")
    trained.must("model", partition="2013-01-04", tags={RESTATE_TAG: "true"})
    there = subprocess.run(
        [sys.executable, "-m", "tests.small", "--restate", "model", "2013-01-04"],
        env={**os.environ, **trained.home.environment(), "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    history = trained.history("model", "2013-01-04")
    assert [version.data_version for version in history] == [first.data_version] * 3
    assert there.stdout.split()[-1] == first.data_version
    assert len({version.detail["model_version"] for version in history}) == 3
    others = {trained.versions("model")[day].data_version for day in ("2013-01-05", "2013-01-07")}
    assert first.data_version not in others


# --- judgement --------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_model_is_not_judged_before_the_days_after_it_are_whole(trained: Line) -> None:
    """The 8th is judged on the 9th; here the 9th has not come, then not built, then half."""
    with opened(trained.home, small_spec(evaluation={"days": 2})) as line:
        ran = line.run("evaluation", partition="2013-01-08")
        assert_refused(line, ran, "evaluation", "2013-01-08")
        assert "2013-01-10 is held" in failure_of(ran)
        line.land("2013-01-10", until_hour=18)
        ran = line.run("evaluation", partition="2013-01-08")
        assert_refused(line, ran, "evaluation", "2013-01-08")
        assert "flights 18 of 24 hours" in failure_of(ran)
        line.land("2013-01-10")
        ran = line.run("evaluation", partition="2013-01-08")
        assert_refused(line, ran, "evaluation", "2013-01-08")
        assert "2013-01-10 is unbuilt" in failure_of(ran)
        line.must("features", span=("JFK|2013-01-10", "JFK|2013-01-10"))
        line.must("features", span=("LGA|2013-01-10", "LGA|2013-01-10"))
        line.must("evaluation", partition="2013-01-08")


def test_a_model_whose_following_day_is_held_stays_a_candidate(trained: Line) -> None:
    ran = trained.run("evaluation", partition="2013-01-05")
    assert_refused(trained, ran, "evaluation", "2013-01-05")
    assert f"2013-01-06 is held: {HELD}" in failure_of(ran)


def test_no_judgement_without_a_model(built: Line) -> None:
    ran = built.run("evaluation", partition="2013-01-04")
    assert not ran.success
    assert "materialize flights/model for 2013-01-04 first" in failure_of(ran)
    assert built.versions("evaluation") == {}


def test_no_champion_before_anything_is_judged(trained: Line) -> None:
    ran = trained.run("champion")
    assert not ran.success
    assert "no model has been judged yet; it takes 1 whole days" in failure_of(ran)
    assert trained.services.ledger.champion("flights") is None
    assert trained.services.tracking.alias("flight-delay", CHAMPION_ALIAS) is None
    assert trained.materializations("champion") == []


ORDERS = (("04", "07", "08"), ("08", "07", "04"))


@pytest.mark.heavy
@pytest.mark.parametrize("order", ORDERS)
def test_in_any_order_each_is_judged_against_the_champion_of_its_time(
    templates: Templates, tmp_path: Path, order: tuple[str, ...]
) -> None:
    with copied(templates.models, tmp_path) as line:
        for day in order:
            line.must(job="flights_judge", partition=f"2013-01-{day}")
        ledger, model = line.services.ledger, line.spec.model.name
        history = ledger.promotions(model)
        champion = ledger.champion("flights")
        assert champion is not None
        assert line.services.tracking.alias("flight-delay", CHAMPION_ALIAS) == champion.version
        event = line.materializations("champion")[-1]
        assert event.metadata["candidates_judged"].value == 3
        assert event.metadata["registered_version"].value == champion.version
        # Each change rests on a passed verdict of the very pair.
        verdicts = {verdict.id: verdict for verdict in ledger.evaluations(model)}
        for change in history:
            verdict = verdicts[change.evaluation_id or 0]
            assert verdict.passed
            assert (verdict.candidate, verdict.champion) == (change.version, change.previous)
        # Nobody was passed over, late as its judgement came; whoever was refused is no champion.
        assert {v.candidate for v in verdicts.values()} == {
            record.detail["model_version"]
            for d, record in line.versions("model").items()
            if d.removeprefix("2013-01-") in order
        }
        promoted = {change.version for change in history}
        assert {v.candidate for v in verdicts.values() if not v.passed}.isdisjoint(promoted)


@pytest.mark.heavy
def test_a_model_that_was_trained_again_must_be_judged_again(trained: Line) -> None:
    trained.must(job="flights_judge", partition="2013-01-04")
    ledger = trained.services.ledger
    first = ledger.champion("flights")
    trained.must("model", partition="2013-01-04", tags={RESTATE_TAG: "true"})
    ran = trained.run("champion")
    assert not ran.success
    assert "no model has been judged yet" in failure_of(ran)
    # What was decided stands until something better is.
    assert ledger.champion("flights") == first
    judged = trained.must(job="flights_judge", partition="2013-01-04")
    again = trained.versions("model")["2013-01-04"].detail["model_version"]
    assert first is not None
    assert again > first.version
    # It was judged, and compared with the champion of before: the same rows make a model that is
    # no better, so it stays a candidate.
    assert trained.versions("evaluation")["2013-01-04"].detail["model_version"] == again
    assert ledger.champion("flights") == first
    (gate,) = [e for e in judged.get_asset_check_evaluations() if e.check_name == "gate"]
    assert not gate.passed
    assert f"version {again}" in str(gate.description)
    assert [c.version for c in ledger.champions("flights")] == [first.version]


def test_a_decision_leaves_an_alias_that_somebody_moved_to_the_reconcile(trained: Line) -> None:
    trained.must(job="flights_judge", partition="2013-01-04")
    tracking, ledger = trained.services.tracking, trained.services.ledger
    decided = ledger.champion("flights")
    assert decided is not None
    slot = trained.services.slot.serves()
    assert slot is not None
    assert slot.version == decided.version  # at once, with the alias
    other = trained.versions("model")["2013-01-08"].detail["model_version"]
    assert other != decided.version
    tracking.set_alias("flight-delay", CHAMPION_ALIAS, other)
    trained.must("champion")
    assert tracking.alias("flight-delay", CHAMPION_ALIAS) == other  # nobody overwrote it unseen
    found = reconcile(trained.services)
    assert found.done == ("alias champion",)
    alerts = trained.services.alerts.all("flights", only_open=True)
    assert [a.subject for a in alerts if a.kind == "drift"] == ["flight-delay alias champion"]
    assert tracking.alias("flight-delay", CHAMPION_ALIAS) == decided.version
    assert ledger.champions("flights") == [decided]


# --- what Dagster knows of the line -----------------------------------------------------------


def upstream(line: Line, child: str, parent: str, *partitions: str) -> list[str]:
    """The partitions of a parent that Dagster finds those of a child to depend on."""
    view = AssetGraphView.for_test(line.defs, instance=line.instance)
    key = line.key(child)
    subset = view.get_asset_subset_from_asset_partitions(
        key, {AssetKeyPartitionKey(key, line.dagster_key(p)) for p in partitions}
    )
    found = view.compute_parent_subset(line.key(parent), subset)
    return sorted(str(p.partition_key) for p in found.expensively_compute_asset_partitions())


def test_partition_mappings(line: Line) -> None:
    day = "2013-01-05"
    assert upstream(line, "features", "landed_weather", f"JFK|{day}") == [f"JFK|{day}"]
    assert upstream(line, "day", "features", day) == [f"JFK|{day}", f"LGA|{day}"]
    assert upstream(line, "snapshot", "day", day) == ["2013-01-03", "2013-01-04", "2013-01-05"]
    assert upstream(line, "model", "snapshot", day) == [day]
    assert upstream(line, "evaluation", "model", day) == [day]
    assert upstream(line, "evaluation", "day", day) == ["2013-01-06"]
    # First and last partitions keep their whole windows.
    assert upstream(line, "snapshot", "day", "2013-01-04") == [f"2013-01-0{n}" for n in (2, 3, 4)]
    assert upstream(line, "evaluation", "day", "2013-01-19") == ["2013-01-20"]
    last = line.defs.resolve_asset_graph().get(line.key("evaluation")).partitions_def
    assert last is not None
    assert last.get_last_partition_key() == "2013-01-19"
    assert set(upstream(line, "champion", "evaluation")) == set()


def test_partition_mappings_over_the_changes_of_the_clock(home: Home) -> None:
    """A day of 23 hours and one of 25 are one day each, in every mapping."""
    spec = small_spec(
        partitions={"start": "2013-03-08", "end": "2013-11-10"},
        schedule={"live_from": "2013-03-10"},
        evaluation={"days": 2},
    )
    with opened(home, spec) as line:
        assert upstream(line, "snapshot", "day", "2013-03-11") == [
            "2013-03-09",
            "2013-03-10",
            "2013-03-11",
        ]
        assert upstream(line, "evaluation", "day", "2013-11-02") == ["2013-11-03", "2013-11-04"]
        for day in ("2013-03-10", "2013-11-03"):
            assert upstream(line, "day", "features", day) == [f"JFK|{day}", f"LGA|{day}"]
            assert upstream(line, "features", "landed_flights", f"LGA|{day}") == [f"LGA|{day}"]


def test_a_champion_depends_on_all_judgements(line: Line) -> None:
    """Without partitions itself, it is downstream of each of them."""
    graph = line.defs.resolve_asset_graph()
    assert graph.get(line.key("champion")).parent_keys == {line.key("evaluation")}
    assert graph.get(line.key("champion")).partitions_def is None
    ancestors = set(graph.upstream_key_iterator(line.key("champion")))
    assert {line.key("landed_flights"), line.key("landed_weather")} <= ancestors


def test_columns_and_their_lineage(line: Line) -> None:
    metadata = line.defs.resolve_asset_graph().get(line.key("features")).metadata
    schema: Any = metadata["dagster/column_schema"]
    lineage: Any = metadata["dagster/column_lineage"]
    schema = getattr(schema, "value", schema)
    lineage = getattr(lineage, "value", lineage)
    names = [column.name for column in schema.columns]
    spec = line.spec
    assert {*spec.dataset.features, spec.dataset.target.name, "relevance", "date"} <= set(names)
    found = {
        name: {(dep.asset_key.to_user_string(), dep.column_name) for dep in deps}
        for name, deps in lineage.deps_by_column.items()
    }
    assert set(found) <= set(names)
    assert found["temp"] == {("flights/landed_weather", "temp")}
    assert found["delayed"] == {("flights/landed_flights", "arr_delay")}
    assert found["dep_minute"] == {("flights/landed_flights", "sched_dep_time")}
    # What is told of the columns is what the lake holds.
    line.land("2013-01-04", airports=["JFK"])
    line.must("features", partition=PARTIAL)
    import deltalake

    table = deltalake.DeltaTable(line.services.dataset.table_of(PartitionKey.parse(PARTIAL)).path)
    assert [field.name for field in table.schema().fields] == names


def test_what_the_ui_shows_of_each_stage(trained: Line) -> None:
    trained.must(job="flights_judge", partition="2013-01-04")
    newest = {
        stage: trained.materializations(stage)[-1].metadata
        for stage in ("features", "day", "snapshot", "model", "evaluation", "champion")
    }
    for stage in ("features", "day", "snapshot", "model", "evaluation"):
        assert newest[stage]["dagster/row_count"].value == newest[stage]["rows"].value
    pictures = {
        "model": ("training train_log_loss", "feature importance"),
        "evaluation": ("calibration",),
        "champion": ("log_loss over time",),
    }
    for stage, titles in pictures.items():
        for title in titles:
            shown = newest[stage][title]
            assert isinstance(shown, dg.MarkdownMetadataValue)
            assert shown.value.startswith(f"![{title}](data:image/png;base64,iVBOR")
    for metric in ("log_loss", "auc", "ndcg_at_50"):
        assert isinstance(newest["evaluation"][metric].value, float)
    assert newest["features"]["excluded_cancelled"].value >= 0
    for node in trained.defs.resolve_asset_graph().asset_nodes:
        assert node.description
        assert node.group_name == "flights"
        assert node.kinds, node.key
        if node.is_materializable:
            assert node.owners == ["team:training-platform"]
            assert node.code_version
