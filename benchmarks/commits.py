"""What a commit costs as a dataset grows, what a claim costs, and how fast many writers are.

In date order, three keys a day; a table a key and month, and beside it all in one table, as an
earlier version had it; and the days of one key and year, which are there after 365 commits and then
replaced over and over, as corrections do. The first tables are made before anything counts, those
of later months count. CPU (user and system) of this process, and milliseconds by the wall. A figure
is the mean over the commits that end at the count that is named, checkpoints among them. It is
compared with the first ten commits of tables that are made for it at that moment, so that whatever
else the machine does meets both. The rows are as many as an airport has flights on a day. It ends
with 1 if the growing dataset is above the limit, or a writer failed.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from platform_assets.domain.partition import PartitionKey
from resources import processes
from resources.delta import CHECKPOINT_INTERVAL, close_tables
from resources.lake import Dataset, DatasetTable
from resources.leasing import acquire, keeper
from resources.ledger import upgrade
from resources.ledger.leases import Leases

ROWS = 300
KEYS = ("EWR", "JFK", "LGA")
FIRST = date(2000, 1, 1)
WINDOW = 60
"""Commits of a figure: a checkpoint of each of the three tables is among them."""
COUNTS = (10, 200, 1000, 1095, 4000)
"""At 1,095 the tables of December are full."""
TENTHS = 8
"""Datasets whose first ten commits a figure is compared with."""
LIMIT = 1.5
"""A partition's cost in any window, as a multiple of that of the first ten commits."""


def rows(partition: PartitionKey) -> Any:
    """Rows of a partition, of twelve columns."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "airport": pa.array([partition.key] * ROWS, pa.string()),
        "date": pa.array([partition.date] * ROWS, pa.date32()),
    }
    for n in range(10):
        columns[f"c{n}"] = pa.array([float(i * n % 97) for i in range(ROWS)], pa.float64())
    return pa.table(columns)


def partition_of(number: int) -> PartitionKey:
    return PartitionKey(FIRST + timedelta(days=number // len(KEYS)), KEYS[number % len(KEYS)])


def day_of_the_year(number: int) -> PartitionKey:
    """Of one key: from the 366th commit on a partition that is there is replaced."""
    return PartitionKey(date(2001, 1, 1) + timedelta(days=number % 365), KEYS[0])


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall milliseconds."""
    usage, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return 1000 * cpu, 1000 * (time.perf_counter() - wall)


def mean(found: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "cpu_ms": round(statistics.mean(cpu for cpu, _ in found), 1),
        "wall_ms": round(statistics.mean(wall for _, wall in found), 1),
    }


def growth(
    place: Callable[[str], Dataset | DatasetTable],
    counts: list[int],
    at: Callable[[int], PartitionKey] = partition_of,
) -> dict[str, Any]:
    """Commits of one partition after the other, by one process, and as a fresh one would."""
    table = place("grown")
    begin(table, at)
    found: list[tuple[float, float]] = []
    results: dict[str, Any] = {}
    for number in range(len(KEYS), counts[-1] + 1):
        found.append(committed(table, at(number)))
        if number in counts:
            window = found[-min(WINDOW, number) :]
            results[str(number)] = mean(window) | {
                "opened_anew": opened_anew(table, at(number)),
                "tenth": tenth(place, str(number), at),
            }
            if isinstance(table, DatasetTable):
                results[str(number)] |= {
                    "inside_delta_rs": inside(table, counts[-1] + 20 * number),
                    "append_by_delta_rs": appended(table.path, counts[-1] + 10 * number),
                }
    return results


def begin(table: Dataset | DatasetTable, at: Callable[[int], PartitionKey]) -> None:
    """Import what it takes, and make each key's table."""
    for number in range(len(KEYS)):
        table.commit(at(number), rows(at(number)), previous=None)


def committed(table: Dataset | DatasetTable, partition: PartitionKey) -> tuple[float, float]:
    own = rows(partition)
    return spent(lambda: table.commit(partition, own, previous=None))


def opened_anew(table: Dataset | DatasetTable, partition: PartitionKey) -> dict[str, float]:
    """Commits of a partition by a process that has no table open, a checkpoint among them."""
    found = []
    for _ in range(CHECKPOINT_INTERVAL):
        close_tables()
        found.append(committed(table, partition))
    return mean(found)


def tenth(
    place: Callable[[str], Dataset | DatasetTable], name: str, at: Callable[[int], PartitionKey]
) -> dict[str, Any]:
    """The same of tables with ten commits, which are new."""
    found: list[tuple[float, float]] = []
    anew: list[float] = []
    for n in range(TENTHS):
        table = place(f"tenth-{name}-{n}")
        begin(table, at)
        found += [committed(table, at(number)) for number in range(len(KEYS), 11)]
        anew.append(opened_anew(table, at(10))["cpu_ms"])
    return mean(found) | {"opened_anew_cpu_ms": round(statistics.mean(anew), 1)}


