"""The contract of a source: deadline, acceptance, rows far off; in the domain and on the line."""

import copy
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.completeness import (
    CLEAR,
    Arrival,
    SourceReport,
    Verdict,
    assess_source,
    deadline_of,
    suspect_rows,
)
from platform_assets.domain.errors import HeldError, SpecError
from platform_assets.domain.manifest import Snapshot
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.source_spec import ContractSpec, WeekdayRowsSpec
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.clearance import assess, assess_range
from platform_assets.line.days import decide_snapshot
from platform_assets.line.features import build_features, record_completeness
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from platform_assets.line.waive import give_waiver
from resources.catalog import catalog_folder
from resources.home import Home
from tests.landing_zone import weather
from tests.small import small_spec
from tests.test_quarantine import flights

unhurried = settings(deadline=None)
NEW_YORK = "America/New_York"
DAY, SPRING, AUTUMN = date(2013, 1, 5), date(2013, 3, 10), date(2013, 11, 3)
HOLD = ContractSpec()
ACCEPT = ContractSpec(at_deadline="accept", accept_lacking=2)
HELD = PartitionKey.parse("LGA|2013-01-06")
"""Its weather lacks one hour in the data."""


def judged(
    contract: ContractSpec,
    *,
    without: int = 0,
    refused: int = 0,
    late: bool = True,
    rows: int = 10,
    trailing: tuple[int, ...] = (),
    day: date = DAY,
) -> SourceReport:
    """A day that lacks its last hours, and whose first ones were refused."""
    hours, deadline = local_hours(day, NEW_YORK), deadline_of(contract, day, NEW_YORK)
    arrivals = [
        Arrival(hour=hour, rows=rows, rejected="0 bytes" if i < refused else None)
        for i, hour in enumerate(hours[: len(hours) - without])
    ]
    as_of = deadline if late else deadline - timedelta(microseconds=1)
    return assess_source(
        "weather", hours, arrivals, as_of, contract, deadline=deadline, trailing=trailing
    )


@pytest.mark.parametrize(
    ("day", "instant"),
    [
        (DAY, datetime(2013, 1, 6, 11, tzinfo=UTC)),
        (SPRING, datetime(2013, 3, 11, 10, tzinfo=UTC)),
        (SPRING - timedelta(days=1), datetime(2013, 3, 10, 10, tzinfo=UTC)),
        (AUTUMN, datetime(2013, 11, 4, 11, tzinfo=UTC)),
        (AUTUMN - timedelta(days=1), datetime(2013, 11, 3, 11, tzinfo=UTC)),
    ],
)
def test_the_deadline_is_six_in_the_morning_of_the_next_day_by_the_local_clock(
    day: date, instant: datetime
) -> None:
    assert deadline_of(HOLD, day, NEW_YORK) == instant


def test_a_day_that_is_short_is_partial_then_late() -> None:
    before, after = judged(HOLD, without=1, late=False), judged(HOLD, without=1)
    assert (before.verdict, before.overdue) == (Verdict.PARTIAL, False)
    assert (after.verdict, after.overdue) == (Verdict.LATE, True)
    assert before.data_version() == after.data_version(), "the same files: time is no change"
    assert judged(HOLD, without=24, late=False).verdict is Verdict.ABSENT
    assert judged(HOLD, without=24).verdict is Verdict.LATE
    assert judged(HOLD, without=24).is_absent


def test_the_catalog_may_accept_down_to_a_stated_minimum_and_not_before_the_deadline() -> None:
    assert judged(ACCEPT, without=2, late=False).verdict is Verdict.PARTIAL
    accepted = judged(ACCEPT, without=2)
    assert accepted.verdict is Verdict.ACCEPTED
    assert accepted.is_clear
    assert accepted.overdue
    assert judged(ACCEPT, without=3).verdict is Verdict.LATE
    # What was refused is no accident of delivery: a person has to look.
    assert judged(ACCEPT, refused=1).verdict is Verdict.QUARANTINED
    assert judged(ACCEPT, refused=1, without=1).verdict is Verdict.QUARANTINED


