"""What the environment of a training costs: CPU of looking at it, beside the training itself.

Each arm is a fresh process that has imported what a training imports:

    first     the environment's value in a process where nobody has looked yet
    again     the same once more, as in a process that was forked from one that has
    training  the catalog's model on made-up rows, with nothing recorded

    python -m benchmarks.environment [--rows 20000] [--turns 3] [--json]
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.tracking import bare, rows_of
from resources.catalog import load_catalog
from resources.surroundings import environment_fingerprint


def measured(rows: int) -> dict[str, float]:
    """CPU seconds of each arm, in this process."""
    import lightgbm  # noqa: F401 - imports are no part of it

    spec = load_catalog()["flights"]
    frame, target = rows_of(spec, rows)
    found = {}
    for name in ("first", "again"):
        start = time.process_time()
        assert environment_fingerprint().value
        found[name] = time.process_time() - start
    start = time.process_time()
    bare(spec, frame, target)
    found["training"] = time.process_time() - start
    return found


def main() -> None:
    """Measure in fresh processes, and print the least of each arm and its share."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measured(asked.rows)))
        return
    command = [sys.executable, "-m", "benchmarks.environment", "--child", "--rows", str(asked.rows)]
    turns: list[dict[str, Any]] = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(asked.turns)
    ]
    least = {name: min(turn[name] for turn in turns) for name in turns[0]}
    shares = {name: least[name] / least["training"] for name in ("first", "again")}
    if asked.json:
        print(json.dumps({"cpu_seconds": least, "share_of_training": shares}))
        return
    for name, seconds in least.items():
        share = f", {shares[name]:.2%} of a training" if name in shares else ""
        print(f"{name:9} {seconds:.4f} CPU s{share}")


if __name__ == "__main__":
    main()
