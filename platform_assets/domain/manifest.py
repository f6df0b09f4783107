"""What a training reads: which partitions, in which versions, and which were held.

A window that the start of the data clips, whose own day is held, or of which too few days are
whole, is refused; so is one with a day that has landed whole but has not been built yet, since
the model would depend on the order of the runs.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.digests import digest_of
from platform_assets.domain.partition import date_range


class PartitionVersion(BaseModel):
    """One committed version of one dataset partition.

    Attributes:
        table_version: of the table that the partition lies in.
        short: what it lacked when it was accepted or waived; empty if it was whole.
        waivers: the names of the waivers that let it leave.
    """

    model_config = ConfigDict(frozen=True)

    partition: str
    data_version: str
    table_version: int
    rows: int
    short: str = ""
    waivers: tuple[str, ...] = ()


class DayState(StrEnum):
    WHOLE = "whole"
    HELD = "held"
    UNBUILT = "unbuilt"


class Day(BaseModel):
    """One date of the dataset over all its keys: the roll-up."""

    model_config = ConfigDict(frozen=True)

    date: dt.date
    state: DayState
    partitions: tuple[PartitionVersion, ...] = ()
    reasons: Mapping[str, str] = {}

    def reason(self) -> str:
        return "; ".join(f"{key}: {why}" for key, why in self.reasons.items())

    @property
    def short(self) -> dict[str, str]:
        """What the partitions lacked that were accepted or waived, by partition."""
        return {p.partition: p.short for p in self.partitions if p.short}

    @property
    def waivers(self) -> tuple[str, ...]:
        """The names of the waivers that it rests on."""
        return tuple(sorted({name for p in self.partitions for name in p.waivers}))

    def data_version(self) -> str:
        """Digest over the partitions' digests, over what is lacking, and over who let them go."""
        waived = sorted((p.partition, *p.waivers) for p in self.partitions if p.waivers)
        return digest_of(
            {
                "state": self.state,
                "partitions": sorted((p.partition, p.data_version) for p in self.partitions),
                "lacking": sorted(self.reasons),
                **({"waived": waived} if waived else {}),
            }
        )


def roll_up(
    day: date,
    keys: Sequence[str],
    built: Mapping[str, PartitionVersion],
    held: Mapping[str, str],
) -> Day:
    """Join the partitions of one date.

    Args:
        day: the date.
        keys: the partition keys that the date must have (`JFK|2013-01-05`).
        built: the current version of each partition that was built.
        held: for each partition that was not built and is not whole, why.
    """
    partitions = tuple(built[key] for key in keys if key in built)
    reasons = {key: held[key] for key in keys if key not in built and key in held}
    unbuilt = [key for key in keys if key not in built and key not in held]
    reasons |= dict.fromkeys(unbuilt, "its hours are whole, but it has not been built yet")
    state = DayState.UNBUILT if unbuilt else DayState.HELD if reasons else DayState.WHOLE
    return Day(date=day, state=state, partitions=partitions, reasons=reasons)


class Snapshot(BaseModel):
    """Exactly which partition versions a training reads. A reference, not a copy."""

    model_config = ConfigDict(frozen=True)

    pipeline: str
    dataset: str
    date: dt.date
    window_start: dt.date
    days: tuple[dt.date, ...]
    partitions: tuple[PartitionVersion, ...]
    held: Mapping[str, str]

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.partitions)

    @property
    def short(self) -> dict[str, str]:
        """What the partitions lacked that were accepted or waived, by partition."""
        return {p.partition: p.short for p in self.partitions if p.short}

    @property
    def waivers(self) -> tuple[str, ...]:
        """The names of the waivers that it rests on."""
        return tuple(sorted({name for p in self.partitions for name in p.waivers}))

    def data_version(self) -> str:
        """Digest over what is read: table versions are where it lies, not what it is."""
        return digest_of(
            {
                "dataset": self.dataset,
                "date": self.date.isoformat(),
                "partitions": sorted((p.partition, p.data_version) for p in self.partitions),
            }
        )


class WindowRefusal(BaseModel):
    """Why no snapshot can be taken.

    Attributes:
        unbuilt: the dates that have landed whole and are not built, if that is why.
    """

    model_config = ConfigDict(frozen=True)

    date: dt.date
    reason: str
    unbuilt: tuple[dt.date, ...] = ()


def window(day: date, window_days: int) -> tuple[date, ...]:
    """The trailing window that ends on a date, that date included."""
    return date_range(day - timedelta(days=window_days - 1), day)


def describe_dates(dates: Sequence[date]) -> str:
    """Dates with runs folded: `2013-01-01, 2013-01-05 to 2013-01-09`."""
    ordered = sorted(dates)
    parts, start = [], 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] - ordered[i - 1] != timedelta(days=1):
            run = ordered[start:i]
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}")
            start = i
    return ", ".join(parts)


def take_snapshot(
    *,
    pipeline: str,
    dataset: str,
    day: date,
    data_start: date,
    window_days: int,
    min_days: int,
    days: Mapping[date, Day],
) -> Snapshot | WindowRefusal:
    """Decide what the training of a date reads.

    Args:
        pipeline: name of the pipeline.
        dataset: asset key of the dataset.
        day: the date that is trained for.
        data_start: first date of the data.
        window_days: length of the trailing window, in days.
        min_days: how many of them must be whole.
        days: the roll-ups of the window's dates.
    """
    wanted = window(day, window_days)
    if wanted[0] < data_start:
        return WindowRefusal(
            date=day,
            reason=f"its {window_days}-day window starts on {wanted[0]}, before the data does "
            f"({data_start}); the first date that can train is "
            f"{data_start + timedelta(days=window_days - 1)}",
        )
    unbuilt = [d for d in wanted if d not in days or days[d].state is DayState.UNBUILT]
    if unbuilt:
        return WindowRefusal(
            date=day,
            reason=f"{len(unbuilt)} day(s) of its window have landed whole but are not built "
            f"({describe_dates(unbuilt)}); backfill {dataset} for them first",
            unbuilt=tuple(unbuilt),
        )
    if days[day].state is not DayState.WHOLE:
        return WindowRefusal(date=day, reason=f"its own day is held: {days[day].reason()}")
    whole = tuple(d for d in wanted if days[d].state is DayState.WHOLE)
    held = {d.isoformat(): days[d].reason() for d in wanted if days[d].state is DayState.HELD}
    if len(whole) < min_days:
        return WindowRefusal(
            date=day,
            reason=f"{len(whole)} of {window_days} days are whole, at least {min_days} are "
            f"needed; held: {', '.join(held)}",
        )
    return Snapshot(
        pipeline=pipeline,
        dataset=dataset,
        date=day,
        window_start=wanted[0],
        days=whole,
        partitions=tuple(p for d in whole for p in days[d].partitions),
        held=held,
    )
