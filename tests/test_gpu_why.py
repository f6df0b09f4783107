"""`signalbox gpu plan` and `why RUN`: by runs of the home, and what they do not answer."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.execution.stats import RunStepKeyStatsSnapshot, StepEventStatus
from dagster._core.test_utils import create_run_for_test

from platform_assets.cli.app import main
from platform_assets.domain.gpu_planning import PLANNED_TAG, SHAPE_TAG, gpus_of_tag
from platform_assets.domain.lanes import LANE_TAG, PIPELINE_TAG
from platform_assets.factory.pipeline import build_jobs, build_pipeline
from platform_assets.instance import gpu_history
from resources.catalog import load_catalog
from resources.gpus import VARIABLE
from resources.home import Home
from tests.test_domain_spec import flights

ROOT = Path(__file__).resolve().parents[1]
INVENTORY = str(ROOT / "docs" / "gpus" / "inventory.yaml")
TAGS = {PIPELINE_TAG: "flights", LANE_TAG: "backfill"}

pytestmark = pytest.mark.embedded


@dg.op(name="flights__model")
def trains() -> None:
    time.sleep(0.05)


@dg.job
def flights_train() -> None:
    trains()


@pytest.fixture
def instance(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    document = flights()
    document["model"]["gpus"] = {"shapes": ["1x2", "1x1"]}
    (catalog / "flights.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(catalog))
    monkeypatch.setenv(VARIABLE, INVENTORY)
    with dg.DagsterInstance.from_config(str(home.dagster)) as found:
        yield found


def typed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["gpu", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    return said.err if code else said.out


def run_of(instance: dg.DagsterInstance, status: str, **tags: str) -> str:
    return create_run_for_test(
        instance, "flights_train", status=dg.DagsterRunStatus(status), tags={**TAGS, **tags}
    ).run_id


def test_a_run_is_explained(
    instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    started = run_of(instance, "STARTED", **{PLANNED_TAG: "1x2"})
    assert typed(capsys, "why", started[:8]) == (
        "8 GPUs idle, at most 1 on any node; asked for 2 together; 1x1 leaves now, ~1.8 x longer; "
        "1x2 in about 14 min, when speech-b ends\n"
    )
    document = json.loads(typed(capsys, "why", started, "--json"))
    assert (document["run"], document["status"], document["state"]) == (started, "STARTED", "waits")
    assert document["leaves_now"][0]["shape"] == "1x1"
    assert document["later"]["after"] == "speech-b"

    queued = run_of(instance, "NOT_STARTED", **{SHAPE_TAG: "1x1"})
    said = typed(capsys, "why", queued)
    assert said.startswith("the run is not started and has asked for no GPU yet, `signalbox lanes`")
    assert "1x1 fits now on gpu-1" in said

    ended = run_of(instance, "SUCCESS")
    assert "has ended (SUCCESS), it waits for nothing" in typed(capsys, "why", ended)
    assert json.loads(typed(capsys, "why", ended, "--json"))["state"] == "ended"


def test_a_run_that_has_its_gpus_waits_for_none(
    instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_id = run_of(instance, "STARTED", **{PLANNED_TAG: "1x2"})
    file = tmp_path / "inventory.yaml"
    job = {"name": "ours", "node": "a", "gpus": 2, "run": run_id}
    file.write_text(yaml.safe_dump({"nodes": [{"name": "a", "gpus": 8}], "jobs": [job]}))
    said = typed(capsys, "why", run_id, "--inventory", str(file))
    assert said == f"run {run_id} has its GPUs (2 on a), it waits for none\n"


def test_runs_show_how_long_a_shape_takes(
    instance: dg.DagsterInstance,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Three runs a shape, made ten times as long on one GPU; and one that holds 7 GPUs now."""
    for shape in ("1x2", "1x1"):
        for _ in range(3):
            done = flights_train.execute_in_process(
                instance=instance, tags={**TAGS, PLANNED_TAG: shape}
            )
            assert done.success
    found = gpu_history.seconds_by_shape(instance, "flights_train", "flights__model")
    assert {str(shape): len(seconds) for shape, seconds in found.items()} == {"1x2": 3, "1x1": 3}
    assert all(0.04 < one < 60 for seconds in found.values() for one in seconds)
    assert gpu_history.seconds_by_shape(instance, "flights_train", "other") == {}
    # Launched by hand, all stages are one job: those without GPUs do not crowd the others out.
    for _ in range(gpu_history.MOST_RUNS + 1):
        run_of(instance, "SUCCESS")
    assert gpu_history.seconds_by_shape(instance, "flights_train", "flights__model") == found

    def longer(*_: Any) -> dict[Any, list[float]]:
        return {shape: [600.0 if shape.total == 2 else 6000.0] * 3 for shape in found}

    monkeypatch.setattr(gpu_history, "seconds_by_shape", longer)
    holder = run_of(instance, "STARTED", **{PLANNED_TAG: "1x2"})
    running = RunStepKeyStatsSnapshot(
        holder, "flights__model", status=StepEventStatus.IN_PROGRESS, start_time=time.time()
    )
    monkeypatch.setattr(dg.DagsterInstance, "get_run_step_stats", lambda *_, **__: [running])
    waits = run_of(instance, "STARTED", **{PLANNED_TAG: "1x2"})
    file = tmp_path / "inventory.yaml"
    job = {"name": "other", "node": "a", "gpus": 7, "run": holder}
    file.write_text(yaml.safe_dump({"nodes": [{"name": "a", "gpus": 8}], "jobs": [job]}))
    said = typed(capsys, "why", waits, "--inventory", str(file))
    assert "1x1 leaves now, ~10.0 x longer; 1x2 in about 10 min, when other ends" in said


