"""A hundred cities and ten years: what one commit costs by how many partitions there are.

The tables are written by their logs alone: an entry a partition, of files that nobody opens, for a
commit of another partition reads none of them. The commits that are measured are real: of the days
after the last one, in their last tables, each to the table of another city. Beside them the same
in one table, as an earlier version had it; a look of the maintenance at all tables; and what
Dagster pays to list the partition keys of such an asset.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from datetime import date, timedelta
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.commits import mean, rows, spent
from platform_assets.domain.partition import PartitionKey
from resources.delta import close_tables
from resources.lake import Dataset, DatasetTable
from resources.upkeep import compact, orphans

SHAPES = {
    "one city, 10 years": (1, 3650),
    "3 cities, 10 years": (3, 3650),
    "30 cities, 9 years": (30, 3285),
    "100 cities, 10 years": (100, 3650),
}
START = date(2004, 1, 1)
ADVICE = 100_000
"""Partitions of an asset that Dagster advises at the most."""


def keys(cities: int, days: int) -> dict[str, list[PartitionKey]]:
    """The partitions of each city."""
    names = [f"C{n:03}" for n in range(cities)]
    return {n: [PartitionKey(START + timedelta(days=d), n) for d in range(days)] for n in names}


def write_log(table: DatasetTable, partitions: list[list[PartitionKey]]) -> None:
    """Make a table whose log has a file for each partition, a version a list; and a checkpoint."""
    from deltalake import DeltaTable

    log = Path(table.path, "_delta_log")
    created = log / f"{0:020}.json"
    log.mkdir(parents=True, exist_ok=True)
    if not created.exists():
        created.write_text(_created())
    for number, group in enumerate(partitions, 1):
        entries: list[dict[str, Any]] = [{"commitInfo": {"timestamp": 0, "operation": "WRITE"}}]
        for key in group:
            values = {"airport": key.key, "date": str(key.date)}
            entries.append(
                {
                    "add": {
                        "path": f"airport={key.key}/date={key.date}/part-0.parquet",
                        "partitionValues": values,
                        "size": 20_000,
                        "modificationTime": 0,
                        "dataChange": True,
                    }
                }
            )
        (log / f"{number:020}.json").write_text("\n".join(map(json.dumps, entries)))
    DeltaTable(table.path).create_checkpoint()


@cache
def _created() -> str:
    """The first entry of a table's log."""
    with tempfile.TemporaryDirectory() as folder:
        key = PartitionKey(START, "C000")
        DatasetTable(folder, "airport").commit(key, rows(key), previous=None)
        return Path(folder, "_delta_log", f"{0:020}.json").read_text()


def written(folder: Path, cities: int, days: int) -> Dataset:
    """A dataset of these partitions, a table a city and month."""
    dataset = Dataset(folder, "airport")
    first = PartitionKey(START - timedelta(days=1), "C000")
    dataset.commit(first, rows(first), previous=None)  # its columns
    for own in keys(cities, days).values():
        for _, month in groupby(own, key=lambda key: (key.date.year, key.date.month)):
            group = list(month)
            write_log(dataset.table_of(group[0]), [group])
    return dataset


def written_as_one(folder: Path, cities: int, days: int) -> DatasetTable:
    """One table of these partitions."""
    table = DatasetTable(folder, "airport")
    write_log(table, list(keys(cities, days).values()))
    return table


def committed(dataset: Dataset | DatasetTable, day: date, cities: int) -> list[tuple[float, float]]:
    """What the commits of a day cost, one a city."""
    found = []
    for n in range(cities):
        key = PartitionKey(day, f"C{n:03}")
        own = rows(key)
        found.append(spent(lambda k=key, o=own: dataset.commit(k, o, previous=None)))  # type: ignore[misc]
    return found


def measured(place: Path, cities: int, days: int, commits: int) -> dict[str, Any]:
    """One shape, as tables a city and month and as one table."""
    dataset, one = (
        written(place / "many", cities, days),
        written_as_one(place / "one", cities, days),
    )
    last, some = START + timedelta(days=days - 1), min(cities, commits)
    close_tables()
    opened = committed(dataset, last + timedelta(days=1), some)
    kept = committed(dataset, last + timedelta(days=2), some)
    new = committed(dataset, date(last.year + 1, 1, 1), some)
    tables = dataset.tables()
    close_tables()
    looked = spent(lambda: [look_after(table.path) for table in tables.values()])
    close_tables()
    first_in_one = committed(one, last + timedelta(days=1), 1)
    in_one = committed(one, last + timedelta(days=2), min(some, 3))
    close_tables()
    return {
        "partitions": cities * days,
        "past_the_advice": cities * days > ADVICE,
        "tables": len(tables),
        "commit": mean(kept),
        "first_commit_of_a_process_in_a_table": mean(opened),
        "first_commit_of_a_month": mean(new),
        "maintenance_s": {"cpu": round(looked[0] / 1000, 1), "wall": round(looked[1] / 1000, 1)},
        "one_table": {"commit": mean(in_one), "first_commit_of_a_process": mean(first_in_one)},
        "dagster_lists_its_keys_ms": round(listed(cities, days), 1),
    }


def look_after(path: str) -> None:
    """What a maintenance does to a table, but for the removal."""
    compact(path)
    orphans(path, time.time())


def listed(cities: int, days: int) -> float:
    """CPU milliseconds of Dagster's list of the partition keys."""
    import dagster as dg

    grid = dg.MultiPartitionsDefinition(
        {
            "airport": dg.StaticPartitionsDefinition([f"C{n:03}" for n in range(cities)]),
            "date": dg.DailyPartitionsDefinition(
                start_date=str(START), end_date=str(START + timedelta(days=days))
            ),
        }
    )
    cpu, _ = spent(lambda: grid.get_partition_keys())
    return cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=60, help="cities that commit, at the most")
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="signalbox-cities-"))
    try:
        result = {
            name: measured(place / f"shape-{n}", cities, days, chosen.commits)
            for n, (name, (cities, days)) in enumerate(SHAPES.items())
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)
    base = result["3 cities, 10 years"]["commit"]["cpu_ms"]
    for found in result.values():
        found["to_3_cities"] = round(found["commit"]["cpu_ms"] / base, 2)
    print(json.dumps({"load": os.getloadavg(), "shapes": result}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
