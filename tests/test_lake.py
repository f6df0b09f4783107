"""The lake's table: commits of partitions, and reads that can be repeated."""

import uuid
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from resources.files import Files
from resources.lake import Commit, DatasetTable, content_digest
from tests.lake_workers import DAY, KEY, held, rows


@pytest.fixture
def disk_path(tmp_path: Path) -> Path:
    return tmp_path / "lake" / "flights" / "features"


@pytest.fixture
def disk_table(disk_path: Path) -> DatasetTable:
    return DatasetTable(disk_path, "airport")


@pytest.fixture(params=["disk", "s3"])
def path(request: pytest.FixtureRequest) -> Path | str:
    """Where a table is to lie: in a folder, or on an S3-compatible server."""
    if request.param == "disk":
        found: Path = request.getfixturevalue("disk_path")
        return found
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/{uuid.uuid4().hex}/flights/features"


@pytest.fixture
def table(path: Path | str) -> DatasetTable:
    return DatasetTable(path, "airport")


def pinned(key: PartitionKey, commit: Commit) -> PartitionVersion:
    assert commit.table_version is not None
    return PartitionVersion(
        partition=str(key),
        data_version=commit.data_version,
        table_version=commit.table_version,
        rows=commit.rows,
    )


def commit(table: DatasetTable, key: PartitionKey, mark: float = 0.0) -> PartitionVersion:
    return pinned(key, table.commit(key, rows(key, mark=mark), previous=None))


GRID = [PartitionKey(DAY + timedelta(days=i), key) for i in range(3) for key in ("EWR", "JFK")]


# --- commits ------------------------------------------------------------------------------------


def test_what_was_committed_is_read_back(table: DatasetTable) -> None:
    assert table.version() is None
    done = table.commit(KEY, rows(), previous=None)
    assert done.changed
    assert done.rows == 50
    assert done.data_version == content_digest(rows())
    assert done.table_version == table.version()
    back = table.read([pinned(KEY, done)], done.table_version or 0)
    assert content_digest(back) == done.data_version
    assert back.schema == rows().schema


def test_an_identical_replay_commits_nothing(table: DatasetTable) -> None:
    first = table.commit(KEY, rows(), previous=None)
    shuffled = rows().take(pa.array(reversed(range(50))))
    again = table.commit(KEY, shuffled, previous=first.data_version)
    assert again == Commit(first.data_version, None, 50, changed=False)
    assert table.version() == first.table_version


def test_a_naive_append_doubles_the_rows_of_a_replay(tmp_path: Path, table: DatasetTable) -> None:
    naive = tmp_path / "naive"
    for _ in range(2):
        write_deltalake(naive, rows(), mode="append", partition_by=["airport", "date"])
        table.commit(KEY, rows(), previous=None)
    assert held(naive).num_rows == 100
    assert held(table.path).num_rows == 50


def test_a_replay_is_written_where_the_table_is_gone(table: DatasetTable, path: Path | str) -> None:
    first = table.commit(KEY, rows(), previous=None)
    Files(path).delete("")
    assert not table.stands(KEY, 50)
    again = table.commit(KEY, rows(), previous=first.data_version)
    assert again.changed
    assert held(path).num_rows == 50


def test_a_partition_is_replaced_and_the_others_stay(table: DatasetTable, path: Path | str) -> None:
    versions = {key: commit(table, key) for key in GRID}
    after = commit(table, GRID[0], mark=9.0)
    assert after.data_version != versions[GRID[0]].data_version
    assert set(held(path, GRID[0])["mark"].to_pylist()) == {9.0}
    for key in GRID[1:]:
        assert content_digest(held(path, key)) == versions[key].data_version


def test_no_rows_are_a_version_too(table: DatasetTable, path: Path | str) -> None:
    full = commit(table, KEY)
    done = table.commit(KEY, rows(n=0), previous=full.data_version)
    empty = pinned(KEY, done)
    assert done.changed
    assert done.rows == 0
    assert table.read([empty], empty.table_version).num_rows == 0
    assert table.read([empty], empty.table_version).schema == rows().schema
    assert not table.commit(KEY, rows(n=0), previous=empty.data_version).changed
    # The rows before it are still there, for whoever pinned them.
    assert table.read([full], empty.table_version).num_rows == 50


def test_the_first_commit_may_have_no_rows(table: DatasetTable) -> None:
    empty = pinned(KEY, table.commit(KEY, rows(n=0), previous=None))
    full = commit(table, GRID[0])
    assert table.read([empty, full], full.table_version).num_rows == 50


def test_a_commit_carries_its_partition_and_digest(table: DatasetTable, path: Path | str) -> None:
    done = commit(table, KEY)
    entry = DeltaTable(path).history(1)[0]
    assert entry["signalbox.partition"] == "JFK|2013-01-05"
    assert entry["signalbox.digest"] == done.data_version


