"""The lake's table where several processes write, one is killed, or the disk is full."""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from deltalake import DeltaTable

from platform_assets.domain.errors import HomeError, TransientError
from platform_assets.domain.partition import PartitionKey
from resources.lake import DatasetTable, content_digest
from tests import lake_workers as work
from tests.lake_workers import DAY, KEY, context, held, rows


def gathered(queue: Any, processes: list[Any]) -> list[Any]:
    """One result of each process; a process that dies without one fails at once."""
    results: list[Any] = []
    while len(results) < len(processes):
        try:
            results.append(queue.get(timeout=1))
        except Empty:
            assert not [p.exitcode for p in processes if p.exitcode], "a process died"
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return results


def test_processes_on_disjoint_partitions_lose_nothing(tmp_path: Path) -> None:
    """Four at once, on a table that does not exist yet."""
    path, barrier, queue = tmp_path / "table", context.Barrier(4), context.Queue()
    keys = ["EWR", "JFK", "LGA", "SWF"]
    processes = [work.start(work.commit_days, path, barrier, key, 8, queue) for key in keys]
    commits = [pair for done in gathered(queue, processes) for pair in done]

    assert len(commits) == 32
    versions = [commit.table_version for _, commit in commits]
    assert sorted(versions) == list(range(1, 33))
    history = {entry["version"]: entry for entry in DeltaTable(path).history()}
    for partition, commit in commits:
        # The version that a commit tells is the one that it made.
        assert history[commit.table_version]["signalbox.partition"] == partition
        assert content_digest(held(path, PartitionKey.parse(partition))) == commit.data_version


@pytest.mark.parametrize("round_", range(4))
def test_two_processes_on_a_brand_new_table(tmp_path: Path, round_: int) -> None:
    path, barrier, queue = tmp_path / "table", context.Barrier(2), context.Queue()
    processes = [
        work.start(work.commit_days, path, barrier, key, 1, queue) for key in ("EWR", "JFK")
    ]
    gathered(queue, processes)
    for key in ("EWR", "JFK"):
        assert held(path, PartitionKey(DAY, key)).num_rows == 50
    assert DeltaTable(path).metadata().configuration["delta.enableExpiredLogCleanup"] == "false"


def test_two_plain_creations_may_both_be_committed(tmp_path: Path) -> None:
    """The accident: delta-rs commits a creation that came second as the table's version 1."""
    for round_ in range(20):
        path, barrier, queue = tmp_path / str(round_), context.Barrier(4), context.Queue()
        gathered(queue, [work.start(work.create_plainly, path, barrier, queue) for _ in range(4)])
        operations = [entry["operation"] for entry in DeltaTable(path).history()]
        if len(operations) > 1:
            assert set(operations) == {"CREATE TABLE"}
            return
    raise AssertionError("delta-rs creates a table only once now: the guard may go")


def test_of_first_writers_with_columns_of_their_own_each_keeps_them(tmp_path: Path) -> None:
    keys = ["EWR", "JFK", "LGA", "SWF"]
    for round_ in range(5):
        path, barrier, queue = tmp_path / str(round_), context.Barrier(4), context.Queue()
        versions = gathered(
            queue,
            [work.start(work.commit_with_own_column, path, barrier, key, queue) for key in keys],
        )
        assert sorted(versions) == [1, 2, 3, 4]
        for key in keys:
            assert held(path, PartitionKey(DAY, key))[f"of_{key}"].to_pylist() == [key] * 50


def test_of_two_writers_on_one_partition_one_wins_whole(tmp_path: Path) -> None:
    path, barrier, queue = tmp_path / "table", context.Barrier(2), context.Queue()
    marks = [[float(i) for i in range(10)], [float(100 + i) for i in range(10)]]
    processes = [work.start(work.commit_marks, path, barrier, m, queue) for m in marks]
    results = gathered(queue, processes)

    known = {content_digest(rows(mark=mark)) for ours in marks for mark in ours}
    written = sum(len(versions) for versions, _ in results)
    conflicts = sum(conflicts for _, conflicts in results)
    assert written + conflicts == 20
    assert written >= 10
    for version in range(1, written + 1):
        assert content_digest(held(path, version=version)) in known
    assert DeltaTable(path).version() == written


@pytest.mark.heavy
def test_a_reader_sees_a_whole_partition_always(tmp_path: Path) -> None:
    path = tmp_path / "table"
    table = DatasetTable(path, "airport")
    whole = {
        table.commit(KEY, rows(n=20_000, mark=mark), previous=None).data_version
        for mark in (0.0, 1.0)
    }
    ready, stop, queue = context.Event(), context.Event(), context.Queue()
    reader = work.start(work.read_for_ever, path, ready, stop, queue)
    assert ready.wait(60)
    for i in range(40):
        table.commit(KEY, rows(n=20_000, mark=float(i % 2)), previous=None)
    stop.set()
    (seen,) = gathered(queue, [reader])
    assert set(seen) <= whole
    assert sum(seen.values()) > 5


