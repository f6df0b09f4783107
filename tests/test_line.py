"""What a history needs, how far the line has come, and why a partition stands where it does."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from platform_assets.domain.clock import FixedClock
from platform_assets.domain.errors import HeldError, UsageError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.readiness import Plan, Request
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.crowning import decide_champion
from platform_assets.line.days import build_day, build_snapshot, days_of
from platform_assets.line.explain import explain
from platform_assets.line.features import build_features
from platform_assets.line.history import STAGES, HistoryPlan, plan_history
from platform_assets.line.judging import evaluate_model
from platform_assets.line.live import look
from platform_assets.line.models import train_model
from platform_assets.line.services import Services
from platform_assets.line.status import status
from resources.home import Home
from resources.landing.layout import hour_path
from tests.small import HELD, Line, Templates, copied, opened, small_spec

FIRST, LAST = date(2013, 1, 2), date(2013, 1, 8)


@pytest.fixture
def line(home: Home) -> Iterator[Line]:
    with opened(home) as found:
        yield found


@pytest.fixture
def trained(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        yield found


def build(services: Services, plan: HistoryPlan, *stages: str) -> None:
    """Build what a plan says, stage by stage, without an orchestrator."""
    for stage in stages or STAGES:
        for name in plan.build[stage]:
            key = PartitionKey.parse(name)
            if stage == "features":
                build_features(services, key, "by hand")
            elif stage == "day":
                build_day(services, key, "by hand")
            elif stage == "snapshot":
                build_snapshot(services, key, "by hand")
            elif stage == "model":
                train_model(services, key, "by hand", lane="adhoc")
            else:
                evaluate_model(services, key, "by hand")
    if plan.judges and not stages:
        decide_champion(services, "by hand")


def retrain(services: Services, day: date) -> None:
    """Train on what was trained on before: it takes a word for it."""
    outcome = train_model(services, PartitionKey(day), "by hand", lane="adhoc")
    assert not outcome.changed
    asked = replace(services, restate="by hand")
    assert train_model(asked, PartitionKey(day), "by hand", lane="adhoc").changed


def consistent(services: Services) -> dict[str, dict[str, Any]]:
    """The status's counts, each of which has to add up; and a watermark where something is."""
    assets: dict[str, dict[str, Any]] = status(services)["assets"]
    for name, count in assets.items():
        total = count["complete"] + count["ready"] + count["held"] + count["missing"]
        assert total == count["partitions"], (name, count)
        assert count["watermark"] is None or count["complete"] > 0, (name, count)
    return {name.removeprefix("flights/"): count for name, count in assets.items()}


def counts(found: Mapping[str, Mapping[str, Any]], stage: str) -> tuple[int, int, int, int]:
    """complete, ready, held, missing"""
    count = found[stage]
    return count["complete"], count["ready"], count["held"], count["missing"]


def agree(services: Services, stage: str | None = None, *partitions: str) -> None:
    """What `explain` says of each partition adds up to what `status` counts."""
    found = status(services)["assets"]
    for name in ("day", "snapshot", "model", "evaluation"):
        first = 4 if name != "day" else 2
        states = [
            explain(services, name, f"2013-01-0{n}")["state"].replace("done", "complete")
            for n in range(first, 9)
        ]
        told = {word: states.count(word) for word in ("complete", "ready", "held", "missing")}
        assert told == {word: found[f"flights/{name}"][word] for word in told}, name
    for partition in partitions:
        assert stage is not None
        state = explain(services, stage, partition)["state"]
        assert found[f"flights/{stage}"][state] > 0, partition


# --- the plan of a history --------------------------------------------------------------------