@pytest.mark.parametrize("name", ["O'Hare", "a b", "100%", "ü:?#&*=", '"', "%2F", "東京"])
def test_odd_keys(table: DatasetTable, name: str) -> None:
    odd, plain = PartitionKey(DAY, name), PartitionKey(DAY, "JFK")
    versions = [commit(table, odd, 1.0), commit(table, plain, 2.0), commit(table, odd, 3.0)]
    back = table.read(versions[1:], versions[-1].table_version)
    assert back.num_rows == 100
    assert set(zip(back["airport"].to_pylist(), back["mark"].to_pylist(), strict=True)) == {
        (name, 3.0),
        ("JFK", 2.0),
    }


def test_rows_of_another_partition_are_refused(table: DatasetTable) -> None:
    other = PartitionKey(date(2013, 1, 6), "JFK")
    with pytest.raises(UsageError, match=r"rows for JFK\|2013-01-05 hold another date"):
        table.commit(KEY, rows(other), previous=None)
    with pytest.raises(UsageError, match="hold another airport than JFK"):
        table.commit(KEY, rows(PartitionKey(DAY, "EWR")), previous=None)
    with pytest.raises(UsageError, match="lack the partition column 'date'"):
        table.commit(KEY, rows().drop_columns("date"), previous=None)
    with pytest.raises(UsageError, match="has no airport"):
        table.commit(PartitionKey(DAY), rows(), previous=None)
    without = rows().set_column(0, "airport", pa.array([None] * 50, pa.string()))
    with pytest.raises(UsageError, match="hold another airport"):
        table.commit(KEY, without, previous=None)
    assert table.version() is None


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0] * 50, pa.timestamp("us")),
        pa.array([0] * 50, pa.timestamp("ns", "UTC")),
        pa.array([0] * 50, pa.uint8()),
        pa.array([[0]] * 50),
    ],
    ids=lambda column: str(column.type),
)
def test_a_type_that_would_not_come_back_is_refused(table: DatasetTable, column: pa.Array) -> None:
    with pytest.raises(UsageError, match="column 'odd' is of type"):
        table.commit(KEY, rows().append_column("odd", column), previous=None)


def test_a_dataset_may_get_and_lose_columns(table: DatasetTable) -> None:
    before = commit(table, GRID[0])
    more = rows(GRID[1]).append_column("more", pa.array([1.0] * 50))
    with_more = pinned(GRID[1], table.commit(GRID[1], more, previous=None))
    fewer = rows(GRID[2]).drop_columns("name")
    without = pinned(GRID[2], table.commit(GRID[2], fewer, previous=None))
    back = table.read([before, with_more, without], without.table_version)
    assert back.num_rows == 150
    assert back["more"].null_count == 100
    for version, sent in ((before, rows(GRID[0])), (with_more, more), (without, fewer)):
        alone = table.read([version], without.table_version, columns=sent.column_names)
        assert content_digest(alone) == version.data_version


def test_a_column_keeps_its_type(table: DatasetTable) -> None:
    done = commit(table, KEY)
    other = rows().set_column(2, "n", pa.array(["x"] * 50))
    with pytest.raises(RefusedError, match="column 'n' is string now, but int64 in"):
        table.commit(KEY, other, previous=None)
    assert table.version() == done.table_version


def test_the_order_of_columns_may_change(table: DatasetTable) -> None:
    first = commit(table, GRID[0])
    turned = rows(GRID[1]).select(list(reversed(rows().column_names)))
    second = pinned(GRID[1], table.commit(GRID[1], turned, previous=None))
    assert table.read([first, second], second.table_version).num_rows == 100


# --- reads --------------------------------------------------------------------------------------


def test_the_same_versions_give_the_same_rows_in_the_same_order(
    table: DatasetTable, path: Path
) -> None:
    versions = [commit(table, key) for key in GRID]
    at = versions[-1].table_version
    first = table.read(versions, at)

    commit(table, PartitionKey(DAY, "LGA"))  # another partition
    assert table.read(versions, at).equals(first)
    for key in GRID[:3]:  # the same ones, with other rows
        commit(table, key, mark=5.0)
    assert table.read(versions, at).equals(first)
    for i in range(30):  # small files in many partitions, past a checkpoint
        commit(table, GRID[3], mark=10.0 + i)
    DeltaTable(path).optimize.compact()
    assert table.read(versions, at).equals(first)
    now = table.version()
    assert now is not None
    assert now > at + 30
    assert table.read(versions, now).equals(first)  # a later version: each one read at its own
    assert table.read(list(reversed(versions)), at).equals(first)