@unhurried
@given(
    st.sampled_from([HOLD, ACCEPT]),
    st.integers(0, 25),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([DAY, SPRING, AUTUMN]),
)
def test_nothing_that_is_short_is_clear_unless_the_catalog_accepts_it(
    contract: ContractSpec, without: int, refused: int, late: bool, day: date
) -> None:
    report = judged(contract, without=without, refused=refused, late=late, day=day)
    assert report.expected == {DAY: 24, SPRING: 23, AUTUMN: 25}[day]
    assert (report.verdict is Verdict.COMPLETE) == (report.observed == report.expected)
    if report.verdict in CLEAR - {Verdict.COMPLETE}:
        assert contract is ACCEPT
        assert late
        assert report.observed >= report.expected - 2
        assert not report.rejected


def test_rows_far_off_are_suspicious_and_hold() -> None:
    contract = ContractSpec(min_rows=100, weekday_rows=WeekdayRowsSpec(at_least=2))
    few = judged(contract, rows=4)
    assert few.verdict is Verdict.SUSPICIOUS
    assert not few.is_clear
    assert few.suspicion == "96 rows, at least 100 are expected"
    usual = (240, 250, 230)
    assert judged(contract, rows=10, trailing=usual).verdict is Verdict.COMPLETE
    assert judged(contract, rows=5, trailing=usual).verdict is Verdict.COMPLETE, "half, exactly"
    many = judged(contract, rows=21, trailing=usual)
    assert many.verdict is Verdict.SUSPICIOUS
    assert many.suspicion == (
        "504 rows, 120 to 480 are expected: 0.5 to 2.0 times the median 240 of the same weekday "
        "in 3 weeks before"
    )
    # Of one week nothing is usual yet.
    assert judged(contract, rows=21, trailing=(240,)).verdict is Verdict.COMPLETE
    # A plain look at the hours would have let it leave.
    assert judged(HOLD, rows=21, trailing=usual).verdict is Verdict.COMPLETE


@pytest.mark.parametrize("day", [DAY, SPRING, AUTUMN])
def test_acceptance_counts_what_lacks_on_days_of_any_length(day: date) -> None:
    verdicts = [judged(ACCEPT, without=n, day=day).verdict for n in range(4)]
    assert verdicts == [Verdict.COMPLETE, Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.LATE]


def test_a_short_day_is_not_accepted_with_rows_that_a_whole_one_is_held_for() -> None:
    contract = ContractSpec(
        at_deadline="accept", accept_lacking=2, min_rows=50, weekday_rows=WeekdayRowsSpec()
    )
    empty = judged(contract, without=2, rows=0)
    assert empty.verdict is Verdict.LATE
    assert not empty.is_clear
    assert empty.suspicion == "0 rows, at least 50 are expected"
    assert judged(contract, without=2, rows=3).verdict is Verdict.ACCEPTED
    few = judged(contract, without=2, rows=3, trailing=(240, 250))
    assert few.verdict is Verdict.LATE
    assert "66 rows, 122 to 490 are expected" in few.suspicion
    # A day that is held for its hours is not told of its rows before that matters.
    assert judged(contract, without=3, rows=0).suspicion == ""


def test_a_feed_that_is_cut_short_stays_suspicious() -> None:
    contract = ContractSpec(weekday_rows=WeekdayRowsSpec())
    history: list[tuple[int, bool]] = [(100, False)] * 4
    plain = [rows for rows, _ in history]
    by_week, by_week_of_any_day = [], []
    for _ in range(8):
        clear = [rows for rows, doubted in history[-4:] if not doubted]
        found = suspect_rows(contract, 30, clear, 4 - len(clear))
        history.append((30, bool(found)))
        by_week.append(bool(found))
        by_week_of_any_day.append(bool(suspect_rows(contract, 30, plain[-4:])))
        plain.append(30)
    assert by_week == [True] * 8
    assert by_week_of_any_day == [True] * 3 + [False] * 5, "as if every complete day counted"
    assert "4 day(s) were suspicious themselves" in suspect_rows(contract, 30, (), 4)
    # Two waived days are enough to compare with, and a first week is none.
    assert suspect_rows(contract, 30, (30, 30), 2) == ""
    assert suspect_rows(contract, 30, (), 1) == ""


