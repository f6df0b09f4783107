"""Years of hours that were seen, built, trained and judged, written into a home in bulk."""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from platform_assets.domain.completeness import (
    Arrival,
    CompletenessReport,
    assess_source,
    deadline_of,
)
from platform_assets.domain.digests import canonical_json, digest_of
from platform_assets.domain.late import versions_of
from platform_assets.domain.manifest import (
    Day,
    PartitionVersion,
    Snapshot,
    roll_up,
    take_snapshot,
    window,
)
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.partition import PartitionKey, date_range, local_date, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.instance import make_home
from platform_assets.line.days import manifest_path
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import Home
from resources.landing.layout import hour_path

LAST = date(2023, 12, 31)
EVERY = 15
"""One day of so many is held, for good: 24 a year."""
LINKS = 30_000
"""Hard links that one file gets at the most: ext4 allows 65,000."""
LOOKED = timedelta(days=250)
"""From both ends, as far as the ticks of a measurement may come to look at."""
ROWS = {"flights": 13, "weather": 1}
"""Of an hour."""


def flights(first: date) -> PipelineSpec:
    """The pipeline of the catalog, live from a date until the end of 2023."""
    document = load_catalog()["flights"].model_dump(mode="json")
    document["partitions"] |= {"start": first.isoformat(), "end": "2024-12-31"}
    document["schedule"] |= {"live_from": first.isoformat()}
    return parse_spec(document, "benchmark")


def is_held(day: date) -> bool:
    return day.toordinal() % EVERY == 7


@dataclass
class History:
    """A home with some years behind it, at noon of the last day."""

    home: Home
    spec: PipelineSpec

    @property
    def services(self) -> Services:
        return Services.open(self.spec, self.home)

    @cached_property
    def noon(self) -> datetime:
        return local_hours(LAST, self.spec.partitions.timezone)[12]

    @property
    def held(self) -> list[str]:
        """The partitions that are held for good."""
        days = date_range(self.spec.partitions.start, LAST - timedelta(days=1))
        keys = (key for day in days if is_held(day) for key in self.spec.keys_of(day))
        return [key for key in keys if key.startswith("LGA")]

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.home.ledger_url.removeprefix("sqlite:///"))

    def files(self) -> int:
        """How many files the landing zone has."""
        with self.connect() as database:
            found: int = database.execute("SELECT count(*) FROM arrivals").fetchone()[0]
        return found

    def hours(self, source: str, key: str, day: date) -> list[datetime]:
        """Those of a local day that have landed."""
        own = [h for h in local_hours(day, self.spec.partitions.timezone) if h < self.noon]
        if is_held(day) and source == "weather" and key == "LGA":
            own.pop(6)
        return own


def make_history(folder: Path, years: int) -> History:
    """Make a home, land empty files, and say of all days what a look would have said."""
    home = Home.locate(folder / f"home-{years}")
    make_home(home)
    history = History(home, flights(date(LAST.year - years + 1, 1, 1)))
    history.services.ledger.advance_clock("flights", history.noon)
    with history.connect() as database:
        _fill(database, "arrivals", 11, _arrivals(history))
        _fill(database, "folders", 4, _folders(history))
        reports = _reports(history)
        _fill(database, "verdicts", 7, _verdicts(history.spec, reports))
        _fill(database, "partition_versions", 9, _numbered(_versions(history, reports)))
        database.execute("ANALYZE")
    return history


def _fill(database: sqlite3.Connection, table: str, width: int, rows: Iterable[Any]) -> None:
    database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", rows)
    database.commit()


