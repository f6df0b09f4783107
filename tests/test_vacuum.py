"""What a registered model was trained or judged on stays readable, whatever is removed.

Delta's own vacuum knows nothing of models: beside each guard stands what it would do.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.reproduction import Verdict
from platform_assets.line.days import as_partition_version, build_day, build_snapshot
from platform_assets.line.features import build_features
from platform_assets.line.judging import evaluate_model
from platform_assets.line.maintenance import maintain, pinned_versions, vacuum
from platform_assets.line.models import train_model
from platform_assets.line.reproduce import reproduce
from resources import upkeep
from resources.files import Files
from resources.lake import DatasetTable
from resources.ledger.records import VersionRecord
from resources.vacuum import sort_files
from tests.lake_workers import rows
from tests.small import Line, Templates, copied, replace_rows

NOW = timedelta(0)
DAY = "2013-01-05"


# --- the files of a table ---------------------------------------------------------------------

KEYS = [PartitionKey(date(2013, 1, day), key) for day in (4, 5) for key in ("JFK", "LGA")]
FOREVER = 2**62

steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("append"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("compact"), st.just(0), st.just(0)),
        st.tuples(st.just("pin"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("vacuum"), st.just(0), st.just(0)),
    ),
    min_size=3,
    max_size=14,
)


@dataclass
class Scratch:
    """A table, what its partitions hold, and what models have pinned of it."""

    table: DatasetTable
    current: dict[PartitionKey, PartitionVersion] = field(default_factory=dict)
    pinned: list[list[PartitionVersion]] = field(default_factory=list)

    def commit(self, key: PartitionKey, n: int) -> None:
        before = self.current.get(key)
        done = self.table.commit(
            key, rows(key, 3 * n, mark=n), previous=before.data_version if before else None
        )
        if done.table_version is not None:
            self.current[key] = PartitionVersion(
                partition=str(key),
                data_version=done.data_version,
                table_version=done.table_version,
                rows=done.rows,
            )

    def pins(self) -> Mapping[int, set[PartitionKey]]:
        found: dict[int, set[PartitionKey]] = {}
        for partitions in [*self.pinned, *([p] for p in self.current.values())]:
            together = max(p.table_version for p in partitions)
            for p in partitions:
                key = PartitionKey.parse(p.partition)
                found.setdefault(together, set()).add(key)
                found.setdefault(p.table_version, set()).add(key)
        return found

    def vacuum(self) -> None:
        if self.table.version() is None:
            return
        found = sort_files(self.table.path, "airport", self.pins(), FOREVER)
        for file in found.expired:
            Files(self.table.path).delete(file.name)

    def unreadable(self) -> int:
        """How many of the pinned sets of partitions can no longer be read as they were."""
        count = 0
        for partitions in [*self.pinned, *([p] for p in self.current.values())]:
            try:
                read = self.table.read(partitions, max(p.table_version for p in partitions))
            except RefusedError:
                count += 1
            else:
                assert read.num_rows == sum(p.rows for p in partitions)
        return count

    def play(self, done: list[tuple[str, int, int]]) -> None:
        for what, which, n in done:
            if what == "commit":
                self.commit(KEYS[which], n)
            elif what == "append" and n and KEYS[which] in self.current:
                # A file more: the partition holds other rows now, and is compacted later.
                write_deltalake(self.table.path, rows(KEYS[which], n), mode="append")
                self.current.pop(KEYS[which])
            elif what == "compact" and self.table.version() is not None:
                upkeep.compact(self.table.path)
            elif what == "pin" and self.current:
                self.pinned.append(list(self.current.values())[:which])
            elif what == "vacuum":
                self.vacuum()


@pytest.mark.heavy
@settings(deadline=None, max_examples=40)
@given(done=steps)
def test_no_pinned_version_is_ever_unreadable(done: list[tuple[str, int, int]]) -> None:
    with TemporaryDirectory() as folder:
        scratch = Scratch(DatasetTable(Path(folder, "table"), "airport"))
        scratch.play(done)
        scratch.vacuum()
        assert scratch.unreadable() == 0


def test_what_nobody_pins_is_removed_and_the_rest_is_read_as_it_was(tmp_path: Path) -> None:
    scratch = Scratch(DatasetTable(tmp_path / "table", "airport"))
    scratch.play([("commit", 0, 1), ("commit", 1, 1), ("pin", 2, 0)])
    scratch.play([("commit", 0, 2), ("commit", 0, 3)])
    found = sort_files(scratch.table.path, "airport", scratch.pins(), FOREVER)
    assert (len(found.pinned), len(found.recent), len(found.expired)) == (1, 0, 1)
    scratch.vacuum()
    assert scratch.unreadable() == 0
    # What was replaced after the cutoff stays, though nobody pins it.
    scratch.play([("commit", 0, 1)])
    recent = sort_files(scratch.table.path, "airport", scratch.pins(), 0)
    assert (len(recent.recent), len(recent.expired)) == (1, 0)


def test_plain_vacuum_takes_what_a_model_pins(tmp_path: Path) -> None:
    """The failure itself."""
    scratch = Scratch(DatasetTable(tmp_path / "table", "airport"))
    scratch.play([("commit", 0, 1), ("commit", 1, 1), ("pin", 2, 0), ("commit", 0, 2)])
    assert scratch.unreadable() == 0
    DeltaTable(scratch.table.path).vacuum(
        retention_hours=0, enforce_retention_duration=False, dry_run=False
    )
    assert scratch.unreadable() == 1
    with pytest.raises(RefusedError, match=r"partition JFK\|2013-01-04: version 1 of .* vacuumed"):
        scratch.table.read(scratch.pinned[0], 2)


def test_a_lost_file_of_another_partition_costs_only_that_one(tmp_path: Path) -> None:
    """Read at once where all files are there, else each where it was committed."""
    scratch = Scratch(DatasetTable(tmp_path / "table", "airport"))
    scratch.play([("commit", n, 1) for n in range(3)])
    lost = next(Path(scratch.table.path, "airport=LGA", "date=2013-01-04").glob("*.parquet"))
    lost.unlink()
    all_but = [v for k, v in scratch.current.items() if str(k) != "LGA|2013-01-04"]
    assert scratch.table.read(all_but, 3).num_rows == 6
    with pytest.raises(RefusedError, match=r"partition LGA\|2013-01-04: "):
        scratch.table.read(list(scratch.current.values()), 3)


def test_a_log_or_a_table_that_is_not_whole_lets_nothing_be_removed(tmp_path: Path) -> None:
    scratch = Scratch(DatasetTable(tmp_path / "table", "airport"))
    scratch.play([("commit", 0, 1), ("commit", 0, 2)])
    with pytest.raises(RefusedError, match="version 9 of it is recorded"):
        sort_files(scratch.table.path, "airport", {9: set(KEYS)}, FOREVER)
    DeltaTable(scratch.table.path).create_checkpoint()
    Path(scratch.table.path, "_delta_log", f"{1:020}.json").unlink()
    with pytest.raises(RefusedError, match="nothing was removed, restore the log"):
        sort_files(scratch.table.path, "airport", scratch.pins(), FOREVER)


# --- the models of a pipeline -----------------------------------------------------------------


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        evaluate_model(found.services, PartitionKey.parse("2013-01-04"), "by hand")
        yield found


def replaced(line: Line) -> dict[str, VersionRecord]:
    """Replace every partition twice: the version in between is nobody's."""
    names = sorted(line.versions("features"))
    for name in names:
        replace_rows(line, name)
    return {name: replace_rows(line, name) for name in names}


