"""A running Dagster for the whole session: a small home whose history is built."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from platform_assets.demo.server import DagsterDev
from resources.home import Home
from tests.e2e.station import (
    DIALOG_DAYS,
    FIRST,
    ROOT,
    Station,
    free_port,
    write_catalog,
)

ORDER = ("test_daemon", "test_browser", "test_demo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that do not need the history come first: it takes minutes, mostly waiting."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return ORDER.index(name) if name in ORDER else -1

    items.sort(key=place)


@pytest.fixture(scope="session")
def small_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("catalog"))


def server_on(home: Home, catalog: Path) -> DagsterDev:
    """Dagster on a home, with a catalog of its own."""
    variables = {"SIGNALBOX_CATALOG": str(catalog), "PYTHONPATH": str(ROOT)}
    return DagsterDev(home, free_port(), variables)


@pytest.fixture(scope="session")
def station(
    home_template: Path, small_catalog: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Station]:
    """Landed days, and a native backfill of the history that goes on beside the first tests."""
    root = tmp_path_factory.mktemp("station") / "home"
    shutil.copytree(home_template, root)
    home = Home.locate(root)
    with server_on(home, small_catalog) as server:
        found = Station(home, small_catalog, server)
        found.land(FIRST, DIALOG_DAYS[-1])
        server.wait_until_ready()
        found.start_history()
        yield found
        found.ending = True


@pytest.fixture
def quiet_station(home_template: Path, small_catalog: Path, tmp_path: Path) -> Station:
    """A station of the test's own, with nothing landed and Dagster not started."""
    shutil.copytree(home_template, tmp_path / "home")
    home = Home.locate(tmp_path / "home")
    return Station(home, small_catalog, server_on(home, small_catalog))
