"""A hundred cities and ten years: what one commit costs by how many partitions its table has.

The tables are written by their log alone: an entry a partition, of files that nobody opens, for a
commit of another partition reads none of them. The commits that are measured are real. Beside
them, what Dagster pays to list the partition keys of such an asset.
"""

import argparse
import json
import shutil
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from benchmarks.commits import mean, rows, spent
from platform_assets.domain.partition import PartitionKey
from resources.delta import close_tables
from resources.lake import DatasetTable

SHAPES = {
    "one city, 10 years": (1, 3650),
    "3 cities, 10 years": (3, 3650),
    "30 cities, 9 years": (30, 3285),
    "100 cities, 10 years": (100, 3650),
}
START = date(2004, 1, 1)
ADVICE = 100_000
"""Partitions of an asset that Dagster advises at the most."""


def written(folder: Path, cities: int, days: int) -> DatasetTable:
    """A table whose log has a file for each city and day, and a checkpoint."""
    from deltalake import DeltaTable

    table = DatasetTable(folder, "airport")
    first = PartitionKey(START - timedelta(days=1), "C000")
    table.commit(first, rows(first), previous=None)
    for city in range(cities):
        entries = [{"commitInfo": {"timestamp": 0, "operation": "WRITE"}}]
        for n in range(days):
            day = START + timedelta(days=n)
            values = {"airport": f"C{city:03}", "date": str(day)}
            entries.append(
                {
                    "add": {
                        "path": f"airport=C{city:03}/date={day}/part-0.parquet",
                        "partitionValues": values,
                        "size": 20_000,
                        "modificationTime": 0,
                        "dataChange": True,
                    }
                }
            )
        version = folder / "_delta_log" / f"{city + 2:020}.json"
        version.write_text("\n".join(map(json.dumps, entries)))
    close_tables()
    DeltaTable(str(folder)).create_checkpoint()
    return table


def measured(folder: Path, cities: int, days: int, commits: int) -> dict[str, Any]:
    """One shape: commits with the table kept open, and the first of a process."""
    table = written(folder, cities, days)
    day = START + timedelta(days=days)
    anew, kept = [], []
    for n in range(commits):
        close_tables()
        for found in (anew, kept):
            day += timedelta(days=1)
            key = PartitionKey(day, f"C{n:03}")
            own = rows(key)
            found.append(spent(lambda k=key, o=own: table.commit(k, o, previous=None)))  # type: ignore[misc]
    close_tables()

    return {
        "partitions": cities * days,
        "past_the_advice": cities * days > ADVICE,
        "commit": mean(kept),
        "first_commit_of_a_process": mean(anew),
        "dagster_lists_its_keys_ms": round(listed(cities, days), 1),
    }


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
    parser.add_argument("--commits", type=int, default=5, help="measured of each kind and shape")
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="signalbox-cities-"))
    try:
        result = {
            name: measured(place / f"table-{n}", cities, days, chosen.commits)
            for n, (name, (cities, days)) in enumerate(SHAPES.items())
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)
    base = result["3 cities, 10 years"]["commit"]["cpu_ms"]
    for found in result.values():
        found["to_3_cities"] = round(found["commit"]["cpu_ms"] / base, 2)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
