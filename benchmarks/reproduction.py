"""Every champion of a history, rebuilt in a fresh process after its data has changed.

The history is played day by day as the sensors would: a day lands, features, roll-up, snapshot and
model are built, the model of some days ago is judged, the champion is decided. Then the lake is
disturbed: hours of a seventh of the days are delivered again with other delays, twice, their
partitions are built anew each time, the table is compacted, and all that no model pins is removed
from the disk at once.
Then each model that ever was champion is trained again from what was recorded.

    python -m benchmarks.reproduction [--from 2013-05-01] [--to 2013-06-29] [--every] [--json]

`--from` and `--to` are the dates of the models; 60 of them take some minutes. `--played` goes no
further than the history, and says who became champion by the gate.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from platform_assets.domain.errors import HeldError, RefusedError
from platform_assets.domain.partition import PartitionKey, date_range, local_hours
from platform_assets.domain.reproduction import Verdict
from platform_assets.factory.instance import make_home
from platform_assets.line.crowning import decide_champion
from platform_assets.line.days import build_day, build_snapshot
from platform_assets.line.features import build_features
from platform_assets.line.judging import evaluate_model
from platform_assets.line.landing import land_flights
from platform_assets.line.maintenance import maintain, vacuum
from platform_assets.line.models import train_model
from platform_assets.line.registered import promotions
from platform_assets.line.reproduce import reproduce
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import Home
from resources.landing.layout import hour_path
from resources.ledger.records import VersionRecord

FIRST, LAST = date(2013, 5, 1), date(2013, 6, 29)
RUN = "benchmark"


def play(services: Services, first: date, last: date) -> None:
    """The days of a history, one after the other."""
    spec = services.spec
    started = first - timedelta(days=spec.model.window_days - 1)
    for day in date_range(started, last + timedelta(days=spec.evaluation.days)):
        land_flights(services, day, day, quiet=True)
        build(services, day)
        if first <= day <= last:
            with suppress(HeldError):
                build_snapshot(services, PartitionKey(day), RUN)
                train_model(services, PartitionKey(day), RUN, lane="daily")
        judged = day - timedelta(days=spec.evaluation.days)
        if first <= judged <= last:
            with suppress(HeldError):
                evaluate_model(services, PartitionKey(judged), RUN)
                decide_champion(services, RUN)


def build(services: Services, day: date) -> None:
    """The features and the roll-up of one day; what is held stays so."""
    for name in services.spec.keys_of(day):
        with suppress(HeldError):
            build_features(services, PartitionKey.parse(name), RUN)
    build_day(services, PartitionKey(day), RUN)


def disturb(services: Services, first: date, last: date) -> dict[str, Any]:
    """Late data twice over in a seventh of the days, and no file left that nobody pins."""
    spec = services.spec
    days = date_range(first - timedelta(days=spec.model.window_days - 1), last)[::7]
    changed = 0
    for attempt in ("late data", "a backfill"):
        again = replace(services, restate=attempt)
        for name in (name for day in days for name in spec.keys_of(day)):
            before = services.ledger.current_version(spec.asset("features"), name)
            delay(services, PartitionKey.parse(name))
            with suppress(HeldError):
                build_features(again, PartitionKey.parse(name), RUN)
            now = services.ledger.current_version(spec.asset("features"), name)
            changed += before is not None and now is not None and before != now
        for day in days:
            build_day(again, PartitionKey(day), RUN)
    kept = maintain(services, RUN)
    removed = vacuum(services, RUN, keep=timedelta(0))
    return {
        "partitions_rebuilt": changed,
        "tables": len(kept["tables"]),
        "files_removed": len(removed["removed"]),
        "files_pinned": removed["pinned_files"],
    }


def delay(services: Services, key: PartitionKey) -> None:
    """Deliver an hour of a partition again, each of its flights 45 minutes later."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    spec = services.spec
    hour = local_hours(key.date, spec.partitions.timezone)[10]
    path = services.home.landing / spec.pipeline / hour_path("flights", str(key.key), hour)
    table = pq.read_table(path)
    late = [None if v is None else v + 45.0 for v in table["arr_delay"].to_pylist()]
    at = table.column_names.index("arr_delay")
    draft = path.with_suffix(".new")
    pq.write_table(table.set_column(at, "arr_delay", pa.array(late, pa.float64())), draft)
    draft.replace(path)