def inside(table: DatasetTable, first: int, count: int = 20) -> dict[str, float]:
    """CPU milliseconds of a commit, and how many of them pass in delta-rs, by what it does."""
    import deltalake

    split = dict.fromkeys(("write_deltalake", "create_checkpoint"), 0.0)
    originals = (deltalake.write_deltalake, deltalake.DeltaTable.create_checkpoint)

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., None]:
        def call(*args: Any, **more: Any) -> None:
            split[name] += spent(lambda: work(*args, **more))[0]

        return call

    found = []
    try:
        deltalake.write_deltalake = counted("write_deltalake", originals[0])
        deltalake.DeltaTable.create_checkpoint = counted("create_checkpoint", originals[1])  # type: ignore[method-assign]
        for number in range(first, first + count):
            partition, own = partition_of(number), rows(partition_of(number))
            found.append(spent(lambda p=partition, r=own: table.commit(p, r, previous=None))[0])  # type: ignore[misc]
    finally:
        deltalake.write_deltalake = originals[0]
        deltalake.DeltaTable.create_checkpoint = originals[1]  # type: ignore[method-assign]
    return {
        "commit": round(statistics.mean(found), 1),
        **{name: round(ms / count, 1) for name, ms in split.items()},
    }


def appended(path: str, first: int, count: int = 5) -> dict[str, float]:
    """The floor: delta-rs adds files to the same table, and looks for none to replace."""
    from deltalake import DeltaTable, write_deltalake

    table = DeltaTable(path)

    def append(number: int) -> None:
        write_deltalake(table, rows(partition_of(number)), mode="append")

    append(first)
    return mean([spent(lambda n=n: append(first + n)) for n in range(1, count + 1)])  # type: ignore[misc]


def claims(folder: Path, count: int = 400) -> dict[str, float]:
    """Taking a lease and giving it back, on SQLite."""
    url = f"sqlite:///{folder / 'ledger.db'}"
    upgrade(url)
    leases, holder = Leases(url), processes.holder("benchmark")

    def claim(number: int) -> None:
        lease = acquire(leases, f"features {number}", holder, limit=1)
        with keeper(url).keep(lease):
            pass

    claim(-1)
    return mean([spent(lambda n=n: claim(n)) for n in range(count)])  # type: ignore[misc]


def ratios(grown: dict[str, Any]) -> dict[str, float]:
    """CPU of a commit by count, as multiples of the tenth's at that moment."""
    return {n: round(of["cpu_ms"] / of["tenth"]["cpu_ms"], 2) for n, of in grown.items()}


def ratios_opened_anew(grown: dict[str, Any]) -> dict[str, float]:
    return {
        n: round(of["opened_anew"]["cpu_ms"] / of["tenth"]["opened_anew_cpu_ms"], 2)
        for n, of in grown.items()
    }


def _write(table: Dataset | DatasetTable, key: str, count: int, barrier: Any) -> None:
    barrier.wait()
    for number in range(count):
        partition = PartitionKey(FIRST + timedelta(days=number), key)
        table.commit(partition, rows(partition), previous=None)


def side_by_side(table: Dataset | DatasetTable, writers: int, count: int) -> dict[str, Any]:
    """Writers of disjoint partitions, each with a key of its own."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(writers + 1)
    found = [
        context.Process(target=_write, args=(table, f"C{n:02}", count, barrier))
        for n in range(writers)
    ]
    for process in found:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    for process in found:
        process.join()
    seconds = time.perf_counter() - began
    return {
        "writers": writers,
        "commits": writers * count,
        "failed": sum(process.exitcode != 0 for process in found),
        "commits_per_second": round(writers * count / seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=4000)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--each", type=int, default=20, help="commits of each writer")
    chosen = parser.parse_args()
    counts = sorted({n for n in (*COUNTS, chosen.commits) if n <= chosen.commits})
    folder = Path(tempfile.mkdtemp(prefix="signalbox-commits-"))
    try:
        grown = growth(lambda name: Dataset(folder / name, "airport"), counts)
        again = growth(
            lambda name: Dataset(folder / f"corrected-{name}", "airport"), counts, day_of_the_year
        )
        one = growth(lambda name: DatasetTable(folder / f"one-{name}", "airport"), counts)
        together, alone = (
            side_by_side(table, chosen.writers, chosen.each)
            for table in (
                Dataset(folder / "shared", "airport"),
                DatasetTable(folder / "shared-one", "airport"),
            )
        )
        reached = {"to_tenth": ratios(grown), "opened_anew_to_tenth": ratios_opened_anew(grown)}
        missed = [name for name, found in reached.items() if max(found.values()) > LIMIT]
        missed += ["side_by_side"] if together["failed"] else []
        result = {
            "load": [round(load, 1) for load in os.getloadavg()],
            "by_commit": grown,
            **reached,
            "corrected": {
                "by_commit": again,
                "to_tenth": ratios(again),
                "opened_anew_to_tenth": ratios_opened_anew(again),
            },
            "one_table": {"by_commit": one, "to_tenth": ratios(one)},
            "limit": LIMIT,
            "missed": missed,
            "claim_and_release": claims(folder),
            "side_by_side": together,
            "side_by_side_in_one_table": alone,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=2))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
