"""What the start of a step's pod costs, and what of it is ours.

A pod of a step executes `dagster api execute_step`. Here the same trivial step is executed by it in
code locations of different weight, each time in a fresh process, in turn; then the parts of ours
are taken one by one. CPU is user and system of the process; the least of several runs is the cost,
the median shows how calm the machine was. The image's pull and the pod's scheduling come on top.

    python -m benchmarks.step_start [--runs 7] [--json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.loading import ROOT

LIMIT = 1.4
"""Times the bare step: what the code location of the whole catalog may cost a pod."""

LOCATIONS = {
    "bare: dagster, a trivial job": ("bare", "local"),
    "with dagster-k8s's executor": ("stock", "local"),
    "Signalbox, its steps in the run's process": ("ours", "local"),
    "Signalbox, its steps as pods": ("ours", "k8s"),
    "the same, loading what starts steps": ("ours", "k8s-whole"),
}
PARTS = {
    "interpreter": "pass",
    "+ dagster and its command line": "import dagster, dagster._cli.api",
    "+ imports of the code location": "import dagster, dagster._cli.api, "
    "platform_assets.component, platform_assets.factory, resources.catalog, "
    "sensors.tracking_truth",
    "+ load of the catalog": "import dagster, dagster._cli.api, platform_assets.definitions",
    "+ its jobs and assets resolved": "import dagster._cli.api, platform_assets.definitions as l;"
    "l.defs.get_repository_def()",
}
_PREPARE = """
import sys
import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._grpc.types import ExecuteStepArgs
module, root = sys.argv[1:]
job = ReconstructableRepository.for_module(module, "defs", root).get_reconstructable_job("nothing")
with dg.DagsterInstance.get() as instance:
    origin = job.get_python_origin()
    run = instance.create_run_for_job(job.get_definition(), job_code_origin=origin)
    args = ExecuteStepArgs(
        origin, run.run_id, ["trivial"], instance.get_ref(), RetryMode.DISABLED,
        KnownExecutionState(), should_verify_step=False,
    )
    print(args.get_command_env()[0]["value"])
"""


def cpu_seconds(command: list[str], environment: Mapping[str, str]) -> float:
    """User and system CPU of one fresh process."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[-1]!r} ended with code {process.returncode}:\n{said}")
    return usage.ru_utime + usage.ru_stime


def environment(home: Path, where: str) -> dict[str, str]:
    """The variables of a step's pod, as the executor sets them."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(home)}
    for name in ("SIGNALBOX_CATALOG", "PYTHONDONTWRITEBYTECODE"):
        found.pop(name, None)
    place = where.removesuffix("-whole")
    found |= {"SIGNALBOX_DEPLOYMENT": place, "SIGNALBOX_IMAGES": str(home / "images.lock.yaml")}
    return {**found, "DAGSTER_RUN_STEP_KEY": "trivial"} if where == "k8s" else found


def write_lock(place: Path) -> None:
    """A lock that has the images of the catalog, for nothing loads without."""
    from platform_assets.domain.images import ImageLock, LockedImage
    from resources.images import change_lock

    image = LockedImage(
        repository="registry.example/train",
        tag="1",
        digest=f"sha256:{'1' * 64}",
        config=f"sha256:{'2' * 64}",
        platform="linux/amd64",
        resolved_at=datetime(2026, 11, 1, tzinfo=UTC),
        resolved_by="benchmark",
    )
    lock = ImageLock(registries=("registry.example",), images={"train": image})
    change_lock(lambda _: lock, place)


def steps(home: Path, runs: int) -> dict[str, list[float]]:
    """CPU seconds of `dagster api execute_step` by location."""
    told = {}
    for name, (module, where) in LOCATIONS.items():
        variables = environment(home, where)
        prepare = [sys.executable, "-c", _PREPARE, f"benchmarks.step_locations.{module}", str(ROOT)]
        # Whoever prepares is no pod of a step.
        own = {k: v for k, v in variables.items() if k != "DAGSTER_RUN_STEP_KEY"}
        done = subprocess.run(prepare, cwd=ROOT, env=own, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        told[name] = {**variables, "DAGSTER_COMPRESSED_EXECUTE_STEP_ARGS": done.stdout.split()[-1]}
    found: dict[str, list[float]] = {name: [] for name in told}
    command = [sys.executable, "-m", "dagster", "api", "execute_step"]
    for number in range(runs + 1):
        for name, variables in told.items():
            seconds = cpu_seconds(command, variables)
            if number:  # the first compiles what has not been compiled yet
                found[name].append(seconds)
    return found


def parts(home: Path, runs: int) -> dict[str, list[float]]:
    """CPU seconds of the parts of a pod's start, each with those before it."""
    variables = environment(home, "k8s")
    found: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(runs):
        for name, code in PARTS.items():
            found[name].append(cpu_seconds([sys.executable, "-c", code], variables))
    return found


def measure(runs: int) -> dict[str, object]:
    """Run everything in turn; ratios are those of the least runs to the bare step's."""
    with tempfile.TemporaryDirectory(prefix="signalbox-step-start-") as folder:
        home = Path(folder)
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        write_lock(home / "images.lock.yaml")
        whole, pieces = steps(home, runs), parts(home, runs)
    base = min(next(iter(whole.values())))
    results = {name: _told(found, base) for name, found in whole.items()}
    before, split = 0.0, {}
    for name, found in pieces.items():
        split[name] = {**_told(found, base), "cpu_seconds_more": round(min(found) - before, 3)}
        before = min(found)
    ratio = results["Signalbox, its steps as pods"]["ratio"]
    return {
        "runs": runs,
        "steps": results,
        "parts": split,
        "limit": LIMIT,
        "within_limit": ratio <= LIMIT,
    }


def _told(found: list[float], base: float) -> dict[str, float]:
    return {
        "cpu_seconds_least": round(min(found), 3),
        "cpu_seconds_median": round(statistics.median(found), 3),
        "ratio": round(min(found) / base, 2),
    }


def main() -> int:
    """Exit code 1 when a pod's start costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="of each contestant")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs}: at least 1 is needed")
    document = measure(arguments.runs)
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0 if document["within_limit"] else 1
    print(f"{'CPU of dagster api execute_step':<44} {'least':>8} {'median':>8} {'x':>6}")
    for name, found in document["steps"].items():  # type: ignore[attr-defined]
        print(
            f"{name:<44} {found['cpu_seconds_least']:>7.3f}s {found['cpu_seconds_median']:>7.3f}s "
            f"{found['ratio']:>6.2f}"
        )
    print(f"\n{'of a pod, each with what is before it':<44} {'least':>8} {'more':>8}")
    for name, found in document["parts"].items():  # type: ignore[attr-defined]
        print(f"{name:<44} {found['cpu_seconds_least']:>7.3f}s {found['cpu_seconds_more']:>7.3f}s")
    print(f"limit {LIMIT}: {'kept' if document['within_limit'] else 'BROKEN'}")
    return 0 if document["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
