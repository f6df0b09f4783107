"""The Dagster UI in a headless Chromium, as a person uses it; it takes the README's pictures."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, ViewportSize, expect, sync_playwright

from platform_assets.demo.play import ENDED
from tests.e2e.station import DIALOG_DAYS, HELD, Station, materialized, until
from tests.tools.browser import VARIABLE, find_browser

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

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
SIZE: ViewportSize = {"width": 1400, "height": 900}
FEATURES = "flights/features"
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
    """Take a picture once the page is at rest; one that is empty or too large fails."""

    def take(name: str) -> None:
        page.wait_for_timeout(1.5 * SECONDS)
        path = pictures / f"{name}.png"
        page.screenshot(path=path)
        assert 10_000 < path.stat().st_size < LARGEST, f"{path} has {path.stat().st_size} bytes"

    return take


def node(page: Page, asset: str) -> Locator:
    """An asset in the graph, not in the list beside it."""
    return page.locator("foreignObject").get_by_text(asset, exact=True)


def link(page: Page, asset: str) -> Locator:
    """The link to an asset, as the page of its neighbour has it."""
    return page.locator(f"a[href^='/assets/flights/{asset}']").filter(has_text=asset).first


def right_edge(found: Locator) -> float:
    """Where an element ends, in pixels; it must lie wholly within the window."""
    box, size = found.bounding_box(), found.page.viewport_size
    assert box is not None
    assert size is not None
    right, bottom = box["x"] + box["width"], box["y"] + box["height"]
    assert 0 <= box["x"] < right <= size["width"], f"{found} lies at {box}"
    assert 0 <= box["y"] < bottom <= size["height"], f"{found} lies at {box}"
    return right


def test_the_whole_lineage_is_in_sight(page: Page, shoot: Shoot) -> None:
    page.set_viewport_size({"width": SIZE["width"], "height": 460})
    page.goto("/asset-groups")
    expect(page.get_by_text("Global asset lineage")).to_be_visible()
    for asset in ASSETS:
        expect(node(page, asset)).to_be_visible()
        right_edge(node(page, asset))
    page.get_by_text("Hide navigation").click()
    page.locator("button:has([aria-label=panel_show_right])").last.click()
    page.mouse.move(90, 250)
    page.keyboard.down("Control")
    for _ in range(30):
        if right_edge(node(page, "champion")) > 0.87 * SIZE["width"]:
            break
        page.mouse.wheel(0, -25)
        page.wait_for_timeout(100)
    page.keyboard.up("Control")
    page.mouse.move(300, 420)
    for asset in ASSETS:
        expect(node(page, asset)).to_be_in_viewport()
    shoot("lineage")
    page.get_by_role("button").filter(
        has=page.locator("[aria-label=panel_show_left]")
    ).first.click()
    page.set_viewport_size(SIZE)


def test_from_the_champion_one_follows_the_line_back_to_both_sources(page: Page) -> None:
    page.goto("/assets/flights/champion")
    for asset in ("evaluation", "model", "snapshot", "day", "features"):
        link(page, asset).click()
        expect(page).to_have_url(re.compile(f"/assets/flights/{asset}"))
    for source in ("landed_flights", "landed_weather"):
        expect(link(page, source)).to_be_visible()
    link(page, "landed_weather").click()
    expect(page).to_have_url(re.compile("/assets/flights/landed_weather"))
    expect(page.get_by_text("Hourly weather at the airport.").first).to_be_visible()


def test_the_champions_plot_is_an_image_in_its_metadata(page: Page, shoot: Shoot) -> None:
    page.goto("/assets/flights/champion")
    row = page.get_by_role("row").filter(has_text="log_loss over time")
    row.get_by_text("[Show Markdown]").click()
    plot = page.get_by_role("img", name="log_loss over time")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") > 300
    shoot("champion")
    page.get_by_role("button", name="Close", exact=True).click()


def test_a_backfill_launched_through_the_dialog_turns_its_partitions_green(
    page: Page, station: Station
) -> None:
    wanted = {f"{airport}|{day}" for airport in ("JFK", "LGA") for day in DIALOG_DAYS}
    before = materialized(station.statuses(FEATURES))
    assert not before & wanted
    page.goto(f"/assets/{FEATURES}?view=partitions")
    expect(page.get_by_text(f"Materialized ({len(before)})")).to_be_visible()
    # Whatever was refused before this test, held days among them, stays as it was.
    failed = page.get_by_text(re.compile(r"^Failed \(\d+\)$")).inner_text()
    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Launch runs to materialize flights / features")).to_be_visible()
    dialog.get_by_role("button", name="All", exact=True).first.click()
    dates = dialog.get_by_placeholder("ex: 2013")
    dates.fill(f"[{DIALOG_DAYS[0]}...{DIALOG_DAYS[-1]}]")
    dates.press("Enter")
    expect(dialog.get_by_text(f"{len(wanted)} partitions", exact=True)).to_be_visible()
    dialog.get_by_role("button", name="Launch backfill").click()
    (backfill,) = until(station.server.api.unfinished_backfills, 30, "the backfill to exist")
    until(
        lambda: station.server.api.backfill(backfill)["status"] in ENDED,
        150,
        f"backfill {backfill} to end",
        station.server,
    )
    assert station.server.api.backfill(backfill)["status"] == "COMPLETED_SUCCESS"
    after = materialized(station.statuses(FEATURES))
    assert after - before == wanted
    page.reload()
    expect(page.get_by_text(f"Materialized ({len(after)})")).to_be_visible()
    expect(page.get_by_text(failed, exact=True)).to_be_visible()


def test_a_held_run_says_why(page: Page, station: Station, shoot: Shoot) -> None:
    run = station.launch("flights_features", HELD)
    until(lambda: station.run(run)["status"] == "FAILURE", 90, "the run to end", station.server)
    page.goto(f"/runs/{run}")
    reason = "flights/features is held for 1 partition(s)"
    expect(page.get_by_text(reason).last).to_be_visible()
    expect(page.get_by_text("weather 23 of 24 hours, missing 06:00").last).to_be_visible()
    page.goto(f"/assets/{FEATURES}?view=partitions&partition={quote(HELD)}")
    expect(page.get_by_text("failed, and did not materialize this asset")).to_be_visible()
    expect(page.get_by_text("Failed (1)")).to_be_visible()
    shoot("partitions")


def test_the_backfill_of_the_history_shows_its_runs(
    page: Page, station: Station, shoot: Shoot
) -> None:
    history = station.history
    page.goto(f"/runs/b/{history.backfill}")
    expect(page.get_by_text("100% completed")).to_have_count(len(ASSETS) - 2)
    page.get_by_role("tab", name="Runs").or_(page.get_by_text("Runs", exact=True)).last.click()
    for run in history.runs[:5]:
        expect(page.get_by_role("link", name=run["runId"][:8])).to_be_visible()
    shoot("backfill")
