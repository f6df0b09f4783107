"""Maintenance and vacuum of tables on an S3-compatible server, as on the local disk.

The server answers one request at a time, see tests/s3.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.days import as_partition_version
from platform_assets.line.maintenance import maintain, vacuum
from resources import upkeep
from resources.files import Files
from resources.home import Home
from resources.lake import Dataset
from resources.vacuum import data_files, sort_files
from tests.lake_workers import DAY, rows
from tests.small import Line, opened, replace_rows

NAME = f"JFK|{DAY}"
FOREVER = 2**62


@pytest.fixture
def line(home: Home, s3_bucket: str, request: pytest.FixtureRequest) -> Iterator[Line]:
    """Two days of two airports, whose tables alone lie on S3."""
    with opened(replace(home, lake_url=f"{s3_bucket}/{request.node.name}")) as found:
        found.land("2013-01-04", "2013-01-05")
        for airport in ("JFK", "LGA"):
            found.must("features", span=(f"{airport}|2013-01-04", f"{airport}|2013-01-05"))
        yield found


def of_the_table(line: Line) -> Files:
    """The files of the table that the replaced partition lies in."""
    return Files(line.services.dataset.table_of(PartitionKey.parse(NAME)).path)


def test_what_nobody_needs_is_removed_and_nothing_else(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = line.services
    first = line.versions("features")[NAME]
    for _ in range(2):
        replace_rows(line, NAME)
    files = of_the_table(line)
    assert not files.local
    left = f"airport=JFK/date={DAY}/left.parquet"
    files.put(left, b"of a writer that was killed")
    assert maintain(services, "me")["orphans_removed"] == []  # it may be about to be committed
    monkeypatch.setattr(upkeep, "ORPHAN_SECONDS", -60.0)
    with services.claim("flights/features", NAME, "at work"):
        assert maintain(services, "me")["orphans_removed"] == []
    done = maintain(services, "me")
    assert done["orphans_removed"] == [f"airport=JFK/month=2013-01/{left}"]
    assert left not in {file.name for file in files.walk()}

    assert vacuum(services, "me")["expired_files"] == 0  # replaced a moment ago
    tried = vacuum(services, "me", keep=timedelta(0), dry_run=True)
    assert (tried["expired_files"], tried["removed"]) == (2, [])
    done = vacuum(services, "me", keep=timedelta(0))
    assert len(done["removed"]) == 2
    assert done["removed_bytes"] == tried["expired_bytes"] > 0
    for record in line.versions("features").values():
        assert services.dataset.read([as_partition_version(record)]).num_rows == record.rows
    with pytest.raises(RefusedError, match="vacuumed"):
        services.dataset.read([as_partition_version(first)])


def test_a_checkpoint_is_written_once(line: Line) -> None:
    maintain(line.services, "me")
    before = list(of_the_table(line).walk())
    assert any("checkpoint" in file.name for file in before)
    maintain(line.services, "me")
    assert list(of_the_table(line).walk()) == before


def test_a_log_that_is_not_whole_lets_nothing_be_removed(line: Line) -> None:
    replace_rows(line, NAME)
    files = of_the_table(line)
    DeltaTable(files.root).create_checkpoint()
    files.delete(f"_delta_log/{1:020}.json")
    before = data_files(files)
    for remove in (maintain, vacuum):
        with pytest.raises(RefusedError, match="nothing was removed, restore the log"):
            remove(line.services, "me")
    assert data_files(files) == before


def test_a_table_that_is_gone_is_built_again(line: Line) -> None:
    """The ledger knows its partitions as they were; nobody has to ask for them anew."""
    before = line.versions("features")[NAME]
    of_the_table(line).delete("")
    version = as_partition_version(before)
    with pytest.raises(RefusedError, match="is no Delta table, but versions of it are recorded"):
        line.services.dataset.read([version])
    line.must("features", partition=NAME)
    after = as_partition_version(line.versions("features")[NAME])
    assert after.data_version == version.data_version
    assert line.services.dataset.read([after]).num_rows == version.rows


@pytest.mark.parametrize("key", ["JFK", "Zürich 1%", "a/b=c", "ümlaut+&?#"])
@pytest.mark.parametrize("place", ["disk", "S3"])
def test_files_are_found_whatever_the_key_is_called(
    place: str, key: str, tmp_path: Path, s3_bucket: str
) -> None:
    """The log names a file in an address's spelling, a listing as it is."""
    root = tmp_path if place == "disk" else f"{s3_bucket}/keys"
    table = Dataset(f"{root}/{len(key)}", "airport").table_of(PartitionKey(DAY, key))
    partition = PartitionKey(DAY, key)
    first = table.commit(partition, rows(partition, mark=1.0), previous=None)
    table.commit(partition, rows(partition, mark=2.0), previous=first.data_version)
    found = sort_files(table.path, "airport", {}, FOREVER)
    assert (len(found.pinned), len(found.recent), len(found.expired)) == (0, 0, 1)
    assert upkeep.orphans(table.path, FOREVER) == []
    Files(table.path).delete(found.expired[0].name)
    assert DeltaTable(table.path).to_pyarrow_table().num_rows == 50
    assert table.stands(partition, 50)
    (own,) = data_files(Files(table.path))
    Files(table.path).delete(own.name)
    assert not table.stands(partition, 50)
    assert sort_files(table.path, "airport", {}, FOREVER).expired == ()
