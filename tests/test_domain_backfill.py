"""What of a selection is missing, complete, held or in work elsewhere; and what it will take."""

import math
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.backfill import (
    STAGES,
    Known,
    Selection,
    State,
    counts,
    needed_dates,
    plan_items,
    to_build,
)
from platform_assets.domain.backfill_cost import (
    LONGEST_RUN_SECONDS,
    START_SHARE,
    Batch,
    Cost,
    Measured,
    Queue,
    advise,
    batch_size,
    batches,
    daily_effect,
    estimate,
    median_costs,
    runs_at_once,
)
from platform_assets.domain.backfill_progress import (
    StageFacts,
    describe_seconds,
    seconds_left,
    stage_progress,
)
from platform_assets.domain.manifest import PartitionVersion, roll_up
from platform_assets.domain.partition import PartitionKey, date_range
from tests.small import small_spec

unhurried = settings(deadline=None)  # a busy machine is no failure
SPEC = small_spec()
LAST = SPEC.partitions.end
EVERY = SPEC.partitions.values
CELLS = [key for day in SPEC.dates() for key in SPEC.keys_of(day)]
DATES = [day.isoformat() for day in SPEC.dates()]


def version(partition: str) -> PartitionVersion:
    return PartitionVersion(partition=partition, data_version="v", table_version=1, rows=1)


def built(names: object) -> dict[str, PartitionVersion]:
    return {name: version(name) for name in names}  # type: ignore[attr-defined]


def states(known: Known, selection: Selection) -> dict[str, dict[str, State]]:
    found = plan_items(SPEC, selection, known)
    return {stage: {i.partition: i.state for i in items} for stage, items in found.items()}


def span(first: int, last: int) -> tuple[date, ...]:
    return date_range(date(2013, 1, first), date(2013, 1, last))


names = st.sets(st.sampled_from(CELLS))
days = st.sets(st.sampled_from(DATES))
selections = st.builds(
    lambda dates, keys, restate: Selection(tuple(sorted(dates)), tuple(sorted(keys)), restate),
    st.sets(st.sampled_from(SPEC.dates()), min_size=1),
    st.sets(st.sampled_from(EVERY), min_size=1),
    st.booleans(),
)
knowledge = st.builds(
    Known,
    reached=st.sampled_from(SPEC.dates()),
    held=names.map(lambda found: dict.fromkeys(found, "an hour is missing")),
    built=names.map(built),
    days=days.map(lambda found: dict.fromkeys(found, "v")),
    snapshots=days.map(frozenset),
    models=days.map(lambda found: dict.fromkeys(found, 1)),
    judged=st.dictionaries(st.sampled_from(DATES), st.integers(1, 2)),
    elsewhere=st.dictionaries(
        st.tuples(st.sampled_from(STAGES), st.sampled_from([*CELLS, *DATES])), st.just("run r1")
    ),
)


# --- items --------------------------------------------------------------------------------------


@unhurried
@given(selections, knowledge)
def test_each_selected_partition_is_in_one_state_and_says_why(
    selection: Selection, known: Known
) -> None:
    found = plan_items(SPEC, selection, known)
    trained = [d for d in selection.dates if d >= SPEC.first_model_date]
    expected = {
        "features": {str(PartitionKey(d, k)) for d in selection.dates for k in selection.keys},
        "day": {d.isoformat() for d in selection.dates},
        "snapshot": {d.isoformat() for d in trained},
        "model": {d.isoformat() for d in trained},
        "evaluation": {d.isoformat() for d in trained if d <= SPEC.last_judged_date},
    }
    assert {stage: [i.partition for i in items] for stage, items in found.items()}.keys() == (
        expected.keys()
    )
    for stage, items in found.items():
        listed = [item.partition for item in items]
        assert len(listed) == len(set(listed))
        assert set(listed) == expected[stage]
        assert sum(counts(items).values()) == len(items)
        for item in items:
            assert bool(item.why) == (item.state not in (State.MISSING, State.COMPLETE))


