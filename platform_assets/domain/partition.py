"""Partition keys: one date, or one key and one date, written `JFK|2013-01-05`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from platform_assets.domain.errors import UsageError

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
SEPARATOR = "|"


@dataclass(frozen=True, order=True)
class PartitionKey:
    """A partition of one date, and of one key (an airport) where the asset has keys."""

    date: date
    key: str | None = None

    def __str__(self) -> str:
        day = self.date.isoformat()
        return day if self.key is None else f"{self.key}{SEPARATOR}{day}"

    @classmethod
    def parse(cls, text: str) -> "PartitionKey":
        """Read `2013-01-05` or `JFK|2013-01-05`.

        Dagster orders the dimensions of a multi-partition key by their names, so the date may
        also stand first.

        Raises:
            UsageError: the text is neither.
        """
        return _parsed(text)


@lru_cache(maxsize=65536)
def _parsed(text: str) -> PartitionKey:
    parts = text.split(SEPARATOR)
    days = [part for part in parts if _DATE.fullmatch(part)]
    names = [part for part in parts if not _DATE.fullmatch(part)]
    if len(days) == 1 and len(names) <= 1 and all(names):
        try:
            return PartitionKey(date.fromisoformat(days[0]), names[0] if names else None)
        except ValueError:
            pass
    raise UsageError(
        f"{text!r} is no partition key; allowed are a date such as 2013-01-05, or a key and "
        "a date such as JFK|2013-01-05"
    )


@lru_cache(maxsize=8192)
def local_hours(day: date, timezone: str) -> tuple[datetime, ...]:
    """The hours of a calendar day, as UTC instants: 24 of them, or 23 or 25 on a clock change."""
    zone, utc = ZoneInfo(timezone), ZoneInfo("UTC")
    hour = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(utc)
    after = day + timedelta(days=1)
    end = datetime(after.year, after.month, after.day, tzinfo=zone).astimezone(utc)
    hours = []
    while hour < end:
        hours.append(hour)
        hour += timedelta(hours=1)
    return tuple(hours)


def local_date(instant: datetime, timezone: str) -> date:
    """The calendar day of an instant in a timezone."""
    return instant.astimezone(ZoneInfo(timezone)).date()


def date_range(first: date, last: date) -> tuple[date, ...]:
    """All dates from first to last, both included; empty if last is before first."""
    return tuple(first + timedelta(days=n) for n in range((last - first).days + 1))


def runs_of(dates: Sequence[date]) -> Iterator[tuple[date, date]]:
    """First and last date of each run of dates without a gap; dates in order."""
    start = 0
    for i in range(1, len(dates) + 1):
        if i == len(dates) or dates[i] - dates[i - 1] != timedelta(days=1):
            yield dates[start], dates[i - 1]
            start = i
