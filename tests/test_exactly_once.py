"""Overlapping backfills, a retry and its zombie: each partition is made once, whoever comes.

For each there is the same without the guard, where it goes wrong.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from platform_assets.domain.errors import HeldError, TransientError
from platform_assets.domain.lease import Lease, LeaseTakenError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.factory.events import RESTATE_TAG
from platform_assets.line.crowning import decide_champion
from platform_assets.line.features import build_features
from platform_assets.line.judging import evaluate_model
from platform_assets.line.models import train_model
from platform_assets.line.projection import projected
from platform_assets.line.services import Services
from resources import processes
from resources.lake import Dataset, DatasetTable, content_digest
from resources.ledger import upgrade
from resources.ledger.leases import Leases
from tests import once_workers as work
from tests.lake_workers import held, rows
from tests.promoting import crowned
from tests.small import Line, Templates, copied, opened
from tests.test_lake_failures import gathered

JFK4, LGA4 = "JFK|2013-01-04", "LGA|2013-01-04"
ASSET = "flights/features"


@pytest.fixture
def line(home: Any) -> Iterator[Line]:
    """Whole hours of 2013-01-04, nothing built."""
    with opened(home) as found:
        found.land("2013-01-04")
        yield found


@pytest.fixture
def trained(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        yield found


def build(services: Services, partition: str = JFK4, run_id: str = "later") -> Any:
    return build_features(services, PartitionKey.parse(partition), run_id)


def correct(line: Line) -> None:
    """Deliver an hour of JFK's weather again, ten degrees warmer: other rows will be made of it."""
    hour = local_hours(date(2013, 1, 4), line.spec.partitions.timezone)[14]
    own = line.services.zone.read("weather", "JFK", date(2013, 1, 4))
    own = own.filter(pc.equal(own["time_hour"], pa.scalar(hour)))
    place = own.column_names.index("temp")
    warmer = own.set_column(place, "temp", pc.add(own["temp"], 10.0))
    line.services.zone.deliver("weather", "JFK", hour, warmer)


def path_of(line: Line, partition: str = JFK4) -> str:
    """Where the table of a partition lies."""
    return line.services.dataset.table_of(PartitionKey.parse(partition)).path


def in_table(line: Line, partition: str = JFK4) -> str:
    """The digest of what Delta's own reader finds of a partition."""
    return content_digest(held(path_of(line, partition), PartitionKey.parse(partition)))


def current(line: Line, partition: str = JFK4) -> Any:
    return line.versions("features")[partition]


def stopped(process: Any) -> bool:
    """Wait until a process has stopped itself; False if it has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            text = Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:
            return False
        state = text.rpartition(")")[2].split()[0]
        if state == "T":
            return True
        if state in "ZX":
            return False
        time.sleep(0.01)
    raise AssertionError("it neither stopped nor ended")


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", work.FEATURE_STEPS)
def test_after_a_kill_between_any_two_steps_the_next_run_makes_it_whole(
    line: Line, step: str
) -> None:
    process = work.start(work.build, line.home.root, JFK4, step, signal.SIGKILL, "killed", True)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    outcome = build(line.services)
    assert in_table(line) == outcome.data_version == current(line).data_version
    runs = [version.run_id for version in line.history("features", JFK4)]
    if step in ("recorded", "done"):
        assert runs[0] == "killed"
        # Only where the lease was not given back the rows are committed anew.
        assert len(runs) == (2 if step == "recorded" else 1)
    else:
        assert runs == ["later"]
    assert line.services.leases.held() == []
    assert build(line.services).metadata["already_done_by"] == runs[-1]


# --- asleep -------------------------------------------------------------------------------------

REFUSED_AT = ("claimed", "read", "joined", "opened", "committed")


@pytest.mark.parametrize("step", REFUSED_AT)
def test_who_sleeps_between_any_two_steps_is_replaced_and_changes_nothing_any_more(
    line: Line, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = work.start(work.build, line.home.root, JFK4, step, signal.SIGSTOP, "zombie", True)
    assert stopped(zombie)
    if step != "claimed":
        correct(line)  # what it has read is not what is there any more
    monkeypatch.setattr("platform_assets.domain.lease.TIMEOUT_SECONDS", 0.5)
    outcome = build(line.services)
    assert outcome.changed
    os.kill(zombie.pid, signal.SIGCONT)
    zombie.join(60)
    # LeaseLostError; but who has not yet read anything finds all done, and does nothing either.
    assert zombie.exitcode == (0 if step == "claimed" else 1)
    assert in_table(line) == outcome.data_version
    assert [v.run_id for v in line.history("features", JFK4)] == ["later"]
    marks = DeltaTable(path_of(line)).history()
    assert [m["signalbox.token"] for m in marks if "signalbox.token" in m][:1] == [2]


@pytest.mark.parametrize("step", ["opened", "committed"])
def test_without_leases_the_sleeper_has_the_last_word(line: Line, step: str) -> None:
    zombie = work.start(work.build, line.home.root, JFK4, step, signal.SIGSTOP, "zombie", False)
    assert stopped(zombie)
    correct(line)
    outcome = build(line.services)
    os.kill(zombie.pid, signal.SIGCONT)
    zombie.join(60)
    assert zombie.exitcode == 0
    # The ledger now names rows of hours that were replaced long since.
    assert current(line).run_id == "zombie"
    assert current(line).data_version != outcome.data_version


def test_a_restating_sleeper_meets_a_conflict_though_nothing_had_changed(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who replaces it finds all done, and commits all the same: else it would go on."""
    build(line.services, run_id="first")
    zombie = work.start(work.build, line.home.root, JFK4, "x", signal.SIGSTOP, "idle", True)
    zombie.join(60)  # the same inputs: done before it came to any step
    assert zombie.exitcode == 0
    correct(line)
    zombie = work.start(work.build, line.home.root, JFK4, "opened", signal.SIGSTOP, "zombie", True)
    assert stopped(zombie)
    build_back(line)
    monkeypatch.setattr("platform_assets.domain.lease.TIMEOUT_SECONDS", 0.5)
    before = DeltaTable(path_of(line)).version()
    outcome = build(line.services)
    assert DeltaTable(path_of(line)).version() == before + 1
    os.kill(zombie.pid, signal.SIGCONT)
    zombie.join(60)
    assert zombie.exitcode == 1
    assert in_table(line) == outcome.data_version == current(line).data_version