@pytest.mark.heavy
def test_the_plan_of_a_history_is_built_in_one_go_and_leaves_nothing(line: Line) -> None:
    services = line.services
    line.land("2013-01-02", "2013-01-08")
    plan = plan_history(services, FIRST, LAST)
    assert len(plan.build["features"]) == 13
    assert list(plan.held["features"]) == [HELD]
    assert "weather 23 of 24 hours, missing 06:00" in plan.held["features"][HELD]
    assert plan.build["day"] == tuple(f"2013-01-0{n}" for n in range(2, 9))
    models = ("2013-01-04", "2013-01-05", "2013-01-07", "2013-01-08")
    assert plan.build["snapshot"] == plan.build["model"] == models
    assert plan.held["snapshot"]["2013-01-06"].startswith(f"its own day is held: {HELD}")
    assert plan.build["evaluation"] == ("2013-01-04", "2013-01-07")
    assert plan.judges
    assert plan.held["evaluation"]["2013-01-05"].startswith("judged on days that are held: ")
    assert "there is no model: " in plan.held["evaluation"]["2013-01-06"]
    assert plan.held["evaluation"]["2013-01-08"].endswith("not there yet")
    assert all(plan.done[stage] == () for stage in STAGES)

    # Looking changes nothing, so it may be repeated.
    assert plan_history(services, FIRST, LAST) == plan

    # What is planned can be built, each of it; and then there is nothing left.
    build(services, plan)
    after = plan_history(services, FIRST, LAST)
    assert all(after.build[stage] == () for stage in STAGES)
    assert not after.judges
    for stage in STAGES:
        assert after.done[stage] == tuple(sorted(plan.build[stage]))
    assert after.held == plan.held
    champion = services.ledger.champion("flights")
    assert champion is not None

    # What is held is refused when it is tried all the same.
    for stage, work in (("snapshot", build_snapshot), ("evaluation", evaluate_model)):
        for name in after.held[stage]:
            with pytest.raises(HeldError):
                work(services, PartitionKey.parse(name), "by hand")


def test_a_plan_that_stopped_half_way_goes_on(line: Line) -> None:
    services = line.services
    line.land("2013-01-02", "2013-01-05")
    whole = plan_history(services, FIRST, date(2013, 1, 5))
    half = replace(whole, build={**whole.build, "features": whole.build["features"][:3]})
    build(services, half, "features")
    rest = plan_history(services, FIRST, date(2013, 1, 5))
    assert set(rest.build["features"]) == set(whole.build["features"][3:])
    assert rest.done["features"] == tuple(sorted(whole.build["features"][:3]))
    assert rest.build["model"] == whole.build["model"]
    build(services, rest)
    assert all(
        names == () for names in plan_history(services, FIRST, date(2013, 1, 5)).build.values()
    )


def test_a_roll_up_is_made_anew_when_its_day_has_healed(trained: Line) -> None:
    services = trained.services
    assert days_of(services, [date(2013, 1, 6)])[date(2013, 1, 6)].state == "held"
    assert "2013-01-06" in plan_history(services, FIRST, LAST).done["day"]
    heal(trained)
    plan = plan_history(services, FIRST, LAST)
    assert plan.build["features"] == (HELD,)
    assert plan.build["day"] == ("2013-01-06",)
    assert plan.build["snapshot"] == plan.build["model"] == ("2013-01-06",)
    assert {"2013-01-05", "2013-01-06"} <= set(plan.build["evaluation"])
    consistent(services)
    build(services, plan)
    assert all(names == () for names in plan_history(services, FIRST, LAST).build.values())
    assert services.ledger.history("flights/day", "2013-01-06")[-1].detail["state"] == "whole"


def heal(line: Line) -> None:
    """Deliver the hour that LGA's weather of 2013-01-06 lacks: a copy of the one before."""
    hours = local_hours(date(2013, 1, 6), line.spec.partitions.timezone)
    rows = line.services.zone.read("weather", "LGA", date(2013, 1, 6))
    own = rows.slice(5, 1)
    shifted = own.set_column(
        own.schema.get_field_index("time_hour"), own.schema.field("time_hour"), [[hours[6]]]
    )
    line.services.zone.deliver("weather", "LGA", hours[6], shifted)


def test_a_judgement_is_made_anew_when_its_model_was_trained_again(trained: Line) -> None:
    services = trained.services
    build(services, plan_history(services, FIRST, LAST))
    assert plan_history(services, FIRST, LAST).build["evaluation"] == ()
    retrain(services, date(2013, 1, 7))
    plan = plan_history(services, FIRST, LAST)
    assert plan.build["evaluation"] == ("2013-01-07",)
    assert plan.judges
    consistent(services)
    build(services, plan)
    assert plan_history(services, FIRST, LAST).build["evaluation"] == ()


def test_a_plan_of_a_part_looks_back_over_the_window(trained: Line) -> None:
    """The first window reaches back before the range; what lies there is not planned itself."""
    services = trained.services
    plan = plan_history(services, date(2013, 1, 7), LAST)
    assert set(plan.done["features"]) == {
        f"{k}|2013-01-0{n}" for k in ("JFK", "LGA") for n in (7, 8)
    }
    assert plan.done["snapshot"] == ("2013-01-07", "2013-01-08")
    assert plan.held["features"] == {}
    assert plan.build["evaluation"] == ("2013-01-07",)


