"""What a sensor tick costs: over ten years of history against one, and with 1,000 new hours.

Signalbox: one look at the live days and one portion of the sweep over the landing zone's folders,
which together are what a tick of the sensors does. The history is live from its first day; of each
15 days one is held for good. Three airports, two sources, one file an hour.

Beside it Dagster's own: `AutomationCondition.eager()` on the same graph and partitions (airport x
date of both sources, features, day, model), all of them materialized, evaluated by
`dg.evaluate_automation_conditions`. It knows no hours and no landing zone: new hours are source
partitions that were materialized again.

State is written in bulk: rows straight into the ledger and into Dagster's event log, files as hard
links to one empty Parquet file; the new hours have rows. Counted is the CPU of this process, the
least of several ticks.

    python -m benchmarks.ticks [--ticks 7] [--years 10] [--million] [--no-dagster] [--json]
"""

import argparse
import json
import os
import resource
import sqlite3
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from platform_assets.domain.clock import FixedClock
from platform_assets.domain.digests import digest_of
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.partition import PartitionKey, date_range, local_date, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.days import build_day
from platform_assets.line.live import Tick, look
from platform_assets.line.services import Services
from platform_assets.line.sweep import sweep
from resources.catalog import load_catalog
from resources.home import Home
from resources.landing.layout import hour_path
from resources.ledger import upgrade

GOAL, GOAL_NEW_SECONDS = 1.2, 1.0
NEW_HOURS = 1_000
LAST = date(2023, 12, 31)
EVERY = 15
"""One day of so many is held: 24 a year."""
LINKS = 30_000
"""Hard links that one file gets at the most: ext4 allows 65,000."""


def cpu_seconds() -> float:
    """CPU of this process and its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def flights(first: date) -> PipelineSpec:
    """The pipeline of the catalog, live from a date until the end of 2023."""
    document = load_catalog()["flights"].model_dump(mode="json")
    document["partitions"] |= {"start": first.isoformat(), "end": "2024-12-31"}
    document["schedule"] |= {"live_from": first.isoformat()}
    return parse_spec(document, "benchmark")


# --- a history, written in bulk -----------------------------------------------------------------


@dataclass
class History:
    """A home with some years behind it, and the state between two ticks."""

    services: Services
    last: Tick | None = None
    position: int = 0
    listed: int = 0
    looked: list[int] = field(default_factory=list)

    def tick(self) -> None:
        """One look and one portion of the sweep."""
        last = self.last
        self.last = look(
            self.services,
            last.open_from if last else LAST,
            last.told if last else None,
            looked_to=last.looked_to if last else LAST,
            attended_to=last.attended_to if last else None,
        )
        swept = sweep(self.services, self.position)
        self.position = swept.position
        self.looked.append(swept.looked)

    def settle(self) -> None:
        """Tick until every change has been told and roll-ups have run."""
        for _ in range(20):
            self.tick()
            assert self.last is not None
            days = [r for r in self.last.plan.requests if r.job == "day"]
            for request in days:
                build_day(self.services, PartitionKey.parse(request.partition), "benchmark")
            if not days and not self.last.changes:
                return
        raise SystemExit("the history does not come to rest")


def is_held(day: date) -> bool:
    return day.toordinal() % EVERY == 7


def make_history(folder: Path, years: int) -> History:
    """Years of hours that were seen, built, trained and judged; noon of the last day."""
    spec = flights(date(LAST.year - years + 1, 1, 1))
    home = Home.locate(folder / f"home-{years}")
    for path in (home.landing, home.lake):
        path.mkdir(parents=True)
    upgrade(home.ledger_url)
    noon = local_hours(LAST, spec.partitions.timezone)[12]
    services = Services(home, spec, FixedClock(noon))
    with sqlite3.connect(home.ledger_url.removeprefix("sqlite:///")) as database:
        _fill(database, "arrivals", 11, _arrivals(services, noon))
        _fill(database, "folders", 4, _folders(services))
        _fill(database, "verdicts", 7, _verdicts(spec))
        _fill(database, "partition_versions", 9, enumerate_rows(_versions(spec)))
        database.execute("ANALYZE")
    return History(services)


def _fill(database: sqlite3.Connection, table: str, width: int, rows: Iterable[Any]) -> None:
    database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", rows)
    database.commit()


def enumerate_rows(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Rows with a number in front."""
    return ((number, *row) for number, row in enumerate(rows, start=1))