@unhurried
@given(st.integers(0, 10_000), st.lists(st.integers(0, 10_000), min_size=2, max_size=8))
def test_rows_within_what_was_seen_before_are_never_suspicious(
    scale: int, trailing: list[int]
) -> None:
    contract = ContractSpec(weekday_rows=WeekdayRowsSpec(weeks=8, at_least=2))
    middle = sorted(trailing)[len(trailing) // 2]
    if len(trailing) % 2:
        assert suspect_rows(contract, middle, trailing) == ""
    found = suspect_rows(contract, scale, trailing)
    assert (found == "") == (suspect_rows(contract, scale, trailing[::-1]) == "")


# --- written in the catalog ----------------------------------------------------------------------


def with_contract(**fields: Any) -> dict[str, Any]:
    document = yaml.safe_load((catalog_folder() / "flights.yaml").read_text())
    document["sources"]["weather"]["contract"] = fields
    return dict(document)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"deadline": 360}, "deadline", 'found 360: a local time is written in quotes: "06:00"'),
        ({"deadline": "25:00"}, "deadline", "found '25:00'"),
        ({"deadline": "06:00+02:00"}, "", "local time of the pipeline, without an offset"),
        ({"at_deadline": "guess"}, "at_deadline", "found 'guess'"),
        ({"at_deadline": "accept"}, "", "needs accept_lacking"),
        ({"accept_lacking": 4}, "", "with hold none may lack"),
        ({"at_deadline": "accept", "accept_lacking": 23}, "accept_lacking", "found 23"),
        ({"accept_from": 20}, "", "write accept_lacking, the hours that may be lacking"),
        ({"weekday_rows": {"weeks": 2, "at_least": 3}}, "weekday_rows", "allowed are 1 to weeks"),
        ({"weekday_rows": {"low": 1.5}}, "weekday_rows.low", "found 1.5"),
        ({"minimum_rows": 3}, "minimum_rows", "is no field here; allowed are accept_lacking"),
        ({"min_rows": -1}, "min_rows", "found -1"),
        ({"lateness_hours": -1}, "lateness_hours", "found -1"),
    ],
)
def test_a_wrong_contract_is_refused_with_field_and_value(
    fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(SpecError) as error:
        parse_spec(with_contract(**fields), "flights.yaml")
    place = ".".join(filter(None, ["sources.weather.contract", field]))
    assert place in error.value.problems
    assert words in error.value.problems[place]


def test_a_time_without_quotes_is_not_sixteen_minutes_past_midnight() -> None:
    """YAML reads 16:00 as a number of base 60, which would be 00:16; 06:00 it leaves alone."""
    assert yaml.safe_load("deadline: 06:00") == {"deadline": "06:00"}
    document = yaml.safe_load("deadline: 16:00")
    assert document == {"deadline": 960}
    with pytest.raises(SpecError, match="in quotes"):
        parse_spec(with_contract(**document), "flights.yaml")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"type": "string", "minimum": 1}, "minimum and maximum are for int and float"),
        ({"type": "int", "minimum": 3, "maximum": 1}, "minimum (3.0) is above maximum (1.0)"),
        ({"type": "float", "allowed": [1]}, "allowed is for string and int"),
        ({"type": "string", "allowed": [1]}, "which is no string"),
        ({"type": "int", "max_null_fraction": 0.5}, "needs nullable: true"),
    ],
)
def test_a_wrong_rule_of_a_column_is_refused(rule: dict[str, Any], words: str) -> None:
    document = with_contract()
    document["sources"]["weather"]["columns"]["temp"] = rule
    with pytest.raises(SpecError) as error:
        parse_spec(document, "flights.yaml")
    assert words in error.value.problems["sources.weather.columns.temp"]


# --- on the line ---------------------------------------------------------------------------------


def with_rules(source: str, **contract: Any) -> PipelineSpec:
    spec = small_spec()
    sources = copy.deepcopy({name: s.model_dump() for name, s in spec.sources.items()})
    sources[source]["contract"] |= contract
    return small_spec(sources=sources)