# --- status -----------------------------------------------------------------------------------


@pytest.mark.heavy
def test_status_adds_up_at_every_stage(line: Line) -> None:
    services = line.services
    found = consistent(services)
    assert all(count["partitions"] == 0 for count in found.values())
    assert status(services)["champion"] is None

    # A part of a day: two of the sources' partitions are held, of LGA nothing has arrived.
    line.land("2013-01-02", until_hour=5, airports=["JFK"])
    found = consistent(services)
    for stage in ("landed_flights", "landed_weather", "features"):
        assert counts(found, stage) == (0, 0, 1, 1)
    assert found["model"]["partitions"] == 0

    line.land("2013-01-02", "2013-01-08")
    found = consistent(services)
    assert counts(found, "landed_flights") == (14, 0, 0, 0)
    assert counts(found, "landed_weather") == (13, 0, 1, 0)
    assert counts(found, "features") == (0, 13, 1, 0)
    # What only needs the features to be built is held until they are.
    assert counts(found, "day") == (0, 0, 7, 0)
    assert found["day"]["whole"] == 0
    assert counts(found, "snapshot") == counts(found, "model") == (0, 0, 5, 0)
    assert counts(found, "evaluation") == (0, 0, 5, 0)
    assert found["landed_weather"]["watermark"] == "2013-01-08"
    agree(services, "features", "JFK|2013-01-04", HELD)

    plan = plan_history(services, FIRST, LAST)
    build(services, plan, "features")
    found = consistent(services)
    assert counts(found, "features") == (13, 0, 1, 0)
    assert counts(found, "day") == (0, 6, 1, 0)
    assert counts(found, "snapshot") == counts(found, "model") == (0, 4, 1, 0)
    assert counts(found, "evaluation") == (0, 0, 5, 0)
    assert found["day"]["whole"] == 6
    agree(services)
    build(services, plan, "day", "snapshot")
    agree(services)
    found = consistent(services)
    assert counts(found, "day") == (7, 0, 0, 0)
    assert counts(found, "snapshot") == (4, 0, 1, 0)
    assert counts(found, "model") == (0, 4, 1, 0)
    build(services, plan, "model")
    assert counts(consistent(services), "evaluation") == (0, 2, 3, 0)
    agree(services)
    build(services, plan, "evaluation")
    agree(services)
    decide_champion(services, "by hand")
    found = consistent(services)
    assert counts(found, "model") == (4, 0, 1, 0)
    assert counts(found, "evaluation") == (2, 0, 3, 0)
    assert found["evaluation"]["watermark"] == "2013-01-07"
    champion = services.ledger.champion("flights")
    assert champion is not None
    told = status(services)["champion"]
    assert (told["version"], told["date"]) == (champion.version, str(champion.model_date))

    # A new day begins: everything of it is there to be counted, nothing has been built.
    line.land("2013-01-09", until_hour=1)
    found = consistent(services)
    assert counts(found, "features") == (13, 0, 3, 0)
    assert counts(found, "model") == (4, 0, 2, 0)


def test_status_does_not_count_what_the_spec_no_longer_has(trained: Line) -> None:
    """An airport was given up; its partitions are still in the ledger."""
    spec = small_spec(partitions={"values": ["JFK"]})
    found = consistent(Services(trained.home, spec))
    assert found["features"]["partitions"] == found["features"]["complete"] == 8
    assert found["landed_weather"]["partitions"] == found["landed_weather"]["complete"] == 8
    assert found["features"]["watermark"] == "2013-01-09"


def test_the_watermark_is_the_latest_date_that_every_key_has(line: Line) -> None:
    """JFK alone is a day further: nobody may take that for all of them."""
    services = line.services
    line.land("2013-01-02", "2013-01-06")
    assert consistent(services)["features"]["watermark"] is None
    build(services, plan_history(services, FIRST, date(2013, 1, 6)), "features")
    found = consistent(services)
    assert found["features"]["watermark"] == found["landed_weather"]["watermark"] == "2013-01-05"
    assert found["landed_flights"]["watermark"] == "2013-01-06"


def test_status_does_not_count_models_that_the_spec_no_longer_has(trained: Line) -> None:
    """The window was lengthened: the first model's lies before the data now."""
    assert consistent(trained.services)["model"]["partitions"] == 6
    found = consistent(Services(trained.home, small_spec(model={"window_days": 5})))
    assert found["model"]["partitions"] == 4
    assert found["model"]["complete"] == 2