def _instant(moment: datetime) -> str:
    plain = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{plain.isoformat(timespec='microseconds')}Z"


def _arrivals(services: Services, noon: datetime) -> Iterator[tuple[Any, ...]]:
    """Link a file for each hour until noon; gives the ledger's row of each."""
    from resources.landing.hourfile import HourFormat, arrow_schema

    spec, root = services.spec, services.home.landing
    seen = _instant(noon)
    for source, declared in spec.sources.items():
        content = HourFormat(declared).encode(arrow_schema(declared).empty_table())
        made, links = root / f".{source}", LINKS
        for day in date_range(spec.partitions.start, LAST):
            hours = [h for h in local_hours(day, spec.partitions.timezone) if h < noon]
            if source == "weather" and is_held(day):
                lacking = hours.pop(6)
            for key in spec.partitions.values:
                own = hours
                if source == "weather" and is_held(day) and key != "LGA":
                    own = sorted([*hours, lacking])
                for hour in own:
                    if links == LINKS:
                        made.unlink(missing_ok=True)
                        made.write_bytes(content)
                        state, links = made.stat(), 0
                    links += 1
                    path = f"{spec.pipeline}/{hour_path(source, key, hour)}"
                    _link(made, root / path)
                    yield (
                        spec.pipeline,
                        source,
                        key,
                        _instant(hour),
                        path,
                        state.st_size,
                        state.st_mtime_ns,
                        0,
                        None,
                        seen,
                        "0" * 64,
                    )


