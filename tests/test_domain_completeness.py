"""Completeness: expected against observed hours, with reasons that a person can read."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.completeness import (
    Arrival,
    CompletenessReport,
    SourceReport,
    Verdict,
    assess_source,
    describe_hours,
)
from platform_assets.domain.partition import local_hours

unhurried = settings(deadline=None)  # a busy machine is no failure
NEW_YORK = "America/New_York"
HOUR = timedelta(hours=1)
PLAIN, SPRING, AUTUMN = date(2013, 1, 5), date(2013, 3, 10), date(2013, 11, 3)
LATER = datetime(2040, 1, 2, tzinfo=UTC)

days = st.sampled_from([PLAIN, SPRING, AUTUMN]) | st.dates(date(2000, 1, 1), date(2039, 12, 31))


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[Sequence[datetime], list[Arrival], datetime]:
    """The hours of a day, what was delivered for and around it, and an instant to judge at."""
    expected = local_hours(draw(days), NEW_YORK)
    around = [expected[0] - HOUR, *expected, expected[-1] + HOUR]
    chosen = draw(st.lists(st.sampled_from(around), unique=True))
    arrivals = [
        Arrival(
            hour=hour.astimezone(draw(st.sampled_from([UTC, ZoneInfo(NEW_YORK)]))),
            rows=draw(st.integers(0, 99)),
            rejected=draw(st.none() | st.just("truncated")),
        )
        for hour in chosen
    ]
    as_of = expected[0] + draw(st.integers(-60, 60 * 30)) * timedelta(minutes=1)
    return expected, arrivals, as_of


def taken(
    expected: Sequence[datetime], arrivals: Sequence[Arrival], as_of: datetime
) -> list[Arrival]:
    """The deliveries that count: of the day's hours, accepted, and of an hour that is over."""
    hours = {hour for hour in expected if hour + HOUR <= as_of}
    return [a for a in arrivals if a.hour in hours and a.rejected is None]


@unhurried
@given(deliveries())
def test_every_expected_hour_is_accounted_for_once(
    case: tuple[Sequence[datetime], list[Arrival], datetime],
) -> None:
    expected, arrivals, as_of = case
    report = assess_source("weather", expected, arrivals, as_of)
    assert report.expected == len(expected)
    parts = report.observed + len(report.missing) + len(report.not_due) + len(report.rejected)
    assert parts == report.expected
    assert not {*report.missing} & {*report.not_due}
    assert all(hour + HOUR <= as_of for hour in report.missing)
    assert all(hour + HOUR > as_of for hour in report.not_due)
    accepted = taken(expected, arrivals, as_of)
    assert report.observed == len(accepted)
    assert report.rows == sum(a.rows for a in accepted)


@unhurried
@given(deliveries())
def test_complete_means_that_all_hours_were_accepted(
    case: tuple[Sequence[datetime], list[Arrival], datetime],
) -> None:
    expected, arrivals, as_of = case
    report = assess_source("weather", expected, arrivals, as_of)
    accepted = {a.hour for a in taken(expected, arrivals, as_of)}
    assert (report.verdict is Verdict.COMPLETE) == (set(expected) == accepted)
    refused = {a.hour for a in arrivals if a.rejected is not None} & set(expected)
    assert (report.verdict is Verdict.ABSENT) == (not accepted | refused)


@unhurried
@given(deliveries(), st.randoms(use_true_random=False))
def test_the_order_of_arrivals_does_not_matter(
    case: tuple[Sequence[datetime], list[Arrival], datetime], random: object
) -> None:
    expected, arrivals, as_of = case
    shuffled = list(arrivals)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assess_source("w", expected, shuffled, as_of) == assess_source(
        "w", expected, iter(arrivals), as_of
    )


@unhurried
@given(days, st.integers(0, 24))
def test_taking_one_hour_away_is_noticed(day: date, which: int) -> None:
    expected = local_hours(day, NEW_YORK)
    gone = expected[which % len(expected)]
    arrivals = [Arrival(hour=hour, rows=0) for hour in expected]
    assert assess_source("w", expected, arrivals, LATER).verdict is Verdict.COMPLETE
    fewer = [arrival for arrival in arrivals if arrival.hour != gone]
    report = assess_source("w", expected, fewer, expected[-1] + HOUR)
    assert report.verdict is Verdict.PARTIAL
    assert report.missing == (gone,)


def test_an_hour_is_due_once_it_has_ended() -> None:
    expected = local_hours(PLAIN, NEW_YORK)
    ended = expected[0] + HOUR
    assert assess_source("w", expected, [], ended - timedelta(seconds=1)).missing == ()
    assert assess_source("w", expected, [], ended).missing == (expected[0],)


def test_a_file_that_came_before_its_hour_was_over_does_not_count_until_then() -> None:
    """What is delivered at ten past cannot hold the other 50 minutes."""
    expected = local_hours(PLAIN, NEW_YORK)
    arrivals = [Arrival(hour=hour, rows=1) for hour in expected]
    early = assess_source("w", expected, arrivals, expected[-1] + timedelta(minutes=10))
    assert early.verdict is Verdict.PARTIAL
    assert (early.observed, early.rows, early.not_due) == (23, 23, (expected[-1],))
    # That it cannot be read is known at once.
    arrivals[-1] = Arrival(hour=expected[-1], rows=0, rejected="truncated")
    torn = assess_source("w", expected, arrivals, expected[-1] + timedelta(minutes=10))
    assert torn.verdict is Verdict.QUARANTINED
    assert assess_source("w", expected, arrivals[:-1], LATER).missing == (expected[-1],)


