"""Writers that race on an S3-compatible server: the conditional put, and the lake on it.

The server answers one request at a time, see tests/s3.py: what is shown is that the lake asks for
the right condition and copes with losing, not how a server of many threads behaves.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta

import pytest
from deltalake import DeltaTable

from platform_assets.domain.partition import PartitionKey
from resources.home import Home
from resources.lake import Dataset
from tests import s3
from tests.lake_workers import DAY, held
from tests.small import opened

WRITER = """
import json, sys
from platform_assets.domain.errors import TransientError
from platform_assets.domain.partition import PartitionKey
from resources import lake
from tests.lake_workers import rows
kind, path, *names = sys.argv[1:]
table = getattr(lake, kind)(path, "airport")
print("ready", flush=True)
input()
for name in names:
    key, _, mark = name.partition("@")
    partition = PartitionKey.parse(key)
    version = None
    for attempt in range(TRIES):
        try:
            own = rows(partition, mark=float(mark or 0))
            version = table.commit(partition, own, previous=None).table_version
            break
        except TransientError:
            pass  # it asked to be tried again, as a run is
    print(json.dumps([name, version]))
"""


TRIES = 5
WRITER = WRITER.replace("TRIES", str(TRIES))


def race(
    path: str, *work: list[str], kind: str = "DatasetTable"
) -> list[list[tuple[str, int | None]]]:
    """Writers that begin together, each with its partitions; what each has committed."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, kind, path, *names],
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


def test_a_line_whose_table_lies_on_s3(home: Home, s3_bucket: str) -> None:
    """From landed hours to a judged model; only the table is elsewhere."""
    there = replace(home, lake_url=f"{s3_bucket}/home")
    with opened(there) as line:
        line.land("2013-01-02", "2013-01-05")
        line.must("features", span=("JFK|2013-01-02", "JFK|2013-01-05"))
        line.must("features", span=("LGA|2013-01-02", "LGA|2013-01-05"))
        line.must("day", span=("2013-01-02", "2013-01-05"))
        line.must("snapshot", "model", partition="2013-01-04")
        line.must("evaluation", partition="2013-01-04")
        trained = line.versions("model")["2013-01-04"]
        built = line.versions("features").values()
        assert trained.rows == sum(v.rows for v in built if v.partition[4:] < "2013-01-05")
    dataset = Dataset(there.dataset_path("flights"), "airport")
    known = [PartitionKey.parse(v.partition) for v in built]
    assert list(dataset.versions(known)) == [
        "airport=JFK/month=2013-01",
        "airport=LGA/month=2013-01",
    ]
    assert dataset.table_of(known[0]).path.startswith("s3://")
    assert dataset.newest_rows(known).num_rows == sum(v.rows for v in built)
    assert not (home.lake / "flights" / "features").exists()


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
    committed = [(name, version) for each in done for name, version in each]
    assert all(version is not None for _, version in committed), "each of them gets in"
    assert len({version for _, version in committed}) == len(committed) == 12
    last = max(committed, key=lambda each: each[1] or 0)
    rows = held(path)
    assert rows.num_rows == 50
    assert set(rows["mark"].to_pylist()) == {float(last[0].partition("@")[2])}


@pytest.mark.heavy
def test_the_first_writers_of_a_month_s_tables_all_get_in(s3_bucket: str) -> None:
    """Nobody has made the tables: whoever comes first does, and the others write into them."""
    path = f"{s3_bucket}/first/features"
    days = [date(2013, month, day) for month in (1, 2) for day in (1, 2)]
    names = [[str(PartitionKey(day, key)) for day in days] for key in ("JFK", "LGA")]
    # Of each table two writers, who begin with the same one and have partitions of their own.
    work = [[name for name in each if name.endswith(end)] for each in names for end in ("1", "2")]
    done = race(path, *work, kind="Dataset")
    assert all(version is not None for each in done for _, version in each)
    keys = [PartitionKey.parse(name) for each in names for name in each]
    dataset = Dataset(path, "airport")
    assert set(dataset.versions(keys)) == {
        f"airport={key}/month=2013-0{month}" for key in ("JFK", "LGA") for month in (1, 2)
    }
    assert dataset.newest_rows(keys).num_rows == 8 * 50
