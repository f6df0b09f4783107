"""The Dagster UI in a headless Chromium, as a person uses it; it takes the README's pictures."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.e2e.station import BACKFILL, DIALOG_DAYS, HELD, Station, until
from tests.tools.browser import VARIABLE, find_browser

pytestmark = [pytest.mark.browser, pytest.mark.e2e]

ASSETS = (
    "landed_flights",
    "landed_weather",
    "features",
    "day",
    "snapshot",
    "model",
    "evaluation",
    "champion",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1400, "height": 900}
SECONDS = 1000.0
PATIENCE = 60 * SECONDS
"""In milliseconds, as Playwright counts: the first page compiles on a busy machine."""
LARGEST = 300_000
"""Bytes of a picture in the documentation."""

Shoot = Callable[..., None]


@pytest.fixture(scope="module")
def page(station: Station) -> Iterator[Page]:
    """One window of the UI on the station, whose history is built."""
    browser = find_browser()
    assert browser is not None, (
        f"no Chromium was found; `apt-get install chromium`, or name yours in {VARIABLE}"
    )
    assert station.history.status.startswith("COMPLETED")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
        context = running.new_context(viewport=SIZE, base_url=station.server.url)
        context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield context.new_page()
        running.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots go: SIGNALBOX_SCREENSHOTS=docs/images refreshes the README's."""
    chosen = os.environ.get("SIGNALBOX_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def shoot(page: Page, pictures: Path) -> Shoot:
    """Take a picture once the page is at rest; a picture that is empty or too large fails."""

    def take(name: str, height: int = SIZE["height"]) -> None:
        page.mouse.move(0, 0)
        page.set_viewport_size({"width": SIZE["width"], "height": height})
        page.wait_for_timeout(1.5 * SECONDS)
        path = pictures / f"{name}.png"
        page.screenshot(path=path)
        page.set_viewport_size({"width": SIZE["width"], "height": SIZE["height"]})
        assert 10_000 < path.stat().st_size < LARGEST, f"{path} has {path.stat().st_size} bytes"

    return take


def graph_node(page: Page, asset: str) -> Locator:
    """An asset in the graph, not in the list beside it."""
    return page.locator("foreignObject, svg").get_by_text(asset, exact=True).first


def test_the_whole_lineage_is_in_sight(page: Page, shoot: Shoot) -> None:
    page.goto("/asset-groups")
    expect(page.get_by_text("Global asset lineage")).to_be_visible()
    for asset in ASSETS:
        expect(graph_node(page, asset)).to_be_visible()
    page.get_by_text("Hide navigation").click()
    page.get_by_role("button", name="Close sidebar").or_(
        page.locator("button:has([aria-label='panel_hide_left'])")
    ).first.click()
    page.set_viewport_size({"width": SIZE["width"], "height": 560})
    page.reload()
    for asset in ASSETS:
        expect(graph_node(page, asset)).to_be_in_viewport()
    shoot("lineage", height=560)
