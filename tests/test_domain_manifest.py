"""The roll-up of a day, and what a training may read."""

from collections.abc import Mapping
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.manifest import (
    Day,
    DayState,
    PartitionVersion,
    Snapshot,
    WindowRefusal,
    describe_dates,
    roll_up,
    take_snapshot,
    window,
)
from platform_assets.domain.partition import date_range

unhurried = settings(deadline=None)  # a busy machine is no failure
AIRPORTS = ("EWR", "JFK", "LGA")
START = date(2013, 1, 1)
WINDOW, ENOUGH = 7, 5


def keys(day: date) -> list[str]:
    return [f"{airport}|{day}" for airport in AIRPORTS]


def version(key: str, number: int = 1) -> PartitionVersion:
    return PartitionVersion(
        partition=key, data_version=f"{key}-{number}", table_version=number, rows=number
    )


def whole(day: date, number: int = 1) -> Day:
    return roll_up(day, keys(day), {key: version(key, number) for key in keys(day)}, {})


def held(day: date) -> Day:
    built = {key: version(key) for key in keys(day)[1:]}
    return roll_up(day, keys(day), built, {keys(day)[0]: "weather 19 of 24 hours"})


def unbuilt(day: date) -> Day:
    return roll_up(day, keys(day), {key: version(key) for key in keys(day)[1:]}, {})


MAKERS = {DayState.WHOLE: whole, DayState.HELD: held, DayState.UNBUILT: unbuilt}


def snapshot_of(
    day: date, days: Mapping[date, Day], start: date = START, enough: int = ENOUGH
) -> Snapshot | WindowRefusal:
    return take_snapshot(
        pipeline="flights",
        dataset="flights/features",
        day=day,
        data_start=start,
        window_days=WINDOW,
        min_days=enough,
        days=days,
    )


LAST = START + timedelta(days=WINDOW - 1)


# --- the roll-up ------------------------------------------------------------------------------


@unhurried
@given(st.lists(st.sampled_from(DayState), min_size=3, max_size=3))
def test_a_day_is_whole_only_if_each_key_is_built(states: list[DayState]) -> None:
    by_key = dict(zip(keys(START), states, strict=True))
    built = {key: version(key) for key, state in by_key.items() if state is DayState.WHOLE}
    reasons = {key: "19 of 24" for key, state in by_key.items() if state is DayState.HELD}
    day = roll_up(START, keys(START), built, reasons)
    assert (day.state is DayState.WHOLE) == (set(states) == {DayState.WHOLE})
    assert (day.state is DayState.UNBUILT) == (DayState.UNBUILT in states)
    assert {p.partition for p in day.partitions} == set(built)
    assert set(day.reasons) == set(by_key) - set(built), "each lacking key has its reason"


def test_a_key_that_was_built_is_not_held_even_if_its_source_is() -> None:
    key = keys(START)[0]
    day = roll_up(START, [key], {key: version(key)}, {key: "a file has vanished since"})
    assert day.state is DayState.WHOLE
    assert day.reasons == {}


def test_a_roll_up_takes_no_keys_of_other_days() -> None:
    other = keys(START + timedelta(days=1))[0]
    day = roll_up(START, keys(START), {other: version(other)}, {other: "held"})
    assert day.partitions == ()
    assert set(day.reasons) == set(keys(START))


def test_the_version_of_a_day_follows_its_data_and_what_it_lacks() -> None:
    assert whole(START, 1).data_version() != whole(START, 2).data_version()
    assert held(START).data_version() != whole(START).data_version()
    assert held(START).data_version() == held(START).data_version()
    moved = [p.model_copy(update={"table_version": 99}) for p in whole(START).partitions]
    there = {p.partition: p for p in moved}
    assert roll_up(START, keys(START), there, {}).data_version() == whole(START).data_version()
    backwards = roll_up(START, keys(START)[::-1], there, {})
    assert backwards.data_version() == whole(START).data_version()


# --- the snapshot -----------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn) -> tuple[date, dict[date, Day], int]:
    """A day, the roll-ups of most days around its window, and how many must be whole."""
    day = START + timedelta(days=draw(st.integers(0, WINDOW + 3)))
    states = st.sampled_from([DayState.WHOLE] * 6 + [DayState.HELD] * 2 + [DayState.UNBUILT])
    days = {}
    for d in date_range(START - timedelta(days=2), day + timedelta(days=1)):
        state = draw(states)
        if draw(st.integers(0, 30)):
            days[d] = MAKERS[state](d)
    return day, days, draw(st.integers(1, WINDOW))


@unhurried
@given(windows())
def test_a_snapshot_is_taken_exactly_when_every_rule_holds(
    case: tuple[date, dict[date, Day], int],
) -> None:
    day, days, enough = case
    taken = snapshot_of(day, days, enough=enough)
    wanted = window(day, WINDOW)
    states = [days[d].state if d in days else None for d in wanted]
    allowed = (
        wanted[0] >= START
        and None not in states
        and DayState.UNBUILT not in states
        and states[-1] is DayState.WHOLE
        and states.count(DayState.WHOLE) >= enough
    )
    assert isinstance(taken, Snapshot) == allowed
    if isinstance(taken, WindowRefusal):
        assert taken.date == day
        assert taken.reason
        return
    assert taken.days == tuple(d for d in wanted if days[d].state is DayState.WHOLE)
    assert taken.window_start == wanted[0]
    assert set(taken.held) | {d.isoformat() for d in taken.days} == {
        d.isoformat() for d in wanted
    }, "each day of the window is read, or listed as held"
    assert [p.partition for p in taken.partitions] == [k for d in taken.days for k in keys(d)]
    assert taken.rows == sum(p.rows for p in taken.partitions)


