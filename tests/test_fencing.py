"""A writer that slept between its last look and its commit overwrites nothing.

Each case is played through in one process: the guard of a commit is the moment at which the
writer sleeps, and what others do meanwhile is done in it, in a thread of their own: what a table
has open belongs to a thread.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from platform_assets.domain.errors import TransientError
from platform_assets.domain.lease import Lease, LeaseLostError
from platform_assets.domain.partition import PartitionKey
from resources import processes
from resources.lake import DatasetTable, content_digest
from tests.lake_workers import DAY, KEY, context, held, rows, start
from tests.test_lake_failures import gathered

LOST = LeaseLostError(Lease("flights/features JFK|2013-01-05", 1, processes.holder("a")), "lost")
OTHER = PartitionKey(DAY, "EWR")


@pytest.fixture
def table(tmp_path: Path) -> DatasetTable:
    return DatasetTable(tmp_path / "features", "airport")


def elsewhere(work: Callable[[], object]) -> None:
    """Do something as another writer does it."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


class Sleeper:
    """The guard of a writer that sleeps, once, while others write."""

    def __init__(self, meanwhile: Callable[[], object], *, lost: bool) -> None:
        self.meanwhile, self.lost, self.asked = meanwhile, lost, 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == 1:
            elsewhere(self.meanwhile)
        elif self.lost:
            raise LOST


def nothing(table: DatasetTable) -> None:
    """The table exists, the partition was never written."""
    table.commit(OTHER, rows(OTHER), previous=None)


def something(table: DatasetTable) -> None:
    table.commit(KEY, rows(mark=0.0), previous=None)


def no_rows(table: DatasetTable) -> None:
    nothing(table)
    table.commit(KEY, rows(n=0), previous=None)


def other_rows(table: DatasetTable) -> pa.Table:
    table.commit(KEY, rows(mark=2.0), previous=None, fence=True)
    return rows(mark=2.0)


def the_same_rows(table: DatasetTable) -> pa.Table:
    """What stands already is written once more: else nothing would meet a conflict."""
    now = held(table.path)
    table.commit(KEY, now, previous=content_digest(now), fence=True)
    return now


def rows_of_none(table: DatasetTable) -> pa.Table:
    table.commit(KEY, rows(n=0), previous=None, fence=True, token=2)
    return rows(n=0)


def many_commits(table: DatasetTable) -> pa.Table:
    """Among them are those of others, and checkpoints."""
    for i in range(25):
        table.commit(OTHER, rows(OTHER, mark=float(i)), previous=None)
    table.commit(KEY, rows(mark=2.0), previous=None, fence=True)
    for i in range(25):
        table.commit(OTHER, rows(OTHER, mark=float(i)), previous=None)
    return rows(mark=2.0)


def another_column(table: DatasetTable) -> pa.Table:
    more = rows(mark=2.0).append_column("more", pa.array([1.0] * 50))
    table.commit(KEY, more, previous=None, fence=True)
    return more


@pytest.mark.parametrize("before", [nothing, something, no_rows])
@pytest.mark.parametrize("meanwhile", [other_rows, the_same_rows, rows_of_none, another_column])
@pytest.mark.parametrize("sent", [50, 0])
def test_who_slept_through_its_lease_writes_nothing(
    table: DatasetTable,
    before: Callable[[DatasetTable], None],
    meanwhile: Callable[[DatasetTable], pa.Table],
    sent: int,
) -> None:
    before(table)
    stands: list[pa.Table] = []
    sleeper = Sleeper(lambda: stands.append(meanwhile(table)), lost=True)
    with pytest.raises(LeaseLostError):
        table.commit(KEY, rows(n=sent, mark=1.0), previous=None, guard=sleeper)
    assert sleeper.asked == 2
    assert content_digest(held(table.path).select(stands[0].column_names)) == content_digest(
        stands[0]
    )


