"""What a process that wakes up often loses beside processes that compute and stand back.

A run that is in a hurry writes to databases: it computes for a millisecond, waits for the disk, and
wakes up again, hundreds of times. It is timed alone; beside as many processes as there are cores,
each a session of its own that is nice, as the runs of a backfill are (nice); and beside the same
that take long slices too (standing back: what a run of a backfill really does). In turn, wall
seconds, medians; it ends with 1 unless standing back costs it less than nice alone does.

What only computes, and so never waits for a core, is timed too: alone, and beside one process that
stands back, on a core of its own. What it loses then (next_core) no priority gives back.

    python -m benchmarks.wakeups [--turns 9]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platform_assets.domain.lanes import LANE_TAG, Lane
from platform_assets.instance.scheduling import slice_taken, stand_back, take_slices

WAKEUPS = 150
ALONE, NICE, STANDING_BACK = ARMS = ("alone", "nice", "standing_back")


def objects() -> list[dict[str, int]]:
    """More than a core's own cache holds, to go through again and again as a training does."""
    return [{str(i): i} for i in range(200_000)]


def compute(arm: str) -> None:
    """Take all of a core that nobody else wants, until killed."""
    default = slice_taken()
    stand_back({LANE_TAG: Lane.BACKFILL})
    if arm == NICE:
        take_slices(default)
    rows = objects()
    print("ready", flush=True)
    while True:
        sum(map(len, rows))


@contextmanager
def beside(arm: str, number: int) -> Iterator[None]:
    command = [sys.executable, "-m", __spec__.name, "--compute", arm]
    others = [
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        for _ in range(0 if arm == ALONE else number)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate()


def hurry(folder: Path) -> float:
    """Compute, write and wait by turns; wall seconds."""
    with (folder / "written").open("wb") as file:
        began = time.perf_counter()
        for _ in range(WAKEUPS):
            sum(range(40_000))
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        return time.perf_counter() - began


def computing() -> float:
    """Compute and never wait; wall seconds."""
    rows = objects()
    began = time.perf_counter()
    for _ in range(WAKEUPS):
        sum(map(len, rows))
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--compute", choices=ARMS[1:], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.compute:
        compute(chosen.compute)
    if slice_taken() == 0:
        raise SystemExit("this kernel tells of no slices: nothing would be compared")
    cores = os.cpu_count() or 1
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    next_core: dict[str, list[float]] = {ALONE: [], STANDING_BACK: []} if cores > 1 else {}
    with tempfile.TemporaryDirectory(prefix="signalbox-", dir="/var/tmp") as folder:
        for _ in range(chosen.turns):
            for arm in ARMS:
                with beside(arm, cores):
                    found[arm].append(round(hurry(Path(folder)), 3))
            for arm, seconds in next_core.items():
                with beside(arm, 1):
                    seconds.append(round(computing(), 3))
    medians = {arm: statistics.median(seconds) for arm, seconds in found.items()}
    ratios = {arm: round(seconds / medians[ALONE], 2) for arm, seconds in medians.items()}
    told = {"kernel": os.uname().release, "load": os.getloadavg(), "cores": cores}
    slowed = (
        [slow / alone for alone, slow in zip(*next_core.values(), strict=True)] if next_core else []
    )
    told |= {"next_core": next_core, "next_core_to_alone": sorted(round(x, 2) for x in slowed)}
    print(json.dumps({**told, "seconds": found, "to_alone": ratios}, indent=2))
    return int(ratios[STANDING_BACK] >= ratios[NICE])


if __name__ == "__main__":
    sys.exit(main())
