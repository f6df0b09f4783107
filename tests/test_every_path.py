"""The other ways into a training: launched from a shell, tried again, on a clock, by hand; each
with what plain Dagster makes of 18 of 24 hours, and then with Signalbox.

The direct ways (the UI, a range, the run of a backfill, a job's run) are in test_paths.py.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.execution.backfill import BulkActionStatus
from dagster_dg_cli.cli.launch import launch_command
from dagster_shared.serdes import deserialize_value, serialize_value

import platform_assets.line.features
import platform_assets.line.models
from platform_assets.factory.events import RESTATE_TAG
from platform_assets.line.explain import explain
from platform_assets.line.status import status
from platform_assets.line.waive import give_waiver, until_of
from resources.home import Home
from resources.landing import LandingZone
from tests.backfilled import backfill
from tests.careless import FAILS_ONCE, careless, with_source
from tests.small import HELD, Line, Templates, copied, failure_of, opened, small_spec

pytestmark = pytest.mark.heavy

PARTIAL = "JFK|2013-01-04"
LACKING = "flights 18 of 24 hours, not due yet 18:00-23:00"
CARELESS = dg.AssetKey("careless_model")


@pytest.fixture
def partial(home: Home) -> Iterator[Line]:
    """2013-01-04 as it stands at 18:00."""
    with opened(home) as found:
        found.land("2013-01-04", until_hour=18)
        yield found


@pytest.fixture
def built(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """All features of 2013-01-02 to 2013-01-09 that are whole, and the roll-ups."""
    with copied(Templates(shared_folder, home_template).features, tmp_path) as found:
        yield found


def hours_trained_on(line: Line) -> int:
    """Of the newest model of the project without Signalbox."""
    (record,) = line.instance.fetch_materializations(CARELESS, limit=1).records
    assert record.asset_materialization is not None
    hours = record.asset_materialization.metadata["hours"].value
    assert isinstance(hours, int)
    return hours


def newest_run(line: Line) -> tuple[dg.DagsterRunStatus, str]:
    """How the newest run ended, and what its failed steps said."""
    (run,) = line.instance.get_runs(limit=1)
    said = []
    for entry in line.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        assert entry.dagster_event is not None
        error = entry.dagster_event.step_failure_data.error
        while error is not None:
            said.append(error.message)
            error = error.cause
    return run.status, "\n".join(said)


def assert_held(line: Line, *words: str) -> None:
    """The newest run failed and said so, and nothing was written."""
    status, said = newest_run(line)
    assert status is dg.DagsterRunStatus.FAILURE
    for word in words:
        assert word in said
    assert line.services.dataset.versions() == {}
    assert line.materializations("features") == []
    assert not line.check("features").passed


# --- from a shell -----------------------------------------------------------------------------


def dg_launch(module: str, *arguments: str) -> int:
    """`dg launch`, which executes in its own process, past every queue."""
    pointed = ["--module-name", module, "--attribute", "repository"]
    return CliRunner().invoke(launch_command, [*arguments, *pointed]).exit_code


def test_dg_launch(partial: Line) -> None:
    how = ["--partition", partial.dagster_key(PARTIAL)]
    assert dg_launch("tests.careless", "--assets", "careless_model", *how) == 0
    assert hours_trained_on(partial) == 18
    assert dg_launch("tests.small", "--assets", "flights/features", *how) != 0
    assert_held(partial, PARTIAL, LACKING)
    assert partial.versions("features") == {}


def test_dg_launch_of_a_job(partial: Line) -> None:
    partition = partial.dagster_key(PARTIAL)
    assert dg_launch("tests.careless", "--job", "careless_job", "--partition", partition) == 0
    assert hours_trained_on(partial) == 18
    assert dg_launch("tests.small", "--job", "flights_features", "--partition", partition) != 0
    assert_held(partial, PARTIAL, LACKING)


# --- backfilled -------------------------------------------------------------------------------


def test_a_native_backfill(home: Home) -> None:
    """Launched into the instance, evaluated by Dagster's own daemon, its runs taken from the queue.

    Three days, of which the last has 18 hours of 24.
    """
    days = ["JFK|2013-01-02", "JFK|2013-01-03", PARTIAL]
    with opened(home) as line:
        line.land("2013-01-02", "2013-01-04", until_hour=18)
        keys = [line.dagster_key(day) for day in days]
        ended, runs = backfill(line.instance, "tests.careless", CARELESS, keys)
        assert ended is BulkActionStatus.COMPLETED_SUCCESS
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        assert line.instance.get_materialized_partitions(CARELESS) == set(keys)
        assert hours_trained_on(line) == 24 + 24 + 18

        features = line.key("features")
        ended, runs = backfill(line.instance, "tests.small", features, keys)
        assert ended is BulkActionStatus.COMPLETED_FAILED
        assert dg.DagsterRunStatus.FAILURE in {run.status for run in runs}
        assert {run.tags["signalbox/lane"] for run in runs} == {"backfill"}
        status, said = newest_run(line)
        assert status is dg.DagsterRunStatus.FAILURE
        assert f"{PARTIAL}: {LACKING}" in said
        assert line.instance.get_materialized_partitions(features) == set(keys[:2])
        assert set(line.versions("features")) == set(days[:2])
        assert not line.check("features").passed


# --- tried again ------------------------------------------------------------------------------


def again(line: Line, module: str) -> None:
    """Re-execute the newest run from its failure, as the UI and run retries do."""
    (parent,) = line.instance.get_runs(limit=1)
    assert parent.status is dg.DagsterRunStatus.FAILURE
    found = ReconstructableRepository.for_module(module, "repository")
    dg.execute_job(
        found.get_reconstructable_job(parent.job_name),
        instance=line.instance,
        reexecution_options=dg.ReexecutionOptions.from_failure(parent.run_id, line.instance),
        tags={k: v for k, v in parent.tags.items() if k != "dagster/failure_reason"},
    )


def test_a_retry(partial: Line) -> None:
    """It failed for another reason; the second attempt finds 18 hours as the first would have."""
    partition = partial.dagster_key(PARTIAL)
    (partial.home.root / FAILS_ONCE).touch()
    assert dg_launch("tests.careless", "--job", "careless_job", "--partition", partition) != 0
    assert "the machine was rebooted" in newest_run(partial)[1]
    again(partial, "tests.careless")
    assert hours_trained_on(partial) == 18

    assert dg_launch("tests.small", "--job", "flights_features", "--partition", partition) != 0
    again(partial, "tests.small")
    assert_held(partial, PARTIAL, LACKING)


# --- on a clock -------------------------------------------------------------------------------


def test_a_schedule(partial: Line) -> None:
    """At midnight, for the day that is over by the clock and not by its data."""
    line = partial
    plain = careless(line.home, line.spec)

    def at_midnight(defs: dg.Definitions, asset: dg.AssetKey) -> list[Any]:
        job = dg.define_asset_job("nightly", selection=[asset])
        schedule = dg.build_schedule_from_partitioned_job(job)
        merged = dg.Definitions.merge(defs, dg.Definitions(jobs=[job], schedules=[schedule]))
        midnight = datetime(2013, 1, 5, tzinfo=ZoneInfo("America/New_York"))
        with dg.build_schedule_context(
            instance=line.instance,
            scheduled_execution_time=midnight,
            repository_def=merged.get_repository_def(),
        ) as context:
            tick = merged.resolve_schedule_def(schedule.name).evaluate_tick(context)
        ran = []
        for request in tick.run_requests or []:
            key = str(request.partition_key)
            if "JFK" in key:
                job_def = merged.resolve_job_def("nightly")
                ran.append(
                    job_def.execute_in_process(
                        instance=line.instance,
                        partition_key=key,
                        tags=request.tags,
                        raise_on_error=False,
                    )
                )
        return ran

    (ran,) = at_midnight(plain, CARELESS)
    assert ran.success
    assert hours_trained_on(line) == 18
    (ran,) = at_midnight(line.defs, line.key("features"))
    assert not ran.success
    assert_held(line, PARTIAL, LACKING)


MIDNIGHT = dg.AutomationCondition.on_cron("0 0 * * *", "America/New_York")


def requested_at_midnight(line: Line, defs: dg.Definitions, asset: dg.AssetKey) -> list[str]:
    """What `on_cron` asks for once something of a partition arrives after the stroke."""

    def look(minute: int, day: int, hour: int, cursor: Any = None) -> Any:
        moment = datetime(2013, 1, day, hour, minute, tzinfo=ZoneInfo("America/New_York"))
        return dg.evaluate_automation_conditions(
            defs,
            line.instance,
            asset_selection=dg.AssetSelection.assets(asset),
            evaluation_time=moment,
            cursor=cursor,
        )

    found = look(50, 4, 23)
    found = look(1, 5, 0, found.cursor)
    line.land("2013-01-04", until_hour=18)
    for source in ("flights", "weather"):
        line.instance.report_runless_asset_event(
            dg.AssetObservation(
                line.key(f"landed_{source}"),
                partition=line.dagster_key(PARTIAL),
                tags={"dagster/data_version": f"18 of 24, {asset}"},
            )
        )
    return sorted(str(key) for key in look(2, 5, 0, found.cursor).get_requested_partitions(asset))


def test_on_cron_asks_for_18_of_24_hours_and_does_not_get_them(home: Home) -> None:
    with opened(home) as line:
        plain = with_source(careless(home, line.spec, MIDNIGHT), line.spec)
        asked = requested_at_midnight(line, plain, CARELESS)
        assert asked == [line.dagster_key(PARTIAL)]
        plain.resolve_job_def("careless_job").execute_in_process(
            instance=line.instance, partition_key=asked[0]
        )
        assert hours_trained_on(line) == 18

        features = line.key("features")
        line.defs = line.defs.map_asset_specs(
            func=lambda asset: (
                asset.replace_attributes(automation_condition=MIDNIGHT)
                if asset.key == features
                else asset
            )
        )
        asked = requested_at_midnight(line, line.defs, features)
        assert asked == [line.dagster_key(PARTIAL)]
        line.run("features", partition=PARTIAL, tags={"dagster/from_automation_condition": "true"})
        assert_held(line, PARTIAL, LACKING)


# --- nothing known is held --------------------------------------------------------------------


def test_a_partition_that_nothing_is_known_of_is_held(home: Home) -> None:
    """No file, no arrival, no verdict: the absence of a reason to hold is no reason to leave."""
    with opened(home) as line:
        line.land("2013-01-03")
        ledger = line.services.ledger
        assert ledger.verdict("flights", "flights/features", "JFK|2013-01-02") is None
        line.run("features", partition="JFK|2013-01-02")
        assert_held(line, "flights 0 of 24 hours, missing 00:00-23:00")


def forget(line: Line, table: str, asset: str) -> None:
    engine = sa.create_engine(line.home.ledger_url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"DELETE FROM {table} WHERE asset = :a"), {"a": asset})
    engine.dispose()


def test_a_verdict_that_was_lost_is_found_again_and_not_assumed(partial: Line) -> None:
    partial.run("features", partition=PARTIAL)
    forget(partial, "verdicts", "flights/features")
    partial.run("features", partition=PARTIAL)
    assert_held(partial, PARTIAL, LACKING)
    assert partial.services.ledger.verdict("flights", "flights/features", PARTIAL) is not None


def test_a_snapshot_without_a_verdict_is_not_trained_on(built: Line) -> None:
    built.must("snapshot", partition="2013-01-04")
    forget(built, "verdicts", "flights/snapshot")
    ran = built.run("model", partition="2013-01-04")
    assert not ran.success
    assert "no verdict on it is in the ledger; materialize flights/snapshot" in failure_of(ran)
    assert built.versions("model") == {}
    built.must("snapshot", partition="2013-01-04")


def test_features_without_a_verdict_are_not_read(built: Line) -> None:
    """Their rows and their record are there; that somebody cleared them is not."""
    built.must("snapshot", partition="2013-01-05")
    forget(built, "verdicts", "flights/features")
    for _ in range(2):  # a look makes no verdict of it
        said = failure_of(built.run("snapshot", partition="2013-01-04"))
        assert "2013-01-04: its own day is held: JFK|2013-01-04" in said
        assert "no verdict on it is in the ledger; materialize flights/features for it" in said
    assert set(built.versions("snapshot")) == {"2013-01-05"}
    told = explain(built.services, "flights/features", "JFK|2013-01-04")
    assert told["state"] == "ready"
    assert "no verdict on it is in the ledger" in told["reason"]
    counts = status(built.services)["assets"]["flights/features"]
    assert (counts["complete"], counts["ready"]) == (0, 15)
    # Nor are they by way of a snapshot that was taken while somebody knew.
    ran = built.run("model", partition="2013-01-05")
    assert not ran.success
    assert "JFK|2013-01-05: no verdict on it is in the ledger" in failure_of(ran)
    assert built.versions("model") == {}

    for airport in ("JFK", "LGA"):
        span = (f"{airport}|2013-01-02", f"{airport}|2013-01-04")
        built.must("features", span=span)
    built.must("snapshot", partition="2013-01-04")


def test_rows_without_a_record_are_not_read(built: Line) -> None:
    """They lie in the lake, but nobody knows on what terms they left."""
    forget(built, "partition_versions", "flights/features")
    ran = built.run("snapshot", partition="2013-01-04")
    assert not ran.success
    assert "landed whole but are not built" in failure_of(ran)
    assert built.versions("snapshot") == {}


# --- at once, and by name ---------------------------------------------------------------------


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("work was done for what is held")


def test_a_refused_run_fails_before_any_work(built: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is read, no model is loaded, no run of MLflow is opened."""
    monkeypatch.setattr(platform_assets.line.features, "build_rows", forbidden)
    monkeypatch.setattr(LandingZone, "read", forbidden)
    monkeypatch.setattr(platform_assets.line.models, "load_trainer", forbidden)
    monkeypatch.setattr(platform_assets.line.models, "Rows", forbidden)
    expected = {
        ("features", HELD): "weather 23 of 24 hours, missing 06:00",
        ("snapshot", "2013-01-06"): f"its own day is held: {HELD}",
        ("model", "2013-01-06"): f"its own day is held: {HELD}",
        ("model", "2013-01-05"): "materialize flights/snapshot for 2013-01-05 first",
        ("evaluation", "2013-01-06"): "materialize flights/model for 2013-01-06 first",
    }
    for (stage, partition), words in expected.items():
        said = failure_of(built.run(stage, partition=partition))
        assert words in said, stage
        assert "work was done" not in said
        assert not built.check(stage).passed
    # The same traps are sprung by what is clear.
    again = built.run("features", partition="LGA|2013-01-05", tags={RESTATE_TAG: "true"})
    assert "work was done" in failure_of(again)


