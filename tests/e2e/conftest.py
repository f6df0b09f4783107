"""A running Dagster for the whole session: a small home whose history is built."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from platform_assets.demo.server import DagsterDev
from resources.home import Home
from tests.e2e.station import (
    DIALOG_DAYS,
    FIRST,
    ROOT,
    Station,
    write_slow_catalog,
    write_small_catalog,
)
from tests.ports import free_port

Start = Callable[..., "subprocess.Popen[str]"]
ORDER = ("test_daemon", "test_browser", "test_demo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that do not need the history come first: it takes minutes, mostly waiting."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return ORDER.index(name) if name in ORDER else -1

    items.sort(key=place)
    for item in items:
        # The first that needs the history waits for it: five stages, each a tick of 30 s or more.
        if "e2e" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))


def server_on(home: Home, catalog: Path) -> DagsterDev:
    """Dagster on a home, with a catalog of its own."""
    variables = {"SIGNALBOX_CATALOG": str(catalog), "PYTHONPATH": str(ROOT)}
    return DagsterDev(home, free_port(), variables)


@pytest.fixture(scope="session")
def station(home_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """Landed days, and a native backfill of the history that goes on beside the first tests."""
    root = tmp_path_factory.mktemp("station") / "home"
    catalog = write_small_catalog(tmp_path_factory.mktemp("catalog"))
    shutil.copytree(home_template, root)
    home = Home.locate(root)
    with server_on(home, catalog) as server:
        found = Station(home, catalog, server)
        found.land(FIRST, DIALOG_DAYS[-1])
        server.wait_until_ready()
        found.start_history()
        yield found
        found.ending = True


@pytest.fixture
def slow_station(home_template: Path, tmp_path: Path) -> Station:
    """A station of the test's own, with a slow pipeline, and Dagster not started."""
    shutil.copytree(home_template, tmp_path / "home")
    (tmp_path / "catalog").mkdir()
    home, catalog = Home.locate(tmp_path / "home"), write_slow_catalog(tmp_path / "catalog")
    return Station(home, catalog, server_on(home, catalog))


@pytest.fixture
def command() -> Iterator[Start]:
    """Start a command as a person's process, without a terminal; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(arguments: Sequence[str], **variables: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        child = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell may have started the tests with SIGINT ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
            child.communicate()