def test_a_long_sleep_over_checkpoints(table: DatasetTable) -> None:
    something(table)
    sleeper = Sleeper(lambda: many_commits(table), lost=True)
    with pytest.raises(LeaseLostError):
        table.commit(KEY, rows(mark=1.0), previous=None, guard=sleeper)
    assert set(held(table.path)["mark"].to_pylist()) == {2.0}


def test_a_first_commit_that_slept_while_the_table_was_made(table: DatasetTable) -> None:
    sleeper = Sleeper(lambda: other_rows(table), lost=True)
    with pytest.raises(LeaseLostError):
        table.commit(KEY, rows(mark=1.0), previous=None, guard=sleeper)
    assert content_digest(held(table.path)) == content_digest(rows(mark=2.0))


def test_without_the_fence_no_rows_in_place_of_none_meet_no_conflict(table: DatasetTable) -> None:
    """Such a commit adds no file and removes none: what Delta compares is files."""
    nothing(table)
    sleeper = Sleeper(lambda: table.commit(KEY, rows(n=0), previous=None), lost=True)
    table.commit(KEY, rows(mark=1.0), previous=None, guard=sleeper)
    assert sleeper.asked == 1
    assert held(table.path).num_rows == 50


def test_who_asks_before_the_table_is_opened_overwrites_what_it_slept_through(
    table: DatasetTable,
) -> None:
    """Why the guard stands where it does: the same steps in the other order."""
    something(table)
    still_held = True
    assert still_held  # here it asks
    other_rows(table)  # here it sleeps
    table.commit(KEY, rows(mark=1.0), previous=None)
    assert set(held(table.path)["mark"].to_pylist()) == {1.0}


def test_a_writer_that_still_holds_its_lease_commits_after_a_conflict(table: DatasetTable) -> None:
    """Compaction may come between, which replaces files and no rows."""
    something(table)
    write_deltalake(table.path, rows(mark=0.0), mode="append")
    sleeper = Sleeper(DeltaTable(table.path).optimize.compact, lost=False)
    done = table.commit(KEY, rows(mark=1.0), previous=None, guard=sleeper, token=7)
    assert sleeper.asked == 2
    assert content_digest(held(table.path)) == done.data_version
    assert DeltaTable(table.path).history(1)[0]["signalbox.token"] == 7


def test_the_writer_of_one_city_is_not_asked_twice_for_another(table: DatasetTable) -> None:
    something(table)
    near = PartitionKey(DAY + timedelta(days=1), "JFK")

    def others() -> None:
        for key in (OTHER, near):
            table.commit(key, rows(key, mark=3.0), previous=None, fence=True)

    sleeper = Sleeper(others, lost=True)
    table.commit(KEY, rows(mark=1.0), previous=None, guard=sleeper)
    assert sleeper.asked == 1
    for key, mark in ((KEY, 1.0), (OTHER, 3.0), (near, 3.0)):
        assert content_digest(held(table.path, key)) == content_digest(rows(key, mark=mark))


def test_conflicts_without_end_are_given_up_with_nothing_written(table: DatasetTable) -> None:
    something(table)

    def always() -> None:
        elsewhere(lambda: table.commit(KEY, rows(mark=2.0), previous=None))

    with pytest.raises(TransientError, match="other writers changed it"):
        table.commit(KEY, rows(mark=1.0), previous=None, guard=always)
    assert set(held(table.path)["mark"].to_pylist()) == {2.0}


@pytest.mark.heavy
def test_sixteen_writers_of_one_table_lose_nothing(tmp_path: Path) -> None:
    from tests.lake_workers import commit_days

    path, barrier, queue = tmp_path / "table", context.Barrier(16), context.Queue()
    keys = [f"C{n:02}" for n in range(16)]
    writers = [start(commit_days, path, barrier, key, 8, queue) for key in keys]
    commits = [pair for done in gathered(queue, writers) for pair in done]
    assert sorted(commit.table_version for _, commit in commits) == list(range(1, 129))
    table = DeltaTable(path)
    assert table.to_pyarrow_table().num_rows == 128 * 50
    for partition, commit in commits:
        assert content_digest(held(path, PartitionKey.parse(partition))) == commit.data_version
