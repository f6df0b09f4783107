"""What it costs to read what a training reads: 28 days of three keys.

From tables a key and month, within a month (three tables), over its end (six), and the newest days;
and from one table as an earlier version read it, opened anew at the version of the snapshot.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from benchmarks.commits import KEYS, rows, spent
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from resources.lake import Dataset, DatasetTable

START = date(2013, 2, 1)
WINDOW = 28


def built(table: Dataset | DatasetTable, days: int) -> list[PartitionVersion]:
    """Commit each key of each day, in date order."""
    found = []
    for n in range(days):
        for name in KEYS:
            key = PartitionKey(START + timedelta(days=n), name)
            done = table.commit(key, rows(key), previous=None)
            assert done.table_version is not None
            found.append(
                PartitionVersion(
                    partition=str(key),
                    data_version=done.data_version,
                    table_version=done.table_version,
                    rows=done.rows,
                )
            )
    return found


def median(read: Callable[[int], object], firsts: Sequence[int]) -> dict[str, float]:
    """Of windows that begin at these days."""
    found = [spent(lambda n=n: read(n)) for n in firsts]  # type: ignore[misc]
    return {
        "cpu_ms": round(statistics.median(cpu for cpu, _ in found), 1),
        "wall_ms": round(statistics.median(wall for _, wall in found), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=360)
    days: int = parser.parse_args().days
    folder = Path(tempfile.mkdtemp(prefix="signalbox-windows-"))
    try:
        dataset = Dataset(folder / "features", "airport")
        one = DatasetTable(folder / "one", "airport")
        many, alone = built(dataset, days), built(one, days)

        def window(of: list[PartitionVersion], first: int) -> list[PartitionVersion]:
            return of[len(KEYS) * first : len(KEYS) * (first + WINDOW)]

        def from_tables(first: int) -> object:
            return dataset.read(window(many, first))

        def from_one(first: int) -> object:
            asked = window(alone, first)
            return one.read(asked, max(version.table_version for version in asked))

        def is_within_a_month(first: int) -> bool:
            begin, end = (START + timedelta(days=first + n) for n in (0, WINDOW - 1))
            return begin.month == end.month

        firsts = range(days - WINDOW)
        places = {
            "within a month": [n for n in firsts if is_within_a_month(n)],
            "over a month's end": [n for n in firsts if not is_within_a_month(n)][::10],
            "newest": range(days - WINDOW - 12, days - WINDOW),
        }
        from_tables(0)
        from_one(0)
        found: dict[str, Any] = {
            name: {"tables": median(from_tables, firsts), "one_table": median(from_one, firsts)}
            for name, firsts in places.items()
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for own in found.values():
        own["ratio"] = round(own["tables"]["cpu_ms"] / own["one_table"]["cpu_ms"], 2)
    print(json.dumps({"load": os.getloadavg(), "windows": found}, indent=2))


if __name__ == "__main__":
    main()