@unhurried
@given(selections, knowledge)
def test_nothing_that_is_held_or_in_work_elsewhere_is_launched(
    selection: Selection, known: Known
) -> None:
    build = to_build(plan_items(SPEC, selection, known))
    assert known.reached is not None
    for stage, launched in build.items():
        for name in launched:
            assert (stage, name) not in known.elsewhere
            assert PartitionKey.parse(name).date <= known.reached
    planned = set(build.get("features", ()))
    assert not planned & set(known.held)
    # A snapshot reads features that are there, or that this backfill builds before.
    there = planned | set(known.built)
    for name in build.get("snapshot", ()):
        day = date.fromisoformat(name)
        for needed in needed_dates(SPEC, [day]):
            if needed > day:
                continue
            for key in SPEC.keys_of(needed):
                assert key in there or key in known.held
                assert ("features", key) not in known.elsewhere
    for name in build.get("evaluation", ()):
        assert name in known.models or name in build.get("model", ())


@unhurried
@given(selections, knowledge)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    selection: Selection, known: Known
) -> None:
    selection = Selection(selection.dates, selection.keys)
    build = to_build(plan_items(SPEC, selection, known))
    after_built = {**known.built, **built(build.get("features", ()))}
    rolled = {
        day.isoformat(): roll_up(day, SPEC.keys_of(day), after_built, known.held).data_version()
        for day in selection.dates
    }
    models = {**known.models, **dict.fromkeys(build.get("model", ()), 2)}
    after = Known(
        reached=known.reached,
        held=known.held,
        built=after_built,
        days={**known.days, **{n: rolled[n] for n in build.get("day", ())}},
        snapshots=known.snapshots | set(build.get("snapshot", ())),
        models=models,
        judged={**known.judged, **{n: models[n] for n in build.get("evaluation", ())}},
        elsewhere=known.elsewhere,
    )
    assert to_build(plan_items(SPEC, selection, after)) == {}


def test_the_default_fills_what_is_missing_and_restate_takes_all_of_it() -> None:
    known = Known(reached=LAST, built=built(["JFK|2013-01-04"]), snapshots=frozenset(DATES))
    selection = Selection(span(4, 4), ("JFK", "LGA"))
    found = states(known, selection)
    assert found["features"] == {
        "JFK|2013-01-04": State.COMPLETE,
        "LGA|2013-01-04": State.MISSING,
    }
    again = states(known, Selection(selection.dates, selection.keys, restate=True))
    assert again["features"]["JFK|2013-01-04"] is State.AGAIN


def test_a_window_that_reaches_out_of_the_selection_counts_what_is_built_there() -> None:
    # Whole, but neither built nor selected: its model would be refused when it runs.
    known = Known(reached=LAST)
    found = plan_items(SPEC, Selection(span(6, 6), EVERY), known)
    (snapshot,) = found["snapshot"]
    assert snapshot.state is State.HELD
    assert "2013-01-04 to 2013-01-05" in snapshot.why
    ready = Known(reached=LAST, built=built(k for d in span(4, 5) for k in SPEC.keys_of(d)))
    assert states(ready, Selection(span(6, 6), EVERY))["model"]["2013-01-06"] is State.MISSING


def test_one_airport_of_a_date_leaves_the_roll_up_to_the_other() -> None:
    found = plan_items(SPEC, Selection(span(4, 4), ("JFK",)), Known(reached=LAST))
    assert [item.partition for item in found["features"]] == ["JFK|2013-01-04"]
    assert found["day"][0].state is State.HELD
    assert "LGA|2013-01-04" in found["day"][0].why


def test_what_rests_on_work_elsewhere_waits_for_it() -> None:
    known = Known(reached=LAST, elsewhere={("features", "JFK|2013-01-05"): "run r1"})
    found = plan_items(SPEC, Selection(span(2, 8), EVERY), known)
    by = {stage: {i.partition: i for i in items} for stage, items in found.items()}
    assert by["features"]["JFK|2013-01-05"].state is State.ELSEWHERE
    assert by["features"]["LGA|2013-01-05"].state is State.MISSING
    assert by["day"]["2013-01-05"].state is State.HELD
    for name in ("2013-01-05", "2013-01-06", "2013-01-07"):  # windows of three days
        assert by["model"][name].state is State.HELD
        assert "run r1" in by["model"][name].why
    assert by["model"]["2013-01-08"].state is State.MISSING
    assert by["evaluation"]["2013-01-04"].state is State.HELD  # judged on the 5th


