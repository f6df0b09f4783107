"""What loading the code location costs, as a ratio to `import dagster` in the same run.

Both are started in turn, each in a fresh process, and the CPU (user and system) of each process is
taken from the kernel. The least of several runs is the cost; the median shows how calm the machine
was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.3
CONTESTANTS = {
    "import dagster": "import dagster",
    "the code location": "import platform_assets.definitions",
    "the code location, resolved": "import platform_assets.definitions as location; "
    "location.defs.get_repository_def()",
}


def cpu_seconds(code: str) -> float:
    """User and system CPU of one fresh interpreter that runs the code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("SIGNALBOX_CATALOG", None)
    # Dagster's own modules were compiled when they were installed; ours are when they first run.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{code!r} ended with code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def measure(runs: int) -> dict[str, object]:
    """Run the contestants in turn; ratios are those of the least runs, and of the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for code in CONTESTANTS.values():
        cpu_seconds(code)  # compiles what has not been compiled yet
    for _ in range(runs):
        for name, code in CONTESTANTS.items():
            seconds[name].append(cpu_seconds(code))
    base = seconds["import dagster"]
    results = {
        name: {
            "cpu_seconds_least": round(min(found), 3),
            "cpu_seconds_median": round(statistics.median(found), 3),
            "ratio_of_least": round(min(found) / min(base), 3),
            "ratio_of_medians": round(statistics.median(found) / statistics.median(base), 3),
        }
        for name, found in seconds.items()
    }
    ratio = results["the code location"]["ratio_of_least"]
    return {"runs": runs, "results": results, "limit": LIMIT, "within_limit": ratio <= LIMIT}


def main() -> int:
    """Exit code 1 when the code location costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="of each contestant")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs}: at least 1 is needed")
    document = measure(arguments.runs)
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print(f"{'CPU of a fresh process':<28} {'least':>8} {'median':>8} {'x':>6} {'x median':>9}")
        for name, found in document["results"].items():  # type: ignore[attr-defined]
            least, median = found["cpu_seconds_least"], found["cpu_seconds_median"]
            ratios = f"{found['ratio_of_least']:>6.2f} {found['ratio_of_medians']:>9.2f}"
            print(f"{name:<28} {least:>7.3f}s {median:>7.3f}s {ratios}")
        print(f"limit {LIMIT}: {'kept' if document['within_limit'] else 'BROKEN'}")
    return 0 if document["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
