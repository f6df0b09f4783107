"""Partition keys, and the hours that a calendar day really has."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import UsageError
from platform_assets.domain.partition import PartitionKey, date_range, local_date, local_hours

unhurried = settings(deadline=None)  # a busy machine is no failure
NEW_YORK = "America/New_York"
ZONES = (NEW_YORK, "UTC", "Europe/Berlin", "America/Sao_Paulo", "Atlantic/Azores", "Asia/Tokyo")
dates = st.dates(date(1990, 1, 1), date(2049, 12, 31))
names = st.text(
    st.characters(exclude_characters="|", exclude_categories=("C", "Z")), min_size=1, max_size=8
).filter(lambda text: not text[0].isdigit())


# --- hours ------------------------------------------------------------------------------------


@unhurried
@given(day=dates, timezone=st.sampled_from(ZONES))
def test_the_hours_of_a_day_are_all_of_its_hours(day: date, timezone: str) -> None:
    hours = local_hours(day, timezone)
    zone = ZoneInfo(timezone)
    assert len(hours) in (23, 24, 25)
    assert all(hour.utcoffset() == timedelta() for hour in hours)
    assert all(b - a == timedelta(hours=1) for a, b in pairwise(hours))
    assert {local_date(hour, timezone) for hour in hours} == {day}
    assert local_date(hours[0] - timedelta(seconds=1), timezone) == day - timedelta(days=1)
    assert local_date(hours[-1] + timedelta(hours=1), timezone) == day + timedelta(days=1)
    if len(hours) == 24:
        assert hours[-1].astimezone(zone).hour == 23


@unhurried
@given(day=dates, timezone=st.sampled_from(ZONES))
def test_days_neither_overlap_nor_leave_a_gap(day: date, timezone: str) -> None:
    following = local_hours(day + timedelta(days=1), timezone)
    assert local_hours(day, timezone)[-1] + timedelta(hours=1) == following[0]


@unhurried
@given(moment=st.datetimes(datetime(1990, 1, 2), datetime(2049, 12, 30)))  # noqa: DTZ001
def test_every_instant_lies_in_one_hour_of_its_local_day(moment: datetime) -> None:
    instant = moment.replace(tzinfo=UTC)
    hours = local_hours(local_date(instant, NEW_YORK), NEW_YORK)
    assert sum(hour <= instant < hour + timedelta(hours=1) for hour in hours) == 1


def test_a_year_of_new_york() -> None:
    lengths = {d: len(local_hours(d, NEW_YORK)) for d in date_range(*year(2013))}
    assert {d: n for d, n in lengths.items() if n != 24} == {
        date(2013, 3, 10): 23,
        date(2013, 11, 3): 25,
    }
    assert sum(lengths.values()) == 365 * 24


def year(number: int) -> tuple[date, date]:
    return date(number, 1, 1), date(number, 12, 31)


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    zone = ZoneInfo(NEW_YORK)
    clocks = [h.astimezone(zone).hour for h in local_hours(date(2013, 11, 3), NEW_YORK)]
    assert clocks[:4] == [0, 1, 1, 2]
    clocks = [h.astimezone(zone).hour for h in local_hours(date(2013, 3, 10), NEW_YORK)]
    assert clocks[:4] == [0, 1, 3, 4]


# --- keys -------------------------------------------------------------------------------------


@unhurried
@given(day=dates, name=st.none() | names)
def test_a_key_survives_its_text(day: date, name: str | None) -> None:
    key = PartitionKey(day, name)
    assert PartitionKey.parse(str(key)) == key


@unhurried
@given(day=dates, name=names)
def test_the_two_dimensions_may_stand_in_either_order(day: date, name: str) -> None:
    assert PartitionKey.parse(f"{day}|{name}") == PartitionKey.parse(f"{name}|{day}")


def test_how_keys_are_written() -> None:
    assert str(PartitionKey(date(2013, 1, 5), "JFK")) == "JFK|2013-01-05"
    assert str(PartitionKey(date(2013, 1, 5))) == "2013-01-05"


def test_keys_sort_by_date_first() -> None:
    texts = ["LGA|2013-01-05", "EWR|2013-01-06", "EWR|2013-01-05"]
    assert [str(key) for key in sorted(map(PartitionKey.parse, texts))] == [
        "EWR|2013-01-05",
        "LGA|2013-01-05",
        "EWR|2013-01-06",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|",
        "JFK",
        "JFK|",
        "|2013-01-05",
        "2013-02-30",
        "JFK|2013-13-01",
        "2013-1-5",
        "20130105",
        "2013-01-05T00",
        "JFK|2013-01-05|x",
        "JFK|LGA|2013-01-05",
        "2013-01-05|2013-01-06",
        "2013-01-05 ",
        "2013-01-05\n",
    ],
)
def test_what_is_no_key_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(UsageError, match=r"allowed are a date such as 2013-01-05, or a key"):
        PartitionKey.parse(text)


@unhurried
@given(first=dates, days=st.integers(-5, 40))
def test_a_date_range_holds_both_ends(first: date, days: int) -> None:
    last = first + timedelta(days=days)
    found = date_range(first, last)
    assert len(found) == max(0, days + 1)
    assert list(found) == sorted(set(found))
    if found:
        assert (found[0], found[-1]) == (first, last)
