"""GPUs allocated under each policy at 130 % demand, and how long the simulator takes.

Ten seeded traces, jobs that stay for good, fixed shapes and several; and one trace of 10,000 jobs
that end, on 1,200 nodes. Everything is on one core.

    python -m benchmarks.gpus [--traces 10] [--jobs 10000] [--nodes 1200] [--json]
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

from platform_assets.domain.gpu_placing import POLICIES
from platform_assets.domain.gpu_simulation import simulate
from platform_assets.domain.gpu_trace import Trace, generated

DEMAND = 1.3
NODES = 150
WITHIN = 0.5
"""Points that ours may lie below FGD with fixed shapes."""

SECONDS = 120.0
"""Of CPU that one policy may take over the large trace."""


def allocated(traces: list[Trace]) -> dict[str, list[float]]:
    """Share of the GPUs, in %, that each policy has allocated of each trace at its end."""
    return {
        policy: [100 * simulate(trace, policy, seed=n).allocated for n, trace in enumerate(traces)]
        for policy in POLICIES
    }


def timed(jobs: int, nodes: int) -> dict[str, dict[str, float]]:
    """CPU seconds and the figures of one large trace whose jobs end."""
    found = {}
    trace = generated(1, nodes=nodes, jobs=jobs, flexible=True, ends=True, load=1.3)
    for policy in POLICIES:
        start = time.process_time()
        outcome = simulate(trace, policy)
        seconds = time.process_time() - start
        waits = outcome.document()["wait_seconds"]
        # Until the last job comes: after that the nodes only empty.
        mean = outcome.mean(trace.jobs[-1].arrival)
        done = [s.ends - s.job.arrival for s in outcome.started if s.ends is not None]
        found[policy] = {
            "cpu_seconds": round(seconds, 2),
            "allocated_mean": round(100 * mean, 2),
            "wait_mean_minutes": round(waits["mean"] / 60, 1),
            "done_mean_minutes": round(statistics.fmean(done) / 60, 1),
        }
    return found


def main() -> int:
    """Print the figures; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1_200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seeds = range(options.traces)
    fixed = allocated([generated(seed, nodes=NODES, demand=DEMAND) for seed in seeds])
    several = allocated(
        [generated(seed, nodes=NODES, demand=DEMAND, flexible=True) for seed in seeds]
    )
    large = timed(options.jobs, options.nodes)
    below = statistics.fmean(fixed["fgd"]) - statistics.fmean(fixed["ours"])
    above = statistics.fmean(several["ours"]) - statistics.fmean(several["fgd"])
    slowest = max(one["cpu_seconds"] for one in large.values())
    goals = {
        f"ours is at most {WITHIN} points below FGD with fixed shapes": (below, below <= WITHIN),
        "ours is above FGD where jobs name several shapes, by points": (above, above > 0),
        f"the large trace takes at most {SECONDS:.0f} s": (slowest, slowest <= SECONDS),
    }
    document: dict[str, Any] = {
        "fixed": {p: [round(v, 2) for v in values] for p, values in fixed.items()},
        "several": {p: [round(v, 2) for v in values] for p, values in several.items()},
        "large": large,
        "goals": {what: {"found": round(v, 3), "reached": ok} for what, (v, ok) in goals.items()},
    }
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        show(document)
    return 0 if all(ok for _, ok in goals.values()) else 1


def show(document: dict[str, Any]) -> None:
    """The figures for a person."""
    print(f"GPUs allocated at {DEMAND:.0%} demand, in %: mean (least to most) over the traces")
    for policy in POLICIES:
        columns = []
        for kind in ("fixed", "several"):
            values = document[kind][policy]
            mean = statistics.fmean(values)
            columns.append(f"{kind} {mean:6.2f} ({min(values):.2f} to {max(values):.2f})")
        print(f"  {policy:10s} " + "   ".join(columns))
    print("the large trace:")
    for policy, one in document["large"].items():
        print(f"  {policy:10s} {one}")
    for what, goal in document["goals"].items():
        print(f"{'reached' if goal['reached'] else 'MISSED'}: {what}: {goal['found']}")


if __name__ == "__main__":
    sys.exit(main())