def test_a_short_day_is_accepted_after_its_deadline_and_says_so_wherever_it_goes(
    home: Home,
) -> None:
    spec = with_rules("weather", at_deadline="accept", accept_lacking=1)
    services = Services.open(spec, home)
    land_flights(services, date(2013, 1, 4), HELD.date, quiet=True)
    assert assess(services, HELD).verdict is Verdict.PARTIAL
    with pytest.raises(HeldError, match="weather 23 of 24 hours, missing 06:00"):
        build_features(services, HELD, "early")

    land_flights(services, date(2013, 1, 7), date(2013, 1, 7), 6, quiet=True)
    report = assess(services, HELD)
    assert report.verdict is Verdict.ACCEPTED
    assert "past the deadline, accepted by the catalog's rule" in report.reason()
    outcome = build_features(services, HELD, "in time")
    assert outcome.metadata["verdict"] == "accepted"
    assert "weather 23 of 24 hours, missing 06:00" in outcome.metadata["short"]
    for day in (4, 5, 6):
        for key in spec.keys_of(date(2013, 1, day)):
            build_features(services, PartitionKey.parse(key), "rest")
    taken = decide_snapshot(services, HELD.date)
    assert isinstance(taken, Snapshot)
    assert list(taken.short) == [str(HELD)]
    # The same landing without the rule stays held for ever.
    plain = Services.open(small_spec(), home)
    assert assess(plain, HELD).verdict is Verdict.LATE


def test_a_day_with_far_too_few_rows_is_held_though_every_hour_is_there(home: Home) -> None:
    spec = with_rules("flights", min_rows=10_000)
    services, key = Services.open(spec, home), PartitionKey.parse("JFK|2013-01-05")
    land_flights(services, key.date, key.date, quiet=True)
    with pytest.raises(HeldError, match=r"flights 24 of 24 hours, \d+ rows, at least 10000"):
        build_features(services, key, "run")
    assert assess(Services.open(small_spec(), home), key).is_whole


def test_rows_are_compared_with_the_same_weekday_before(home: Home) -> None:
    rule = {"weeks": 2, "at_least": 2, "low": 0.99, "high": 1.01}
    spec = with_rules("flights", min_rows=0, weekday_rows=rule)
    services, key = Services.open(spec, home), PartitionKey.parse("JFK|2013-01-17")
    for back in (14, 7, 0):
        day = key.date - timedelta(days=back)
        land_flights(services, day, day, quiet=True)
        report = assess(services, PartitionKey(day, "JFK"))
        assert report.is_whole == (back > 0), "of less than two weeks nothing is usual"
    assert "the same weekday in 2 weeks before" in report.reason()
    # One look at many days finds the same as a look at each.
    reports = services.zone.reports(date(2013, 1, 3), key.date, services.clock.as_of())
    assert reports[key].sources[0] == report.sources[0]


def test_held_days_are_no_measure_for_the_weeks_after(home: Home) -> None:
    rule = {"weeks": 2, "at_least": 1, "low": 0.5, "high": 1.5}
    spec = with_rules("flights", min_rows=0, weekday_rows=rule)
    services = Services.open(spec, home)
    days = [date(2013, 1, 2) + timedelta(days=7 * week) for week in range(3)]
    for day, rows in zip(days, (9, 3, 3), strict=True):
        for hour in local_hours(day, spec.partitions.timezone):
            services.zone.deliver("flights", "JFK", hour, flights(hour, rows=rows))
            services.zone.deliver("weather", "JFK", hour, weather(hour))
    services.ledger.advance_clock("flights", datetime(2013, 2, 1, tzinfo=UTC))
    keys = [PartitionKey(day, "JFK") for day in days]
    services.zone.refresh(days[0], days[-1])
    # In one look at all of them the second is found suspicious, and not counted for the third.
    found = assess_range(services, days[0], days[-1])
    assert [found[key].is_clear for key in keys] == [True, False, False]
    assert "median 216 of the same weekday in 1 weeks" in found[keys[2]].reason()
    # And in a look at each: by the verdict that was recorded.
    record_completeness(services, {keys[1]: assess(services, keys[1])})
    assert assess(services, keys[2]).sources == found[keys[2]].sources
    # A person may say that it is as it should be.
    give_waiver(services, str(keys[1]), "fewer flights", "ann", datetime(2013, 3, 1, tzinfo=UTC))
    assert assess(services, keys[2]).is_clear
    assert assess_range(services, days[0], days[-1])[keys[2]].is_clear