@pytest.mark.heavy
def test_every_model_and_judgement_is_there_after_maintenance_and_vacuum(line: Line) -> None:
    services = line.services
    models = services.ledger.versions("flights/model")
    count = len(replaced(line))
    maintain(services, "by hand")
    tried = vacuum(services, "by hand", keep=NOW, dry_run=True)
    assert tried["removed"] == []
    assert tried["expired_files"] >= count
    assert vacuum(services, "by hand")["expired_files"] == 0  # replaced a moment ago
    done = vacuum(services, "by hand", keep=NOW)
    assert len(done["removed"]) == tried["expired_files"]
    assert done["removed_bytes"] == tried["expired_bytes"] > 0
    assert done["models"] == len(models) == 4
    assert not any(Path(services.dataset.path, name).exists() for name in done["removed"])
    for record in models:
        assert reproduce(services, record).verdict is Verdict.IDENTICAL
    (judgement,) = services.ledger.versions("flights/evaluation")
    judged = [PartitionVersion(**p) for p in judgement.detail["partitions"]]
    assert services.dataset.read(judged).num_rows
    # What is current is there as well, and a model is trained on it.
    for name, record in line.versions("features").items():
        version = as_partition_version(record)
        assert services.dataset.read([version]).num_rows == record.rows, name
    # The version in between is gone, which is what it was for.
    between = services.ledger.history("flights/features", "JFK|2013-01-04")[-2]
    with pytest.raises(RefusedError, match="vacuumed"):
        services.dataset.read([as_partition_version(between)])


