"""A dataset is a table a key and month, on the disk and on S3; one of an earlier version stays."""

import pickle
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.lease import Lease, LeaseLostError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from resources import delta, processes
from resources.files import Files
from resources.lake import Dataset, DatasetTable, content_digest, found_dataset
from resources.table_schema import LAYOUT, create_table
from tests.lake_workers import (
    KEY,
    commit_days,
    commit_with_own_column,
    context,
    held,
    rows,
    start,
)
from tests.test_lake import pinned
from tests.test_lake_failures import gathered

LAST = date(2013, 12, 31)
NEW_YEAR = [PartitionKey(LAST + timedelta(days=n), key) for n in range(2) for key in ("EWR", "JFK")]
JANUARY = "airport=JFK/month=2013-01"


@pytest.fixture
def disk(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "lake" / "flights" / "features", "airport")


@pytest.fixture(params=["disk", "s3"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    if request.param == "disk":
        found: Dataset = request.getfixturevalue("disk")
        return found
    bucket: str = request.getfixturevalue("s3_bucket")
    return Dataset(f"{bucket}/{uuid.uuid4().hex}/flights/features", "airport")


def commit(
    dataset: Dataset | DatasetTable, key: PartitionKey, mark: float = 0.0
) -> PartitionVersion:
    return pinned(key, dataset.commit(key, rows(key, mark=mark), previous=None))


# --- a table a key and month --------------------------------------------------------------------


def test_a_window_over_the_month_s_end_is_read_from_four_tables(dataset: Dataset) -> None:
    versions = [commit(dataset, key) for key in NEW_YEAR]
    months = ("2013-12", "2014-01")
    names = [f"airport={key}/month={month}" for key in ("EWR", "JFK") for month in months]
    assert dataset.versions(NEW_YEAR) == dict.fromkeys(names, 1)
    back = dataset.read(versions)
    # By date and key, as from one table.
    found = back.select(["date", "airport"]).to_pandas().drop_duplicates()
    assert list(found.itertuples(index=False, name=None)) == [(k.date, k.key) for k in NEW_YEAR]
    for key, version in zip(NEW_YEAR, versions, strict=True):
        own = held(f"{dataset.path}/{dataset.table_name(key)}", key)
        assert content_digest(own) == version.data_version
        assert content_digest(dataset.read([version])) == version.data_version
    # What is committed later to the same tables and others changes nothing.
    for key in [*NEW_YEAR[:2], PartitionKey(LAST, "LGA")]:
        commit(dataset, key, mark=3.0)
    assert dataset.read(versions).equals(back)
    assert dataset.read(list(reversed(versions))).equals(back)
    assert dataset.read(versions, ["mark"]).column_names == ["mark"]
    assert dataset.read([]).schema == rows().schema
    with pytest.raises(UsageError, match="some of them twice"):
        dataset.read([versions[0], versions[0]])
    with pytest.raises(UsageError, match="has no column nowhere"):
        dataset.read(versions, ["nowhere"])


def test_it_is_read_as_one_table_would_be(dataset: Dataset, tmp_path: Path) -> None:
    one = DatasetTable(tmp_path / "one", "airport")
    # In another order, some replaced, one without rows.
    order = [NEW_YEAR[n] for n in (2, 0, 3, 1)]
    first = {key: (commit(dataset, key), commit(one, key)) for key in order}
    again = NEW_YEAR[1]
    commit(dataset, again, 5.0)
    commit(one, again, 5.0)
    none = PartitionKey(LAST - timedelta(days=1), "JFK")
    done = (
        pinned(none, dataset.commit(none, rows(none, 0), previous=None)),
        pinned(none, one.commit(none, rows(none, 0), previous=None)),
    )
    many = dataset.read([*(a for a, _ in first.values()), done[0]])
    alone = [*(b for _, b in first.values()), done[1]]
    assert many.equals(one.read(alone, max(v.table_version for v in alone)))


def test_a_replay_is_free_and_another_city_s_table_stands_still(dataset: Dataset) -> None:
    first = dataset.commit(KEY, rows(), previous=None)
    assert dataset.stands(KEY, 50)
    before = dataset.versions([KEY])
    assert not dataset.commit(KEY, rows(), previous=first.data_version).changed
    commit(dataset, PartitionKey(KEY.date, "EWR"))
    assert dataset.versions([KEY])[JANUARY] == before[JANUARY] == 1


@pytest.mark.parametrize("name", ["O'Hare", "a b", "100%", "ü:?#&*=/", '"', "%2F", "東京", ".."])
def test_odd_keys_have_tables_of_their_own(dataset: Dataset, name: str) -> None:
    odd, plain = PartitionKey(KEY.date, name), PartitionKey(KEY.date, "JFK")
    versions = [commit(dataset, odd, 1.0), commit(dataset, plain, 2.0)]
    again = commit(dataset, odd, 3.0)
    back = dataset.read([again, versions[1]])
    assert sorted(set(back["mark"].to_pylist())) == [2.0, 3.0]
    found = dataset.versions([odd, plain])
    assert found == {dataset.table_name(odd): 2, dataset.table_name(plain): 1}
    assert dataset.read(versions).num_rows == 100


def test_no_two_keys_share_a_folder_and_none_leaves_it(disk: Dataset) -> None:
    keys = ["a", "A=", "a=3D", "a/b", "a=2Fb", "..", ".", "_delta_log", "columns", "é", "e\u0301"]
    names = [disk.table_name(PartitionKey(KEY.date, key)) for key in keys]
    assert len(set(names)) == len(keys)
    assert all(name.count("/") == 1 and name.startswith("airport=") for name in names)


def test_a_table_is_any_reader_s(disk: Dataset) -> None:
    version = commit(disk, KEY)
    table = DeltaTable(f"{disk.path}/{JANUARY}")
    assert table.metadata().partition_columns == ["airport", "date"]
    assert content_digest(table.to_pyarrow_table()) == version.data_version
    assert table.metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
    assert disk.newest_rows().num_rows == 50


def test_a_dataset_is_a_name(disk: Dataset) -> None:
    version = commit(disk, KEY)
    other = pickle.loads(pickle.dumps(disk))
    assert other.read([version]).num_rows == 50
    assert found_dataset(disk.path).key_column == "airport"


# --- columns ------------------------------------------------------------------------------------


def strings(key: PartitionKey) -> pa.Table:
    return rows(key).set_column(2, "n", pa.array(["x"] * 50))


def test_a_column_keeps_its_type_in_every_table(dataset: Dataset) -> None:
    commit(dataset, KEY)
    for other in (PartitionKey(KEY.date, "EWR"), PartitionKey(date(2014, 1, 1), "JFK")):
        with pytest.raises(RefusedError, match="column 'n' is string now, but int64 in"):
            dataset.commit(other, strings(other), previous=None)
    assert list(dataset.versions([KEY])) == [JANUARY]


def test_without_the_table_of_columns_two_tables_could_not_be_read_at_once(disk: Dataset) -> None:
    """The failure itself, and that it is told."""
    other = PartitionKey(KEY.date, "EWR")
    alone = DatasetTable(disk.table_of(other).path, "airport")
    versions = [
        commit(disk, KEY),
        pinned(other, alone.commit(other, strings(other), previous=None)),
    ]
    with pytest.raises(RefusedError, match="a column has different types in the tables"):
        disk.read(versions)


def test_columns_come_and_go_by_table(dataset: Dataset) -> None:
    before = commit(dataset, NEW_YEAR[1])
    more = rows(NEW_YEAR[3]).append_column("more", pa.array([1.0] * 50))
    with_more = pinned(NEW_YEAR[3], dataset.commit(NEW_YEAR[3], more, previous=None))
    back = dataset.read([before, with_more])
    assert back.num_rows == 100
    assert back["more"].null_count == 50
    # In a table that is there already, too; and then as everywhere.
    late = rows(NEW_YEAR[1]).append_column("late", pa.array([True] * 50))
    dataset.commit(NEW_YEAR[1], late, previous=None)
    assert dataset.read([before, with_more]).equals(back)
    other = rows(NEW_YEAR[3]).append_column("late", pa.array([1.0] * 50))
    with pytest.raises(RefusedError, match="column 'late' is double now, but bool in"):
        dataset.commit(NEW_YEAR[3], other, previous=None)
    assert set(dataset.read([]).column_names) == {*rows().column_names, "more", "late"}


def test_of_two_that_bring_a_column_at_once_one_is_refused(disk: Dataset) -> None:
    """Both have looked before either has taken its own in."""
    commit(disk, KEY)
    keys = [PartitionKey(KEY.date, name) for name in ("EWR", "LGA")]
    kinds = [pa.array([1.0] * 50), pa.array(["x"] * 50)]
    tables = [rows(key).append_column("new", kind) for key, kind in zip(keys, kinds, strict=True)]

    def attempt(n: int) -> bool:
        try:
            disk.commit(keys[n], tables[n], previous=None)
        except RefusedError:
            return False
        return True

    for round_ in range(3):
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(attempt, range(2)))
        assert sorted(done) == [False, True], round_


# --- writers ------------------------------------------------------------------------------------

LOST = LeaseLostError(Lease("flights/features JFK|2013-01-05", 1, processes.holder("a")), "lost")


@pytest.mark.parametrize("sent", [50, 0])
def test_who_slept_through_its_lease_writes_nothing_also_as_the_first(
    disk: Dataset, sent: int
) -> None:
    asked: list[int] = []

    def guard() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise LOST
        with ThreadPoolExecutor(1) as pool:  # what a table has open belongs to a thread
            pool.submit(
                lambda: disk.commit(KEY, rows(mark=2.0), previous=None, fence=True)
            ).result()

    with pytest.raises(LeaseLostError):
        disk.commit(KEY, rows(n=sent, mark=1.0), previous=None, guard=guard, token=1)
    assert content_digest(held(disk.table_of(KEY).path)) == content_digest(rows(mark=2.0))


def test_first_writers_at_once_make_their_tables_and_keep_their_columns(disk: Dataset) -> None:
    keys = ["EWR", "JFK", "LGA", "SWF"]
    barrier, queue = context.Barrier(4), context.Queue()
    writers = [start(commit_with_own_column, disk, barrier, key, queue) for key in keys]
    assert gathered(queue, writers) == [1, 1, 1, 1]
    for key in keys:
        partition = PartitionKey(KEY.date, key)
        own = held(disk.table_of(partition).path, partition)
        assert own[f"of_{key}"].to_pylist() == [key] * 50
    assert {f"of_{key}" for key in keys} <= set(disk.read([]).column_names)


@pytest.mark.heavy
def test_sixteen_writers_over_a_month_s_end_lose_nothing(disk: Dataset) -> None:
    """Two a key, each with days of its own: four tables change under both."""
    barrier, queue = context.Barrier(16), context.Queue()
    keys, first = [f"C{n}" for n in range(8)], LAST - timedelta(days=3)
    writers = [
        start(commit_days, disk, barrier, key, 8, queue, first + timedelta(days=8 * half))
        for key in keys
        for half in range(2)
    ]
    commits = [pair for done in gathered(queue, writers) for pair in done]
    versions = [pinned(PartitionKey.parse(partition), commit) for partition, commit in commits]
    found = disk.versions()
    assert sorted(found.values()) == [4] * 8 + [12] * 8
    assert disk.read(versions).num_rows == disk.newest_rows().num_rows == 128 * 50


def test_a_table_that_is_gone_is_made_anew_and_the_others_stand(disk: Dataset) -> None:
    first, other = commit(disk, KEY), commit(disk, NEW_YEAR[3])
    shutil.rmtree(Path(disk.path, JANUARY))
    assert not disk.stands(KEY, 50)
    with pytest.raises(RefusedError, match="is no Delta table, but versions of it are recorded"):
        disk.read([first, other])
    again = pinned(KEY, disk.commit(KEY, rows(), previous=first.data_version))
    assert disk.read([again, other]).num_rows == 100


def test_few_tables_are_kept_open(disk: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "KEPT", 3)
    versions = [commit(disk, PartitionKey(KEY.date, f"K{n}")) for n in range(6)]
    with ThreadPoolExecutor(1) as pool:  # nothing of other tests

        def again() -> int:
            for n in (0, 1, 2, 3, 0, 4, 0, 5):
                commit(disk, PartitionKey(KEY.date, f"K{n}"), mark=n)
            return len(delta._kept.__dict__)

        assert pool.submit(again).result() == 3
    assert disk.read(versions).num_rows == 300


# --- a dataset that was begun with tables a year ------------------------------------------------

JFK_OF_YEARS = ["airport=JFK/year=2013", "airport=JFK/year=2014"]


def begun_with_years(dataset: Dataset) -> dict[PartitionKey, PartitionVersion]:
    """What an earlier version made: its table of columns says nothing of the others."""
    create_table(f"{dataset.path}/columns", rows().schema, [])
    days = NEW_YEAR[1], NEW_YEAR[3]
    tables = [DatasetTable(f"{dataset.path}/{name}", "airport") for name in JFK_OF_YEARS]
    return {key: commit(table, key) for key, table in zip(days, tables, strict=True)}


def test_tables_a_year_go_on_so(dataset: Dataset) -> None:
    versions = begun_with_years(dataset)
    for key in (KEY, NEW_YEAR[1]):  # one more of that year, and one again
        versions[key] = commit(dataset, key, 2.0)
    known = list(versions)
    assert dataset.versions(known) == dict(zip(JFK_OF_YEARS, (3, 1), strict=True))
    assert dataset.read(list(versions.values())).num_rows == 3 * 50
    assert dataset.stands(KEY, 50)
    assert dataset.newest_rows(known).num_rows == 3 * 50
    other = Dataset(dataset.path, "airport")
    assert other.table_name(PartitionKey(KEY.date, "LGA")) == "airport=LGA/year=2013"


def test_tables_a_year_are_known_though_the_table_of_columns_is_gone(disk: Dataset) -> None:
    begun_with_years(disk)
    shutil.rmtree(Path(disk.path, "columns"))
    assert disk.table_name(NEW_YEAR[1]) == JFK_OF_YEARS[0]
    other = PartitionKey(KEY.date, "LGA")
    commit(disk, other)  # it is made again, and says so
    assert Path(disk.path, "columns").exists()
    assert Dataset(disk.path, "airport").span() == "year"
    assert disk.stands(NEW_YEAR[1], 50)
    assert list(disk.versions()) == [*JFK_OF_YEARS, "airport=LGA/year=2013"]


def test_tables_a_year_beside_those_of_months_are_told_of(disk: Dataset) -> None:
    """Of a version that knows years alone: nobody reads them, so nobody may count them."""
    commit(disk, KEY)
    commit(DatasetTable(f"{disk.path}/{JFK_OF_YEARS[0]}", "airport"), KEY)
    with pytest.raises(RefusedError, match="holds tables a key and month, and others"):
        disk.tables()


def test_the_layout_is_known_without_the_beginning_of_a_log(dataset: Dataset) -> None:
    commit(dataset, KEY)
    path = f"{dataset.path}/columns"
    DeltaTable(path).create_checkpoint()
    Files(path).delete(f"_delta_log/{0:020}.json")
    assert Dataset(dataset.path, "airport").table_name(KEY) == JANUARY


def test_naming_a_table_opens_none(disk: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has used delta-rs must not fork; the names are told to many."""
    commit(disk, KEY)
    monkeypatch.setattr("resources.delta.open_table", None)
    delta.close_tables()
    assert disk.table_name(KEY) == JANUARY


def test_a_layout_of_a_later_version_is_refused(dataset: Dataset) -> None:
    create_table(f"{dataset.path}/columns", rows().schema, [], {LAYOUT: "week"})
    with pytest.raises(RefusedError, match=r"holds a week of a key.*knows month and year"):
        commit(dataset, KEY)
    with pytest.raises(RefusedError, match="work with the version that made the dataset"):
        dataset.tables([KEY])


# --- a dataset that is one table ----------------------------------------------------------------


def begun_as_one(dataset: Dataset) -> dict[PartitionKey, PartitionVersion]:
    """What an earlier version made."""
    table = DatasetTable(dataset.path, "airport")
    return {key: commit(table, key) for key in NEW_YEAR[:2]}


def test_one_table_goes_on_as_one(dataset: Dataset) -> None:
    versions = begun_as_one(dataset)
    assert dataset.is_one_table()
    for key in NEW_YEAR[2:]:
        versions[key] = commit(dataset, key)
    assert dataset.versions() == {".": 4}
    assert dataset.read_versions(versions.values()) == {".": 4}
    assert dataset.read(list(versions.values())).num_rows == 200
    assert dataset.read([]).num_rows == 0
    assert dataset.newest_rows().num_rows == 200
    again = versions[NEW_YEAR[0]].data_version
    assert not dataset.commit(NEW_YEAR[0], rows(NEW_YEAR[0]), previous=again).changed


def test_one_table_without_the_beginning_of_its_log_is_not_taken_for_none(disk: Dataset) -> None:
    begun_as_one(disk)
    DeltaTable(disk.path).create_checkpoint()
    Path(disk.path, "_delta_log", f"{0:020}.json").unlink()
    assert disk.is_one_table()
    assert disk.versions() == {".": 2}


@pytest.mark.parametrize(
    "act",
    [
        lambda found, _: commit(found, KEY),
        lambda found, version: found.read([version]),
        lambda found, _: found.stands(KEY, 1),
        lambda found, _: found.tables(),
    ],
    ids=["commit", "read", "stands", "tables"],
)
def test_an_earlier_version_that_writes_beside_the_tables_is_told_of(
    dataset: Dataset, act: Callable[[Dataset, PartitionVersion], object]
) -> None:
    """It would find no table in the folder, and begin one there."""
    version = commit(dataset, KEY)
    begun_as_one(Dataset(dataset.path, "airport"))
    with pytest.raises(RefusedError, match="holds tables of its keys, and is a table itself"):
        act(Dataset(dataset.path, "airport"), version)


def test_a_server_that_does_not_answer_is_not_taken_for_an_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match="Generic S3 error"):
        Dataset("s3://nowhere/features", "airport").is_one_table()