def test_status_of_a_date_that_has_just_begun(line: Line) -> None:
    """As of midnight, the day before is over and the new one has not begun."""
    midnight = datetime(2013, 1, 3, 5, 0, tzinfo=UTC)
    found = consistent(replace(line.services, fixed_clock=FixedClock(midnight)))
    assert counts(found, "features") == (0, 0, 0, 2)
    later = datetime(2013, 1, 3, 5, 1, tzinfo=UTC)
    found = consistent(replace(line.services, fixed_clock=FixedClock(later)))
    assert counts(found, "features") == (0, 0, 0, 4)
    beyond = datetime(2013, 6, 1, tzinfo=UTC)
    found = consistent(replace(line.services, fixed_clock=FixedClock(beyond)))
    assert found["features"]["partitions"] == 19 * 2
    assert found["evaluation"]["partitions"] == 16


# --- explain ----------------------------------------------------------------------------------


def told(services: Services, asset: str, partition: str) -> tuple[str, str]:
    document = explain(services, asset, partition)
    return document["state"], document["reason"]


def test_explain_the_hours(line: Line) -> None:
    services, asset = line.services, "flights/features"
    state, reason = told(services, asset, "JFK|2013-01-04")
    assert state == "missing"
    assert "flights 0 of 24 hours" in reason
    line.land("2013-01-04", until_hour=18)
    document = explain(services, asset, "JFK|2013-01-04")
    assert document["state"] == "held"
    flights, weather = document["sources"]
    assert (flights["source"], flights["observed"], flights["expected"]) == ("flights", 18, 24)
    assert len(flights["not_due"]) == 6
    assert weather["missing"] == []
    assert document["versions"] == []
    line.land("2013-01-04")
    assert told(services, asset, "JFK|2013-01-04")[0] == "ready"
    assert told(services, "features", "JFK|2013-01-04")[0] == "ready"
    assert told(services, "landed_flights", "JFK|2013-01-04")[0] == "done"
    build_features(services, PartitionKey(date(2013, 1, 4), "JFK"), "by hand")
    document = explain(services, asset, "JFK|2013-01-04")
    assert document["state"] == "done"
    (version,) = document["versions"]
    assert version["rows"] > 0
    assert version["run_id"] == "by hand"
    assert version["delta_version"] is not None


def test_explain_names_missing_hours_of_one_source_alone(line: Line) -> None:
    line.land("2013-01-06")
    state, reason = told(line.services, "landed_weather", HELD)
    assert (state, reason) == ("held", "weather 23 of 24 hours, missing 06:00")
    assert told(line.services, "landed_flights", HELD)[0] == "done"
    (source,) = explain(line.services, "landed_weather", HELD)["sources"]
    assert source["missing"] == ["2013-01-06T11:00:00+00:00"]
    assert source["missing_local"] == "06:00"


def test_explain_each_stage_from_nothing_to_done(line: Line) -> None:
    services = line.services
    assert told(services, "day", "2013-01-04")[0] == "held"
    assert "landed whole but are not built" not in told(services, "snapshot", "2013-01-04")[1]

    line.land("2013-01-02", "2013-01-04")
    state, reason = told(services, "day", "2013-01-04")
    assert state == "held"
    assert "JFK|2013-01-04: its hours are whole, but it has not been built yet" in reason
    state, reason = told(services, "snapshot", "2013-01-04")
    assert state == "held"
    assert "3 day(s) of its window have landed whole but are not built" in reason
    assert told(services, "model", "2013-01-04") == (state, reason)
    state, reason = told(services, "evaluation", "2013-01-04")
    assert state == "held"
    assert reason.startswith("there is no model yet: ")

    plan = plan_history(services, FIRST, date(2013, 1, 4))
    build(services, plan, "features")
    assert told(services, "day", "2013-01-04") == ("ready", "all 2 partitions are built")
    state, reason = told(services, "snapshot", "2013-01-04")
    assert state == "ready"
    assert reason.startswith("3 of 3 days are whole, ")
    build(services, plan, "day", "snapshot")
    assert told(services, "day", "2013-01-04")[0] == "done"
    assert told(services, "snapshot", "2013-01-04")[0] == "done"
    state, reason = told(services, "model", "2013-01-04")
    assert state == "ready"
    assert reason.startswith("snapshot ")

    build(services, plan, "model")
    document = explain(services, "model", "2013-01-04")
    assert document["state"] == "done"
    assert document["versions"][0]["model_version"] == 1
    state, reason = told(services, "evaluation", "2013-01-04")
    assert state == "held"
    assert "1 day(s) are not there: 2013-01-05 is held" in reason
    line.land("2013-01-05")
    assert "2013-01-05 is unbuilt" in told(services, "evaluation", "2013-01-04")[1]
    plan = plan_history(services, FIRST, date(2013, 1, 5))
    build(services, plan, "features")
    assert told(services, "evaluation", "2013-01-04")[0] == "ready"
    build(services, plan, "evaluation")
    document = explain(services, "evaluation", "2013-01-04")
    assert document["state"] == "done"
    assert document["versions"][0]["metrics"]["log_loss"] > 0


