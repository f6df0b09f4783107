"""Freshness by partition: the date that is due makes an asset fresh, a backfill does not."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.definitions.freshness_evaluator import TimeWindowFreshnessPolicyEvaluator
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.loader import LoadingContextForTest
from dagster._core.test_utils import freeze_time
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.cli.app import main
from platform_assets.domain.clock import FixedClock
from platform_assets.domain.completeness import Verdict
from platform_assets.domain.freshness import (
    NO_RUN,
    AssetDue,
    DueState,
    Expectation,
    assess_due,
    deadline_at,
    due_date,
)
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.waiver import Shortage, Waiver
from platform_assets.factory.due import DUE_CHECK
from platform_assets.line import clearance, due
from platform_assets.line.due import CHUNK_DAYS, read_due
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from platform_assets.line.status import status
from resources.home import Home
from resources.ledger.records import VersionRecord
from tests.small import Line, opened, small_spec

NEW_YORK = "America/New_York"
SIX, EIGHT = time(6), time(8)
FIRST, LAST = date(2013, 2, 1), date(2013, 12, 31)
unhurried = settings(deadline=None)


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(NEW_YORK)).astimezone(UTC)


def assess(as_of: str, *present: str, first: date = FIRST, last: date = LAST) -> AssetDue:
    expected = Expectation(
        asset="flights/model",
        at=EIGHT,
        first=first,
        last=last,
        present={date.fromisoformat(day): None for day in present},
    )
    return assess_due(expected, NEW_YORK, local(as_of), lambda day: f"no {day}")


# --- the decision -----------------------------------------------------------------------------


def test_a_date_is_due_at_its_deadline_and_not_a_second_before() -> None:
    before = assess("2013-02-10T07:59:59", "2013-02-08")
    assert (before.state, before.due) == (DueState.ON_TIME, date(2013, 2, 8))
    assert before.next_due == local("2013-02-10T08:00:00")
    after = assess("2013-02-10T08:00:00", "2013-02-08")
    assert (after.state, after.due) == (DueState.STALE, date(2013, 2, 9))
    assert after.since == local("2013-02-10T08:00:00")
    assert (after.reason, after.missing) == ("no 2013-02-09", 1)
    assert not after.is_fresh
    assert assess("2013-02-10T08:00:00", "2013-02-09").is_fresh


def test_an_old_date_or_a_later_one_makes_nothing_fresh() -> None:
    assert not assess("2013-02-12T09:00:00", "2013-02-01", "2013-02-12").is_fresh


def test_stale_since_the_first_deadline_that_was_missed() -> None:
    found = assess("2013-02-12T09:00:00", "2013-02-08")
    assert (found.due, found.missing) == (date(2013, 2, 11), 3)
    assert found.since == local("2013-02-10T08:00:00")
    assert found.watermark == date(2013, 2, 8)
    assert "2013-02-10 08:00 EST (3 dates in a row): no 2013-02-11" in found.describe(NEW_YORK)
    # A hole that is not the last date is held or late, but the asset is fresh again.
    assert assess("2013-02-12T09:00:00", "2013-02-11").is_fresh


def test_nothing_is_due_before_the_first_live_date_is() -> None:
    found = assess("2013-02-02T07:59:00")
    assert (found.state, found.due, found.is_fresh) == (DueState.NOT_DUE, None, True)
    assert found.next_due == local("2013-02-02T08:00:00")
    assert assess("2012-01-01T00:00:00").next_due == local("2013-02-02T08:00:00")
    # What lies before the first live date does not count as missing.
    stale = assess("2013-02-03T08:00:00")
    assert (stale.missing, stale.since) == (2, local("2013-02-02T08:00:00"))


def test_after_the_last_date_nothing_more_becomes_due() -> None:
    found = assess("2014-05-01T00:00:00", "2013-12-31")
    assert (found.state, found.due, found.next_due) == (DueState.ON_TIME, LAST, None)
    assert not assess("2014-05-01T00:00:00", "2013-12-30").is_fresh


@pytest.mark.parametrize(
    ("day", "at", "expected"),
    [
        # 23 hours long: 8:00 of the next day is in summer time.
        (date(2013, 3, 9), EIGHT, datetime(2013, 3, 10, 12, tzinfo=UTC)),
        (date(2013, 3, 10), EIGHT, datetime(2013, 3, 11, 12, tzinfo=UTC)),
        (date(2013, 11, 2), EIGHT, datetime(2013, 11, 3, 13, tzinfo=UTC)),
        # 2:30 is skipped: as if the clock had not changed. 1:30 comes twice: the first.
        (date(2013, 3, 9), time(2, 30), datetime(2013, 3, 10, 7, 30, tzinfo=UTC)),
        (date(2013, 11, 2), time(1, 30), datetime(2013, 11, 3, 5, 30, tzinfo=UTC)),
    ],
)
def test_deadlines_on_the_days_of_the_clock_change(day: date, at: time, expected: datetime) -> None:
    assert deadline_at(day, at, NEW_YORK) == expected
    assert due_date(at, NEW_YORK, expected, FIRST, LAST) == day
    just_before = expected - timedelta(microseconds=1)
    assert due_date(at, NEW_YORK, just_before, FIRST, LAST) == day - timedelta(days=1)


instants = st.integers(0, 400 * 24 * 60).map(
    lambda minutes: datetime(2013, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
)
times = st.builds(time, st.integers(0, 23), st.sampled_from([0, 30, 59]))
zones = st.sampled_from([NEW_YORK, "UTC", "Pacific/Auckland", "America/St_Johns"])


@unhurried
@given(instants, times, zones)
def test_due_is_the_last_date_whose_deadline_is_over(as_of: datetime, at: time, zone: str) -> None:
    over = [
        day
        for day in (FIRST + timedelta(days=n) for n in range((LAST - FIRST).days + 1))
        if deadline_at(day, at, zone) <= as_of
    ]
    assert due_date(at, zone, as_of, FIRST, LAST) == (over[-1] if over else None)


@unhurried
@given(instants, times, st.sets(st.integers(0, 330)))
def test_fresh_means_that_the_due_date_is_there_and_nothing_else(
    as_of: datetime, at: time, numbers: set[int]
) -> None:
    present = {FIRST + timedelta(days=n): None for n in numbers}
    expected = Expectation(asset="a/model", at=at, first=FIRST, last=LAST, present=present)
    found = assess_due(expected, NEW_YORK, as_of, lambda day: NO_RUN)
    assert found.is_fresh == (found.due is None or found.due in present)
    if found.state is DueState.STALE:
        assert found.due is not None
        assert found.since is not None
        assert found.deadline is not None
        assert found.since <= found.deadline <= as_of
        run = [found.due - timedelta(days=n) for n in range(found.missing)]
        assert not present.keys() & set(run)
        assert run[-1] == FIRST or run[-1] - timedelta(days=1) in present
    if found.next_due is not None:
        assert found.next_due > as_of
        # It is the very next instant at which the answer can change by itself.
        later = assess_due(expected, NEW_YORK, found.next_due, lambda day: NO_RUN)
        assert later.due != found.due
        same = assess_due(
            expected, NEW_YORK, found.next_due - timedelta(microseconds=1), lambda day: NO_RUN
        )
        assert same.due == found.due


def test_a_date_that_came_after_its_deadline_is_late_and_fresh() -> None:
    expected = Expectation(
        asset="a/model",
        at=EIGHT,
        first=FIRST,
        last=LAST,
        present={date(2013, 2, 9): local("2013-02-10T09:30:00")},
    )
    found = assess_due(expected, NEW_YORK, local("2013-02-10T12:00:00"), lambda day: "")
    assert (found.state, found.is_fresh) == (DueState.LATE, True)
    assert "it came 90 min after its deadline" in found.describe(NEW_YORK)


# --- read from the ledger ---------------------------------------------------------------------


def made(
    services: Services,
    stage: str,
    *partitions: str,
    at: datetime | None = None,
    waivers: Sequence[str] = (),
) -> None:
    """As if a run had built these partitions."""
    for partition in partitions:
        services.ledger.record_version(
            VersionRecord(
                asset=services.spec.asset(stage),
                partition=partition,
                data_version=f"{stage} {partition}",
                table_version=1,
                rows=1,
                detail={"waivers": list(waivers)},
                run_id="test",
                committed_at=at or datetime.now(UTC),
            )
        )
        if stage == "features":
            report = clearance.assess(services, PartitionKey.parse(partition)).model_dump(
                mode="json"
            )
            asset, as_of = services.spec.asset(stage), services.clock.as_of()
            services.record_verdict(asset, partition, Verdict.COMPLETE, report, as_of)


def landed(home: Home, *days: tuple[str, int | None], live_from: str = "2013-01-05") -> Services:
    services = Services.open(small_spec(schedule={"live_from": live_from}), home)
    for day, until_hour in days:
        start = date.fromisoformat(day)
        land_flights(services, start, start, until_hour, quiet=True)
    return services


def keys(*days: str) -> list[str]:
    return [f"{key}|{day}" for day in days for key in ("JFK", "LGA")]


def test_it_is_stale_with_the_reason_whether_held_or_not_run(home: Home) -> None:
    days = [(f"2013-01-0{n}", None) for n in range(2, 7)]
    services = landed(home, *days, ("2013-01-07", 9))
    # The 6th is due. LGA's weather of it lacks an hour: held for good reason, and stale.
    made(services, "features", *keys("2013-01-05"))
    report = read_due(services)
    features, model = report.assets
    assert (features.state, features.due) == (DueState.STALE, date(2013, 1, 6))
    assert features.watermark == date(2013, 1, 5)
    assert features.since == local("2013-01-07T06:00:00")
    assert "LGA|2013-01-06: flights 24 of 24 hours; weather 23 of 24 hours" in features.reason
    assert "missing 06:00" in features.reason
    assert (model.state, model.due, model.missing) == (DueState.STALE, date(2013, 1, 6), 2)
    assert model.reason.startswith("its own day is not whole: LGA|")

    # One airport of two is not the date.
    made(services, "features", "JFK|2013-01-06")
    assert read_due(services).assets[0].state is DueState.STALE
    made(services, "features", "LGA|2013-01-06", *keys("2013-01-04"))
    features, model = read_due(services).assets
    assert (features.state, features.watermark) == (DueState.ON_TIME, date(2013, 1, 6))
    assert (model.state, model.reason) == (DueState.STALE, NO_RUN)
    made(services, "model", "2013-01-06")
    assert [a.state for a in read_due(services).assets] == [DueState.ON_TIME] * 2


def test_a_model_that_rests_on_a_revoked_waiver_is_not_there(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = landed(home, *[(f"2013-01-0{n}", None) for n in range(5, 8)], ("2013-01-08", 9))
    now = services.clock.as_of()
    waiver = Waiver(
        name="",
        pipeline="flights",
        partition="LGA|2013-01-06",
        reason="the station was down",
        by="ann",
        given_at=now,
        until=now + timedelta(days=1),
        covers={"weather": Shortage(hours=("2013-01-06T11Z",))},
    )
    first, second = services.waivers.give(waiver), services.waivers.give(waiver)
    made(services, "model", "2013-01-06")
    made(services, "model", "2013-01-07", waivers=[first.name])

    def model() -> AssetDue:
        return read_due(services, ["model"]).assets[0]

    assert (model().state, model().due) == (DueState.ON_TIME, date(2013, 1, 7))
    services.waivers.revoke("flights", first.name, "bob", "it was not", now)
    found = model()
    assert (found.state, found.watermark, found.missing) == (DueState.STALE, date(2013, 1, 6), 1)
    assert found.reason.startswith(
        "the model that is there counts no more: waiver W-0001 was revoked by bob: it was not; "
    )
    with monkeypatch.context() as patch:
        patch.setattr(due, "lapsed", lambda *_, **__: {})
        assert model().is_fresh  # without the question
    # Whoever expires has not been proven wrong: such a model may stay champion, and is there.
    made(services, "model", "2013-01-07", waivers=[second.name])
    assert model().is_fresh
    services.ledger.advance_clock("flights", now + timedelta(days=1))
    assert (model().due, model().watermark) == (date(2013, 1, 8), date(2013, 1, 7))


def test_before_the_live_days_nothing_is_due(home: Home) -> None:
    services = landed(home, ("2013-01-02", None), live_from="2013-01-12")
    for found in read_due(services).assets:
        assert (found.state, found.due) == (DueState.NOT_DUE, None)
    assert read_due(services).assets[0].next_due == local("2013-01-13T06:00:00")


def test_the_one_that_is_there_may_lie_far_back(home: Home) -> None:
    spec = small_spec(partitions={"end": "2013-12-31"}, schedule={"live_from": "2013-01-10"})
    as_of = local("2013-12-25T12:00:00")
    services = Services(home, spec, FixedClock(as_of))
    made(services, "features", *keys("2013-01-11"))
    features, model = read_due(services).assets
    assert features.watermark == date(2013, 1, 11)
    assert features.since == local("2013-01-13T06:00:00")
    assert features.missing == (date(2013, 12, 24) - date(2013, 1, 11)).days > CHUNK_DAYS
    assert (model.watermark, model.since) == (None, local("2013-01-11T08:00:00"))


def test_on_the_wall_clock_it_says_that_a_date_came_late(home: Home) -> None:
    spec = small_spec(schedule={"live_from": "2013-01-05", "clock": "wall"})
    services = Services(home, spec, FixedClock(local("2013-01-06T12:00:00")))
    made(services, "features", *keys("2013-01-05"), at=local("2013-01-06T05:00:00"))
    made(services, "model", "2013-01-05", at=local("2013-01-06T11:00:00"))
    # That it was restated later is no reason to call it late.
    made(services, "features", "JFK|2013-01-05", at=local("2013-01-06T11:30:00"))
    features, model = read_due(services).assets
    assert features.state is DueState.ON_TIME
    assert (model.state, model.reason) == (DueState.LATE, "it came 3 h after its deadline")


def test_status_says_what_is_due(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services = landed(home, ("2013-01-05", None), ("2013-01-06", 9))
    found = status(services)["due"]
    assert json.loads(json.dumps(found)) == found
    model = found["flights/model"]
    assert (model["state"], model["due"]) == ("stale", "2013-01-05")
    assert model["since"] == "2013-01-06T13:00:00Z"
    assert model["next_due"] == "2013-01-07T13:00:00Z"
    with pytest.raises(SystemExit):
        main(["status", "--pipeline", "flights"])
    # The catalog's flights are live from February on.
    assert "flights/model: nothing is due yet; next deadline 2013-02-10 08:00 EST" in " ".join(
        capsys.readouterr().out.split()
    )


# --- in Dagster -------------------------------------------------------------------------------


def dagster_says(line: Line, stage: str) -> FreshnessState:
    """What Dagster's freshness daemon would write down: its own evaluator, on the same instance."""
    node = line.defs.get_repository_def().asset_graph.get(line.key(stage))
    evaluation = TimeWindowFreshnessPolicyEvaluator().evaluate_freshness(
        LoadingContextForTest(line.instance), node
    )
    return asyncio.run(evaluation)