def test_a_model_that_is_trained_anew_is_judged_again() -> None:
    everything = Known(
        reached=LAST,
        built=built(CELLS),
        snapshots=frozenset(DATES) - {"2013-01-08"},
        models={name: 1 for name in DATES if name != "2013-01-08"},
        judged=dict.fromkeys(DATES, 1),
    )
    found = states(everything, Selection(span(7, 8), EVERY))
    assert found["evaluation"] == {"2013-01-07": State.COMPLETE, "2013-01-08": State.AGAIN}


def test_dates_that_have_not_begun_are_held() -> None:
    known = Known(reached=date(2013, 1, 5))
    found = plan_items(SPEC, Selection(span(2, 6), EVERY), known)
    assert found["features"][-1].why == "2013-01-06 has not begun by the pipeline's clock"
    assert found["evaluation"][1].state is State.HELD  # the 5th is judged on the 6th


# --- what it takes ------------------------------------------------------------------------------


def test_costs_are_medians_and_nonsense_is_left_out() -> None:
    rows = [
        {"seconds": 9.0, "cpu_seconds": 8.0, "start_seconds": 2.0, "start_cpu_seconds": 1.5},
        {"seconds": 1.0, "cpu_seconds": 0.5},
        {"seconds": 2.0, "cpu_seconds": 1.0},
        {"seconds": math.nan, "cpu_seconds": 1.0},
        {"seconds": -1, "cpu_seconds": 1.0},
        {"seconds": "1", "cpu_seconds": 1.0},
        {},
    ]
    found = median_costs({"features": rows, "day": []})
    assert found.stages == {"features": Cost(2.0, 1.0, 3)}
    assert found.start == Cost(2.0, 1.5, 1)


@unhurried
@given(names, days, st.integers(1, 7))
def test_no_run_takes_more_than_its_batch(
    features: set[str], judged: set[str], per_run: int
) -> None:
    spec = small_spec(limits={"partitions_per_run": per_run, "models_per_run": per_run})
    build = {"features": tuple(features), "model": tuple(judged), "evaluation": tuple(judged)}
    for batch in batches(spec, build):
        assert math.ceil(batch.partitions / batch.per_run) <= batch.runs <= batch.partitions


def test_a_year_is_counted_in_runs_as_dagster_makes_them() -> None:
    spec = small_spec(limits={"partitions_per_run": 5, "models_per_run": 4})
    gap = [name for name in CELLS if name != "LGA|2013-01-06"]
    found = {b.stages: b for b in batches(spec, {"features": gap, "day": DATES})}
    # JFK: 19 dates, 4 runs; LGA: 4 and 14 dates, 1 and 3 runs.
    assert found["features",] == Batch(("features",), 37, 8, 5, keys=2)
    assert found["day",].runs == 1
    both = batches(spec, {"snapshot": DATES[2:], "model": DATES[2:10], "evaluation": DATES[2:3]})
    assert [(b.stages, b.partitions, b.runs) for b in both] == [
        (("snapshot", "model"), 8, 2),
        (("snapshot",), 9, 3),
        (("evaluation",), 1, 1),
        (("champion",), 1, 1),
    ]


def test_an_estimate_needs_every_stage_measured() -> None:
    planned = batches(SPEC, {"features": ["JFK|2013-01-02"], "day": ["2013-01-02"]})
    known = Measured({"features": Cost(2.0, 1.0, 5)}, Cost(4.0, 3.0, 2))
    found = estimate(planned, known, 2, 30.0)
    assert (found.seconds, found.unmeasured) == (None, ("day",))
    known = Measured({**known.stages, "day": Cost(1.0, 1.0, 5)}, known.start)
    found = estimate(planned, known, 2, 30.0)
    assert found.cpu_seconds == 1.0 + 3.0 + 1.0 + 3.0
    assert found.seconds == 2 * 30.0 + 2.0 + 4.0 + 1.0 + 4.0


