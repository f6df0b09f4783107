"""A second pipeline of the catalog trains in two ranks, loses one, is killed, and ends the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch", reason="`make setup-torch` installs it")

from resources.home import Home
from tests.homes import copy_home
from tests.nyc import flights_spec
from tests.pipelines import flights_ranks

pytestmark = [pytest.mark.torch, pytest.mark.embedded, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
TRAINER = "tests.torch_ranks:ByEnvironment"


def command(home: Path, *options: str, act: str = "") -> "subprocess.CompletedProcess[str]":
    """The documented command, in a home; what goes wrong with its ranks."""
    variables = {"SIGNALBOX_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    return subprocess.run(
        [sys.executable, "-m", "tests.pipelines.flights_ranks", *options],
        cwd=ROOT,
        env={**os.environ, **variables, "TEST_ACT": act, "DAGSTER_DISABLE_TELEMETRY": "yes"},
        capture_output=True,
        text=True,
        check=False,
    )


def trained(home: Path, act: str = "") -> dict[str, Any]:
    done = command(home, "--trainer", TRAINER, act=act)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


@pytest.fixture(scope="module")
def prepared(home_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the model's rows are there."""
    home = copy_home(home_template, tmp_path_factory.mktemp("ranks") / "prepared")
    done = command(home.root, "--prepare", "--trainer", TRAINER)
    assert done.returncode == 0, done.stderr[-3000:]
    return home.root


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    return trained(copy_home(prepared, tmp_path_factory.mktemp("ranks") / "home").root)


def test_it_is_the_flights_pipeline_but_for_its_model() -> None:
    found, flights = flights_ranks.spec_of(), flights_spec()
    assert found.dataset == flights.dataset
    assert found.sources == flights.sources
    assert found.model.processes is not None
    assert (found.model.processes.min, found.model.processes.max) == (1, 2)
    assert "torch" not in yaml.safe_dump(flights.model_dump(mode="json"))


def test_two_ranks_train_the_model(undisturbed: Mapping[str, Any]) -> None:
    assert undisturbed["ranks"] == [[2, 0]]
    assert undisturbed["lost"] is None
    assert 0.2 < undisturbed["train_log_loss"] < 0.6
    assert {"step times", "step_times", "ranks", "stragglers_replaced"} <= set(
        undisturbed["metadata"]
    )


def test_a_rank_is_lost_and_it_goes_on_with_fewer(
    prepared: Path, tmp_path: Path, undisturbed: Mapping[str, Any]
) -> None:
    found = trained(copy_home(prepared, tmp_path / "home").root, act="place_lost")
    assert found["ranks"] == [[2, 0], [1, 2]]
    assert "was lost by signal 9" in found["lost"]
    assert found["train_log_loss"] == pytest.approx(undisturbed["train_log_loss"], abs=1e-3)


def test_it_is_killed_and_goes_on_to_equal_bits(
    prepared: Path, tmp_path: Path, undisturbed: Mapping[str, Any]
) -> None:
    home = copy_home(prepared, tmp_path / "home").root
    killed = command(home, "--trainer", TRAINER, act="step_killed")
    assert killed.returncode == -signal.SIGKILL
    found = trained(home)
    assert found["ranks"] == [[2, 2]], "from the checkpoint, and not from the beginning"
    assert found["digest"] == undisturbed["digest"]
    from mlflow import MlflowClient

    client = MlflowClient(Home.locate(home).mlflow_uri)
    runs = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    assert [run.info.run_id for run in runs] == [found["mlflow_run_id"]], "one training, one run"
    assert runs[0].info.status == "FINISHED"
