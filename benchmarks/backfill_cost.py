"""What a backfill costs: through Dagster, against a loop over the same code, and a bare one.

Four arms do the same days of flights, each in a home of its own, one after the other:

    bare     pandas, Parquet and LightGBM in one process: no checks, no ledger, no Delta, no MLflow
    loop     features, day, snapshot, model, evaluation and champion in one process, the same
             functions that a run calls, without Dagster
    batched  a native backfill through webserver, queue and daemon, with the batches of the catalog
    single   the same with one run a partition

Counted is the CPU (user and system) of the whole process tree from the launch to the end; not
counted are imports and the start of Dagster's services, in any arm. The wall time from the launch
of the backfill to the start of its first run stands beside.

A backfill counts only if all of it succeeded and built what the loop built: the same data version
of every partition of every stage. 1 is the exit code if one did not, or a goal was missed.

    python -m benchmarks.backfill_cost [--days 90] [--arms bare,loop,batched,single] [--json]
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.features import bare, cpu_seconds
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from resources.catalog import catalog_folder, load_catalog
from resources.home import Home
from tests.e2e.storm import versions_of

FIRST = date(2013, 1, 1)
ARMS = ("bare", "loop", "batched", "single")
GOALS = {"batched": 1.5, "single": 4.0}
FIRST_RUN_GOAL = 5.0
ENDED = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}
ROOT = Path(__file__).resolve().parents[1]


SMALL: dict[str, dict[str, Any]] = {
    "partitions": {"values": ["JFK", "LGA"]},
    "model": {"window_days": 3, "min_days": 2},
    "evaluation": {"days": 1},
}
"""Of `--small`: models from the third day on, so that a few days show all kinds of run."""


def write_catalog(folder: Path, days: int, per_run: int | None, small: bool = False) -> None:
    """The flights of the catalog; live from the day after the last, which never lands."""
    document = yaml.safe_load((catalog_folder() / "flights.yaml").read_text())
    after = FIRST + timedelta(days=days)
    document["partitions"] |= {"start": FIRST, "end": after}
    document["schedule"] |= {"live_from": after}
    if small:
        for section, values in SMALL.items():
            document[section] |= values
        document["model"]["parameters"] |= {"num_boost_round": 20}
    if per_run is not None:
        document["limits"] = {"partitions_per_run": per_run, "models_per_run": per_run}
    folder.mkdir()
    (folder / "flights.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def plan_of(services: Services) -> Any:
    from platform_assets.line.history import plan_history

    spec = services.spec
    return plan_history(services, spec.partitions.start, spec.partitions.end - timedelta(days=1))


def run_loop(services: Services) -> int:
    """All stages of all days, in their order; the number of partitions built."""
    from platform_assets.line.crowning import decide_champion
    from platform_assets.line.days import build_day, build_snapshot
    from platform_assets.line.features import build_features
    from platform_assets.line.judging import evaluate_model
    from platform_assets.line.models import train_model

    spec, plan = services.spec, plan_of(services)
    works = {
        "features": build_features,
        "day": lambda s, key, run: build_day(s, key, run, with_map=False),
        "snapshot": build_snapshot,
        "model": lambda s, key, run: train_model(s, key, run, lane="backfill"),
        "evaluation": evaluate_model,
    }
    built = 0
    for stage, work in works.items():
        for name in sorted(plan.build.get(stage, ())):
            work(services, PartitionKey.parse(name), "loop")
            built += 1
    decide_champion(services, "loop")
    assert spec.pipeline
    return built + 1


def run_bare(services: Services) -> int:
    """The same rows and models without any platform."""
    import lightgbm as lgb
    import pandas as pd

    spec, plan = services.spec, plan_of(services)
    out = services.home.root / "bare"
    for name in plan.build["features"]:
        key = PartitionKey.parse(name)
        bare(spec, services.home.landing, key.key or "", key.date, out, one_call=True)
    days = {PartitionKey.parse(name).date for name in plan.build["features"]}

    def read(wanted: list[date]) -> pd.DataFrame:
        paths = [
            path
            for day in wanted
            if day in days
            for path in sorted(out.glob(f"*/{day.isoformat()}/part.parquet"))
        ]
        frame = pd.concat([pd.read_parquet(path) for path in paths])
        for name in spec.dataset.categories:
            frame[name] = frame[name].astype("category")
        return frame

    features = list(spec.dataset.features)
    settings = {
        **{k: v for k, v in spec.model.parameters.items() if k != "num_boost_round"},
        "objective": "binary", "verbosity": -1, "deterministic": True, "force_row_wise": True,
    }  # fmt: skip
    rounds = int(spec.model.parameters.get("num_boost_round", 100))
    judged = set(plan.build.get("evaluation", ()))
    for name in plan.build["model"]:
        day = date.fromisoformat(name)
        rows = read([day - timedelta(days=n) for n in range(spec.model.window_days)])
        target = rows[spec.dataset.target.name]
        model = lgb.train(settings, lgb.Dataset(rows[features], label=target), rounds)
        model.save_model(str(out / f"{name}.txt"))
        if name in judged:
            later = read(list(spec.judged_on(day)))
            model.predict(later[features])
    return len(plan.build["features"]) + len(plan.build["model"])


def warm_imports(spec: PipelineSpec) -> None:
    """Import what the work will import, so that it is not counted."""
    from platform_assets.instance.preload import preload

    preload()
    assert spec


def in_process(arm: str, home: Home) -> dict[str, Any]:
    """Run an arm of one process in this one."""
    services = Services.open(load_catalog()["flights"], home)
    warm_imports(services.spec)
    used, started = cpu_seconds(), time.perf_counter()
    built = (run_loop if arm == "loop" else run_bare)(services)
    cpu, wall = cpu_seconds() - used, time.perf_counter() - started
    versions = versions_of(services) if arm == "loop" else None
    return {"cpu": cpu, "wall": wall, "partitions": built, "versions": versions}


def tree_cpu(home: Home) -> float:
    """CPU of the living processes on a home, and of all their ended children."""
    total = 0.0
    for process in psutil.process_iter():
        try:
            if process.environ().get("DAGSTER_HOME") == str(home.dagster):
                total += sum(process.cpu_times()[:4])
        except (psutil.Error, OSError):
            continue
    return total


def by_process(home: Home) -> dict[str, float]:
    """The same by kind of process: where the rest goes."""
    found: dict[str, float] = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get("DAGSTER_HOME") == str(home.dagster):
                words = [Path(word).name for word in process.cmdline()]
                name = next((w for w in words if w.startswith(("platform_", "dagster"))), words[0])
                times = process.cpu_times()
                found[name] = found.get(name, 0.0) + times.user + times.system
                children = times.children_user + times.children_system
                found[f"{name}, ended children"] = (
                    found.get(f"{name}, ended children", 0.0) + children
                )
        except (psutil.Error, OSError):
            continue
    return found


def through_dagster(home: Home, catalog: Path) -> dict[str, Any]:
    """A native backfill of everything, as the UI launches it."""
    from platform_assets.demo.play import backfill_ranges
    from platform_assets.demo.server import DagsterDev

    spec = load_catalog(catalog)["flights"]
    services = Services.open(spec, home)
    plan = plan_of(services)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"SIGNALBOX_CATALOG": str(catalog), "PYTHONPATH": str(ROOT)}
    with DagsterDev(home, port, variables) as server:
        server.wait_until_ready()
        _settle(home, server.log)
        before, kinds, used = time.time(), by_process(home), tree_cpu(home)
        started = time.perf_counter()
        backfill = server.api.launch_backfill(
            backfill_ranges(spec, plan), title="cost", tags={"signalbox/lane": "backfill"}
        )
        while server.api.backfill(backfill)["status"] not in ENDED:
            time.sleep(1)
        wall, cpu = time.perf_counter() - started, tree_cpu(home) - used
        found = server.api.backfill(backfill)
        runs = server.api.runs({"dagster/backfill": backfill}, limit=100_000)
        after = by_process(home)
    return {
        "cpu": cpu,
        "wall": wall,
        "versions": versions_of(services),
        "status": found["status"],
        "failed": {asset: counts[1] for asset, counts in found["assets"].items() if counts[1]},
        "runs": len(runs),
        "not_ok": [run["runId"] for run in runs if run["status"] != "SUCCESS"],
        "first_run_seconds": min(run["startTime"] for run in runs if run["startTime"]) - before,
        "cpu_by_process": {
            name: round(value - kinds.get(name, 0.0), 2)
            for name, value in sorted(after.items())
            if value - kinds.get(name, 0.0) > 0.05
        },
    }


def problems_of(
    arms: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, Mapping[str, str] | None],
    ratios: Mapping[str, float],
) -> list[str]:
    """What keeps the figures from counting, and the goals that they miss.

    Args:
        arms: figures by arm.
        versions: by arm, data versions by partition; None of an arm without a ledger.
        ratios: CPU of an arm to that of another, `batched_to_loop`.
    """
    found = []
    for arm, figures in arms.items():
        if "status" not in figures:
            continue
        if figures["status"] != "COMPLETED_SUCCESS":
            found.append(f"{arm}: the backfill ended as {figures['status']}")
        if figures["failed"]:
            found.append(f"{arm}: partitions failed, {figures['failed']}")
        if figures["not_ok"]:
            found.append(f"{arm}: {len(figures['not_ok'])} runs did not succeed")
        if figures["first_run_seconds"] > FIRST_RUN_GOAL:
            seconds = figures["first_run_seconds"]
            found.append(f"{arm}: first run after {seconds:.1f} s, goal {FIRST_RUN_GOAL:.0f} s")
    loop = versions.get("loop")
    for arm, mine in versions.items():
        if loop is None or mine is None:
            continue
        others = {name for name in {*loop, *mine} if loop.get(name) != mine.get(name)}
        if others:
            found.append(f"{arm}: {len(others)} versions are not the loop's, {sorted(others)[:3]}")
    for arm, goal in GOALS.items():
        ratio = ratios.get(f"{arm}_to_loop", 0.0)
        if ratio > goal:
            found.append(f"{arm}: {ratio} times the loop, goal {goal}")
    return found


def _settle(home: Home, log: Path) -> None:
    """Wait until the zygote has imported everything, and the services use little CPU."""
    from platform_assets.instance.daemon import WARMED

    quiet, deadline = 0, time.monotonic() + 300
    while WARMED.encode() not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(1)
    while quiet < 3:
        before = tree_cpu(home)
        time.sleep(1)
        quiet = quiet + 1 if tree_cpu(home) - before < 0.4 else 0


def measure(days: int, arms: list[str], folder: Path, small: bool = False) -> dict[str, Any]:
    """Run the arms one after the other; figures by arm, and their ratios."""
    from platform_assets.factory.instance import make_home
    from platform_assets.line.landing import land_flights

    template = Home.locate(folder / "template")
    make_home(template)
    write_catalog(folder / "catalog", days, None, small)
    write_catalog(folder / "catalog-single", days, 1, small)
    spec = load_catalog(folder / "catalog")["flights"]
    services = Services.open(spec, template)
    land_flights(services, FIRST, spec.partitions.end - timedelta(days=1), quiet=True)
    found: dict[str, Any] = {}
    versions: dict[str, dict[str, str] | None] = {}
    for arm in arms:
        home = Home.locate(folder / arm)
        shutil.copytree(template.root, home.root)
        catalog = folder / ("catalog-single" if arm == "single" else "catalog")
        if arm in ("bare", "loop"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.backfill_cost", "--inside", arm],
                env={
                    **os.environ,
                    **home.environment(),
                    "SIGNALBOX_CATALOG": str(catalog),
                    "PYTHONPATH": str(ROOT),
                },
                cwd=ROOT,
                stdout=subprocess.PIPE,
                check=True,
            )
            found[arm] = json.loads(done.stdout.splitlines()[-1])
        else:
            found[arm] = through_dagster(home, catalog)
        versions[arm] = found[arm].pop("versions")
        print(f"{arm}: {json.dumps(found[arm])}", file=sys.stderr)
    ratios = {
        f"{arm}_to_{base}": round(found[arm]["cpu"] / found[base]["cpu"], 2)
        for base in ("loop", "bare")
        for arm in arms
        if base in found and arm != base
    }
    goals = {**GOALS, "first_run_seconds": FIRST_RUN_GOAL}
    problems = problems_of(found, versions, ratios)
    return {"days": days, "arms": found, "ratios": ratios, "goals": goals, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--arms", default=",".join(ARMS), help="which, separated by commas")
    parser.add_argument("--small", action="store_true", help="2 airports, windows of 3 days")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", help="a folder to work in that is kept, with the homes")
    parser.add_argument("--inside", choices=("bare", "loop"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(in_process(arguments.inside, Home.locate())))
        return 0
    arms = [arm for arm in arguments.arms.split(",") if arm in ARMS]
    with tempfile.TemporaryDirectory(prefix="signalbox-") as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(arguments.days, arms, folder, arguments.small)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 1 if found["problems"] else 0
    for arm, figures in found["arms"].items():
        first = figures.get("first_run_seconds")
        print(
            f"{arm:8s} {figures['cpu']:7.1f} CPU-s {figures['wall']:7.1f} s"
            + (f", first run after {first:.1f} s" if first is not None else "")
        )
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio}")
    for problem in found["problems"]:
        print(problem, file=sys.stderr)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
