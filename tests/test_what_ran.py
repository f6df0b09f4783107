"""What the cluster says of a container stands on the partition, in the ledger and in MLflow."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster._core.events import EngineEventData

from platform_assets.line.environments import VALUE, value_of
from resources.environment import IMAGE
from tests.small import Line, Templates, copied

DIGEST = "sha256:" + "5e" * 32
ASKED = f"registry:5000/team/train@{DIGEST}"
REPORTED = f"docker-pullable://{ASKED}"
DAY = "2013-01-04"


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).features, tmp_path) as found:
        yield found


def seen(line: Line, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """As the executor notes it on the run, as soon as the step has started."""
    start = type(line.services).open

    def opened(*args: object, **more: object) -> object:
        (run,) = line.instance.get_runs(limit=1)
        line.instance.report_engine_event(
            f"pod-1/dagster on node-7 runs {ASKED}, as it was asked for",
            run,
            EngineEventData({"image": ASKED, "imageID": REPORTED}),
            step_key=step,
        )
        return start(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(line.services), "open", opened)


def test_a_partition_names_image_and_container(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE, ASKED)
    seen(line, monkeypatch, "flights__snapshot")
    line.must("snapshot", partition=DAY)
    event = line.materializations("snapshot")[-1]
    said = {name: event.metadata[name].value for name in ("image", "image_id", "pod", "node")}
    assert said == {"image": ASKED, "image_id": REPORTED, "pod": "pod-1", "node": "node-7"}
    record = line.versions("snapshot")[DAY]
    assert record.detail["image"] == DIGEST
    assert record.detail["ran"]["image_id"] == REPORTED
    assert value_of(record)


def test_another_steps_container_is_not_ones_own(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(IMAGE, ASKED)
    seen(line, monkeypatch, "flights__features")
    line.must("snapshot", partition=DAY)
    assert "image_id" not in line.materializations("snapshot")[-1].metadata
    assert "ran" not in line.versions("snapshot")[DAY].detail


@pytest.mark.heavy
def test_mlflow_and_the_model_name_it_too(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE, ASKED)
    seen(line, monkeypatch, "flights__model")
    line.must("snapshot", partition="2013-01-04")
    line.must("model", partition="2013-01-04")
    record = line.versions("model")["2013-01-04"]
    assert record.detail["ran"]["node"] == "node-7"
    assert record.detail["fingerprint_parts"]["image"] == DIGEST
    run = line.services.tracking._client().get_run(record.detail["mlflow_run_id"])
    assert run.data.tags["signalbox.image_id"] == REPORTED
    assert run.data.tags["signalbox.node"] == "node-7"


def test_an_image_without_a_digest_does_not_fail_what_is_done(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training refuses it before it begins: tests/test_fingerprints.py."""
    monkeypatch.setenv(IMAGE, "registry/train:latest")
    line.must("snapshot", partition=DAY)
    assert not {"image", VALUE} & set(line.versions("snapshot")[DAY].detail)


def test_outside_of_a_container_nothing_is_asked_and_nothing_said(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(IMAGE, raising=False)
    seen(line, monkeypatch, "flights__snapshot")
    line.must("snapshot", partition=DAY)
    event = line.materializations("snapshot")[-1]
    assert not {"image", "image_id"} & set(event.metadata)
    assert not {"image", "ran"} & set(line.versions("snapshot")[DAY].detail)
