"""What the tests share: a home made once and copied, and landed days of real flights."""

import os
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.instance import make_home
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import Home


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def home_template(shared_folder: Path) -> Path:
    """A home that was made once: MLflow's migrations take seconds."""
    home = Home.locate(shared_folder / "home-template")
    make_home(home)
    return home.root


@pytest.fixture
def home(home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A fresh home, and the environment that points at it."""
    root = tmp_path / "home"
    shutil.copytree(home_template, root)
    found = Home.locate(root)
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture(scope="session")
def flights() -> PipelineSpec:
    """The pipeline of the catalog."""
    return load_catalog()["flights"]


@pytest.fixture
def services(home: Home, flights: PipelineSpec) -> Services:
    return Services.open(flights, home)


@pytest.fixture
def land(services: Services) -> Callable[..., None]:
    """Land dates as `signalbox land` does: `land("2013-01-02", "2013-01-05", until_hour=18)`."""

    def deliver(
        first: str, last: str, until_hour: int | None = None, airports: list[str] | None = None
    ) -> None:
        land_flights(
            services,
            date.fromisoformat(first),
            date.fromisoformat(last),
            until_hour,
            airports,
            quiet=True,
        )

    return deliver
