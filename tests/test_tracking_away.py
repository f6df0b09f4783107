# ruff: noqa: F811 - fixtures are imported, and taken by their names
"""A tracking server that is away: trainings go on, nothing is lost, nothing is logged twice.

The minutes are those of a clock that the tests hold.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from platform_assets.domain.errors import TransientError
from platform_assets.domain.training_end import OVER, end_of
from resources.tracking import DAGSTER_RUN_TAG, TrackedRun, Tracking
from resources.tracking.client import AwayError
from resources.tracking.patience import Patience
from resources.tracking.settling import sweep
from resources.tracking.spool import Spool
from tests.mlflow_server import MlflowServer
from tests.test_tracking import DIGEST, environment, never
from tests.test_tracking_stores import (  # noqa: F401 - fixtures
    client_of,
    forest,
    name,
    prepared,
    server,
)

ROUNDS = 40
MINUTE = 60.0


class Minutes:
    """A clock that moves when it is told to, and a server that comes back at a time of it."""

    def __init__(self, server: MlflowServer) -> None:
        self.server = server
        self.now = 1000.0
        self.back_at: float | None = None

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.back_at is not None and self.now >= self.back_at:
            self.back_at = None
            self.server.start()

    def away(self, seconds: float = MINUTE) -> None:
        """The server is gone at once, and back after that time."""
        self.server.kill()
        self.back_at = self.now + seconds


@pytest.fixture
def minutes(server: MlflowServer) -> Iterator[Minutes]:
    yield Minutes(server)
    if server.process is None:
        server.start()


@pytest.fixture
def tracking(minutes: Minutes, tmp_path: Path) -> Tracking:
    patience = Patience(clock=minutes.clock, sleep=minutes.sleep)
    return Tracking(minutes.server.url, None, spool=tmp_path / "spool", patience=patience)


def train(
    tracking: Tracking,
    name: str,
    minutes: Minutes,
    away: Callable[[int], None],
) -> TrackedRun:
    """A training of 40 rounds, one a second; `away` is called before each with its number."""
    away(0)
    with tracking.run(name, "r", {DAGSTER_RUN_TAG: "d"}) as run:
        run.log_parameters({"seed": 1, "long": "y" * 7000})
        run.log_snapshot("s", DIGEST, "lake/1.json", 5)
        for number in range(1, ROUNDS + 1):
            minutes.now += 1
            away(number)
            run.log_round(number, {"loss": 1 / number})
        away(ROUNDS + 1)
        model, frame, predictions = forest()
        run.log_model(
            model,
            "sklearn",
            name=name,
            input_example=frame,
            predictions=predictions,
            requirements=["scikit-learn"],
        )
        away(ROUNDS + 2)
        run.log_figure("p", b"PNG")
        run.log_metrics({"final": 1.0})
    return run


def whole(tracking: Tracking, name: str, tmp_path: Path) -> None:
    """All of it is there, and each thing once."""
    client = client_of(tracking)
    experiment = client.get_experiment_by_name(name).experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    run_id = run.info.run_id
    steps = [metric.step for metric in client.get_metric_history(run_id, "loss")]
    assert sorted(steps) == list(range(1, ROUNDS + 1))
    assert len(client.get_metric_history(run_id, "final")) == 1
    assert run.data.params["seed"] == "1"
    assert len(run.inputs.dataset_inputs) == 1
    assert len(run.outputs.model_outputs) == 1
    assert [f.path for f in client.list_artifacts(run_id, "figures")] == ["figures/p.png"]
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.run_id == run_id
    (model,) = client.search_logged_models([experiment])
    assert str(model.status) == "READY"
    assert tracking.spool is not None
    assert not tracking.spool.pending()
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.heavy
@pytest.mark.parametrize("moment", [0, 10, ROUNDS + 1])
def test_server_is_away_for_a_minute(
    tracking: Tracking,
    name: str,
    minutes: Minutes,
    moment: int,
    tmp_path: Path,
) -> None:
    """From before the run is begun, in the middle of the rounds, before the model is stored."""
    began = minutes.now
    trained_to = []

    def away(number: int) -> None:
        if number == moment:
            minutes.away()
            from mlflow.exceptions import MlflowException

            with pytest.raises(MlflowException):  # what plain MLflow does to a training
                client_of(tracking).search_experiments()
        if minutes.server.process is None:
            trained_to.append(number)

    train(tracking, name, minutes, away)
    # All rounds were trained while it was away, and only the registration waited for it.
    assert trained_to == list(range(moment, ROUNDS + 2))
    assert MINUTE <= minutes.now - began < 2 * MINUTE + ROUNDS
    whole(tracking, name, tmp_path)


@pytest.mark.heavy
def test_server_is_away_at_the_end(
    tracking: Tracking,
    name: str,
    minutes: Minutes,
    tmp_path: Path,
) -> None:
    """The model is registered: nobody waits. What is left is told when the server is back."""

    def away(number: int) -> None:
        if number == ROUNDS + 2:
            minutes.server.kill()

    run = train(tracking, name, minutes, away)
    with pytest.raises(AwayError, match="what it has yet to be told is kept"):
        sweep(tracking, lambda _: "SUCCESS", never)
    minutes.server.start()
    assert client_of(tracking).get_run(run.run_id).info.status == "RUNNING"  # without the sweep
    fresh = Tracking(tracking.uri, None, spool=tmp_path / "spool")  # of another process
    assert sweep(fresh, lambda _: "STARTED", never) == [(run.run_id, "FINISHED")]
    assert sweep(fresh, lambda _: "STARTED", never) == []
    whole(tracking, name, tmp_path)


@pytest.mark.heavy
def test_training_that_fails_while_the_server_is_away_has_failed(
    tracking: Tracking,
    name: str,
    minutes: Minutes,
    tmp_path: Path,
) -> None:
    def fail() -> None:
        with tracking.run(name, "r", {DAGSTER_RUN_TAG: "d"}) as run:
            run.log_round(1, {"loss": 0.5})
            minutes.server.kill()
            raise ValueError("the training failed")

    with pytest.raises(ValueError, match="the training failed"):
        fail()
    minutes.server.start()
    client = client_of(tracking)
    (found,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert found.info.status == "RUNNING"  # without the sweep
    assert sweep(tracking, lambda _: "STARTED", never) == [(found.info.run_id, "FAILED")]
    assert client.get_run(found.info.run_id).info.status == "FAILED"
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 1


@pytest.mark.heavy
def test_server_that_stays_away_fails_the_training_for_another_try(
    tracking: Tracking,
    name: str,
    minutes: Minutes,
    tmp_path: Path,
) -> None:
    def away(number: int) -> None:
        if number == 0:
            minutes.away(seconds=3600)

    began = minutes.now
    with pytest.raises(AwayError, match="start it, or try again") as raised:
        train(tracking, name, minutes, away)
    assert raised.value.retryable
    assert minutes.now - began == pytest.approx(tracking.patience.seconds + ROUNDS, abs=1)
    minutes.server.start()
    # Nothing of the failed training is lost either, though MLflow never heard of it.
    ((run_id, state),) = sweep(tracking, lambda _: "STARTED", never)
    client = client_of(tracking)
    assert (state, client.get_run(run_id).info.status) == ("FAILED", "FAILED")
    assert len(client.get_metric_history(run_id, "loss")) == ROUNDS


LOST = (
    "create_run",
    "log_batch",
    "log_inputs",
    "create_logged_model",
    "log_model_artifacts",
    "log_outputs",
    "create_model_version",
    "log_artifact",
    "set_terminated",
)


def deaf(tracking: Tracking, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer to a call is lost on the way; what was asked for is done."""
    from mlflow.exceptions import MlflowException

    client = tracking._client()
    real, lost = getattr(client, call), [True]

    def answer(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        if lost:
            lost.pop()
            raise MlflowException("API request to x failed with exception ('Connection aborted.')")
        return found

    monkeypatch.setattr(client, call, answer)


@pytest.mark.heavy
@pytest.mark.parametrize("call", LOST)
def test_answer_that_is_lost_makes_nothing_twice(
    tracking: Tracking,
    name: str,
    minutes: Minutes,
    call: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    deaf(tracking, call, monkeypatch)
    train(tracking, name, minutes, lambda _: None)
    sweep(tracking, lambda _: "STARTED", never)
    whole(tracking, name, tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("call", ["create_logged_model", "log_outputs", "create_model_version"])
def test_asked_again_without_a_look_it_is_there_twice(
    tracking: Tracking,
    name: str,
    minutes: Minutes,
    call: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    deaf(tracking, call, monkeypatch)
    monkeypatch.setattr(Patience, "make", lambda self, make, _: self.wait(make))

    # Two models or versions; of an output MLflow's database refuses a second one, and so fails
    # the training.
    def act() -> None:
        train(tracking, name, minutes, lambda _: None)
        whole(tracking, name, tmp_path)

    with pytest.raises((AssertionError, ValueError, TransientError)):
        act()


KILLED = """
import os, signal, sys
from pathlib import Path
from resources.tracking import DAGSTER_RUN_TAG, Tracking
tracking = Tracking(sys.argv[1], None, spool=Path(sys.argv[2]))
with tracking.run(sys.argv[3], "r", {DAGSTER_RUN_TAG: "d"}) as run:
    run.log_metrics({"loss": 0.5})
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("recorded", "dagster", "state"),
    [
        (False, "FAILURE", "FAILED"),
        (False, "CANCELED", "KILLED"),
        (False, "SUCCESS", "FAILED"),  # another attempt of it has made the model
        (True, "FAILURE", "FINISHED"),  # killed between the ledger and MLflow
    ],
)
def test_killed_process_is_found_without_asking_mlflow(
    tracking: Tracking,
    name: str,
    recorded: bool,
    dagster: str,
    state: str,
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tracking.uri, str(tmp_path / "spool"), name],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    run_id = done.stdout.strip()
    client = client_of(tracking)
    assert client.get_run(run_id).info.status == "RUNNING"  # for good, without the sweep
    assert sweep(tracking, lambda _: "STARTED", never) == []
    assert sweep(tracking, lambda _: dagster, lambda _, found: recorded) == [(run_id, state)]
    assert client.get_run(run_id).info.status == state
    assert sweep(tracking, lambda _: dagster, never) == []


# --- the parts


def test_entry_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    assert not spool.pending()
    entry = spool.open("a")
    entry.keep({"key": "a"}, [])
    assert spool.pending()
    assert list(spool.abandoned()) == []
    entry.keep({"key": "a"}, [{"kind": "end"}])
    entry.release()  # as the kernel does when the process is gone
    (found,) = spool.abandoned()
    assert found.read() == ({"key": "a"}, [{"kind": "end"}])
    for found in spool.abandoned():
        assert list(Spool(tmp_path / "s").abandoned()) == []  # one sweep at a time
        found.discard()
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("told", [True, False])
def test_who_goes_on_with_a_run_waits_for_who_tells_of_it_just_now(
    tmp_path: Path, told: bool
) -> None:
    """The daemon settles a killed training while its next attempt starts: it is one run still."""
    spool, held, go = Spool(tmp_path / "s"), threading.Event(), threading.Event()
    entry = spool.open("a")
    entry.keep({"key": "a"}, [])
    entry.release()

    def settles() -> None:
        for found in spool.abandoned():
            held.set()
            go.wait()
            if told:
                found.discard()

    sweeping = threading.Thread(target=settles)
    sweeping.start()
    held.wait()
    assert spool.take("a", patience=0) is None  # before: taken for a process that lives
    threading.Timer(0.3, go.set).start()
    taken = spool.take("a", patience=30)
    sweeping.join()
    assert taken is not None
    taken.keep({"key": "a"}, [])
    assert list(spool.abandoned()) == [], "it is held, by the file that is there"
    taken.release()


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("state", [None, "QUEUED", "STARTED", "CANCELING", *sorted(OVER)])
def test_end_follows_from_ledger_and_dagster(state: str | None, recorded: bool) -> None:
    found = end_of(state, recorded=recorded)
    if state in ("QUEUED", "STARTED", "CANCELING"):
        assert found is None
    else:
        assert (found == "FINISHED") == recorded
        assert (found == "KILLED") == (state == "CANCELED" and not recorded)


def test_patience_ends_and_grows() -> None:
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def away() -> None:
        raise AwayError("away")

    patience = Patience(seconds=60, clock=lambda: now[0], sleep=sleep)
    with pytest.raises(AwayError):
        patience.wait(away)
    assert slept[:6] == [0.5, 1, 2, 4, 8, 15]
    assert sum(slept) == 60