def test_explain_what_is_held_for_good(trained: Line) -> None:
    services = trained.services
    state, reason = told(services, "snapshot", "2013-01-06")
    assert (state, reason[:21]) == ("held", "its own day is held: ")
    assert told(services, "model", "2013-01-06")[0] == "held"
    document = explain(services, "day", "2013-01-06")
    # The roll-up of a held day is there, and says what is held.
    assert document["state"] == "done"
    assert list(document["held"]) == [HELD]
    document = explain(services, "snapshot", "2013-01-07")
    assert document["state"] == "done"
    assert list(document["held"]) == ["2013-01-06"]
    assert "2013-01-06 is held" in told(services, "evaluation", "2013-01-05")[1]


def test_explain_a_snapshot_that_was_refused_since(trained: Line) -> None:
    strict = replace(trained.services, spec=small_spec(model={"min_days": 3}))
    assert told(strict, "model", "2013-01-07")[0] == "done"
    with pytest.raises(HeldError):
        build_snapshot(strict, PartitionKey(date(2013, 1, 7)), "by hand")
    document = explain(strict, "model", "2013-01-07")
    assert "2 of 3 days are whole, at least 3 are needed" in document["reason"]


def test_explain_changes_nothing(line: Line) -> None:
    """It is a command that reads: arrivals may be noted, no verdict of a source is used up."""
    line.land("2013-01-04", until_hour=18)
    for asset, partition in (
        ("features", "JFK|2013-01-04"),
        ("day", "2013-01-04"),
        ("snapshot", "2013-01-04"),
    ):
        explain(line.services, asset, partition)
    ledger = line.services.ledger
    assert ledger.verdicts("flights", "flights/landed_flights") == {}
    assert all(line.versions(stage) == {} for stage in STAGES)