def _numbered(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    return ((number, *row) for number, row in enumerate(rows, start=1))


def _instant(moment: datetime) -> str:
    plain = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{plain.isoformat(timespec='microseconds')}Z"


def _arrivals(history: History) -> Iterator[tuple[Any, ...]]:
    """Link a file for each hour until noon; gives the ledger's row of each.

    The ledger has them with rows: they are known by size and time of change, and never opened.
    """
    from resources.landing.hourfile import HourFormat, arrow_schema

    spec, root, seen = history.spec, history.home.landing, _instant(history.noon)
    for source, declared in spec.sources.items():
        content = HourFormat(declared).encode(arrow_schema(declared).empty_table())
        made, links = root / f".{source}", LINKS
        for day in date_range(spec.partitions.start, LAST):
            for key in spec.partitions.values:
                for hour in history.hours(source, key, day):
                    if links == LINKS:
                        made.unlink(missing_ok=True)
                        made.write_bytes(content)
                        state, links = made.stat(), 0
                    links += 1
                    path = f"{spec.pipeline}/{hour_path(source, key, hour)}"
                    _link(made, root / path)
                    row = (spec.pipeline, source, key, _instant(hour), path, state.st_size)
                    yield *row, state.st_mtime_ns, ROWS[source], None, seen, "0" * 64


def _link(made: Path, path: Path) -> None:
    try:
        os.link(made, path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        os.link(made, path)


def _folders(history: History) -> Iterator[tuple[Any, ...]]:
    """All day folders, as the sweep would have written them down; they changed an hour ago."""
    root = history.home.landing / history.spec.pipeline
    then, looked = time.time_ns() - 3_600_000_000_000, _instant(datetime.now(UTC))
    for source in history.spec.sources:
        for key in history.spec.partitions.values:
            for entry in os.scandir(root / source / key):
                os.utime(entry.path, ns=(then, then))
                yield history.spec.pipeline, f"{source}/{key}/{entry.name}", then, looked


def _reports(history: History) -> dict[str, CompletenessReport]:
    """What the days that are over were found to be, by partition."""
    spec, zone = history.spec, history.spec.partitions.timezone
    found = {}
    for day in date_range(spec.partitions.start, LAST - timedelta(days=1)):
        expected = local_hours(day, zone)
        for name in spec.keys_of(day):
            key = str(PartitionKey.parse(name).key)
            sources = tuple(
                assess_source(
                    source,
                    expected,
                    [
                        Arrival(hour=hour, rows=ROWS[source], digest="0" * 64)
                        for hour in history.hours(source, key, day)
                    ],
                    history.noon,
                    declared.contract,
                    deadline=deadline_of(declared.contract, day, zone),
                )
                for source, declared in spec.sources.items()
            )
            found[name] = CompletenessReport(
                partition=name, timezone=zone, as_of=history.noon, sources=sources
            )
    return found


def _verdicts(
    spec: PipelineSpec, reports: dict[str, CompletenessReport]
) -> Iterator[tuple[Any, ...]]:
    now = _instant(datetime.now(UTC))
    for name, report in reports.items():
        text = report.model_dump_json(exclude={"as_of"})
        yield spec.pipeline, spec.asset("features"), name, report.verdict.value, text, now, now
        for source in report.sources:
            row = (spec.pipeline, spec.landed(source.source), name, source.verdict.value)
            yield *row, source.model_dump_json(), now, now


def _versions(
    history: History, reports: dict[str, CompletenessReport]
) -> Iterator[tuple[Any, ...]]:
    """Features, roll-ups, snapshots, models and evaluations of all that was not held."""
    spec, now = history.spec, _instant(datetime.now(UTC))

    def row(stage: str, name: str, version: str, rows: int, detail: Any) -> tuple[Any, ...]:
        table_version = 1 if stage == "features" else None
        text = json.dumps(detail)
        return spec.asset(stage), name, version, table_version, rows, text, "benchmark", now

    built: dict[str, PartitionVersion] = {}
    for name, report in reports.items():
        if report.is_clear:
            built[name] = PartitionVersion(
                partition=name, data_version=digest_of(name), table_version=1, rows=300
            )
            detail = {"short": "", "waivers": [], "arrivals": versions_of(report)}
            yield row("features", name, digest_of(name), 300, detail)
    held = {name: report.reason() for name, report in reports.items() if not report.is_clear}
    last = LAST - timedelta(days=1)
    days = {
        day: roll_up(day, spec.keys_of(day), built, held)
        for day in date_range(spec.partitions.start, last)
    }
    for day, found in days.items():
        yield row("day", str(day), found.data_version(), 900, found.model_dump(mode="json"))
        if day < spec.first_model_date or is_held(day):
            continue
        snapshot = _snapshot(history, days, day)
        yield row("snapshot", str(day), snapshot, 900, {"short": {}, "waivers": []})
        model = {"model_version": day.toordinal(), "snapshot": snapshot}
        yield row("model", str(day), digest_of(str(day)), 900, model)
        following = spec.judged_on(day)
        if following[-1] < LAST and not any(is_held(d) for d in following):
            judged = [p.model_dump(mode="json") for d in following for p in days[d].partitions]
            detail = {"model_version": day.toordinal(), "partitions": judged}
            yield row("evaluation", str(day), digest_of(str(day)), 900, detail)


def _snapshot(history: History, days: dict[date, Day], day: date) -> str:
    """Write the manifest of a date down, and return its digest; of most dates nothing reads it."""
    spec = history.spec
    if spec.partitions.start + LOOKED < day < LAST - LOOKED:
        return digest_of(["snapshot", str(day)])
    taken = take_snapshot(
        pipeline=spec.pipeline,
        dataset=spec.asset("features"),
        day=day,
        data_start=spec.partitions.start,
        window_days=spec.model.window_days,
        min_days=spec.model.min_days,
        days={d: days[d] for d in window(day, spec.model.window_days)},
    )
    assert isinstance(taken, Snapshot)
    path = manifest_path(history.services, day, taken.data_version())
    path.parent.mkdir(parents=True)
    path.write_text(canonical_json(taken.model_dump(mode="json")))
    return taken.data_version()


def deliver_rows(services: Services, source: str, key: str, hour: datetime) -> None:
    """Put a file with rows in the place of an hour's empty one: 13 flights, or one observation."""
    import pyarrow as pa

    declared, count = services.spec.sources[source], ROWS[source]
    values: dict[str, Any] = {
        "string": ["UA"] * count,
        "int": list(range(1, count + 1)),
        "float": [50.0 + n for n in range(count)],
        "timestamp": pa.array([hour] * count, pa.timestamp("us", "UTC")),
    }
    columns = {name: values[column.type] for name, column in declared.columns.items()}
    services.zone.deliver(source, key, hour, pa.table(columns))


def forget_hours(history: History, count: int) -> int:
    """Let the newest hours be unknown and have rows, and nothing be built from them; how many."""
    spec, services = history.spec, history.services
    with history.connect() as database:
        newest = "SELECT rowid, hour, source, key FROM arrivals ORDER BY hour DESC LIMIT ?"
        rows = database.execute(newest, (count,)).fetchall()
        first = local_date(datetime.fromisoformat(rows[-1][1]), spec.partitions.timezone)
        database.executemany("DELETE FROM arrivals WHERE rowid = ?", [row[:1] for row in rows])
        for day in date_range(first, LAST):
            names = [(name,) for name in (day.isoformat(), *spec.keys_of(day))]
            for table in ("partition_versions", "verdicts"):
                database.executemany(f"DELETE FROM {table} WHERE partition = ?", names)
    for _, hour, source, key in rows:
        deliver_rows(services, source, key, datetime.fromisoformat(hour))
    return len(rows)