def test_a_rejected_hour_counts_as_not_observed_and_says_why() -> None:
    expected = local_hours(PLAIN, NEW_YORK)
    arrivals = [Arrival(hour=h, rows=3, rejected=None) for h in expected[1:]]
    arrivals.append(Arrival(hour=expected[0], rows=3, rejected="column carrier is missing"))
    report = assess_source("flights", expected, arrivals, LATER)
    assert report.verdict is Verdict.QUARANTINED
    assert report.rows == 69
    assert report.rejected == {"2013-01-05T05Z": "column carrier is missing"}


def test_no_expected_hours_are_never_complete() -> None:
    assert assess_source("w", [], [], LATER).verdict is Verdict.ABSENT


# --- the report of a partition ----------------------------------------------------------------


def report_of(*verdicts: Verdict) -> CompletenessReport:
    sources = tuple(
        SourceReport(source=f"s{n}", verdict=verdict, expected=24, observed=0, rows=0)
        for n, verdict in enumerate(verdicts)
    )
    return CompletenessReport(
        partition="JFK|2013-01-05", timezone=NEW_YORK, as_of=LATER, sources=sources
    )


@unhurried
@given(st.lists(st.sampled_from(Verdict), max_size=4))
def test_a_partition_is_whole_only_if_each_source_is(verdicts: list[Verdict]) -> None:
    report = report_of(*verdicts)
    assert report.is_whole == (set(verdicts) == {Verdict.COMPLETE})
    assert (report.verdict is Verdict.ABSENT) == (set(verdicts) <= {Verdict.ABSENT})


def test_the_reason_names_the_hours_of_each_source() -> None:
    expected = local_hours(PLAIN, NEW_YORK)
    as_of = expected[18]
    flights = [Arrival(hour=h, rows=1) for h in expected[:18]]
    weather = [Arrival(hour=h, rows=1) for h in expected[:18] if h != expected[3]]
    weather[0] = Arrival(hour=expected[0], rows=0, rejected="0 bytes")
    report = CompletenessReport(
        partition="JFK|2013-01-05",
        timezone=NEW_YORK,
        as_of=as_of,
        sources=(
            assess_source("flights", expected, flights, as_of),
            assess_source("weather", expected, weather, as_of),
        ),
    )
    assert report.verdict is Verdict.QUARANTINED
    assert report.reason() == (
        "flights 18 of 24 hours, not due yet 18:00-23:00; "
        "weather 16 of 24 hours, missing 03:00, not due yet 18:00-23:00, "
        "rejected 2013-01-05T05Z: 0 bytes"
    )


# --- hours in words ---------------------------------------------------------------------------


def hours_of(day: date, *indices: int) -> list[datetime]:
    hours = local_hours(day, NEW_YORK)
    return [hours[i] for i in indices]


@pytest.mark.parametrize(
    ("day", "indices", "text"),
    [
        (PLAIN, (), ""),
        (PLAIN, (3,), "03:00"),
        (PLAIN, (3, 4), "03:00-04:00"),
        (PLAIN, (3, 18, 19, 20, 21, 22, 23), "03:00, 18:00-23:00"),
        (PLAIN, (23, 0, 2, 1), "00:00-02:00, 23:00"),
        (PLAIN, tuple(range(24)), "00:00-23:00"),
        (SPRING, (1, 2), "01:00-03:00"),
        (AUTUMN, (0,), "00:00"),
        (AUTUMN, (1,), "01:00-0400"),
        (AUTUMN, (2,), "01:00-0500"),
        (AUTUMN, (2, 3), "01:00-0500-02:00"),
        (AUTUMN, tuple(range(25)), "00:00-23:00"),
    ],
)
def test_runs_of_hours_are_folded(day: date, indices: tuple[int, ...], text: str) -> None:
    assert describe_hours(hours_of(day, *indices), NEW_YORK) == text


@unhurried
@given(days, st.sets(st.integers(0, 22)))
def test_folding_names_as_many_runs_as_there_are(day: date, indices: set[int]) -> None:
    text = describe_hours(hours_of(day, *sorted(indices)), NEW_YORK)
    runs = [i for i in indices if i - 1 not in indices]
    assert len([part for part in text.split(", ") if part]) == len(runs)


@unhurried
@given(st.sets(st.integers(0, 24), min_size=1))
def test_different_hours_never_read_the_same(indices: set[int]) -> None:
    """On the day that has one o'clock twice, too."""
    text = describe_hours(hours_of(AUTUMN, *indices), NEW_YORK)
    for other in range(25):
        changed = indices ^ {other}
        assert describe_hours(hours_of(AUTUMN, *changed), NEW_YORK) != text


def test_hours_in_any_timezone_read_the_same() -> None:
    hours = hours_of(AUTUMN, 1, 2, 7)
    eastern = [hour.astimezone(timezone(timedelta(hours=9))) for hour in hours]
    assert describe_hours(eastern, NEW_YORK) == describe_hours(hours, NEW_YORK)


def test_a_copy_of_a_report_says_what_it_says_itself() -> None:
    """What a report says is kept with it, and must not go along into a waived one."""
    source = SourceReport(
        source="weather", verdict=Verdict.PARTIAL, expected=24, observed=20, rows=20
    )
    report = CompletenessReport(
        partition="JFK|2013-01-02",
        timezone=NEW_YORK,
        as_of=datetime(2013, 1, 3, tzinfo=UTC),
        sources=(source,),
    )
    assert report.reason() == "weather 20 of 24 hours"
    waived = source.model_copy(update={"verdict": Verdict.WAIVED, "waiver": "W-0001"})
    assert report.model_copy(update={"sources": (waived,)}).reason().endswith("waived by W-0001")
    assert report.reason() == "weather 20 of 24 hours"
    assert report == report.model_copy()
    assert "_reason" not in report.model_dump()