def _link(made: Path, path: Path) -> None:
    try:
        os.link(made, path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        os.link(made, path)


def _folders(services: Services) -> Iterator[tuple[Any, ...]]:
    """All day folders, as the sweep would have written them down; they changed an hour ago."""
    root = services.home.landing / services.spec.pipeline
    then, looked = time.time_ns() - 3_600_000_000_000, _instant(datetime.now(UTC))
    for source in services.spec.sources:
        for key in services.spec.partitions.values:
            for entry in os.scandir(root / source / key):
                os.utime(entry.path, ns=(then, then))
                path = f"{source}/{key}/{entry.name}"
                yield services.spec.pipeline, path, then, looked


def _verdicts(spec: PipelineSpec) -> Iterator[tuple[Any, ...]]:
    now = _instant(datetime.now(UTC))
    report = json.dumps({"sources": [{"rows": 0, "expected": 24, "observed": 24}] * 2})
    for asset in ("features", *(f"landed_{name}" for name in spec.sources)):
        for day in date_range(spec.partitions.start, LAST - timedelta(days=1)):
            for key in spec.keys_of(day):
                yield spec.pipeline, spec.asset(asset), key, "complete", report, now, now


def _versions(spec: PipelineSpec) -> Iterator[tuple[Any, ...]]:
    """Features, roll-ups, models and evaluations of all that was not held."""
    now = _instant(datetime.now(UTC))
    nothing = json.dumps({"short": "", "waivers": []})
    for day in date_range(spec.partitions.start, LAST - timedelta(days=1)):
        name, detail = day.isoformat(), json.dumps({"model_version": day.toordinal()})
        for key in spec.keys_of(day):
            if not (is_held(day) and key.startswith("LGA")):
                row = (spec.asset("features"), key, digest_of(key), 1, 300, nothing)
                yield (*row, "benchmark", now)
        yield spec.asset("day"), name, digest_of(name), None, 900, "{}", "benchmark", now
        if day < spec.first_model_date or is_held(day):
            continue
        yield spec.asset("model"), name, digest_of(name), None, 900, detail, "benchmark", now
        following = spec.judged_on(day)
        if following[-1] < LAST and not any(is_held(d) for d in following):
            row = (spec.asset("evaluation"), name, digest_of(name), None, 900, detail)
            yield (*row, "benchmark", now)


def deliver_rows(services: Services, source: str, key: str, hour: datetime) -> None:
    """Put a file with rows in the place of an hour's empty one: 13 flights, or one observation."""
    import pyarrow as pa

    declared = services.spec.sources[source]
    count = 13 if source == "flights" else 1
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
    spec = history.services.spec
    with sqlite3.connect(history.services.home.ledger_url.removeprefix("sqlite:///")) as database:
        newest = "SELECT rowid, hour, source, key FROM arrivals ORDER BY hour DESC LIMIT ?"
        rows = database.execute(newest, (count,)).fetchall()
        first = local_date(datetime.fromisoformat(rows[-1][1]), spec.partitions.timezone)
        database.executemany("DELETE FROM arrivals WHERE rowid = ?", [row[:1] for row in rows])
        for day in date_range(first, LAST):
            database.executemany(
                "DELETE FROM partition_versions WHERE partition = ?",
                [(name,) for name in (day.isoformat(), *spec.keys_of(day))],
            )
    for _, hour, source, key in rows:
        deliver_rows(history.services, source, key, datetime.fromisoformat(hour))
    return len(rows)


# --- Dagster's own ------------------------------------------------------------------------------


class Automation:
    """The same graph under `AutomationCondition.eager()`, everything materialized."""

    def __init__(self, years: int) -> None:
        import dagster as dg

        first = date(LAST.year - years + 1, 1, 1)
        self.days = date_range(first, LAST - timedelta(days=1))
        self.keys = flights(first).partitions.values
        zone = {"timezone": "America/New_York", "end_offset": 0}
        daily = dg.DailyPartitionsDefinition(first.isoformat(), "2024-12-31", **zone)
        keyed = dg.MultiPartitionsDefinition(
            {"airport": dg.StaticPartitionsDefinition(list(self.keys)), "date": daily}
        )
        eager = dg.AutomationCondition.eager()
        rolled = dg.MultiToSingleDimensionPartitionMapping("date")
        window = dg.TimeWindowPartitionMapping(start_offset=-27, end_offset=0)

        @dg.asset(partitions_def=keyed)
        def landed_flights() -> None: ...

        @dg.asset(partitions_def=keyed)
        def landed_weather() -> None: ...

        @dg.asset(
            partitions_def=keyed,
            deps=[landed_flights, landed_weather],
            automation_condition=eager,
        )
        def features() -> None: ...

        @dg.asset(
            partitions_def=daily,
            deps=[dg.AssetDep(features, partition_mapping=rolled)],
            automation_condition=eager,
        )
        def day() -> None: ...

        @dg.asset(
            partitions_def=daily,
            deps=[dg.AssetDep(day, partition_mapping=window)],
            automation_condition=eager,
        )
        def model() -> None: ...

        self.defs = dg.Definitions([landed_flights, landed_weather, features, day, model])
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: Any = None
        self.requested = 0
        for name in ("landed_flights", "landed_weather", "features"):
            self._materialize(name, [self._multi(k, d) for d in self.days for k in self.keys])
        for name in ("day", "model"):
            self._materialize(name, [d.isoformat() for d in self.days])

    def _multi(self, key: str, day: date) -> Any:
        import dagster as dg

        return dg.MultiPartitionKey({"airport": key, "date": day.isoformat()})

    def _report(self, name: str, partition: Any) -> None:
        import dagster as dg

        event = dg.AssetMaterialization(dg.AssetKey(name), partition=partition)
        self.instance.report_runless_asset_event(event)

    def _materialize(self, name: str, partitions: list[Any]) -> None:
        """One event by Dagster itself, and copies of its row for the other partitions."""
        import sqlalchemy as sa

        last = partitions[-1]
        self._report(name, last)
        storage: Any = self.instance.event_log_storage
        with storage.index_connection() as connection:
            table = sa.Table("event_logs", sa.MetaData(), autoload_with=connection)
            query = table.select().where(table.c.partition == str(last))
            found = connection.execute(query.order_by(table.c.id.desc()).limit(1)).one()
            row = {k: v for k, v in found._mapping.items() if k != "id"}
            copies = [
                row | {"partition": str(p), "event": row["event"].replace(str(last), str(p))}
                for p in partitions[:-1]
            ]
            if copies:
                connection.execute(table.insert(), copies)

    def tick(self) -> None:
        """One evaluation, from the cursor of the last."""
        import dagster as dg

        found = dg.evaluate_automation_conditions(
            self.defs,
            self.instance,
            evaluation_time=datetime(LAST.year, 12, 31, 17, tzinfo=UTC),
            cursor=self.cursor,
        )
        self.cursor, self.requested = found.cursor, found.total_requested

    def land(self, days: int) -> int:
        """Both sources of all airports for the last days once more; returns how many."""
        fresh = [(k, d) for d in self.days[-days:] for k in self.keys]
        for name in ("landed_flights", "landed_weather"):
            for key, day in fresh:
                self._report(name, self._multi(key, day))
        return 2 * len(fresh)


# --- measuring ----------------------------------------------------------------------------------


def timed(action: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    used = cpu_seconds()
    action()
    return cpu_seconds() - used


def measure(folder: Path, years: int, ticks: int, dagster: bool, million: bool) -> dict[str, Any]:
    """Ticks of the short and the long history in turn; CPU milliseconds by arm, and the ratios."""
    histories = {1: make_history(folder, 1), years: make_history(folder, years)}
    if million:
        histories[20] = make_history(folder, 20)
    for history in histories.values():
        history.settle()
    automations = {n: Automation(n) for n in (1, years)} if dagster else {}
    arms: dict[str, Callable[[], object]] = {
        **{f"signalbox_{n}_years": history.tick for n, history in histories.items()},
        **{f"dagster_{n}_years": automation.tick for n, automation in automations.items()},
    }
    for action in arms.values():
        action()
    quiet: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(ticks):
        order = list(arms)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            quiet[name].append(timed(arms[name]))
    news: dict[str, float] = {}
    new = {}
    for n, history in histories.items():
        new[f"signalbox_{n}_years"] = forget_hours(history, NEW_HOURS)
        news[f"signalbox_{n}_years"] = timed(history.tick)
    for n, automation in automations.items():
        new[f"dagster_{n}_years"] = automation.land(NEW_HOURS // 144 + 1)
        news[f"dagster_{n}_years"] = timed(automation.tick)
    cpu = {name: min(found) for name, found in quiet.items()}
    long = f"signalbox_{years}_years"
    result: dict[str, Any] = {
        "files": {f"{n}_years": _count(history) for n, history in histories.items()},
        "cpu_ms_quiet_tick": {name: round(1000 * used, 1) for name, used in cpu.items()},
        "cpu_ms_quiet_tick_median": {
            name: round(1000 * statistics.median(found), 1) for name, found in quiet.items()
        },
        "cpu_ms_tick_with_news": {name: round(1000 * used, 1) for name, used in news.items()},
        "news": new,
        "requests_with_news": {f"dagster_{n}_years": a.requested for n, a in automations.items()}
        | {
            f"signalbox_{n}_years": len(history.last.plan.requests) if history.last else 0
            for n, history in histories.items()
        },
        "ratio_quiet": round(cpu[long] / cpu["signalbox_1_years"], 2),
        "goal": GOAL,
    }
    if million:
        result["ratio_quiet_million"] = round(
            cpu["signalbox_20_years"] / cpu["signalbox_1_years"], 2
        )
    if automations:
        result["ratio_quiet_dagster"] = round(
            cpu[f"dagster_{years}_years"] / cpu["dagster_1_years"], 2
        )
        result["ratio_to_dagster"] = round(cpu[long] / cpu[f"dagster_{years}_years"], 2)
    return result


def _count(history: History) -> int:
    with sqlite3.connect(history.services.home.ledger_url.removeprefix("sqlite:///")) as database:
        found: int = database.execute("SELECT count(*) FROM arrivals").fetchone()[0]
        return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=7, help="ticks without news, of each arm")
    parser.add_argument("--years", type=int, default=10, help="of the long history")
    parser.add_argument("--million", action="store_true", help="also a zone of a million files")
    parser.add_argument("--no-dagster", action="store_true", help="leave Dagster's own out")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if arguments.ticks < 1 or arguments.years < 2:
        parser.error("at least 1 tick and 2 years are needed")
    # Partition mappings and parts of automation are beta in Dagster, and say so at each call.
    warnings.filterwarnings("ignore", module="dagster")
    warnings.filterwarnings("ignore", message=".*beta.*")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder),
            arguments.years,
            arguments.ticks,
            not arguments.no_dagster,
            arguments.million,
        )
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print("files in the landing zone:", result["files"])
    print(f"{'CPU of a tick, ms':<22} {'nothing new':>12} {'news':>10}  requests")
    for name, used in result["cpu_ms_quiet_tick"].items():
        print(
            f"  {name:<20} {used:>12.1f} {result['cpu_ms_tick_with_news'][name]:>10.1f}"
            f"  {result['requests_with_news'][name]} of {result['news'][name]}"
        )
    for name, ratio in result.items():
        if name.startswith("ratio"):
            print(f"{name}: {ratio}")
    print(f"goals: ratio_quiet at most {GOAL}, {NEW_HOURS} new hours at most {GOAL_NEW_SECONDS} s")


if __name__ == "__main__":
    main()
