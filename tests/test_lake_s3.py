"""Writers that race on an S3-compatible server: the conditional put, and the lake on it.

The server answers one request at a time, see tests/s3.py: what is shown is that the lake asks for
the right condition and copes with losing, not how a server of many threads behaves.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from deltalake import DeltaTable

from platform_assets.domain.partition import PartitionKey
from tests import s3
from tests.lake_workers import DAY, held

WRITER = """
import json, sys
from platform_assets.domain.errors import TransientError
from platform_assets.domain.partition import PartitionKey
from resources.lake import DatasetTable
from tests.lake_workers import rows
path, *names = sys.argv[1:]
table = DatasetTable(path, "airport")
print("ready", flush=True)
input()
for name in names:
    key, _, mark = name.partition("@")
    partition = PartitionKey.parse(key)
    try:
        commit = table.commit(partition, rows(partition, mark=float(mark or 0)), previous=None)
        print(json.dumps([name, commit.table_version]))
    except TransientError:
        print(json.dumps([name, None]))
"""


def race(path: str, *work: list[str]) -> list[list[tuple[str, int | None]]]:
    """Writers that begin together, each with its partitions; what each has committed."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in work
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    done = [writer.communicate(timeout=200)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * len(writers)
    return [[tuple(json.loads(line)) for line in out.splitlines()] for out in done]


def test_of_many_that_put_one_new_key_exactly_one_succeeds(s3_variables: dict[str, str]) -> None:
    for round_ in range(5):
        with ThreadPoolExecutor(16) as pool:
            won = list(
                pool.map(
                    lambda n, key=f"race/{round_}": s3.put_if_absent(s3_variables, key, b"%d" % n),
                    range(16),
                )
            )
        assert sum(won) == 1


@pytest.mark.heavy
def test_writers_of_other_partitions_lose_nothing(s3_bucket: str) -> None:
    path = f"{s3_bucket}/disjoint/features"
    names = [
        [str(PartitionKey(DAY + timedelta(days=i), key)) for i in range(5)]
        for key in ("EWR", "JFK", "LGA", "BOS")
    ]
    done = race(path, *names)
    versions = [version for each in done for _, version in each]
    assert len(set(versions)) == 20
    assert None not in versions
    table = DeltaTable(path)
    assert len(table.file_uris()) == 20
    assert table.to_pyarrow_table().num_rows == 20 * 50


@pytest.mark.heavy
def test_writers_of_one_partition_leave_the_rows_of_one(s3_bucket: str) -> None:
    path = f"{s3_bucket}/one/features"
    done = race(path, *[[f"JFK|{DAY}@{mark}" for _ in range(3)] for mark in (1, 2, 3, 4)])
    committed = [(name, version) for each in done for name, version in each if version is not None]
    assert committed
    last = max(committed, key=lambda each: each[1])
    rows = held(path)
    assert rows.num_rows == 50
    assert set(rows["mark"].to_pylist()) == {float(last[0].partition("@")[2])}
