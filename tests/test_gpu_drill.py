"""The drill gpu-fragmentation shows what it says, and fails where a part of it does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from platform_assets.domain.gpu_planning import Plan, plan
from platform_assets.domain.gpu_simulation import Outcome, simulate
from platform_assets.domain.gpu_trace import Trace
from platform_assets.drills import gpu_fragmentation
from platform_assets.drills.gpu_fragmentation import Case, play_case
from platform_assets.drills.harness import Scene
from resources.home import Home

pytestmark = pytest.mark.embedded


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(Home.locate(tmp_path), 2, lambda _: None)


def test_nobody_starts_without_shapes_and_all_with_them(scene: Scene) -> None:
    """The node of held-2 is free after 40 min: three jobs of 2 GPUs fit on it.

    One GPU takes 30 * 2 ** 0.85 = 54.1 min; the third comes after 3 min: 57.1. Of 24 GPUs 21 are
    held; a 22nd from the first minute on, and so on: 24 GPUs less 6 GPU-minutes of 720.
    """
    found = play_case(scene, Case())
    assert found.ok, found.verdict
    started, done, share = found.figures
    assert (started.plain, started.signalbox) == (40.0, 3.0)
    assert (done.plain, done.signalbox) == (70.0, 57.1)
    assert (share.plain, share.signalbox) == (87.5, round(100 * (1 - 6 / 720), 1))
    assert "3 Insufficient nvidia.com/gpu" in found.plain[-1].found
    assert "1x1 leaves now, ~1.8 x longer; 1x2 in about 40 min, when pod others/held-2 ends" in (
        found.signalbox[2].found
    )
    assert found.signalbox[-1].found == "the Job that asks for 2 starts on node-2"


def test_without_the_shapes_the_drill_fails(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_shape(trace: Trace, _: str) -> Outcome:
        return simulate(trace, "fgd")

    monkeypatch.setattr(gpu_fragmentation, "simulate", one_shape)
    found = play_case(scene, Case())
    assert [step.ok for step in found.signalbox] == [False, False, True, True, True]
    assert found.concluded("well").verdict.startswith("The drill did not show what it should")


def test_a_planner_that_does_not_look_fails_the_drill(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(request: Any, _: Any) -> Plan:
        found = plan(request, None)
        return replace(found, ask=replace(found.ask, gpus=2))

    monkeypatch.setattr(gpu_fragmentation, "plan", blind)
    found = play_case(scene, Case())
    assert [step.ok for step in found.signalbox][3] is False
