"""What other processes do to a table in the tests of the lake.

They come from a fork server, which has imported everything but started no thread.
"""

import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError

from platform_assets.domain.errors import TransientError
from platform_assets.domain.partition import PartitionKey
from resources.lake import Commit, Dataset, DatasetTable, content_digest

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])

DAY = date(2013, 1, 5)
KEY = PartitionKey(DAY, "JFK")


def rows(partition: PartitionKey = KEY, n: int = 50, mark: float = 0.0) -> pa.Table:
    """Rows of a partition; `mark` tells two generations of them apart, in every row."""
    return pa.table(
        {
            "airport": pa.array([partition.key] * n, pa.string()),
            "date": pa.array([partition.date] * n, pa.date32()),
            "n": pa.array(range(n), pa.int64()),
            "mark": pa.array([mark] * n, pa.float64()),
            "name": pa.array([None if i % 7 == 0 else f"row {i}" for i in range(n)], pa.string()),
        }
    )


def held(path: Path | str, partition: PartitionKey = KEY, version: int | None = None) -> pa.Table:
    """What the table holds of a partition, read with deltalake's own reader."""
    return DeltaTable(path, version=version).to_pyarrow_table(
        partitions=[("airport", "=", str(partition.key)), ("date", "=", str(partition.date))]
    )


def start(task: Callable[..., Any], *arguments: Any) -> Any:
    process = context.Process(target=task, args=arguments, daemon=True)
    process.start()
    return process


def commit_days(
    place: Path | Dataset, barrier: Any, key: str, count: int, results: Any, first: date = DAY
) -> None:
    """Commit `count` days of one key, one after the other, to one table or to a dataset."""
    table = place if isinstance(place, Dataset) else DatasetTable(place, "airport")
    barrier.wait()
    done: list[tuple[str, Commit]] = []
    for i in range(count):
        partition = PartitionKey(first + timedelta(days=i), key)
        done.append((str(partition), table.commit(partition, rows(partition), previous=None)))
    results.put(done)


def create_plainly(path: Path, barrier: Any, results: Any) -> None:
    """Create the table as delta-rs does it by default; tell at which version it says it is."""
    schema = Schema.from_arrow(rows().schema)
    barrier.wait()
    try:
        results.put(DeltaTable.create(path, schema, partition_by=["airport"]).version())
    except (CommitFailedError, DeltaError) as error:
        results.put(str(error))


def commit_with_own_column(place: Path | Dataset, barrier: Any, key: str, results: Any) -> None:
    """Commit one partition, whose rows have a column that no other process has."""
    table = place if isinstance(place, Dataset) else DatasetTable(place, "airport")
    partition = PartitionKey(DAY, key)
    ours = rows(partition).append_column(f"of_{key}", pa.array([key] * 50, pa.string()))
    barrier.wait()
    results.put(table.commit(partition, ours, previous=None).table_version)


def commit_marks(path: Path, barrier: Any, marks: list[float], results: Any) -> None:
    """Commit the same partition again and again; tell the versions and the typed conflicts."""
    table = DatasetTable(path, "airport")
    barrier.wait()
    versions, conflicts = [], 0
    for mark in marks:
        try:
            versions.append(table.commit(KEY, rows(mark=mark), previous=None).table_version)
        except TransientError:
            conflicts += 1
    results.put((versions, conflicts))


def commit_for_ever(path: Path, ready: Any) -> None:
    """Replace a large partition until killed; ready once it is in full swing."""
    table = DatasetTable(path, "airport")
    both = [rows(n=20_000, mark=mark) for mark in (0.0, 1.0)]
    while True:
        for one in both:
            table.commit(KEY, one, previous=None)
            ready.set()


def read_for_ever(path: Path, ready: Any, stop: Any, results: Any) -> None:
    """Read the newest version until told to stop; tell which digests were seen."""
    seen: dict[str, int] = {}
    while not stop.is_set():
        digest = content_digest(held(path))
        seen[digest] = seen.get(digest, 0) + 1
        ready.set()
    results.put(seen)


def read_file_for_ever(path: Path, ready: Any, stop: Any, results: Any) -> None:
    """Read a Parquet file until told to stop; tell how often it was whole, and how often torn."""
    whole = torn = 0
    while not stop.is_set():
        try:
            pq.read_table(path)
            whole += 1
        except (OSError, pa.ArrowInvalid):
            torn += 1
        ready.set()
    results.put((whole, torn))


def overwrite_file_for_ever(path: Path, stop: Any) -> None:
    while not stop.is_set():
        pq.write_table(rows(n=20_000, mark=os.getpid()), path)


def commit_as_nobody(path: Path, results: Any) -> None:
    """Commit without root's right to write everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        # Another user may not read where Python's modules lie: import them all before.
        DatasetTable(folder, "airport").commit(KEY, rows(), previous=None)
    if os.getuid() == 0:
        os.setuid(65534)
    commit_limited(path, 2**40, results)


def commit_limited(path: Path, limit: int, results: Any) -> None:
    """Commit where no file may grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        commit = DatasetTable(path, "airport").commit(KEY, rows(n=5_000, mark=2.0), previous=None)
        results.put(("committed", commit.data_version))
    except Exception as error:
        results.put((type(error).__name__, str(error)))
