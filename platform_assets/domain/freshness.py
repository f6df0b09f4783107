"""Freshness by partition: is the date that is due by now there, and since when is it not?

Dagster's freshness policy asks when an asset was materialized last, whatever the partition: the
backfill of a year-old date makes a stale model fresh. Here a date is due at a local time of the
next day, and only that date makes its asset fresh.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BaseModel, ConfigDict

from platform_assets.domain.digests import digest_of

NO_RUN = "everything that it needs is there, but no run has built it"
DAY = timedelta(days=1)


class DueState(StrEnum):
    NOT_DUE = "not due yet"
    """No live date has passed its deadline."""
    ON_TIME = "on time"
    """The date that is due is there."""
    LATE = "late"
    """The date that is due is there, but came after its deadline."""
    STALE = "stale"
    """The date that is due is not there, for whatever reason."""


class Expectation(BaseModel):
    """What an asset has to have, and when.

    Attributes:
        asset: its key, `flights/model`.
        at: local time of the next day by which a date is due.
        first: the first date that is ever due: the first live one.
        last: the last one.
        present: the dates that are there, from `known_from` on, and when each was made first;
            none where the pipeline's clock cannot tell.
        known_from: before this date nothing was looked up.
    """

    model_config = ConfigDict(frozen=True)

    asset: str
    at: time
    first: date
    last: date
    present: Mapping[date, AwareDatetime | None]
    known_from: date = date.min


class AssetDue(BaseModel):
    """How an asset stands against its deadline.

    Attributes:
        due: the date that is due; none before the first.
        deadline: at which instant it was.
        missing: how many dates in a row are not there, up to the one that is due.
        since: from when on the asset has been stale, or was late.
        reason: why the date is not there, or how late it came; empty if it was on time.
        watermark: the latest date that is there, due or not.
        next_due: the instant at which another date becomes due; none after the last.
    """

    model_config = ConfigDict(frozen=True)

    asset: str
    state: DueState
    due: dt.date | None = None
    deadline: AwareDatetime | None = None
    missing: int = 0
    since: AwareDatetime | None = None
    reason: str = ""
    watermark: dt.date | None = None
    next_due: AwareDatetime | None = None

    @property
    def is_fresh(self) -> bool:
        return self.state is not DueState.STALE

    def describe(self, timezone: str) -> str:
        """One line for a person, instants in local time."""
        zone = ZoneInfo(timezone)

        def clock(moment: datetime | None) -> str:
            return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M %Z") if moment else "never"

        if self.state is DueState.NOT_DUE:
            text = f"{self.asset}: nothing is due yet"
        elif self.state is DueState.STALE:
            text = f"{self.asset} {self.due} is not there, stale since {clock(self.since)}"
            text += f" ({self.missing} dates in a row)" if self.missing > 1 else ""
            text += f": {self.reason}"
        else:
            text = f"{self.asset} {self.due} is there, {self.state.value}"
            text += f": {self.reason}" if self.reason else ""
        after = clock(self.next_due) if self.next_due else "none, the last date is due"
        return f"{text}; next deadline {after}"


class DueReport(BaseModel):
    """What is due by now, by asset."""

    model_config = ConfigDict(frozen=True)

    pipeline: str
    timezone: str
    as_of: AwareDatetime
    assets: tuple[AssetDue, ...]

    def of(self, asset: str) -> AssetDue:
        return next(found for found in self.assets if found.asset == asset)

    def digest(self) -> str:
        """The same as long as nothing has changed; the instant of the look is no change."""
        return digest_of(self.model_dump(mode="json", exclude={"as_of"}))


def deadline_at(day: date, at: time, timezone: str) -> datetime:
    """The instant, in UTC, at which a date is due: a local time of the next day.

    On a clock change a time that is skipped counts as it would without the change, of a time that
    comes twice the first one counts.
    """
    return datetime.combine(day + DAY, at, tzinfo=ZoneInfo(timezone)).astimezone(UTC)


def due_date(at: time, timezone: str, as_of: datetime, first: date, last: date) -> date | None:
    """The last date from first to last whose deadline is over; none if no deadline is."""
    today = as_of.astimezone(ZoneInfo(timezone)).date()
    # The deadline of a date lies in the next day: yesterday's may be over, today's cannot be.
    day = min(today - DAY, last)
    while day >= first and deadline_at(day, at, timezone) > as_of:
        day -= DAY
    return day if day >= first else None


def assess_due(
    expected: Expectation, timezone: str, as_of: datetime, why: Callable[[date], str]
) -> AssetDue:
    """How one asset stands.

    Args:
        expected: what it has to have.
        timezone: of the deadlines.
        as_of: on the pipeline's clock.
        why: tells why a date is not there; asked for the date that is due alone, if it is not.
    """
    at, present = expected.at, expected.present
    due = due_date(at, timezone, as_of, expected.first, expected.last)
    following = expected.first if due is None else due + DAY
    watermark = max(present, default=None)
    next_due = deadline_at(following, at, timezone) if following <= expected.last else None
    if due is None:
        return AssetDue(
            asset=expected.asset,
            state=DueState.NOT_DUE,
            watermark=watermark,
            next_due=next_due,
        )
    deadline = deadline_at(due, at, timezone)
    state, missing, since, reason = DueState.ON_TIME, 0, None, ""
    made = present.get(due)
    if due not in present:
        start = due
        while start > max(expected.first, expected.known_from) and start - DAY not in present:
            start -= DAY
        state, missing = DueState.STALE, (due - start).days + 1
        since, reason = deadline_at(start, at, timezone), why(due)
    elif made is not None and made > deadline:
        state, since = DueState.LATE, deadline
        reason = f"it came {_describe(made - deadline)} after its deadline"
    return AssetDue(
        asset=expected.asset,
        state=state,
        due=due,
        deadline=deadline,
        missing=missing,
        since=since,
        reason=reason,
        watermark=watermark,
        next_due=next_due,
    )


def due_report(
    pipeline: str,
    timezone: str,
    as_of: datetime,
    expectations: Iterable[Expectation],
    why: Mapping[str, Callable[[date], str]],
) -> DueReport:
    """What is due by now, by asset.

    Args:
        pipeline: its name.
        timezone: of the deadlines.
        as_of: on the pipeline's clock.
        expectations: what each asset has to have.
        why: by asset, what tells why a date is not there; held for a good reason is stale too.
    """
    return DueReport(
        pipeline=pipeline,
        timezone=timezone,
        as_of=as_of,
        assets=tuple(assess_due(e, timezone, as_of, why[e.asset]) for e in expectations),
    )


def latest_deadline(deadlines: Sequence[time]) -> time:
    """Of the sources' deadlines the one by which all of them are due."""
    return max(deadlines)


def _describe(lateness: timedelta) -> str:
    minutes = max(1, round(lateness / timedelta(minutes=1)))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
