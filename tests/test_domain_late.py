"""What changed of a partition's hours, and what the catalog lets happen by itself."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.completeness import (
    HOUR,
    CompletenessReport,
    SourceReport,
    Verdict,
)
from platform_assets.domain.late import (
    LateDecision,
    changed_sources,
    compare_hours,
    decide,
    hour_name,
    lateness_ends,
    version_of,
)
from platform_assets.domain.partition import local_hours
from platform_assets.domain.source_spec import ContractSpec

unhurried = settings(deadline=None)  # a busy machine is no failure
ZONE = "America/New_York"
DAY = date(2013, 2, 9)
END = datetime(2013, 2, 10, 5, tzinfo=UTC)
HOURS = [hour_name(hour) for hour in local_hours(DAY, ZONE)]

digests = st.dictionaries(st.sampled_from(HOURS), st.sampled_from(["a", "b", "c"]))
contracts = st.builds(
    ContractSpec,
    lateness_hours=st.integers(0, 200),
    within_lateness=st.sampled_from(["restate", "list"]),
)
ages = st.integers(-48, 400).map(lambda hours: END + timedelta(hours=hours))


def report(verdict: Verdict = Verdict.COMPLETE) -> CompletenessReport:
    sources = tuple(
        SourceReport(source=name, verdict=found, expected=24, observed=24, rows=9)
        for name, found in (("flights", Verdict.COMPLETE), ("weather", verdict))
    )
    return CompletenessReport(partition="JFK|2013-02-09", timezone=ZONE, as_of=END, sources=sources)


def decided(
    as_of: datetime,
    changed: tuple[str, ...] = ("weather",),
    verdict: Verdict = Verdict.COMPLETE,
    flights: ContractSpec | None = None,
    weather: ContractSpec | None = None,
) -> LateDecision:
    specs = {"flights": flights or ContractSpec(), "weather": weather or ContractSpec()}
    return decide(specs, changed, DAY, ZONE, as_of, report(verdict))


# --- which hours ------------------------------------------------------------------------------


def test_the_hours_are_named_in_local_time() -> None:
    used = {HOURS[n]: "a" for n in (7, 9, 10, 12)}
    now = {HOURS[n]: "a" for n in (7, 8)} | {HOURS[12]: "b"}
    found = compare_hours("weather", used, now, [HOURS[10], HOURS[20]])
    assert found.describe(ZONE) == (
        "weather: added 08:00, corrected 12:00, vanished 09:00, refused 10:00"
    )


def test_the_repeated_hour_of_autumn_is_told_by_its_offset() -> None:
    twice = [hour_name(hour) for hour in local_hours(date(2013, 11, 3), ZONE)][1:3]
    found = compare_hours("weather", {}, dict.fromkeys(twice, "a"), ())
    assert found.describe(ZONE) == "weather: added 01:00-0400-01:00-0500"


def test_hours_that_were_not_recorded_are_not_guessed() -> None:
    found = compare_hours("weather", None, dict.fromkeys(HOURS, "a"), ())
    assert found.describe(ZONE) == (
        "weather: changed, by which hours was not recorded when it was built"
    )


@unhurried
@given(digests, digests, st.sets(st.sampled_from(HOURS)))
def test_each_hour_is_named_once_and_only_if_it_differs(
    used: Mapping[str, str], now: Mapping[str, str], refused: set[str]
) -> None:
    bad = refused - now.keys()  # an hour is accepted or refused
    found = compare_hours("weather", used, now, bad)
    named = [*found.added, *found.corrected, *found.vanished, *found.refused]
    assert sorted(named) == sorted(h for h in HOURS if used.get(h) != now.get(h))
    assert set(found.refused) <= bad & used.keys()
    assert not set(found.vanished) & bad


# --- whether it changed -----------------------------------------------------------------------


@unhurried
@given(digests, digests, st.booleans())
def test_equal_versions_are_equal_sources(
    used: Mapping[str, str], now: Mapping[str, str], held: bool
) -> None:
    assert (version_of(used) == version_of(now)) == (used == now)
    assert version_of(used, held=True) != version_of(used)
    shared = used.keys() & now.keys()
    assert set(changed_sources(used, now)) == {name for name in shared if used[name] != now[name]}


def test_a_source_that_the_catalog_got_or_lost_is_no_late_data() -> None:
    assert changed_sources({"flights": "a", "old": "b"}, {"flights": "a", "new": "c"}) == ()


# --- what is to be done -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed", "decision"),
    [(-1, "restate"), (0, "restate"), (72, "restate"), (73, "list"), (9999, "list")],
)
def test_within_and_beyond_the_lateness(passed: int, decision: str) -> None:
    found = decided(END + timedelta(hours=passed))
    assert found.decision == decision
    assert f"found {passed} hours after the end of its day" in found.reason


def test_a_microsecond_beyond_is_beyond() -> None:
    ends = lateness_ends(ContractSpec(), DAY, ZONE)
    assert ends == END + timedelta(hours=72)
    assert decided(ends).decision == "restate"
    assert decided(ends + timedelta(microseconds=1)).decision == "list"


@pytest.mark.parametrize(
    ("day", "hours"), [(date(2013, 3, 10), 23), (date(2013, 11, 3), 25), (date(2013, 7, 1), 24)]
)
def test_the_day_ends_when_the_local_one_does(day: date, hours: int) -> None:
    begin = local_hours(day, ZONE)[0]
    assert lateness_ends(ContractSpec(lateness_hours=0), day, ZONE) == begin + hours * HOUR


@unhurried
@given(st.lists(st.sampled_from(["flights", "weather"]), min_size=1), contracts, contracts, ages)
def test_by_itself_only_if_all_that_changed_may(
    changed: list[str], flights: ContractSpec, weather: ContractSpec, as_of: datetime
) -> None:
    found = decided(as_of, tuple(changed), flights=flights, weather=weather)
    specs = {"flights": flights, "weather": weather}
    may = all(
        as_of <= lateness_ends(specs[name], DAY, ZONE) and specs[name].within_lateness == "restate"
        for name in changed
    )
    assert (found.decision == "restate") == may
    assert found.reason
    assert not found.held


@unhurried
@given(contracts, ages, st.integers(0, 100))
def test_what_is_listed_does_not_go_by_itself_later(
    contract: ContractSpec, as_of: datetime, hours: int
) -> None:
    later = decided(as_of + timedelta(hours=hours), weather=contract)
    if decided(as_of, weather=contract).decision == "list":
        assert later.decision == "list"


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("within", ["restate", "list"])
def test_a_held_partition_is_listed_however_early(
    verdict: Verdict, within: Literal["restate", "list"]
) -> None:
    found = decided(END, verdict=verdict, weather=ContractSpec(within_lateness=within))
    clear = verdict in (Verdict.COMPLETE, Verdict.ACCEPTED, Verdict.WAIVED)
    assert bool(found.held) == (not clear)
    assert found.decision == ("restate" if clear and within == "restate" else "list")
    if not clear:
        assert "what was built stays in use" in found.reason
