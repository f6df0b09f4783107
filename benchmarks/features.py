"""What the features of an airport-day cost: Signalbox against the same join in bare pandas.

Signalbox: what a run does for one partition, that is look at the landing zone, record the
completeness, read the hourly files, join, check, digest, commit to the Delta table, record the
version in the ledger. Bare: read the same files, the same join in pandas, one Parquet file.

Both arms take turns on the same airport-days in one process that has imported everything; counted
is the CPU (user and system, all threads and children) of each arm, and the wall time.

    python -m benchmarks.features [--days 10] [--json]
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from platform_assets.domain.clock import FixedClock
from platform_assets.domain.partition import PartitionKey, date_range, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.features import build_features
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import Home
from resources.landing.layout import hour_path
from resources.ledger import upgrade
from resources.nycflights import replay

GOAL = 3.0
FIRST = date(2013, 1, 1)


def cpu_seconds() -> float:
    """CPU of this process, its threads and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def bare(
    spec: PipelineSpec, landing: Path, key: str, day: date, out: Path, *, one_call: bool
) -> int:
    """The join of flights.yaml as somebody would write it in pandas, without any platform.

    Args:
        one_call: read all files of a source by one call, which pandas can do too, in the place
            of one call a file.
    """
    import pandas as pd

    frames = {}
    for source in ("flights", "weather"):
        hours = local_hours(day, spec.partitions.timezone)
        paths = [landing / spec.pipeline / hour_path(source, key, hour) for hour in hours]
        columns = list(spec.sources[source].columns)
        if one_call:
            frames[source] = pd.read_parquet([str(path) for path in paths], columns=columns)
        else:
            frames[source] = pd.concat([pd.read_parquet(path, columns=columns) for path in paths])
    flights = frames["flights"]
    rows = flights[flights["arr_delay"].notna()].merge(
        frames["weather"], on="time_hour", how="left", validate="many_to_one"
    )
    rows["airport"], rows["date"] = key, day
    for name in ("dep", "arr"):
        clock = rows[f"sched_{name}_time"]
        rows[f"{name}_minute"] = (clock // 100 * 60 + clock % 100).astype("float64")
    local = rows["time_hour"].dt.tz_convert(spec.partitions.timezone)
    rows["weekday"] = local.dt.dayofweek.astype("float64")
    rows["delayed"] = (rows["arr_delay"] >= 15).astype("int8")
    rows["relevance"] = rows["arr_delay"].clip(lower=0)
    names = ["airport", "date", "time_hour", "carrier", "flight", *spec.dataset.features]
    rows = rows[[*dict.fromkeys(names), "delayed", "relevance"]]
    rows = rows.sort_values(["time_hour", "carrier", "flight"])
    target = out / key / day.isoformat()
    target.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(target / "part.parquet", index=False)
    return len(rows)


def measure(days: int, folder: Path) -> dict[str, Any]:
    """Run the arms in turn; returns CPU and wall seconds by arm, and the ratios."""
    spec = load_catalog()["flights"]
    home = Home.locate(folder / "home")
    for path in (home.landing, home.lake):
        path.mkdir(parents=True)
    upgrade(home.ledger_url)
    last = FIRST + timedelta(days=days + 1)
    services = Services(home, spec, FixedClock(datetime(2014, 1, 1, tzinfo=UTC)))
    replay(spec, services.zone, FIRST, last)

    every = [PartitionKey(day, key) for day in date_range(FIRST, last) for key in keys_of(spec)]
    as_of = services.clock.as_of()
    services.zone.refresh(FIRST, last)
    reports = services.zone.reports(FIRST, last, as_of)
    whole = [partition for partition in every if reports[partition].is_whole]
    # The arm itself finds the files as new ones, like the first look after they landed.
    for source in spec.sources:
        for key in keys_of(spec):
            known = services.ledger.arrivals(spec.pipeline, source, key)
            services.ledger.forget_arrivals(spec.pipeline, source, [r.path for r in known])

    def signalbox(partition: PartitionKey) -> int:
        outcome = build_features(services, partition, "benchmark")
        return int(outcome.metadata["rows"])

    def pandas(partition: PartitionKey, *, one_call: bool = False) -> int:
        assert partition.key is not None
        out = folder / ("one_call" if one_call else "bare")
        return bare(spec, home.landing, partition.key, partition.date, out, one_call=one_call)

    arms: dict[str, Callable[[PartitionKey], int]] = {
        "signalbox": signalbox,
        "pandas": pandas,
        "pandas_one_call": lambda partition: pandas(partition, one_call=True),
    }
    cpu, wall, rows = (dict.fromkeys(arms, 0.0) for _ in range(3))
    warm, counted = whole[:2], whole[2 : 2 + 3 * days]
    for number, partition in enumerate([*warm, *counted]):
        order = list(arms)
        for name in order[number % 3 :] + order[: number % 3]:
            started, used = time.perf_counter(), cpu_seconds()
            found = arms[name](partition)
            used, took = cpu_seconds() - used, time.perf_counter() - started
            if number >= len(warm):
                cpu[name] += used
                wall[name] += took
                rows[name] += found
    if len(set(rows.values())) != 1:
        raise SystemExit(f"the arms do not agree on the number of rows: {rows}")
    count = len(counted)
    return {
        "airport_days": count,
        "rows": int(rows["signalbox"]),
        "cpu_ms_each": {name: round(1000 * cpu[name] / count, 2) for name in arms},
        "wall_ms_each": {name: round(1000 * wall[name] / count, 2) for name in arms},
        "cpu_ratio": round(cpu["signalbox"] / cpu["pandas"], 2),
        "cpu_ratio_to_one_call": round(cpu["signalbox"] / cpu["pandas_one_call"], 2),
        "wall_ratio": round(wall["signalbox"] / wall["pandas"], 2),
        "goal": GOAL,
    }


def keys_of(spec: PipelineSpec) -> Sequence[str]:
    return spec.partitions.values


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the features of an airport-day.")
    parser.add_argument("--days", type=int, default=10, help="days of three airports (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="signalbox-benchmark-"))
    try:
        result = measure(options.days, folder)
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"features of {result['airport_days']} airport-days, {result['rows']} rows")
    for name, cpu in result["cpu_ms_each"].items():
        print(f"  {name:16} {cpu:8.1f} ms CPU each, {result['wall_ms_each'][name]:8.1f} ms wall")
    print(
        f"CPU: {result['cpu_ratio']} times bare pandas (goal: at most {GOAL}), "
        f"{result['cpu_ratio_to_one_call']} times pandas reading all files by one call"
    )


if __name__ == "__main__":
    main()