@pytest.mark.parametrize(
    ("asset", "partition", "said"),
    [
        ("flights/feature", "JFK|2013-01-04", "allowed are flights/landed_flights"),
        ("champion", "2013-01-04", "has no partitions; see the champion with"),
        ("features", "2013-01-04", "airport is missing; allowed are JFK, LGA"),
        ("features", "SFO|2013-01-04", "airport SFO; allowed are JFK, LGA"),
        ("day", "JFK|2013-01-04", "this asset has one partition a date, as in 2013-01-02"),
        ("day", "2012-12-31", "allowed are dates from 2013-01-02 to 2013-01-20"),
        ("day", "4th of January", "is no partition key; allowed are a date"),
        ("model", "2013-01-03", "allowed are 2013-01-04 to 2013-01-20"),
        ("evaluation", "2013-01-20", "allowed are 2013-01-04 to 2013-01-19"),
    ],
)
def test_explain_refuses_what_does_not_exist(
    line: Line, asset: str, partition: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        explain(line.services, asset, partition)


# --- the live days ----------------------------------------------------------------------------


def live(line: Line, spec: PipelineSpec) -> Services:
    return replace(line.services, spec=spec)


def test_a_look_moves_on_over_finished_days_only(trained: Line) -> None:
    services = live(trained, small_spec(schedule={"live_from": "2013-01-07"}))
    tick = look(services)
    # The 7th has a model and no judgement.
    assert tick.open_from == date(2013, 1, 7)
    assert [(r.job, r.partition) for r in tick.plan.requests] == [
        ("day", "2013-01-09"),
        ("train", "2013-01-09"),
        ("judge", "2013-01-07"),
        ("judge", "2013-01-08"),
    ]
    # Out of order: the 8th is finished, the 7th is not, so the look stays at the 7th.
    evaluate_model(services, PartitionKey(date(2013, 1, 8)), "by hand")
    tick = look(services, tick.open_from)
    assert tick.open_from == date(2013, 1, 7)
    assert ("judge", "2013-01-07") in [(r.job, r.partition) for r in tick.plan.requests]
    evaluate_model(services, PartitionKey(date(2013, 1, 7)), "by hand")
    tick = look(services, tick.open_from)
    assert tick.open_from == date(2013, 1, 9)
    # From there on only what is open is looked at, and the same is decided.
    again = look(services, tick.open_from)
    assert again.plan == look(services).plan
    assert again.open_from == tick.open_from


def test_a_day_that_is_held_for_good_does_not_keep_finished_ones_open(trained: Line) -> None:
    """Else each tick of a year with one hole would look at all that came after it."""
    services = live(trained, small_spec(schedule={"live_from": "2013-01-06"}))
    for day in (7, 8):
        evaluate_model(services, PartitionKey(date(2013, 1, day)), "by hand")
    told = look(services).told
    for day in (6, 7, 8, 9):
        hour = local_hours(date(2013, 1, day), services.spec.partitions.timezone)[4]
        (services.home.landing / "flights" / hour_path("flights", "JFK", hour)).unlink()
    tick = look(services, told=told)
    assert tick.open_from == date(2013, 1, 6)
    assert [change.partition for change in tick.changes] == ["JFK|2013-01-06", "JFK|2013-01-09"]
    assert list(tick.plan.held) == [HELD]


def test_a_look_asks_again_when_a_model_was_trained_again(trained: Line) -> None:
    services = live(trained, small_spec(schedule={"live_from": "2013-01-07"}))
    first = {r.run_key for r in look(services).plan.requests if r.job == "judge"}
    for day in (7, 8):
        evaluate_model(services, PartitionKey(date(2013, 1, day)), "by hand")
    assert not [r for r in look(services).plan.requests if r.job == "judge"]
    retrain(services, date(2013, 1, 8))
    (request,) = [r for r in look(services).plan.requests if r.job == "judge"]
    assert request.partition == "2013-01-08"
    assert request.run_key not in first


def test_a_look_before_the_live_days_have_begun(line: Line) -> None:
    line.land("2013-01-02", "2013-01-04")
    tick = look(line.services)
    assert tick.plan.requests == ()
    assert tick.plan.held == {}
    assert tick.open_from == date(2013, 1, 8)
    assert line.services.ledger.verdicts("flights", "flights/features") == {}


def test_a_file_that_vanished_after_the_features_were_built_changes_nothing_live(
    trained: Line,
) -> None:
    """What is committed is committed: the landing zone may be cleared."""
    services = live(trained, small_spec(schedule={"live_from": "2013-01-07"}))
    first = look(services)
    before = first.plan
    hour = local_hours(date(2013, 1, 8), services.spec.partitions.timezone)[4]
    (services.home.landing / "flights" / hour_path("flights", "JFK", hour)).unlink()
    tick = look(services, told=first.told)
    assert [r.run_key for r in tick.plan.requests] == [r.run_key for r in before.requests]
    assert {c.partition for c in tick.changes} == {"JFK|2013-01-08"}


def test_what_a_tick_could_not_tell_is_told_again(trained: Line) -> None:
    services = live(trained, small_spec(schedule={"live_from": "2013-01-07"}))
    lost = look(services)
    assert lost.changes
    # The tick died before Dagster had stored its events, so its cursor was not kept either.
    again = look(services)
    assert again.changes == lost.changes
    assert look(services, told=again.told).changes == ()


def test_other_rows_of_the_same_number_are_another_data_version(trained: Line) -> None:
    """Else nobody would see that the weather was corrected."""
    services = live(trained, small_spec(schedule={"live_from": "2013-01-07"}))
    told = look(services).told
    hour = local_hours(date(2013, 1, 9), services.spec.partitions.timezone)[4]
    path = services.home.landing / "flights" / hour_path("weather", "JFK", hour)
    table = pq.read_table(path)
    place = table.column_names.index("temp")
    warmer = table.set_column(place, "temp", pc.add(table["temp"], 20.0))
    services.zone.deliver("weather", "JFK", hour, warmer)
    (change,) = look(services, told=told).changes
    assert (change.asset, change.partition) == ("flights/landed_weather", "JFK|2013-01-09")


def test_a_look_hands_over_no_more_than_a_tick_can_carry() -> None:
    days = [date(2013, 1, 2) + timedelta(days=n) for n in range(100)]
    requests = tuple(
        Request(job="day", partition=str(day), run_key=str(day), reason="") for day in days
    )
    kept = Plan(requests=requests[::-1]).first(3)
    assert [r.partition for r in kept.requests] == ["2013-01-02", "2013-01-03", "2013-01-04"]