@unhurried
@given(windows(), st.randoms(use_true_random=False))
def test_the_order_in_which_days_are_known_does_not_matter(
    case: tuple[date, dict[date, Day], int], random: object
) -> None:
    day, days, enough = case
    order = list(days)
    random.shuffle(order)  # type: ignore[attr-defined]
    again = {d: days[d] for d in order}
    assert snapshot_of(day, again, enough=enough) == snapshot_of(day, days, enough=enough)


@unhurried
@given(clipped=st.integers(1, WINDOW))
def test_a_window_that_the_start_of_the_data_clips_never_trains(clipped: int) -> None:
    days = {d: whole(d) for d in date_range(START - timedelta(days=WINDOW), LAST)}
    assert isinstance(snapshot_of(LAST, days), Snapshot)
    refused = snapshot_of(LAST, days, start=START + timedelta(days=clipped))
    assert isinstance(refused, WindowRefusal)
    assert "before the data does" in refused.reason
    assert str(LAST + timedelta(days=clipped)) in refused.reason, "the first date that can"


def test_a_held_own_day_is_refused_however_whole_the_rest_is() -> None:
    days = {d: whole(d) for d in date_range(START, LAST)} | {LAST: held(LAST)}
    refused = snapshot_of(LAST, days, enough=1)
    assert isinstance(refused, WindowRefusal)
    assert refused.reason == f"its own day is held: EWR|{LAST}: weather 19 of 24 hours"


def test_too_few_whole_days_are_refused_and_the_held_ones_listed() -> None:
    lacking = [START, START + timedelta(days=2), START + timedelta(days=3)]
    days = {d: held(d) if d in lacking else whole(d) for d in date_range(START, LAST)}
    assert isinstance(snapshot_of(LAST, days, enough=4), Snapshot)
    refused = snapshot_of(LAST, days, enough=5)
    assert isinstance(refused, WindowRefusal)
    assert "4 of 7 days are whole, at least 5 are needed" in refused.reason
    assert all(d.isoformat() in refused.reason for d in lacking)


@pytest.mark.parametrize("known", [True, False])
def test_an_unbuilt_day_is_refused_since_the_model_would_depend_on_the_order_of_runs(
    known: bool,
) -> None:
    gap = START + timedelta(days=3)
    days = {d: whole(d) for d in date_range(START, LAST)}
    if known:
        days[gap] = unbuilt(gap)
    else:
        del days[gap]
    refused = snapshot_of(LAST, days, enough=1)
    assert isinstance(refused, WindowRefusal)
    assert "1 day(s) of its window have landed whole but are not built" in refused.reason
    assert str(gap) in refused.reason
    assert "backfill flights/features" in refused.reason


def test_the_version_of_a_snapshot_is_what_it_reads_not_where_it_lies() -> None:
    days = {d: whole(d) for d in date_range(START, LAST)}
    first = snapshot_of(LAST, days)
    assert isinstance(first, Snapshot)
    moved = first.model_copy(
        update={
            "partitions": tuple(
                p.model_copy(update={"table_version": n + 50})
                for n, p in enumerate(reversed(first.partitions))
            )
        }
    )
    assert moved.partitions != first.partitions
    assert moved.data_version() == first.data_version()
    restated = snapshot_of(LAST, days | {START: whole(START, 2)})
    assert isinstance(restated, Snapshot)
    assert restated.data_version() != first.data_version()
    fewer = snapshot_of(LAST, days | {START: held(START)})
    assert isinstance(fewer, Snapshot)
    assert fewer.data_version() != first.data_version()


@unhurried
@given(st.permutations(range(9)))
def test_the_version_of_a_snapshot_does_not_depend_on_order(order: list[int]) -> None:
    partitions = [version(f"JFK|2013-01-{n + 1:02}", n) for n in range(9)]
    base = Snapshot(
        pipeline="flights",
        dataset="flights/features",
        date=LAST,
        window_start=START,
        days=(LAST,),
        partitions=tuple(partitions),
        held={},
    )
    shuffled = base.model_copy(update={"partitions": tuple(partitions[n] for n in order)})
    assert shuffled.data_version() == base.data_version()


def test_a_snapshot_survives_its_json() -> None:
    taken = snapshot_of(LAST, {d: whole(d) for d in date_range(START, LAST)})
    assert isinstance(taken, Snapshot)
    again = Snapshot.model_validate_json(taken.model_dump_json())
    assert again == taken
    assert again.data_version() == taken.data_version()


# --- dates in words ---------------------------------------------------------------------------


@unhurried
@given(st.sets(st.integers(0, 40)))
def test_runs_of_dates_are_folded(numbers: set[int]) -> None:
    text = describe_dates([START + timedelta(days=n) for n in numbers])
    unfolded: set[date] = set()
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition(" to ")
        unfolded |= set(date_range(date.fromisoformat(first), date.fromisoformat(last or first)))
    assert unfolded == {START + timedelta(days=n) for n in numbers}
    runs = [n for n in numbers if n - 1 not in numbers]
    assert len([part for part in text.split(", ") if part]) == len(runs)
