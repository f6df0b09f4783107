"""A training whose process is ended from outside: one training, whatever it is interrupted by."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import LaunchRunContext
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import should_retry
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from platform_assets.domain.interruptions import PREEMPTED_TAG, SAVED_TAG
from platform_assets.domain.partition import PartitionKey
from platform_assets.instance.worker import report_lost
from platform_assets.line.days import load_snapshot
from platform_assets.line.models import train_model
from platform_assets.line.reproduce import train_again
from sensors.tracking_truth import settle_tracking
from tests.interrupted_location import PLAN, ROUNDS, PlainTrainer, spec
from tests.small import Line, Templates, copied, definitions

DAY = "2013-01-05"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).features, tmp_path, spec()) as found:
        found.must("snapshot", partition=DAY)
        yield found


def plan(line: Line, at: int, by: int = signal.SIGTERM, **more: object) -> None:
    (line.home.root / PLAN).write_text(json.dumps({"at": at, "signal": int(by), **more}))


def train(line: Line, **tags: str) -> dg.DagsterRun:
    """A run of the model, as the UI launches one; how it is by the end."""
    result = line.run("model", partition=DAY, tags=tags)
    found = line.instance.get_run_by_id(result.run_id)
    assert found is not None
    return found


def mlflow_runs(line: Line) -> list[Any]:
    client = line.services.tracking.link().client
    experiment = client.get_experiment_by_name("flights")
    return list(client.search_runs([experiment.experiment_id]))


def model_of(line: Line) -> str:
    return line.versions("model")[DAY].data_version


def undisturbed(line: Line) -> str:
    """The model of the same rows that nobody interrupted, trained beside."""
    record = line.versions("snapshot")[DAY]
    snapshot = load_snapshot(line.services, PartitionKey.parse(DAY).date, record.data_version)
    table = line.services.dataset.read(snapshot.partitions)
    return train_again(line.spec, table).digest


def test_a_training_that_is_told_to_go_is_gone_on_with(line: Line) -> None:
    plan(line, at=5)
    first = train(line)
    assert first.status is dg.DagsterRunStatus.FAILURE
    assert first.tags["dagster/failure_reason"] == "UNEXPECTED_TERMINATION"
    assert first.tags[PREEMPTED_TAG] == "1"
    assert should_retry(first, line.instance)
    assert [run.info.status for run in mlflow_runs(line)] == ["KILLED"]

    second = train(line)
    assert second.status is dg.DagsterRunStatus.SUCCESS
    assert model_of(line) == undisturbed(line)
    (run,) = mlflow_runs(line)
    assert run.info.status == "FINISHED"
    assert run.data.tags["signalbox.dagster_run_id"] == second.run_id
    assert run.data.metrics["interruptions"] == 1
    assert run.data.metrics["resumed_from_step"] == 5
    history = line.services.tracking.link().client.get_metric_history(
        run.info.run_id, "train_log_loss"
    )
    assert [point.step for point in history] == list(range(1, ROUNDS + 1))
    event = line.materializations("model")[-1].metadata
    assert event["interruptions"].value == 1
    assert event["resumed_from_step"].value == 5
    assert event["seconds_lost"].value >= 0
    assert not list((line.home.root / "checkpoints").glob("*/*"))


def test_plain_a_killed_training_loses_all(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    """The accident: without a checkpointer the second attempt begins at the first round."""
    plain = spec(PlainTrainer, enabled=False)
    with copied(Templates(shared_folder, home_template).features, tmp_path, plain) as line:
        line.must("snapshot", partition=DAY)
        plan(line, at=5)
        first = train(line)
        assert first.status is dg.DagsterRunStatus.FAILURE
        train(line)
        done = [
            int(point.step)
            for run in mlflow_runs(line)
            for point in line.services.tracking.link().client.get_metric_history(
                run.info.run_id, "train_log_loss"
            )
        ]
        assert len(mlflow_runs(line)) == 2
        assert len(done) == 5 + ROUNDS


def test_a_persons_cancel_is_not_made_up_for(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    report = line.instance.report_run_canceling
    whole = os.kill

    def cancel(pid: int, number: int) -> None:
        (found,) = line.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        report(found)
        whole(pid, number)

    monkeypatch.setattr(os, "kill", cancel)
    plan(line, at=5)
    run = train(line)
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert PREEMPTED_TAG not in run.tags
    assert not should_retry(run, line.instance)


def test_an_error_of_the_code_keeps_its_rule(line: Line) -> None:
    plan(line, at=5, **{"raise": True})
    run = train(line)
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags["dagster/failure_reason"] == "STEP_FAILURE"
    assert not should_retry(run, line.instance)


def test_an_error_of_the_code_is_no_interruption(line: Line) -> None:
    """The next attempt goes on from what was saved; how often one is interrupted is unchanged."""
    plan(line, at=6, sleep_at=3, pause_at=5, **{"raise": True})
    assert train(line).status is dg.DagsterRunStatus.FAILURE
    assert train(line).status is dg.DagsterRunStatus.SUCCESS
    event = line.materializations("model")[-1].metadata
    assert event["resumed_from_step"].value in (3, 4)
    assert event["interruptions"].value == 0
    assert event["seconds_lost"].value == 0
    assert model_of(line) == undisturbed(line)


def test_interruptions_before_an_error_are_still_counted(line: Line) -> None:
    plan(line, at=3)
    train(line)
    plan(line, at=6, **{"raise": True})
    train(line)
    plan(line, at=7)
    train(line)
    assert train(line).status is dg.DagsterRunStatus.SUCCESS
    event = line.materializations("model")[-1].metadata
    assert event["interruptions"].value == 2


def worker(line: Line, run: dg.DagsterRun) -> subprocess.Popen[bytes]:
    """An ordinary run worker, as Dagster's own launcher starts one."""
    assert run.job_code_origin is not None
    arguments = ExecuteRunArgs(run.job_code_origin, run.run_id, line.instance.get_ref())
    return subprocess.Popen(
        [sys.executable, "-m", "dagster", "api", "execute_run", serialize_value(arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def created(line: Line, parent: dg.DagsterRun | None = None) -> dg.DagsterRun:
    """A run of the model; as the retry of another one, as Dagster's daemon makes it."""
    location = ReconstructableRepository.for_module("tests.interrupted_location", "repository")
    job = definitions(spec()).resolve_implicit_global_asset_job_def()
    tags = {"dagster/partition": DAY}
    more: dict[str, Any] = {}
    if parent is not None:
        more = {"parent_run_id": parent.run_id, "root_run_id": parent.root_run_id or parent.run_id}
        tags = {**tags, SAVED_TAG: parent.tags.get(SAVED_TAG, ""), "dagster/retry_number": "1"}
        tags |= {"dagster/parent_run_id": more["parent_run_id"]}
        tags |= {"dagster/root_run_id": more["root_run_id"]}
    return line.instance.create_run_for_job(
        job.get_subset(asset_selection={line.key("model")}),
        asset_selection=frozenset({line.key("model")}),
        job_code_origin=location.get_reconstructable_job(job.name).get_python_origin(),
        status=dg.DagsterRunStatus.STARTING,
        tags=tags,
        **more,
    )


def now(line: Line, run: dg.DagsterRun) -> dg.DagsterRun:
    found = line.instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_and_one_that_is_told_to_go(line: Line) -> None:
    """SIGKILL to an ordinary worker, then SIGTERM to a forked one: still one training."""
    plan(line, at=6, by=signal.SIGKILL, sleep_at=3, pause_at=5)
    killed = created(line)
    assert worker(line, killed).wait(250) == -signal.SIGKILL
    killed = now(line, killed)
    assert killed.status is dg.DagsterRunStatus.STARTED
    report_lost(line.instance, killed, -signal.SIGKILL)
    killed = now(line, killed)
    assert killed.tags[SAVED_TAG] == killed.run_id
    assert should_retry(killed, line.instance)
    settle_tracking(line.instance, line.spec)
    assert [run.info.status for run in mlflow_runs(line)] == ["FAILED"]

    plan(line, at=7)
    preempted = created(line, killed)
    line.instance.run_launcher.launch_run(LaunchRunContext(preempted, None))
    deadline = time.monotonic() + 250
    while not now(line, preempted).is_finished:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    preempted = now(line, preempted)
    assert preempted.tags["dagster/failure_reason"] == "UNEXPECTED_TERMINATION"
    assert preempted.tags[PREEMPTED_TAG] == "1"
    assert should_retry(preempted, line.instance)

    last = created(line, preempted)
    assert worker(line, last).wait(250) == 0
    assert now(line, last).status is dg.DagsterRunStatus.SUCCESS
    assert model_of(line) == undisturbed(line)
    (run,) = mlflow_runs(line)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["interruptions"] == 2
    assert run.data.metrics["resumed_from_step"] == 7


def test_killed_without_anything_saved_is_not_launched_again(line: Line) -> None:
    run = created(line)
    line.instance.report_run_failed(run, "gone")
    assert not should_retry(now(line, run), line.instance)


def test_a_run_of_its_own_goes_on_from_what_another_has_saved(line: Line) -> None:
    """By whatever path: the key is the training's, not the run's."""
    plan(line, at=5)
    train(line)
    outcome = train_model(line.services, PartitionKey.parse(DAY), "by hand", lane="adhoc")
    assert outcome.metadata["resumed_from_step"] == 5
    assert outcome.data_version == undisturbed(line)