def due_check(line: Line, stage: str) -> dg.AssetCheckEvaluation:
    record = line.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(line.key(stage), DUE_CHECK), limit=1
    )[0]
    assert record.event is not None
    assert record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


def tick(line: Line, cursor: str | None) -> SensorExecutionData:
    """One evaluation of the real sensor; what it reports is stored as the daemon does."""
    sensor = line.defs.resolve_sensor_def("flights_due")
    with dg.build_sensor_context(
        instance=line.instance,
        cursor=cursor,
        repository_def=line.defs.get_repository_def(),
        sensor_name=sensor.name,
    ) as context:
        data = sensor.evaluate_tick(context)
    for event in data.asset_events:
        line.instance.report_runless_asset_event(event)
    return data


def reported(events: Sequence[object]) -> dict[str, bool]:
    found = [e for e in events if isinstance(e, dg.AssetCheckEvaluation)]
    assert len(found) == len(events)
    return {e.asset_key.path[-1]: e.passed for e in found}


@pytest.mark.heavy
def test_a_backfill_of_an_old_date_makes_dagsters_freshness_pass_and_due_still_fails(
    home: Home,
) -> None:
    """The failure without the guard: a backfill turns a stale asset "fresh"."""
    with opened(home, small_spec(schedule={"live_from": "2013-01-05"})) as line:
        line.land("2013-01-02", "2013-01-05")
        line.land("2013-01-06", until_hour=9)
        # Nothing was made for two days, by Dagster's clock: it says so.
        two_days_ago = datetime.now(UTC) - timedelta(days=2)
        for stage, partition in (("features", "JFK|2013-01-02"), ("model", "2013-01-04")):
            with freeze_time(two_days_ago):
                line.instance.report_runless_asset_event(
                    dg.AssetMaterialization(line.key(stage), partition=line.dagster_key(partition))
                )
            assert dagster_says(line, stage) is FreshnessState.FAIL
        first = tick(line, None)
        assert reported(first.asset_events) == {"features": False, "model": False}

        # A backfill builds an old date, as a run of it does; of the model, the event suffices.
        line.must("features", partition="JFK|2013-01-02", tags={"dagster/backfill": "b"})
        line.instance.report_runless_asset_event(
            dg.AssetMaterialization(line.key("model"), partition="2013-01-04")
        )
        assert dagster_says(line, "features") is FreshnessState.PASS
        assert dagster_says(line, "model") is FreshnessState.PASS

        second = tick(line, first.cursor)
        for stage in ("features", "model"):
            assert not due_check(line, stage).passed
            assert not read_due(line.services).of(f"flights/{stage}").is_fresh
        assert "2013-01-05 is not there, stale since 2013-01-06 06:00 EST" in str(
            due_check(line, "features").description
        )

        # The date itself does.
        for partition in keys("2013-01-05"):
            line.must("features", partition=partition)
        third = tick(line, second.cursor)
        assert reported(third.asset_events) == {"features": True, "model": False}
        assert due_check(line, "features").passed
        # No news, no event.
        fourth = tick(line, third.cursor)
        assert fourth.asset_events == []
        assert str(fourth.skip_message).startswith("no change: ")


