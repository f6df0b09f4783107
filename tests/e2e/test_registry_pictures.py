"""MLflow's own UI, and the audit page, on a home with champions: the pictures of docs/registry.md.

SIGNALBOX_SCREENSHOTS=docs/images refreshes them. The line's runs are real ones of Dagster, the
server is `signalbox mlflow`.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.links import DAGSTER_UI
from resources.tracking import DAGSTER_RUN_TAG
from tests.e2e.station import ROOT
from tests.e2e.test_browser import ARGUMENTS, LARGEST, PATIENCE, SECONDS
from tests.homes import copy_home, drop_home
from tests.nyc import changed, flights_spec
from tests.ports import free_port
from tests.small import Line, opened
from tests.tools.browser import VARIABLE, find_browser

pytestmark = [pytest.mark.browser, pytest.mark.heavy, pytest.mark.timeout(900)]

FIRST, LAST = "2013-05-01", "2013-05-22"
MODELS = [f"2013-05-{day}" for day in range(10, 20)]
MODEL = "flight-delay"
WIDTH, HEIGHT = 1400, 960
START_SECONDS = 120


def spec() -> PipelineSpec:
    """The catalog's pipeline on a window of ten days, so that it is built in a minute."""
    return changed(
        flights_spec(),
        partitions={"start": FIRST},
        model={"window_days": 10, "min_days": 8},
        schedule={"live_from": FIRST},
    )


@dataclass(frozen=True)
class Shown:
    """A home with champions, and MLflow's UI on it."""

    line: Line
    url: str
    page: Page
    pictures: Path

    def shoot(self, name: str) -> None:
        """Take a picture once the page is at rest; one that is empty or too large fails."""
        self.page.wait_for_timeout(1.5 * SECONDS)
        from PIL import Image

        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        with Image.open(path) as whole:  # a third of the bytes, and nobody sees it
            whole.convert("RGB").quantize(128).save(path, optimize=True)
        assert 10_000 < path.stat().st_size < LARGEST, f"{path} has {path.stat().st_size} bytes"

    def open(self, place: str) -> None:
        """Go to a page of MLflow, without the assistant that it opens beside."""
        self.page.goto(f"{self.url}/#/{place}")
        close = self.page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
        training = self.page.get_by_text("Model training", exact=True)
        expect(training).to_be_visible()
        if close.count():
            close.first.click()
            training.click()
            self.page.goto(f"{self.url}/#/{place}")


def build(line: Line) -> None:
    """Days, models, and each judged against the champion of its time, as the sensors would."""
    line.land(FIRST, LAST)
    for airport in line.spec.partitions.values:
        line.must("features", span=(f"{airport}|{FIRST}", f"{airport}|{LAST}"))
    line.must("day", span=(FIRST, LAST))
    line.must("snapshot", "model", span=(MODELS[0], MODELS[-1]))
    for day in MODELS:
        line.must("evaluation", partition=day)
        line.must("champion")


@pytest.fixture(scope="module")
def shown(home_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    browser = find_browser()
    assert browser is not None, (
        f"no Chromium was found; `apt-get install chromium`, or name yours in {VARIABLE}"
    )
    home = copy_home(home_template, tmp_path_factory.mktemp("registry") / "home")
    chosen = os.environ.get("SIGNALBOX_SCREENSHOTS")
    pictures = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    pictures.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, opened(home, spec()) as line:
        patch.setenv(DAGSTER_UI, "http://127.0.0.1:3000")
        build(line)
        port = free_port()
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("signalbox")), "mlflow", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server)
            with sync_playwright() as playwright:
                running = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
                context = running.new_context(viewport={"width": WIDTH, "height": HEIGHT})
                context.set_default_timeout(PATIENCE)
                expect.set_options(timeout=PATIENCE)
                yield Shown(line, url, context.new_page(), pictures)
                running.close()
        finally:
            server.terminate()
            server.wait(30)
        with pytest.raises(OSError, match="refused"):  # MLflow's own processes are gone too
            urlopen(f"{url}/health", timeout=5)
    drop_home(home.root)


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, "signalbox mlflow ended by itself"
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            assert time.monotonic() < until, "signalbox mlflow did not answer"
            time.sleep(0.2)


def champion(line: Line) -> tuple[int, Any]:
    """Version in force, and the materialized model's detail."""
    state = line.services.ledger.alias_state(MODEL)
    assert state is not None
    found = line.services.ledger.versions(line.spec.asset("model"))
    return state.version, next(r for r in found if r.detail["model_version"] == state.version)


def test_a_training_in_mlflows_ui(shown: Shown) -> None:
    _, record = champion(shown.line)
    run_id = record.detail["mlflow_run_id"]
    run = shown.line.services.tracking._client().get_run(run_id)
    place = f"experiments/{run.info.experiment_id}/runs/{run_id}"
    dagster = run.data.tags[DAGSTER_RUN_TAG]
    shown.open(place)
    page = shown.page
    back = page.get_by_role("link", name=f"Dagster run {dagster[:8]}")
    expect(back).to_have_attribute("href", f"http://127.0.0.1:3000/runs/{dagster}")
    for words in ("Finished", "judged_log_loss", "gate_passed", "num_boost_round"):
        expect(page.get_by_text(words, exact=True).first).to_be_visible()
    expect(page.get_by_text(re.compile(r"\(sb1:[0-9a-f]{32}\)"))).to_be_visible()
    shown.shoot("mlflow-run")
    shown.open(f"{place}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("train")
    expect(page.get_by_text("train_log_loss").first).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    page.set_viewport_size({"width": WIDTH, "height": 620})
    shown.shoot("mlflow-metrics")
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


def test_the_models_aliases_in_mlflows_ui(shown: Shown) -> None:
    shown.open(f"models/{MODEL}")
    page, (version, _) = shown.page, champion(shown.line)
    for alias in ("champion", "challenger", "previous"):
        expect(page.get_by_text(f"@ {alias}")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="@ champion")
    expect(row).to_contain_text(f"Version {version}")
    shown.shoot("mlflow-model")


def test_the_audit_page(shown: Shown, tmp_path: Path) -> None:
    from platform_assets.line.audit import audit
    from platform_assets.line.audit_page import audit_page

    version, record = champion(shown.line)
    services = shown.line.services
    document = audit(services, record)
    assert document["ok"]
    path = tmp_path / "audit.html"
    path.write_text(audit_page(services, record, document))
    page = shown.page
    page.set_viewport_size({"width": 1280, "height": 1420})
    page.goto(path.as_uri())
    expect(page.get_by_text(f"Audit of {MODEL} version {version}")).to_be_visible()
    shown.shoot("audit")