def test_a_batch_over_whole_waived_and_held_partitions(built: Line) -> None:
    """What may leave leaves and says on what terms; what may not is named."""
    built.land("2013-01-10", until_hour=18)
    services = built.services
    give_waiver(services, HELD, "the station was down", "ann", until_of(built.spec, "2013-01-20"))
    before = len(built.materializations("features"))
    ran = built.run("features", span=("LGA|2013-01-05", "LGA|2013-01-07"))
    assert ran.success, failure_of(ran)
    check = built.check("features")
    assert check.description == "3 of 3 partition(s) were clear, 1 of them by acceptance or waiver"
    short: Any = check.metadata["short"].value
    assert list(short) == [HELD]
    assert "waived by W-0001" in short[HELD]
    ran = built.run("features", span=("LGA|2013-01-06", "LGA|2013-01-10"))
    assert not ran.success
    assert "held for 1 partition(s)" in failure_of(ran)
    assert "LGA|2013-01-10: flights 18 of 24" in failure_of(ran)
    assert HELD not in failure_of(ran)
    assert len(built.materializations("features")) == before + 3 + 4


def test_an_accepted_day_passes_and_says_so(home: Home) -> None:
    spec = small_spec().model_dump()
    spec["sources"]["weather"]["contract"] |= {"at_deadline": "accept", "accept_lacking": 1}
    with opened(home, small_spec(sources=spec["sources"])) as line:
        line.land("2013-01-06", "2013-01-07", airports=["LGA"])
        line.must("features", partition=HELD)
        check = line.check("features")
        assert check.description.endswith("1 of them by acceptance or waiver")
        (event,) = line.materializations("features")
        assert event.metadata["verdict"].value == "accepted"
        assert "accepted by the catalog's rule" in str(event.metadata["short"].value)


