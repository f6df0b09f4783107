"""What it costs to take in new hours: Signalbox's refresh against reading the files bare.

Signalbox: find the files, read each once, judge footer, rows and values by the source's rules,
digest them, record the arrivals in the ledger. Bare: read the same files one by one in pyarrow.

Both arms take turns on the same files in one process that has imported everything; counted is the
CPU (user and system, all threads and children) of each arm. A third figure is the refresh when one
of the hours breaks a rule, so that pandera judges it and it is set aside.

    python -m benchmarks.arrivals [--hours 1000] [--turns 5] [--json]
"""

import argparse
import json
import resource
import shutil
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from platform_assets.domain.clock import FixedClock
from platform_assets.domain.partition import local_hours
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import Home
from resources.landing.layout import hour_path
from resources.ledger import upgrade
from resources.nycflights import replay

GOAL = 1.0
"""CPU seconds for 1,000 new hours."""
FIRST = date(2013, 1, 1)


def cpu_seconds() -> float:
    """CPU of this process, its threads and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(hours: int, turns: int, folder: Path) -> dict[str, Any]:
    """Run the arms in turn; returns CPU seconds of each, the median turn, and the ratio."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    spec = load_catalog()["flights"]
    home = Home.locate(folder / "home")
    home.landing.mkdir(parents=True)
    upgrade(home.ledger_url)
    services = Services(home, spec, FixedClock(datetime(2014, 1, 1, tzinfo=UTC)))
    zone = services.zone
    # Six files an hour: two sources, three airports.
    last = FIRST + timedelta(days=hours // (6 * 24) + 1)
    replay(spec, zone, FIRST, last)
    paths = sorted(path for path in zone.root.rglob("*.parquet") if path.is_file())
    for surplus in paths[hours:]:
        surplus.unlink()
    paths = paths[:hours]

    def forget() -> None:
        for source in spec.sources:
            known = services.ledger.arrivals(spec.pipeline, source)
            services.ledger.forget_arrivals(spec.pipeline, source, [r.path for r in known])

    def refresh() -> int:
        return zone.refresh(FIRST, last)

    def bare() -> int:
        return len([pq.ParquetFile(path).read(use_threads=False) for path in paths])

    def cost(arm: Any) -> float:
        used = cpu_seconds()
        found = arm()
        if found != len(paths):
            raise SystemExit(f"{found} files were taken in, {len(paths)} are there")
        return cpu_seconds() - used

    def damage() -> None:
        """Let one hour repeat a row."""
        hour = local_hours(FIRST, spec.partitions.timezone)[10]
        path = zone.root / spec.pipeline / hour_path("flights", "EWR", hour)
        rows = pq.read_table(path)
        zone.deliver("flights", "EWR", hour, pa.concat_tables([rows, rows.slice(0, 1)]))

    spent: dict[str, list[float]] = {"signalbox": [], "pyarrow": [], "signalbox_one_refused": []}
    for turn in range(turns + 1):
        arms = [("signalbox", refresh), ("pyarrow", bare)]
        forget()
        for name, arm in arms if turn % 2 else reversed(arms):
            used = cost(arm)
            if turn:  # the first one warms up
                spent[name].append(used)
    damage()
    for turn in range(turns + 1):
        forget()
        used = cost(refresh)
        if turn:
            spent["signalbox_one_refused"].append(used)
    kept = [r for r in services.quarantine.all(spec.pipeline, only_open=True) if r.kept]
    if len(kept) != 1:
        raise SystemExit(f"one refused hour was to be set aside, found {kept}")
    cpu = {name: median(each) for name, each in spent.items()}
    return {
        "hours": len(paths),
        "cpu_seconds": {name: round(used, 3) for name, used in cpu.items()},
        "cpu_ratio": round(cpu["signalbox"] / cpu["pyarrow"], 2),
        "cpu_seconds_per_1000": round(1000 * cpu["signalbox"] / len(paths), 3),
        "goal": GOAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of taking in new hours.")
    parser.add_argument("--hours", type=int, default=1000, help="new files (1000)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each arm (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="signalbox-benchmark-"))
    try:
        result = measure(options.hours, options.turns, folder)
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['hours']} new hours")
    for name, cpu in result["cpu_seconds"].items():
        print(f"  {name:22} {cpu:8.3f} s CPU")
    print(
        f"CPU: {result['cpu_ratio']} times reading them in pyarrow; "
        f"{result['cpu_seconds_per_1000']} s per 1,000 hours (goal: at most about {GOAL} s)"
    )


if __name__ == "__main__":
    main()