def test_without_the_pins_the_models_could_not_be_rebuilt(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure itself, by our own hand and by Delta's."""
    replaced(line)
    monkeypatch.setattr("platform_assets.line.maintenance.pinned_versions", lambda _: {})
    vacuum(line.services, "by hand", keep=NOW)
    record = line.versions("model")[DAY]
    with pytest.raises(RefusedError, match="its data is not there as it was"):
        reproduce(line.services, record)


def test_what_a_current_snapshot_names_is_pinned_before_it_is_trained_on(line: Line) -> None:
    services = line.services
    for airport in ("JFK", "LGA"):
        replace_rows(line, f"{airport}|{DAY}")
    build_day(services, PartitionKey.parse(DAY), "by hand")
    build_snapshot(services, PartitionKey.parse(DAY), "by hand")
    # Replaced again before the training begins.
    for airport in ("JFK", "LGA"):
        replace_rows(line, f"{airport}|{DAY}")
    vacuum(services, "by hand", keep=NOW)
    asked = replace(services, restate="by hand")
    outcome = train_model(asked, PartitionKey.parse(DAY), "by hand", lane="adhoc")
    assert outcome.changed


def test_a_manifest_that_is_gone_lets_nothing_be_removed(line: Line) -> None:
    replaced(line)
    lake = Path(line.services.dataset.path)
    before = set(lake.rglob("*.parquet"))
    record = line.versions("model")[DAY]
    folder = line.home.lake / "flights" / "snapshots" / DAY
    (folder / f"{record.detail['snapshot']}.json").unlink()
    with pytest.raises(RefusedError, match="nobody can tell which versions the snapshot of"):
        vacuum(line.services, "by hand", keep=NOW)
    assert set(lake.rglob("*.parquet")) == before


def test_a_model_that_was_trained_again_keeps_its_pins(line: Line) -> None:
    """The first version may still be champion, or be what is rolled back to."""
    services, day = line.services, PartitionKey.parse(DAY)
    first = line.versions("model")[DAY]
    for airport in ("JFK", "LGA"):
        replace_rows(line, f"{airport}|{DAY}")
    build_day(services, day, "by hand")
    build_snapshot(services, day, "by hand")
    train_model(services, day, "by hand", lane="adhoc")
    second = line.versions("model")[DAY]
    assert first.detail["snapshot"] != second.detail["snapshot"]
    vacuum(services, "by hand", keep=NOW)
    for record in (first, second):
        assert reproduce(services, record).verdict is Verdict.IDENTICAL


def test_a_version_is_one_of_its_own_table(line: Line) -> None:
    """Taken for versions of one table, LGA's would be asked for one that it never had."""
    for _ in range(3):
        replace_rows(line, f"JFK|{DAY}")
    pins = pinned_versions(line.services)
    jfk, lga = (pins[f"airport={key}/month=2013-01"] for key in ("JFK", "LGA"))
    there = line.services.dataset.versions()
    assert (
        max(jfk)
        == there["airport=JFK/month=2013-01"]
        > there["airport=LGA/month=2013-01"]
        >= max(lga)
    )
    assert {key.key for keys in lga.values() for key in keys} == {"LGA"}
    assert len(vacuum(line.services, "by hand", keep=NOW)["removed"]) == 2
    assert reproduce(line.services, line.versions("model")[DAY]).verdict is Verdict.IDENTICAL


def test_nothing_was_built_yet(line: Line) -> None:
    pins = pinned_versions(line.services)
    there = line.services.dataset.versions()
    assert pins
    assert all(max(own) <= there[name] for name, own in pins.items())
    assert json.dumps(vacuum(line.services, "by hand", keep=NOW, dry_run=True))


def test_a_partition_is_built_after_a_vacuum_as_before(line: Line) -> None:
    """Readers and writers go on: a removed file is no longer part of the newest version."""
    replaced(line)
    vacuum(line.services, "by hand", keep=NOW)
    again = replace(line.services, restate="by hand")
    outcome = build_features(again, PartitionKey.parse(f"JFK|{DAY}"), "by hand")
    assert outcome.changed