def test_who_fails_after_a_take_over_leaves_the_fence_to_the_next(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Had it given the lease back, the next would find all done and commit nothing."""
    build(line.services, run_id="first")
    sleeper = Leases(line.home.ledger_url)
    assert isinstance(sleeper.claim(f"{ASSET} {JFK4}", processes.holder("asleep")), Lease)
    monkeypatch.setattr("platform_assets.domain.lease.TIMEOUT_SECONDS", 0.5)
    before = line.services.dataset.versions()
    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.line.features.build_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(line.services)
    assert line.services.dataset.versions() == before
    assert "already_done_by" not in build(line.services).metadata
    name = "airport=JFK/month=2013-01"
    assert line.services.dataset.versions() == {**before, name: before[name] + 1}
    assert build(line.services).metadata["already_done_by"]


def build_back(line: Line) -> None:
    """The correction is taken back."""
    line.land("2013-01-04", airports=["JFK"])


# --- side by side -------------------------------------------------------------------------------


@pytest.mark.heavy
def test_two_identical_batches_make_each_partition_once(line: Line) -> None:
    line.land("2013-01-02", "2013-01-08", airports=["JFK"])
    names = [f"JFK|2013-01-0{n}" for n in range(2, 9)]
    barrier, queue = work.context.Barrier(2), work.context.Queue()
    runs = [work.start(work.build_all, line.home.root, names, run, barrier, queue) for run in "ab"]
    one, other = gathered(queue, runs)
    for name in names:
        assert sorted([one[name][0], other[name][0]]) == [False, True], name
        (version,) = line.history("features", name)
        assert {one[name][1], other[name][1]} == {None, version.run_id}
        assert in_table(line, name) == version.data_version
    table = DeltaTable(path_of(line))
    assert table.version() == len(names)


def test_without_leases_two_identical_runs_both_make_it(line: Line) -> None:
    first = work.start(work.build, line.home.root, JFK4, "joined", signal.SIGSTOP, "a", False)
    assert stopped(first)
    second = work.start(work.build, line.home.root, JFK4, "x", signal.SIGSTOP, "b", False)
    second.join(60)
    os.kill(first.pid, signal.SIGCONT)
    first.join(60)
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert DeltaTable(path_of(line)).version() == 2


@pytest.mark.heavy
@pytest.mark.parametrize("one", [False, True], ids=["tables", "one table"])
def test_eight_writers_of_one_partition_take_turns(tmp_path: Path, one: bool) -> None:
    url, dataset = f"sqlite:///{tmp_path / 'ledger.db'}", Dataset(tmp_path / "lake", "airport")
    table = DatasetTable(dataset.path, "airport") if one else dataset
    upgrade(url)
    queue = work.context.Queue()
    writers = [work.start(work.write_in_turn, url, table, JFK4, float(n), queue) for n in range(8)]
    results = sorted(gathered(queue, writers))
    assert [token for token, _ in results] == list(range(1, 9))
    key = PartitionKey.parse(JFK4)
    path = dataset.table_of(key).path
    last = rows(key, mark=results[-1][1])
    assert content_digest(held(path, key)) == content_digest(last)
    from resources.ledger import Ledger

    assert [v.detail["token"] for v in Ledger(url).history(ASSET, JFK4)] == list(range(1, 9))
    assert DeltaTable(path).version() == 8


def test_who_comes_while_another_is_at_work_waits_and_is_refused_in_the_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform_assets.line.services.CLAIM_SECONDS", 0.0)
    with line.services.claim(ASSET, JFK4, "at work"):
        with pytest.raises(LeaseTakenError, match="is being worked on: run at work"):
            build(line.services)
        # Another city is nobody's but its own.
        assert build(line.services, LGA4).changed
    assert build(line.services).changed


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), HeldError("a", {})])
def test_a_lease_is_given_back_when_the_work_fails(
    line: Line, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(DatasetTable, "_overwrite", fail)
        with pytest.raises((TransientError, HeldError)):
            build(line.services)
    assert line.services.leases.held() == []
    assert line.versions("features") == {}
    outcome = build(line.services)
    assert in_table(line) == outcome.data_version


# --- the same inputs, and others ----------------------------------------------------------------


def test_the_same_inputs_are_done_and_others_are_not(line: Line) -> None:
    first = build(line.services, run_id="first")
    again = build(line.services)
    assert (again.changed, again.metadata["already_done_by"]) == (False, "first")
    assert again.data_version == first.data_version
    assert again.inputs == first.inputs
    correct(line)
    other = build(line.services)
    assert other.changed
    assert other.data_version != first.data_version


def test_another_code_is_another_input(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    build(line.services)
    monkeypatch.setattr("platform_assets.line.inputs.code_version", lambda *_: "another")
    outcome = build(line.services)
    assert "already_done_by" not in outcome.metadata
    # The rows came out the same: nothing is committed, but it is known of what code they are.
    assert not outcome.changed
    assert len(line.history("features", JFK4)) == 2
    assert build(line.services).metadata["already_done_by"] == "later"


def test_rows_that_are_gone_are_made_again_though_their_inputs_are_the_same(line: Line) -> None:
    build(line.services)
    import shutil

    shutil.rmtree(line.services.dataset.path)
    assert build(line.services).changed


def test_a_restatement_makes_it_again_once(line: Line) -> None:
    build(line.services, run_id="first")
    asked = replace(line.services, restate="backfill 1")
    assert "already_done_by" not in build(asked, run_id="again").metadata
    # Its retry, and the batch beside it, find it done.
    assert build(asked).metadata["already_done_by"] == "again"
    assert build(line.services).metadata["already_done_by"] == "again"
    assert "already_done_by" not in build(replace(asked, restate="backfill 2")).metadata


def registered(line: Line) -> list[int]:
    from mlflow import MlflowClient

    client = MlflowClient(line.home.mlflow_uri, line.home.mlflow_uri)
    name = line.spec.model.name
    return sorted(int(v.version) for v in client.search_model_versions(f"name='{name}'"))


def test_a_second_training_on_the_same_leaves_mlflow_alone(trained: Line) -> None:
    before, day = registered(trained), "2013-01-04"
    ran = trained.must("model", partition=day)
    event = trained.materializations("model")[-1]
    made = trained.versions("model")[day]
    assert event.metadata["already_done_by"].value == made.run_id != ran.run_id
    assert event.metadata["registered_version"].value == made.detail["model_version"]
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == made.data_version
    assert registered(trained) == before
    # By its tag, once, however often the run is tried again.
    trained.must("model", partition=day, tags={RESTATE_TAG: "true", "dagster/backfill": "b1"})
    trained.must("model", partition=day, tags={RESTATE_TAG: "true", "dagster/backfill": "b1"})
    assert len(registered(trained)) == len(before) + 1


def test_a_training_on_another_snapshot_is_another_one(trained: Line) -> None:
    before = len(trained.history("model", "2013-01-04"))
    correct(trained)
    trained.must("features", partition=JFK4)
    trained.must("day", partition="2013-01-04")
    trained.must("snapshot", "model", partition="2013-01-04")
    assert len(trained.history("model", "2013-01-04")) == before + 1


def test_a_second_judgement_of_the_same_is_done(trained: Line) -> None:
    services, key = trained.services, PartitionKey(date(2013, 1, 4))
    first = evaluate_model(services, key, "first")
    again = evaluate_model(services, key, "again")
    assert (again.changed, again.metadata["already_done_by"]) == (False, "first")
    assert {k: v for k, v in again.metadata.items() if k != "already_done_by"} == {
        k: v for k, v in first.metadata.items() if k != "lease_token"
    }
    asked = replace(services, restate="again")
    train_model(asked, key, "again", lane="adhoc")
    assert evaluate_model(services, key, "again").changed


@pytest.mark.heavy
@pytest.mark.parametrize("step", work.MODEL_STEPS)
def test_a_training_that_is_killed_between_any_two_steps_is_recorded_once(
    trained: Line, step: str
) -> None:
    day = "2013-01-08"
    with trained.instance.get_ref() and opened(trained.home) as line:
        forget(line, day)
        known = registered(line)
        process = work.start(work.train, line.home.root, day, step, signal.SIGKILL, "killed")
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        train_model(line.services, PartitionKey.parse(day), "later", lane="adhoc")
        (version,) = line.history("model", day)
        assert version.run_id == ("killed" if step == "recorded" else "later")
        # What was registered and not recorded stays in MLflow, and nothing refers to it.
        extra = 2 if step == "registered" else 1
        assert len(registered(line)) == len(known) + extra
        assert version.detail["model_version"] == registered(line)[-1]
        assert line.services.leases.held() == []
        from mlflow import MlflowClient

        client = MlflowClient(line.home.mlflow_uri, line.home.mlflow_uri)
        assert client.get_run(version.detail["mlflow_run_id"]).info.status == "FINISHED"


def forget(line: Line, day: str) -> None:
    """As if the model of a day had never been trained."""
    import sqlite3

    with sqlite3.connect(line.home.ledger_url.removeprefix("sqlite:///")) as database:
        database.execute(
            "DELETE FROM partition_versions WHERE asset = ? AND partition = ?",
            ("flights/model", day),
        )


# --- the champion -------------------------------------------------------------------------------


def test_one_decides_on_the_champion_at_a_time(
    trained: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = trained.services
    evaluate_model(services, PartitionKey(date(2013, 1, 4)), "a")
    monkeypatch.setattr("platform_assets.line.services.CLAIM_SECONDS", 0.0)
    with (
        services.claim("flights/champion", None, "deciding"),
        pytest.raises(LeaseTakenError, match="flights/champion is being worked on"),
    ):
        decide_champion(services, "b")
    assert decide_champion(services, "b").changed


def test_who_sets_the_alias_late_sets_it_right_again(
    trained: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow lets the last one win; here it slept and another champion was crowned meanwhile."""
    services = trained.services
    evaluate_model(services, PartitionKey(date(2013, 1, 4)), "a")
    newer = trained.versions("model")["2013-01-08"].detail["model_version"]
    whole = services.tracking.set_alias

    def sleeps(model: str, alias: str, version: int) -> None:
        if alias == "champion" and waiting:
            assert version != newer
            record = crowned(services.ledger, waiting.pop(), model_date=date(2013, 1, 8))
            whole(model, alias, record.version)  # on another machine, beside this one's lock
        whole(model, alias, version)

    waiting = [newer]
    monkeypatch.setattr(services.tracking, "set_alias", sleeps)
    decide_champion(services, "late")
    assert not waiting
    assert services.tracking.alias("flight-delay", "champion") == newer


def test_a_decision_stands_where_the_registry_goes_away_before_it_is_told(
    trained: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = trained.services
    evaluate_model(services, PartitionKey(date(2013, 1, 4)), "a")

    def away(*_: object) -> None:
        raise TransientError("the tracking server does not answer, start it")

    with monkeypatch.context() as patch:
        patch.setattr(services.tracking, "set_alias", away)
        outcome = decide_champion(services, "a")
    decided = services.ledger.champion("flights")
    assert decided is not None
    assert outcome.changed
    assert "the tracking server does not answer" in str(outcome.metadata["projection"])
    assert services.tracking.alias("flight-delay", "champion") is None
    assert projected(services) is None
    assert services.tracking.alias("flight-delay", "champion") == decided.version


def test_a_lease_is_named_by_asset_and_partition(line: Line) -> None:
    with line.services.claim(ASSET, JFK4, "me") as lease:
        assert lease.resource == "flights/features JFK|2013-01-04"
        found = Leases(line.home.ledger_url).claim(lease.resource, processes.holder("other"))
        assert not isinstance(found, Lease)