KNOWN = Measured({"features": Cost(2.0, 1.0, 9), "day": Cost(3.0, 1.0, 9)}, Cost(1.0, 1.0, 9))


def test_one_airport_goes_as_fast_as_its_limit_lets_it() -> None:
    """The lane takes two runs, but each airport one at a time: the queue has a limit a key."""
    spec = small_spec(limits={"partitions_per_run": 5})
    jfk = [f"JFK|{day}" for day in DATES[:10]]
    one = batches(spec, {"features": jfk})
    both = batches(spec, {"features": [*jfk, *(f"LGA|{day}" for day in DATES[:10])]})
    assert (one[0].runs, one[0].keys, both[0].runs, both[0].keys) == (2, 1, 4, 2)
    # Ten partitions of 2 s and two starts of 1 s are 22 s of work, those of two airports 44 s.
    assert estimate(one, KNOWN, 2, 2.0).seconds == 2.0 + 11.0
    limited = estimate(one, KNOWN, 2, 2.0, per_key=1)
    assert (limited.seconds, limited.parallel) == (2.0 + 22.0, 1)
    limited = estimate(both, KNOWN, 4, 2.0, per_key=1)
    assert (limited.seconds, limited.parallel) == (2.0 + 22.0, 2)
    assert estimate(both, KNOWN, 4, 2.0, per_key=2).seconds == 2.0 + 11.0
    # Roll-ups have no key; of one run nothing goes at once.
    days = batches(spec, {"day": DATES[:10]})
    assert (days[0].keys, runs_at_once(days[0], 4, 1)) == (0, 1)
    more = replace(days[0], runs=3)
    assert runs_at_once(more, 2, 1) == 2


def test_runs_of_several_airports_share_one_limit() -> None:
    """Two dates of two airports are a run a date, each of both: `backfill/flights/several`."""
    cells = ["JFK|2013-01-02", "LGA|2013-01-02", "JFK|2013-01-05", "LGA|2013-01-05"]
    spec = small_spec(limits={"partitions_per_run": 5})
    (found,) = batches(spec, {"features": cells})
    assert (found.runs, found.keys, runs_at_once(found, 2, 1)) == (2, 1, 1)
    (found,) = batches(spec, {"features": cells[:3]})
    assert (found.runs, found.keys, runs_at_once(found, 2, 1)) == (2, 2, 2)


@unhurried
@given(st.floats(0.001, 1000), st.floats(0, 100))
def test_a_batch_outweighs_its_start_or_is_as_long_as_it_may_be(each: float, start: float) -> None:
    size = batch_size(each, start)
    share = start / (start + size * each)
    assert share <= START_SHARE + 1e-9 or (size + 1) * each > LONGEST_RUN_SECONDS or size == 1000
    assert size == 1 or size * each <= LONGEST_RUN_SECONDS + 1e-6


def test_advice_is_given_only_where_it_matters() -> None:
    spec = small_spec(limits={"partitions_per_run": 15, "models_per_run": 15})
    costs = {"features": Cost(0.3, 0.3, 9), "snapshot": Cost(0.1, 0.1, 9), "model": Cost(60, 60, 9)}
    found = advise(spec, Measured(costs, Cost(0.5, 0.5, 9)))
    assert [(a.field, a.now, a.advised) for a in found] == [("limits.models_per_run", 15, 1)]
    assert advise(spec, Measured(costs)) == ()


def test_what_is_left_for_the_daily_lane_is_said() -> None:
    fine = daily_effect(Queue(5, {"backfill": 2, "late": 1, "adhoc": 1}))
    assert (fine["backfill"], fine["left_for_daily"]) == (2, 1)
    assert "1 of 5 slots stay free" in fine["text"]
    full = daily_effect(Queue(3, {"backfill": 2, "late": 1}))
    assert full["left_for_daily"] == 0
    assert "may have to wait" in full["text"]
    assert "no limit" in daily_effect(Queue(3, {}))["text"]
    # Another backfill may take what this one leaves of the lane.
    small = daily_effect(Queue(5, {"backfill": 2}), max_runs=1)
    assert (small["backfill"], small["left_for_daily"]) == (1, 3)
    assert small["text"].endswith("of this backfill at most 1 run(s) at once")
    assert "no limit" in daily_effect(Queue(3, {}), max_runs=1)["text"]
    shared = daily_effect(Queue(6, {"backfill": 3}, per_backfill=2))
    assert (shared["backfill"], shared["left_for_daily"]) == (2, 3)
    assert daily_effect(Queue(6, {"backfill": 3}, 2, per_pipeline=1))["backfill"] == 1


