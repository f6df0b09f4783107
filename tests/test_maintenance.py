"""Maintenance removes what no version ever had, and nothing else, while runs go on."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable, write_deltalake

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lanes import Lane, lane_of
from platform_assets.domain.lease import LeaseTakenError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.line.maintenance import maintain
from resources.home import Home
from resources.lake import DatasetTable
from tests.lake_workers import KEY, held, rows
from tests.small import Line, opened

DAYS = 2 * 24 * 3600


@pytest.fixture(params=["tables", "one table"])
def line(request: pytest.FixtureRequest, home: Home) -> Iterator[Line]:
    with opened(home) as found:
        if request.param == "one table":  # as an earlier version began it
            begun = DatasetTable(found.services.dataset.path, "airport")
            begun._create(rows().schema)
        yield found


def orphan(line: Line, name: str = "orphan") -> Path:
    """A file that a writer left behind which was killed before it committed."""
    table = Path(line.services.dataset.table_of(KEY).path)
    folder = table / f"airport={KEY.key}" / f"date={KEY.date}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.parquet"
    file.write_bytes(b"whatever")
    return file


def age(path: Path) -> None:
    for file in [*path.rglob("*.parquet")]:
        os.utime(file, (time.time() - DAYS, time.time() - DAYS))


def test_only_what_no_version_ever_had_is_removed(line: Line) -> None:
    table = line.services.dataset.table_of(KEY)
    first = table.commit(KEY, rows(mark=1.0), previous=None)
    table.commit(KEY, rows(mark=2.0), previous=None)
    write_deltalake(table.path, rows(mark=2.0), mode="append")
    left = orphan(line)
    age(Path(table.path))
    fresh = orphan(line, "fresh")
    done = maintain(line.services, "me")
    assert done["files_compacted"] == 2
    assert done["orphans_removed"] == [str(left.relative_to(line.services.dataset.path))]
    assert not left.exists()
    assert fresh.exists()
    # The rows that were replaced, and those that were compacted, are read as they were.
    pinned = PartitionVersion(
        partition=str(KEY),
        data_version=first.data_version,
        table_version=first.table_version or 0,
        rows=50,
    )
    newest = done["tables"][line.services.dataset.table_name(KEY)]["version"]
    assert set(table.read([pinned], newest)["mark"].to_pylist()) == {1.0}
    assert held(table.path).num_rows == 100
    assert held(table.path, version=2).num_rows == 50
    # What Delta's own vacuum would have taken, had it been let.
    would = DeltaTable(table.path).vacuum(
        retention_hours=0, enforce_retention_duration=False, dry_run=True
    )
    assert len(would) >= 3


def test_a_partition_that_somebody_is_at_work_on_is_left_alone(line: Line) -> None:
    line.services.dataset.commit(KEY, rows(), previous=None)
    file = orphan(line)
    age(Path(line.services.dataset.path))
    with line.services.claim("flights/features", str(KEY), "at work"):
        assert maintain(line.services, "me")["orphans_removed"] == []
    assert file.exists()
    assert len(maintain(line.services, "me")["orphans_removed"]) == 1


def test_one_maintenance_at_a_time(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform_assets.line.services.CLAIM_SECONDS", 0.0)
    with (
        line.services.claim("flights/maintenance", None, "other"),
        pytest.raises(LeaseTakenError),
    ):
        maintain(line.services, "me")


def test_a_log_that_is_not_whole_lets_nothing_be_removed(line: Line) -> None:
    table = line.services.dataset.table_of(KEY)
    table.commit(KEY, rows(), previous=None)
    table.commit(KEY, rows(mark=1.0), previous=None)
    DeltaTable(table.path).create_checkpoint()
    file = orphan(line)
    age(Path(table.path))
    Path(table.path, "_delta_log", f"{1:020}.json").unlink()
    with pytest.raises(RefusedError, match="nothing was removed, restore the log"):
        maintain(line.services, "me")
    assert file.exists()


def test_a_table_without_news_is_left_as_it_is(line: Line) -> None:
    line.services.dataset.commit(KEY, rows(), previous=None)
    log = Path(line.services.dataset.table_of(KEY).path, "_delta_log")

    def checkpoints() -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in log.glob("*checkpoint*")}

    maintain(line.services, "me")
    before = checkpoints()
    assert len(before) == 2
    maintain(line.services, "me")
    assert checkpoints() == before
    line.services.dataset.commit(KEY, rows(mark=1.0), previous=None)
    maintain(line.services, "me")
    assert checkpoints() != before


def test_nothing_was_built_yet(line: Line) -> None:
    assert maintain(line.services, "me")["orphans"] == 0


def test_the_job_in_the_ui(line: Line) -> None:
    line.services.dataset.commit(KEY, rows(), previous=None)
    job = line.defs.resolve_job_def("flights_maintain")
    assert job.execute_in_process(instance=line.instance).success
    assert line.services.leases.held() == []


def test_the_schedule_has_to_be_started_and_its_runs_are_not_of_the_daily_lane(line: Line) -> None:
    schedule = line.defs.resolve_schedule_def("flights_maintain_nightly")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    assert (schedule.job_name, schedule.execution_timezone) == (
        "flights_maintain",
        "America/New_York",
    )
    at = datetime(2013, 1, 5, 7, 30, tzinfo=UTC)
    with dg.build_schedule_context(line.instance, at) as context:
        (request,) = schedule.evaluate_tick(context).run_requests or ()
    tags = {**request.tags, "dagster/schedule_name": schedule.name}
    assert lane_of(tags) is Lane.ADHOC
    assert lane_of({"dagster/schedule_name": schedule.name}) is Lane.DAILY, "without its own tag"
