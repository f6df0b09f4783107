"""Steps that are over before the second look: they are compared, and record it, as others do."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resources.images import VARIABLE, change_lock
from tests import cluster as fake
from tests.cluster_runs import HOST, LOCK, RUN, STEPS, execute

pytestmark = pytest.mark.heavy

OTHER = f"docker-pullable://{HOST}/run@sha256:{'e' * 64}"


@pytest.fixture
def kubelet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Cluster]:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    (tmp_path / "steps").mkdir()
    monkeypatch.setenv(STEPS, str(tmp_path / "steps"))
    with fake.running(tmp_path, runs=True) as found:
        yield found


def recorded() -> list[str]:
    """What the steps have written down as the image that they ran."""
    return [p.name.partition(" ")[2] for p in Path(os.environ[STEPS]).glob("recorded*")]


def test_a_short_step_writes_what_it_ran(kubelet: fake.Cluster) -> None:
    reported = f"docker-pullable://{RUN}"
    kubelet.image_ids = {RUN: reported}
    # dagster-k8s tells nobody, and it is not told later.
    assert execute(kubelet, "stock_records").success
    assert recorded() == [""]
    kubelet.jobs.clear()
    found = execute(kubelet, "never_records")
    assert found.success, found.told
    assert recorded() == [reported.replace("/", " ")]
    assert f"runs {RUN}, as it was asked for" in found.told


def test_a_short_step_that_runs_something_else_writes_nothing(kubelet: fake.Cluster) -> None:
    kubelet.image_ids = {RUN: OTHER}
    assert execute(kubelet, "stock_records").success
    assert recorded() == [""]
    kubelet.jobs.clear()
    found = execute(kubelet, "never_records")
    assert not found.success
    assert "step records was ended: the cluster runs sha256:eeee" in found.told
    assert kubelet.jobs == {}
    assert recorded() == []


def test_the_last_word_of_a_step_that_was_ended_breaks_off_no_other(kubelet: fake.Cluster) -> None:
    """Its pod has the time to record that it was interrupted, while the step beside it runs."""

    def renamed(pod: dict[str, Any]) -> None:
        if "records" in str(pod["metadata"]["labels"].get("dagster/op")):
            kubelet.image_ids = {RUN: OTHER}
        else:
            kubelet.image_ids = {}

    kubelet.webhook = renamed

    def both() -> bool:
        return len(kubelet.jobs) == 1 and not any(
            "records" in str(p["metadata"]["labels"].get("dagster/op"))
            for p in kubelet.pods.values()
        )

    def tell() -> None:
        (Path(os.environ[STEPS]) / "end").touch()

    kubelet.when(lambda: len(kubelet.jobs) == 2, lambda: kubelet.when(both, tell))
    found = execute(kubelet, "never_records_beside")
    assert not found.success
    assert "step records was ended" in found.told
    assert found.events.count("STEP_FAILURE") == 2
    assert found.events.count("STEP_SUCCESS") == 1, found.told
    assert "Unexpected exception while steps were still in-progress" not in found.told