def test_the_order_in_which_rows_were_written_does_not_matter(table: DatasetTable) -> None:
    first = commit(table, KEY)
    before = table.read([first], first.table_version)
    turned = rows().take(pa.array(reversed(range(50))))
    second = pinned(KEY, table.commit(KEY, turned, previous=None))
    assert second.data_version == first.data_version
    assert second.table_version > first.table_version
    assert table.read([second], second.table_version).equals(before)


def test_compaction_of_several_files_keeps_digest_and_order(
    table: DatasetTable, path: Path
) -> None:
    """Two files in one partition, as another writer may leave them, then one."""
    half = rows().slice(0, 25)
    table.commit(KEY, half, previous=None)
    write_deltalake(path, rows().slice(25), mode="append")
    version = PartitionVersion(
        partition=str(KEY), data_version=content_digest(rows()), table_version=2, rows=50
    )
    first = table.read([version], 2)
    metrics = DeltaTable(path).optimize.compact()
    assert metrics["numFilesRemoved"] == 2
    assert table.read([version], 3).equals(first)


def test_a_plain_read_depends_on_the_layout_of_the_files(tmp_path: Path) -> None:
    """Why rows are ordered: the same rows, another order, and LightGBM gives another model."""
    for name, parts in (("one", [rows()]), ("two", [rows().slice(0, 25), rows().slice(25)])):
        for part in parts:
            write_deltalake(tmp_path / name, part, mode="append", partition_by=["airport", "date"])
    one, two = held(tmp_path / "one"), held(tmp_path / "two")
    assert content_digest(one) == content_digest(two)
    assert not one.equals(two)


def test_only_the_columns_that_are_asked_for(table: DatasetTable) -> None:
    version = commit(table, KEY)
    some = table.read([version], version.table_version, columns=["mark", "n"])
    assert some.column_names == ["mark", "n"]
    whole = table.read([version], version.table_version)
    assert some.equals(whole.select(["mark", "n"]))
    with pytest.raises(UsageError, match="has no column nowhere; its columns are airport"):
        table.read([version], version.table_version, columns=["nowhere"])


def test_nothing_asked_is_nothing_read(table: DatasetTable) -> None:
    version = commit(table, KEY)
    none = table.read([], version.table_version)
    assert none.num_rows == 0
    assert none.schema == rows().schema
    with pytest.raises(UsageError, match="some of them twice"):
        table.read([version, version], version.table_version)


def data_files(path: Path | str, key: PartitionKey = KEY) -> list[Path]:
    return sorted(path.glob(f"airport={key.key}/date={key.date}/*.parquet"))


def test_rows_that_were_tampered_with_are_refused(
    disk_table: DatasetTable, disk_path: Path
) -> None:
    version = commit(disk_table, KEY)
    (file,) = data_files(disk_path)
    inside = pq.ParquetFile(file).read()
    pq.write_table(inside.set_column(1, "mark", pa.array([0.0] * 49 + [1.0])), file)
    with pytest.raises(RefusedError, match=r"holds other rows at version \d+ than the recorded"):
        disk_table.read([version], version.table_version)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RefusedError, match="cannot be read"):
        disk_table.read([version], version.table_version)


def test_rows_that_are_gone_are_refused(disk_table: DatasetTable, disk_path: Path) -> None:
    version = commit(disk_table, KEY)
    commit(disk_table, KEY, mark=1.0)
    DeltaTable(disk_path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(RefusedError, match="cannot be read, so what was trained on it cannot"):
        disk_table.read([version], version.table_version)


def test_a_vacuum_by_the_table_s_own_rules_spares_what_models_pin(
    table: DatasetTable, path: Path
) -> None:
    version = commit(table, KEY)
    commit(table, KEY, mark=1.0)
    assert DeltaTable(path).vacuum(dry_run=False) == []
    # By default that would only hold for a week, and the log for a month.
    kept = DeltaTable(path).metadata().configuration
    assert kept["delta.deletedFileRetentionDuration"] == "interval 5200 weeks"
    assert kept["delta.logRetentionDuration"] == "interval 5200 weeks"
    assert kept["delta.enableExpiredLogCleanup"] == "false"
    assert table.read([version], version.table_version).num_rows == 50


def test_an_unknown_version_or_table_is_refused(table: DatasetTable, tmp_path: Path) -> None:
    version = commit(table, KEY)
    with pytest.raises(RefusedError, match=r"version 99 of .* cannot be read"):
        table.read([version], 99)
    with pytest.raises(RefusedError, match="is no Delta table, but versions of it are recorded"):
        DatasetTable(tmp_path / "nowhere", "airport").read([version], 0)


def test_a_digest_that_never_was_is_refused(table: DatasetTable) -> None:
    version = commit(table, KEY)
    wrong = version.model_copy(update={"data_version": "0" * 64})
    with pytest.raises(RefusedError, match=r"partition JFK\|2013-01-05 of .* holds other rows"):
        table.read([wrong], version.table_version)