# --- progress -----------------------------------------------------------------------------------

PARTS = [f"2013-01-{n:02}" for n in range(1, 9)]
parts = st.sets(st.sampled_from(PARTS))
reasons = st.dictionaries(st.sampled_from(PARTS), st.just("why"))


@given(parts, parts, reasons, reasons, parts, parts)
def test_each_wanted_partition_is_counted_once(
    wanted: set[str],
    done: set[str],
    refused: dict[str, str],
    errors: dict[str, str],
    lost: set[str],
    started: set[str],
) -> None:
    found = stage_progress(StageFacts(wanted, done, refused, errors, lost, started))
    settled = found.done + found.failed + found.held + found.behind
    assert settled + found.in_progress + found.waiting == found.wanted == len(wanted)
    assert len(found.reasons) == found.failed + found.held
    assert found.done == len(wanted & done)


def test_refused_failed_and_never_tried_are_told_apart() -> None:
    found = stage_progress(
        StageFacts(
            PARTS,
            done=PARTS[:2],
            refused={PARTS[2]: "18 of 24", PARTS[0]: "it was held before"},
            errors={PARTS[3]: "boom"},
            lost=[PARTS[4], PARTS[5]],
            started=[*PARTS[:5], PARTS[6]],
        )
    )
    assert (found.done, found.held, found.failed, found.behind) == (2, 1, 2, 1)
    assert (found.in_progress, found.waiting) == (1, 1)
    assert found.reasons[PARTS[2]] == "18 of 24"
    assert PARTS[0] not in found.reasons
    assert "its run ended before it was built" in found.reasons[PARTS[4]]


def test_what_a_cancelling_ended_did_not_fail() -> None:
    facts = StageFacts(PARTS, done=PARTS[:1], errors={PARTS[1]: "boom"}, lost=PARTS, started=PARTS)
    ended = stage_progress(replace(facts, canceled=True))
    assert (ended.done, ended.failed, ended.behind) == (1, 1, 6)
    assert stage_progress(facts).failed == 7


def test_the_time_left_is_that_of_what_is_left() -> None:
    one = stage_progress(StageFacts(PARTS, done=PARTS[:4]))
    measured = Measured({"model": Cost(10.0, 9.0, 3)})
    assert seconds_left({"model": one}, measured, 2) == 20.0
    assert seconds_left({"model": one, "day": one}, measured, 2) is None
    ended = stage_progress(StageFacts(PARTS, done=PARTS))
    assert seconds_left({"day": ended}, measured, 2) == 0.0


def test_the_time_left_counts_the_airports_that_are_left() -> None:
    wanted = [f"{key}|{day}" for key in ("JFK", "LGA") for day in PARTS[:4]]
    measured = Measured({"features": Cost(10.0, 9.0, 3)})
    both = stage_progress(StageFacts(wanted))
    one = stage_progress(StageFacts(wanted, done=wanted[4:]))
    assert (both.keys_left, one.keys_left) == (2, 1)
    assert seconds_left({"features": both}, measured, 4) == 20.0
    assert seconds_left({"features": both}, measured, 4, per_key=1) == 40.0
    assert seconds_left({"features": one}, measured, 2) == 20.0
    assert seconds_left({"features": one}, measured, 2, per_key=1) == 40.0
    regions = stage_progress(StageFacts(["north", "south"]))  # somebody's own asset
    assert (regions.keys_left, regions.left) == (0, 2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (40.2, "40 s"), (700, "12 min"), (12000, "3 h 20 min")],
)
def test_spans_are_written_for_people(seconds: float | None, text: str) -> None:
    assert describe_seconds(seconds) == text