def wanted(services: Services, *, every: bool) -> list[VersionRecord]:
    """The models that ever were champion, or all there are, in the order of their versions."""
    crowned = {champion.version for champion in promotions(services)}
    found = {
        int(record.detail["model_version"]): record
        for record in services.ledger.versions(services.spec.asset("model"))
    }
    return [record for version, record in sorted(found.items()) if every or version in crowned]


def rebuild(services: Services, *, every: bool) -> dict[str, Any]:
    """Reproduce them; returns the verdicts, and what each took."""
    verdicts: Counter[str] = Counter()
    others = {}
    wall, used = time.perf_counter(), time.process_time()
    models = wanted(services, every=every)
    for record in models:
        version = int(record.detail["model_version"])
        try:
            found = reproduce(services, record)
        except RefusedError as error:
            verdicts["refused"] += 1
            others[version] = str(error)
            continue
        verdicts[found.verdict.value] += 1
        if found.verdict is not Verdict.IDENTICAL:
            others[version] = found.reason
    count = max(1, len(models))
    return {
        "rebuilt": len(models),
        "verdicts": dict(verdicts),
        "not_identical": others,
        "cpu_seconds_each": round((time.process_time() - used) / count, 2),
        "seconds_each": round((time.perf_counter() - wall) / count, 2),
    }


def measure(
    folder: Path, first: date, last: date, *, every: bool, played: bool = False
) -> dict[str, Any]:
    """Play, disturb, and rebuild in a process of its own.

    Args:
        played: go no further than that: who became champion, by the gate.
    """
    home = Home.locate(folder / "home")
    os.environ.update(home.environment())
    make_home(home)
    services = Services.open(load_catalog()["flights"], home)
    play(services, first, last)
    history = promotions(services)
    decided = {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "models": len(services.ledger.versions(services.spec.asset("model"))),
        "promotions": len(history),
        "champions": len({champion.version for champion in history}),
        "champion_dates": [champion.model_date.isoformat() for champion in history],
    }
    if played:
        return {**decided, "ok": bool(history)}
    done = disturb(services, first, last)
    command = [sys.executable, "-m", "benchmarks.reproduction", "--rebuild"]
    told = subprocess.run(
        [*command, *(["--every"] if every else [])],
        env=os.environ | home.environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(told.stdout)
    return {
        **decided,
        **done,
        **found,
        "ok": found["rebuilt"] > 0 and found["verdicts"] == {"identical": found["rebuilt"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Every champion of a history, rebuilt.")
    parser.add_argument("--from", dest="first", type=date.fromisoformat, default=FIRST)
    parser.add_argument("--to", dest="last", type=date.fromisoformat, default=LAST)
    parser.add_argument("--every", action="store_true", help="every model, not champions alone")
    parser.add_argument("--played", action="store_true", help="count champions, rebuild none")
    parser.add_argument("--keep", type=Path, help="leave the home in this new folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rebuild", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rebuild:
        print(json.dumps(rebuild(Services.open(load_catalog()["flights"]), every=options.every)))
        return
    folder = options.keep or Path(tempfile.mkdtemp(prefix="signalbox-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = measure(
            folder, options.first, options.last, every=options.every, played=options.played
        )
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(
            f"{result['models']} models from {result['from']} to {result['to']}, "
            f"{result['champions']} of them were champion ({result['promotions']} promotions): "
            f"{', '.join(result['champion_dates'])}"
        )
    if not options.json and not options.played:
        print(
            f"then partitions were built anew of other rows {result['partitions_rebuilt']} times, "
            f"and {result['files_removed']} files removed; {result['files_pinned']} replaced ones "
            "stayed, since models are rebuilt from them\n"
            f"rebuilt {result['rebuilt']}: "
            + ", ".join(f"{count} {verdict}" for verdict, count in result["verdicts"].items())
            + f"; {result['cpu_seconds_each']} CPU-s each"
        )
        for version, why in result["not_identical"].items():
            print(f"  version {version}: {why}")
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
