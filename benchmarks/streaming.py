"""Peak memory of a training whose rows come in parts, as the data grows 1, 4 and 16 times.

Each figure is the largest resident set of a fresh process that reads a Delta table at a pinned
version, verifies the digest of each partition, and trains one epoch of the PyTorch trainer in one
process: with all rows in memory, or in parts. What the process has before it reads, with PyTorch
loaded, is measured in the same way and stated apart: a ratio is of what comes on top of it. The
rows are synthetic. It needs PyTorch (`make setup-torch`).
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from resources.lake import DatasetTable
from resources.streaming import read_parts

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("EWR", "JFK", "LGA", "SWF")
SIZES = (1, 4, 16)
COLUMNS = 20
FEATURES = [f"c{n}" for n in range(COLUMNS)]
LIMIT = 1.5
"""What comes on top at 16 times the data, as a multiple of that at 4 times.

Not of that at 1 time: that is little more than one part, and the next part is read while the one
before is still held."""


def partition_rows(key: PartitionKey, count: int) -> Any:
    import numpy as np
    import pyarrow as pa

    numbers = np.random.default_rng(key.date.toordinal() + len(key.key or ""))
    columns: dict[str, Any] = {
        "airport": pa.array([key.key] * count, pa.string()),
        "date": pa.array([key.date] * count, pa.date32()),
    }
    for name in FEATURES:
        columns[name] = pa.array(numbers.normal(size=count), pa.float64())
    columns["target"] = pa.array((numbers.random(count) < 0.3).astype("float64"), pa.float64())
    return pa.table(columns)


def fill(folder: Path, days: int, count: int) -> list[dict[str, Any]]:
    """Commit so many days of rows; the partitions' versions."""
    table = DatasetTable(folder, "airport")
    found = []
    for day in range(days):
        for name in KEYS:
            key = PartitionKey(date(2000, 1, 1) + timedelta(days=day), name)
            done = table.commit(key, partition_rows(key, count), previous=None)
            assert done.table_version is not None
            version = PartitionVersion(
                partition=str(key),
                data_version=done.data_version,
                table_version=done.table_version,
                rows=done.rows,
            )
            found.append(version.model_dump(mode="json"))
    return found


def work(folder: str, how: str, days: int) -> None:
    """Train in this process; prints its largest resident set, in MB."""
    import torch  # noqa: F401 - it is part of what a training has before it reads

    from platform_assets.trainers.torch_tabular import TorchTabularTrainer

    listed = json.loads(Path(folder, "partitions.json").read_text())
    partitions = [PartitionVersion.model_validate(p) for p in listed][: days * len(KEYS)]
    version = max(p.table_version for p in partitions)
    table = DatasetTable(Path(folder, "table"), "airport")
    settings: dict[str, Any] = {
        "kind": "binary_classification",
        "parameters": {"epochs": 1, "batch_size": 1024, "hidden": 8},
        "seed": 1,
        "on_round": lambda _round, _metrics: None,
    }

    def framed(part: Any) -> Any:
        frame = part.select(FEATURES).to_pandas()
        return frame, part["target"].to_pandas()

    def parts() -> Iterator[Any]:
        for part in read_parts(lambda some: table.read(some, version), partitions):
            yield framed(part)

    if how == "whole":
        TorchTabularTrainer().fit(*framed(table.read(partitions, version)), **settings)
    elif how == "parts":
        TorchTabularTrainer().fit_stream(parts, **settings)
    else:
        # What both have: the same training of one small partition, the table's log read.
        few = partitions[:1]
        part = table.read(few, version).slice(0, 1000)
        TorchTabularTrainer().fit(*framed(part), **settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak(folder: Path, how: str, days: int) -> float:
    """Of a fresh process, in MB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streaming", "--work", how, str(days), str(folder)],
        cwd=ROOT,
        env={**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def measure(days: int, count: int) -> dict[str, Any]:
    """Both ways at each size, in one run."""
    folder = Path(tempfile.mkdtemp(prefix="signalbox-streaming-"))
    try:
        listed = fill(folder / "table", days * max(SIZES), count)
        (folder / "partitions.json").write_text(json.dumps(listed))
        results: dict[str, Any] = {}
        for size in SIZES:
            base = peak(folder, "nothing", days * size)
            whole, parts = (peak(folder, how, days * size) for how in ("whole", "parts"))
            results[f"{size}x"] = {
                "rows": days * size * len(KEYS) * count,
                "data_mb": round(days * size * len(KEYS) * count * (COLUMNS + 1) * 8 / 2**20, 1),
                "before_mb": round(base),
                "whole_mb": round(whole),
                "parts_mb": round(parts),
                "whole_on_top_mb": round(whole - base),
                "parts_on_top_mb": round(parts - base),
            }
        tops = {
            name: [results[f"{size}x"][f"{name}_on_top_mb"] for size in SIZES]
            for name in ("whole", "parts")
        }
        ratio = {name: round(mb[-1] / max(mb[-2], 1), 2) for name, mb in tops.items()}
        return {
            "load": os.getloadavg()[0],
            "results": results,
            "growth_of_what_comes_on_top_from_4x_to_16x": ratio,
            "limit": LIMIT,
            "within_limit": ratio["parts"] <= LIMIT,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=4, help="of data at 1 time")
    parser.add_argument("--rows", type=int, default=5_000, help="of a partition")
    parser.add_argument("--work", nargs=3, metavar=("HOW", "DAYS", "FOLDER"))
    given = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("NOT RUN: it needs PyTorch, `make setup-torch`", file=sys.stderr)
        return 0
    if given.work:
        how, days, folder = given.work
        work(folder, how, int(days))
        return 0
    found = measure(given.days, given.rows)
    print(json.dumps(found, indent=1))
    return 0 if found["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
