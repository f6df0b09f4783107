"""What the cluster says of a container stands on the partition, in the ledger and in MLflow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dagster._core.events import EngineEventData

from platform_assets.factory.events import _PLACE
from platform_assets.instance.kubernetes.executor import PinnedStepHandler
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


def seen(
    line: Line,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    places: Sequence[tuple[str, str]] = (("pod-1/dagster on node-7", REPORTED),),
) -> None:
    """As the executor notes it on the run, as soon as the step has started."""
    monkeypatch.setenv("HOSTNAME", "pod-1")
    start = type(line.services).open

    def opened(*args: object, **more: object) -> object:
        (run,) = line.instance.get_runs(limit=1)
        for place, reported in places:
            line.instance.report_engine_event(
                f"{place} runs {ASKED}, as it was asked for",
                run,
                EngineEventData({"image": ASKED, "imageID": reported}),
                step_key=step,
            )
        return start(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(line.services), "open", opened)


def test_the_executor_words_it_as_it_is_read() -> None:
    """The two meet in the run's events alone."""
    said: list[tuple[str, EngineEventData]] = []

    def report(message: str, _run: object, data: EngineEventData, **_: object) -> None:
        said.append((message, data))

    handler = PinnedStepHandler.__new__(PinnedStepHandler)
    handler._recorded = set()
    instance = SimpleNamespace(report_engine_event=report)
    context: Any = SimpleNamespace(instance=instance, dagster_run=None)
    handler._record(context, "step", {"pod-1/dagster on node-7": (REPORTED, ASKED)})
    ((message, data),) = said
    place = _PLACE.match(message)
    assert place is not None
    assert place.groupdict() == {"pod": "pod-1", "container": "dagster", "node": "node-7"}
    assert data.metadata["imageID"].value == REPORTED


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


OTHER = "docker-pullable://registry:5000/team/fetch@sha256:" + "0f" * 32


@pytest.mark.parametrize(
    "place",
    ["pod-1/fetch on node-7", "pod-0/dagster on node-3"],
    ids=["an init container", "an attempt before"],
)
@pytest.mark.parametrize("alone", [False, True])
def test_only_ones_own_container_is_recorded(
    line: Line, monkeypatch: pytest.MonkeyPatch, place: str, alone: bool
) -> None:
    """What was noted last is another's; or it is all that was noted of the step."""
    monkeypatch.setenv(IMAGE, ASKED)
    own = [] if alone else [("pod-1/dagster on node-7", REPORTED)]
    seen(line, monkeypatch, "flights__snapshot", [*own, (place, OTHER)])
    line.must("snapshot", partition=DAY)
    metadata = line.materializations("snapshot")[-1].metadata
    if alone:
        assert "image_id" not in metadata
        assert "ran" not in line.versions("snapshot")[DAY].detail
        return
    assert (metadata["image_id"].value, metadata["pod"].value) == (REPORTED, "pod-1")
    assert line.versions("snapshot")[DAY].detail["ran"]["image_id"] == REPORTED


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
