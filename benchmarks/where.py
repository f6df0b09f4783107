"""Where the CPU of a run goes: each kind of run, executed once in a process forked for it.

The process is forked as a run's is (platform_assets/instance/worker.py), from one that has
imported what a zygote imports; the same partitions are then made by the functions of the line
alone, in a fork as well, without Dagster. CPU is user and system seconds of the process and of
its ended children; what launching, daemon and code location cost comes on top of it
(benchmarks/backfill_cost.py).

    python -m benchmarks.where [--days 35] [--profile 30] [--only features,model] [--keep FOLDER]

`--profile` prints the functions that most CPU was spent in, by cumulated time; the profiler costs
CPU too, so its figures say where it goes and not how much it is.
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.backfill_cost import FIRST, ROOT, write_catalog
from platform_assets.domain.errors import HeldError
from platform_assets.domain.partition import PartitionKey

BATCH = 15
KEY = "JFK"


@dataclass(frozen=True)
class Kind:
    """A kind of run: what it makes, and of which partitions.

    Attributes:
        stages: made in one run, in their order.
        partitions: first and last, as they are written in the catalog.
    """

    name: str
    stages: tuple[str, ...]
    partitions: tuple[str, str]


def kinds(days: int) -> list[Kind]:
    """A batch and a single run of each stage, so that each finds what it needs."""
    day = [(FIRST + timedelta(days=n)).isoformat() for n in range(days)]
    models, judged = (day[27], day[-1]), (day[27], day[-4])
    return [
        Kind("features, a batch", ("features",), (f"{KEY}|{day[1]}", f"{KEY}|{day[BATCH]}")),
        Kind("features, one", ("features",), (f"{KEY}|{day[BATCH + 1]}",) * 2),
        Kind("day, a batch", ("day",), (day[0], day[-2])),
        Kind("day, one", ("day",), (day[-1],) * 2),
        Kind("snapshot and model, a batch", ("snapshot", "model"), (models[0], day[-2])),
        Kind("snapshot and model, one", ("snapshot", "model"), (day[-1],) * 2),
        Kind("evaluation, a batch", ("evaluation",), judged),
    ]


def spent() -> float:
    """CPU seconds of this process and of its ended children."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def forked(work: Callable[[], Any]) -> Any:
    """What a fork of this process makes of it; this one must not use what does not fork."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as out:
                json.dump(work(), out)
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError("the forked process failed; its error stands above")
    return json.loads(text)


def _profiled(work: Callable[[], Any], lines: int) -> tuple[Any, str]:
    if not lines:
        return work(), ""
    profile = cProfile.Profile(time.process_time)
    found = profile.runcall(work)
    out = io.StringIO()
    stats = pstats.Stats(profile, stream=out).sort_stats("cumulative")
    stats.print_stats(
        r"dagster|platform_assets|resources|deltalake|mlflow|sqlalchemy|:0\(|~", lines
    )
    stats.sort_stats("tottime").print_stats(lines)
    return found, out.getvalue()


def through_dagster(kind: Kind, lines: int) -> dict[str, Any]:
    """Execute one run as a forked worker does; to be called in a fork."""
    import dagster as dg
    from dagster._core.definitions.reconstruct import ReconstructableRepository
    from dagster._serdes import serialize_value

    from platform_assets.factory.grid import asset_key, dagster_key
    from platform_assets.instance.worker import _execute
    from resources.catalog import load_catalog

    spec = load_catalog()["flights"]
    first, last = (dagster_key(spec, PartitionKey.parse(name)) for name in kind.partitions)
    repository = ReconstructableRepository.for_module(
        "platform_assets.definitions", "defs", str(ROOT)
    )
    job = repository.get_reconstructable_job("__ASSET_JOB")
    with dg.DagsterInstance.get() as instance:
        tags = (
            {"dagster/partition": first}
            if first == last
            else {
                "dagster/asset_partition_range_start": first,
                "dagster/asset_partition_range_end": last,
            }
        )
        run = instance.create_run_for_job(
            job_def=job.get_definition(),
            tags={**tags, "signalbox/lane": "backfill", "dagster/backfill": "where"},
            asset_selection=frozenset(asset_key(spec.asset(stage)) for stage in kind.stages),
            job_code_origin=job.get_python_origin(),
        )
        reference = serialize_value(instance.get_ref())
    before = spent()
    _, text = _profiled(lambda: _execute(run.run_id, reference), lines)
    cpu = spent() - before
    with dg.DagsterInstance.get() as instance:
        found = instance.get_run_by_id(run.run_id)
        events = len(instance.all_logs(run.run_id))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu": cpu,
        "of_it_children": children.ru_utime + children.ru_stime,
        "status": found.status.value if found else None,
        "events": events,
        "profile": text,
    }


def without_dagster(kind: Kind, lines: int) -> dict[str, Any]:
    """The same partitions by the functions that the run calls; to be called in a fork."""
    from platform_assets.line.days import build_day, build_snapshot
    from platform_assets.line.features import build_features
    from platform_assets.line.judging import evaluate_model
    from platform_assets.line.models import train_model
    from platform_assets.line.services import Services
    from resources.catalog import load_catalog

    services = Services.open(load_catalog()["flights"])
    first, last = map(PartitionKey.parse, kind.partitions)
    dates = [first.date + timedelta(days=n) for n in range((last.date - first.date).days + 1)]
    works: dict[str, Callable[[PartitionKey], object]] = {
        "features": lambda key: build_features(services, key, "where"),
        "day": lambda key: build_day(services, key, "where", with_map=key == last),
        "snapshot": lambda key: build_snapshot(services, key, "where"),
        "model": lambda key: train_model(services, key, "where", lane="backfill"),
        "evaluation": lambda key: evaluate_model(services, key, "where"),
    }

    def work() -> None:
        for stage in kind.stages:
            for date in dates:
                with suppress(HeldError):
                    works[stage](PartitionKey(date, first.key))

    before = spent()
    _, text = _profiled(work, lines)
    return {"cpu": spent() - before, "partitions": len(dates), "profile": text}


def prepare(folder: Path, days: int) -> None:
    """A home with landed days and the features that no kind of run makes, and a catalog."""
    from platform_assets.factory.instance import make_home
    from platform_assets.line.features import build_features
    from platform_assets.line.landing import land_flights
    from platform_assets.line.services import Services
    from resources.catalog import load_catalog
    from resources.home import Home

    write_catalog(folder / "catalog", days, None)
    os.environ["SIGNALBOX_CATALOG"] = str(folder / "catalog")
    home = Home.locate(folder / "template")
    make_home(home)
    os.environ.update(home.environment())
    services = Services.open(load_catalog()["flights"], home)
    land_flights(services, FIRST, services.spec.partitions.end - timedelta(days=1), quiet=True)
    for name in services.spec.partitions.values:
        for n in range(BATCH + 2 if name == KEY else 0, days):
            with suppress(HeldError):
                build_features(services, PartitionKey(FIRST + timedelta(days=n), name), "fill")
    (folder / "prepared").touch()


def measure(folder: Path, days: int, lines: int, only: Sequence[str]) -> dict[str, Any]:
    """The kinds of run that are wanted, through Dagster and without."""
    from resources.home import Home

    if not (folder / "prepared").exists():
        forked(lambda: prepare(folder, days))
    os.environ["SIGNALBOX_CATALOG"] = str(folder / "catalog")
    os.environ.pop("DAGSTER_HOME", None)
    from platform_assets.definitions import defs
    from platform_assets.instance.preload import preload

    defs.get_repository_def().load_all_definitions()
    preload()
    arms = {"dagster": through_dagster, "plain": without_dagster}
    for arm in arms:
        shutil.rmtree(folder / arm, ignore_errors=True)
        shutil.copytree(folder / "template", folder / arm)
        Home.locate(folder / arm).settle()  # it trains nothing that MLflow has a place for yet
    every = kinds(days)
    wanted = [kind for kind in every if not only or any(word in kind.name for word in only)]
    found: dict[str, Any] = {}
    for kind in every[: every.index(wanted[-1]) + 1]:
        for arm, work in arms.items():
            os.environ.update(Home.locate(folder / arm).environment())
            if kind not in wanted:  # what follows needs it
                forked(partial(without_dagster, kind, 0))
                continue
            done = forked(partial(work, kind, lines))
            found.setdefault(kind.name, {})[arm] = done
            if done["profile"]:
                print(f"=== {kind.name}, {arm}\n{done['profile']}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=35, help="at least 32")
    parser.add_argument("--profile", type=int, default=0, help="lines of a profile of each run")
    parser.add_argument("--only", default="", help="these kinds, words separated by commas")
    parser.add_argument("--keep", help="a folder that is kept, so that it is prepared once")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    only = [word for word in chosen.only.split(",") if word]
    with tempfile.TemporaryDirectory(prefix="signalbox-") as folder:
        place = Path(chosen.keep or folder)
        place.mkdir(parents=True, exist_ok=True)
        found = measure(place, chosen.days, chosen.profile, only)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    print("CPU seconds         partitions   a run  (of it children, events)   without   ratio")
    for name, arms in found.items():
        run, plain = arms["dagster"], arms["plain"]
        print(
            f"{name:28s} {plain['partitions']:3d} {run['cpu']:7.2f}  ({run['of_it_children']:.2f}, "
            f"{run['events']:4d}) {plain['cpu']:9.2f} {run['cpu'] / plain['cpu']:7.2f}"
            + ("" if run["status"] == "SUCCESS" else f"  {run['status']}")
        )


if __name__ == "__main__":
    main()