def test_the_check_can_be_run_in_the_ui_and_no_job_of_the_sensor_runs_it(home: Home) -> None:
    with opened(home, small_spec(schedule={"live_from": "2013-01-05"})) as line:
        line.land("2013-01-05")
        line.land("2013-01-06", until_hour=9)
        job = line.defs.resolve_implicit_global_asset_job_def()
        check = dg.AssetCheckKey(line.key("features"), DUE_CHECK)
        assert check in job.asset_layer.executable_asset_keys or check in set(
            line.defs.resolve_asset_graph().asset_check_keys
        )
        result = job.get_subset(asset_selection=set(), asset_check_selection={check})
        done = result.execute_in_process(instance=line.instance)
        assert done.success
        assert [e.passed for e in done.get_asset_check_evaluations()] == [False]
        for name in ("features", "train"):
            steps = line.defs.resolve_job_def(f"flights_{name}").nodes
            assert not [node.name for node in steps if DUE_CHECK in node.name.split("_")]


def test_a_check_that_cannot_tell_fails_and_does_not_fail_the_run(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(home, small_spec()) as line:
        line.land("2013-01-02")
        line.must("features", partition="JFK|2013-01-02")
        assert due_check(line, "features").passed, "nothing is due yet"

        def broken(services: Services, stages: Sequence[str]) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr("platform_assets.factory.due.read_due", broken)
        line.must("features", partition="JFK|2013-01-02")
        found = due_check(line, "features")
        assert not found.passed
        assert "could not be told: the disk is gone" in str(found.description)


def test_the_day_that_is_due_at_midnight_is_over(home: Home) -> None:
    """The landed clock stands at the end of a day: that day is not due before its deadline."""
    services = landed(home, ("2013-01-05", None))
    assert services.clock.as_of() == local_hours(date(2013, 1, 6), NEW_YORK)[0]
    assert [a.state for a in read_due(services).assets] == [DueState.NOT_DUE] * 2