# --- held days that no run tells of -----------------------------------------------------------


def look(line: Line) -> list[dg.AssetCheckEvaluation]:
    """One tick of the sensor; reports what it says of the check as the daemon does."""
    sensor = line.defs.resolve_sensor_def("flights_readiness")
    with dg.build_sensor_context(
        instance=line.instance,
        repository_def=line.defs.get_repository_def(),
        sensor_name=sensor.name,
    ) as context:
        # The daemon gets it from another process.
        data = deserialize_value(
            serialize_value(sensor.evaluate_tick(context)), SensorExecutionData
        )
    checks = [e for e in data.asset_events if isinstance(e, dg.AssetCheckEvaluation)]
    for event in checks:
        line.instance.report_runless_asset_event(event)
    return checks


def test_held_live_days_fail_the_check_without_a_run(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    spec = small_spec(schedule={"live_from": "2013-01-06"})
    with copied(Templates(shared_folder, home_template).features, tmp_path, spec) as line:
        assert line.check("features").passed
        (said,) = look(line)
        assert not said.passed
        shown = line.check("features")
        assert not shown.passed
        held: Any = shown.metadata["held"].value
        assert list(held) == [HELD]
        assert "weather 23 of 24 hours, missing 06:00, past the deadline" in held[HELD]
        assert shown.metadata["verdicts"].value == {"late": 1}
        assert "| LGA\\|2013-01-06 | late | " in str(shown.metadata["reasons"].value)
        assert shown.metadata["as_of"].value == "2013-01-10T05:00:00+00:00"
        # Once: nothing has changed.
        assert look(line) == []

        # A run elsewhere passes; what is held is still to be seen after the next look.
        line.must("features", partition="JFK|2013-01-07")
        assert line.check("features").passed
        (said,) = look(line)
        assert not line.check("features").passed
        assert list(said.metadata["held"].value) == [HELD]

        # A day that is not over waits; it does not fail the check.
        line.land("2013-01-10", until_hour=18)
        (said,) = look(line)
        assert sorted(said.metadata["waiting"].value) == ["JFK|2013-01-10", "LGA|2013-01-10"]
        assert list(said.metadata["held"].value) == [HELD]

        until = until_of(spec, "2013-01-20")
        give_waiver(line.services, HELD, "the station was down", "ann", until)
        (said,) = look(line)
        assert said.passed
        assert line.check("features").passed
        assert look(line) == []


def test_a_check_of_a_run_stands_where_nothing_is_held(partial: Line) -> None:
    """What a person tried on a day of the history is not painted over."""
    partial.run("features", partition=PARTIAL)
    assert look(partial) == []
    assert not partial.check("features").passed