def test_what_cannot_be_answered_is_said(
    instance: dg.DagsterInstance,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    other = create_run_for_test(instance, "else", status=dg.DagsterRunStatus.STARTED).run_id
    wrong = run_of(instance, "STARTED", **{SHAPE_TAG: "1x8"})
    (tmp_path / "rubbish").write_text(": : {")
    for arguments, words in (
        (["why", "zzzz"], "none of the newest 1,000 runs"),
        (["why", "ab"], "'ab' is too short"),
        (["why", other], "is of pipeline (none), whose model names no GPU shapes"),
        (["why", wrong], "the tag signalbox/shape is '1x8'; allowed are 1x2, 1x1"),
        (["why"], "name one of RUN and --shapes"),
        (["why", "--shapes", " "], "--shapes is empty"),
        (["why", "--shapes", "1x1,1x1"], "shapes must differ"),
        (["plan", "--lane", "nightly"], "'nightly' is no lane; allowed are daily"),
        (["plan", "--pipeline", "other"], "those that do are flights"),
        (["plan", "--reserve", "8"], "--reserve: '8' is no shape"),
        (["plan", "--inventory", "nowhere.yaml"], "nowhere.yaml is refused: (file): cannot be"),
        (["plan", "--inventory", str(tmp_path / "rubbish")], "is refused: line 1"),
        (["plan", "--inventory", ""], "no inventory of GPUs is named"),
    ):
        assert words in typed(capsys, *arguments, code=2)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "rubbish"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    said = typed(capsys, "plan", "--inventory", "cluster", code=2)
    assert said.startswith("signalbox: there is no cluster to ask (while parsing")


def test_the_models_of_the_catalog_are_planned(
    instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = json.loads(typed(capsys, "plan", "--json"))
    found = document["plans"]["flights"]
    assert (found["shape"], found["nodes"], found["fits"]) == ("1x1", ["gpu-1"], True)
    assert found["manifest"]["pods"] == 1
    assert "flights: asks for 1x1, best on gpu-1" in typed(capsys, "plan")
    empty = tmp_path / "zero.yaml"
    empty.write_text("nodes: []\n")
    said = typed(capsys, "plan", "--inventory", str(empty))
    assert "there is no node with GPUs that may be used" in said


def test_the_asset_carries_the_shapes_of_the_catalog(instance: dg.DagsterInstance) -> None:
    spec = load_catalog()["flights"]
    tags = {
        asset.op.name: dict(asset.op.tags)
        for asset in build_pipeline(spec, build_jobs(spec), "here").assets or ()
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable
    }
    carrying = {name for name, of in tags.items() if gpus_of_tag(of) is not None}
    assert carrying == {"flights__model"}
    assert gpus_of_tag(tags["flights__model"]) == spec.model.gpus