def test_a_file_overwritten_in_place_is_torn_for_a_reader(tmp_path: Path) -> None:
    """What the table is there for: the same with one Parquet file a partition."""
    path = tmp_path / "part.parquet"
    ready, stop, queue = context.Event(), context.Event(), context.Queue()
    writer = work.start(work.overwrite_file_for_ever, path, stop)
    reader = work.start(work.read_file_for_ever, path, ready, stop, queue)
    assert ready.wait(60)
    time.sleep(1)
    stop.set()
    _, torn = queue.get(timeout=60)
    for process in (writer, reader):
        process.join(30)
    assert torn > 0


@pytest.mark.heavy
def test_a_killed_writer_leaves_the_table_whole(tmp_path: Path) -> None:
    path = tmp_path / "table"
    table = DatasetTable(path, "airport")
    whole = {content_digest(rows(n=20_000, mark=mark)) for mark in (0.0, 1.0)}
    other = PartitionKey(DAY + timedelta(days=1), "JFK")
    table.commit(other, rows(other), previous=None)
    table.commit(KEY, rows(n=20_000, mark=0.0), previous=None)
    rng = random.Random(20130105)
    versions = [table.version()]
    for _ in range(10):
        ready = context.Event()
        writer = work.start(work.commit_for_ever, path, ready)
        assert ready.wait(60)
        time.sleep(0.1 * rng.random())
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
        assert writer.exitcode == -signal.SIGKILL
        assert content_digest(held(path)) in whole
        assert content_digest(held(path, other)) == content_digest(rows(other))
        versions.append(table.version())
    # They were killed at work, and whoever comes after them can go on.
    assert versions[-1] >= versions[0] + 10
    done = table.commit(KEY, rows(mark=7.0), previous=None)
    assert content_digest(held(path)) == done.data_version


@pytest.mark.parametrize("limit", [0, 1, 600, 20_000])
def test_a_file_that_cannot_be_written_to_its_end_commits_nothing(
    tmp_path: Path, limit: int
) -> None:
    """A limit on the size of files fails a write at any byte, without a full disk."""
    path, queue = tmp_path / "table", context.Queue()
    before = DatasetTable(path, "airport").commit(KEY, rows(), previous=None)
    process = work.start(work.commit_limited, path, limit, queue)
    ((kind, text),) = gathered(queue, [process])
    assert kind == "TransientError"
    assert "is full, nothing was committed and the older versions stand" in text
    assert content_digest(held(path)) == before.data_version
    assert DatasetTable(path, "airport").version() == before.table_version


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of one megabyte, where mounting is permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_commits_nothing_or_all(small_disk: Path | None, tmp_path: Path) -> None:
    if small_disk is None:  # the nearest that an ordinary user can have
        for limit in (0, 300, 1200):
            test_a_file_that_cannot_be_written_to_its_end_commits_nothing(
                tmp_path / str(limit), limit
            )
        return
    path, ballast = small_disk / "table", small_disk / "ballast"
    table = DatasetTable(path, "airport")
    held_now = table.commit(KEY, rows(), previous=None).data_version
    failed = 0
    for step in range(60):
        # Room for nothing, for the rows alone, for rows and log: never for a checkpoint.
        room = (step % 3) * 4096
        ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - room))
        sent = rows(n=300, mark=float(step))
        if step % 3 == 2:
            held_now = table.commit(KEY, sent, previous=None).data_version
        else:
            with pytest.raises(TransientError, match=r"disk under .* is full, nothing was commit"):
                table.commit(KEY, sent, previous=None)
            failed += 1
        assert content_digest(held(path)) == held_now
        ballast.unlink()
    assert failed == 40
    assert table.version() == 21
    assert not list(path.glob("_delta_log/*.checkpoint.parquet"))
    done = table.commit(KEY, rows(mark=-1.0), previous=None)
    assert content_digest(held(path)) == done.data_version


def test_a_folder_that_cannot_be_written_is_told_from_a_full_disk(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(HomeError, match="a file is in the way"):
        DatasetTable(blocked / "table", "airport").commit(KEY, rows(), previous=None)

    # A folder of root's, beside those that pytest keeps from other users.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        queue = context.Queue()
        process = work.start(work.commit_as_nobody, Path(folder) / "table", queue)
        ((kind, text),) = gathered(queue, [process])
        assert kind == "HomeError"
        assert "may not be written" in text
