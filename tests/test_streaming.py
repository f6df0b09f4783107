"""A dataset in parts: the rows of one read, in its order, each partition verified."""

import dataclasses
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.days import load_snapshot
from platform_assets.line.reproduce import train_again
from platform_assets.line.rows import in_parts
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from resources.lake import DatasetTable
from resources.streaming import grouped, read_batches, read_parts
from tests.nyc import changed, flights_spec
from tests.small import PartsTrainer, Templates, copied, small_spec

DAYS = [date(2013, 1, 1) + timedelta(days=n) for n in range(4)]
ROWS = 50


def rows(key: PartitionKey, times: int = 1) -> pa.Table:
    count = ROWS * times
    return pa.table(
        {
            "airport": pa.array([key.key] * count, pa.string()),
            "date": pa.array([key.date] * count, pa.date32()),
            "x": pa.array([float(key.date.day * n % 17) for n in range(count)], pa.float64()),
        }
    )


@dataclasses.dataclass
class Filled:
    table: DatasetTable
    partitions: list[PartitionVersion]

    def read(self, some: object) -> pa.Table:
        return self.table.read(some, self.version)  # type: ignore[arg-type]

    @property
    def version(self) -> int:
        return max(p.table_version for p in self.partitions)


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    table = DatasetTable(tmp_path / "table", "airport")
    partitions = []
    for day in DAYS:
        for airport in ("LGA", "JFK"):
            key = PartitionKey(day, airport)
            done = table.commit(key, rows(key), previous=None)
            assert done.table_version is not None
            partitions.append(
                PartitionVersion(
                    partition=str(key),
                    data_version=done.data_version,
                    table_version=done.table_version,
                    rows=done.rows,
                )
            )
    return Filled(table, partitions)


@pytest.mark.parametrize(("most", "parts"), [(1, 8), (100, 4), (250, 2), (10_000, 1)])
def test_parts_are_the_rows_of_one_read_in_its_order(filled: Filled, most: int, parts: int) -> None:
    whole = filled.read(filled.partitions)
    found = list(read_parts(filled.read, filled.partitions, most))
    assert len(found) == parts
    assert pa.concat_tables(found).equals(whole)
    batches = list(read_batches(filled.read, filled.partitions, most))
    assert pa.Table.from_batches(batches).combine_chunks().equals(whole.combine_chunks())


def test_a_partition_is_read_as_the_snapshot_has_it(filled: Filled) -> None:
    whole = filled.read(filled.partitions)
    key = PartitionKey(DAYS[1], "JFK")
    filled.table.commit(key, rows(key, times=2), previous=None)
    later = Filled(filled.table, filled.partitions)
    assert pa.concat_tables(read_parts(later.read, filled.partitions, 100)).equals(whole)


def test_rows_that_are_not_those_of_the_digest_are_refused(filled: Filled) -> None:
    bad = filled.partitions[-1].model_copy(update={"data_version": "0" * 64})
    stream = read_parts(filled.read, [*filled.partitions[:-1], bad], 100)
    for _ in range(3):
        next(stream)
    with pytest.raises(RefusedError, match="holds other rows"):
        next(stream)


def test_one_part_at_a_time_is_asked_for(filled: Filled) -> None:
    asked: list[int] = []

    def read(some: object) -> pa.Table:
        asked.append(len(some))  # type: ignore[arg-type]
        return filled.read(some)

    stream = read_parts(read, filled.partitions, 100)
    assert asked == []
    next(stream)
    assert asked == [2], "the next is read when it is asked for"


def test_no_partition_is_cut(filled: Filled) -> None:
    assert [len(group) for group in grouped(filled.partitions, 120)] == [2] * 4
    assert [len(group) for group in grouped(filled.partitions, 60)] == [1] * 8
    assert grouped([]) == []


def test_a_trainer_that_cannot_is_not_asked_to() -> None:
    spec = changed(flights_spec(), model={"stream": True})
    with pytest.raises(UsageError, match="has no fit_stream: it takes its rows all at once"):
        in_parts(LightGBMTrainer(), spec)


def test_a_model_of_rows_in_parts_is_the_model_of_the_whole_and_is_rebuilt(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a trainer that puts the parts together again."""
    parts = small_spec(model={"trainer": "tests.small:PartsTrainer", "stream": True})
    features = Templates(shared_folder, home_template).features
    with copied(features, tmp_path / "whole") as line:
        line.must("snapshot", "model", partition="2013-01-04")
        whole = line.versions("model")["2013-01-04"]
    monkeypatch.setattr("resources.streaming.read_parts.__defaults__", (500,))
    PartsTrainer.seen.clear()
    with copied(features, tmp_path / "parts", parts) as line:
        line.must("snapshot", "model", partition="2013-01-04")
        found = line.versions("model")["2013-01-04"]
        table = line.services.dataset.read(
            load_snapshot(line.services, date(2013, 1, 4), found.detail["snapshot"]).partitions
        )
        assert train_again(parts, table).digest == found.data_version
    assert PartsTrainer.seen[0] > 1, "one part would prove nothing"
    assert found.data_version == whole.data_version
    assert found.rows == whole.rows
    assert found.detail["fingerprint_parts"]["stream"] is True
    assert "stream" not in whole.detail["fingerprint_parts"]
