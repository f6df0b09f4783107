"""The page of a run that waits for GPUs, in Dagster's own UI: the picture of docs/gpus.md.

SIGNALBOX_SCREENSHOTS=docs/images refreshes it. The sentence is written by what the executor calls
while a pod is Pending; the run has no code location, as its page needs none.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test, instance_for_test
from playwright.sync_api import FloatRect, expect, sync_playwright

from platform_assets.domain.gpu_planning import GPUS_TAG, SHAPE_TAG
from platform_assets.domain.lanes import LANE_TAG, PIPELINE_TAG, Lane
from platform_assets.instance.kubernetes.gpus import GpuPlanner
from resources.gpus import VARIABLE
from tests.e2e.station import ROOT
from tests.e2e.test_browser import ARGUMENTS, LARGEST, PATIENCE, SECONDS
from tests.ports import free_port
from tests.tools.browser import VARIABLE as BROWSER
from tests.tools.browser import find_browser

pytestmark = [pytest.mark.browser, pytest.mark.heavy, pytest.mark.timeout(600)]

STEP = "flights__model"
START_SECONDS = 180


def waiting_run(instance: dg.DagsterInstance) -> str:
    """A run whose step has been planned and waits."""
    run = create_run_for_test(
        instance,
        "flights_train",
        status=dg.DagsterRunStatus.STARTED,
        tags={PIPELINE_TAG: "flights", LANE_TAG: "adhoc", SHAPE_TAG: "1x2"},
    )
    tags = {STEP: {GPUS_TAG: '{"shapes": ["1x2", "1x1"]}'}}
    context: Any = SimpleNamespace(instance=instance, dagster_run=run, step_tags=tags)
    core: Any = None  # the inventory is a file
    planner = GpuPlanner(core)
    planner.ask(context, STEP, Lane.ADHOC)
    planner.tell(context, STEP, Lane.ADHOC, "Unschedulable")
    return run.run_id


def test_the_page_of_a_run_says_why_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(ROOT / "docs" / "gpus" / "inventory.yaml"))
    browser = find_browser()
    assert browser is not None, f"no Chromium was found; name yours in {BROWSER}"
    chosen = os.environ.get("SIGNALBOX_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    home = tmp_path / "dagster"
    home.mkdir()
    quiet = {"nux": {"enabled": False}, "telemetry": {"enabled": False}}
    with instance_for_test(quiet, temp_dir=str(home), set_dagster_home=True) as instance:
        run_id = waiting_run(instance)
        port = free_port()
        program = str(Path(sys.executable).parent / "dagster-webserver")
        server = subprocess.Popen(
            [program, "--empty-workspace", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "DAGSTER_HOME": str(home)},
        )
        try:
            _shoot(browser, f"http://127.0.0.1:{port}", run_id, folder / "gpu-waits.png")
        finally:
            server.terminate()
            server.wait(30)


def _shoot(browser: str, url: str, run_id: str, picture: Path) -> None:
    for _ in range(START_SECONDS):
        try:
            urlopen(f"{url}/server_info").close()
            break
        except OSError:
            time.sleep(1)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
        page = running.new_page(viewport={"width": 1500, "height": 620}, base_url=url)
        page.set_default_timeout(PATIENCE)
        page.goto(f"/runs/{run_id}")
        sentence = page.get_by_text("8 GPUs idle, at most 1 on any node")
        expect(sentence.first).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text("signalbox/waits").first).to_be_visible(timeout=PATIENCE)
        page.wait_for_timeout(1.5 * SECONDS)
        events: FloatRect = {
            "x": 240.0,
            "y": 232.0,
            "width": 1260.0,
            "height": 250.0,
        }  # the run has no plan to show
        page.screenshot(path=picture, clip=events)
        running.close()
    assert 10_000 < picture.stat().st_size < LARGEST, f"{picture} has {picture.stat().st_size}"
