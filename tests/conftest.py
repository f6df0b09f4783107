"""What the tests share: a home made once and copied, and landed days of real flights."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.instance import make_home
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import DAGSTER_URL, Home
from tests import postgres as postgres_server
from tests import s3
from tests.homes import DATABASES, copy_home, drop_home, note_databases

# A shell that starts the tests in the background has SIGINT ignored; Dagster makes SIGTERM what
# SIGINT is, and whatever a test starts would then outlive it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ON_POSTGRES = os.environ.get("SIGNALBOX_TEST_STORE") == "postgres"
"""Whether the ledger and Dagster's storage of every home lie in Postgres."""


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


STORE_FIXTURES = {"home", "home_template", "services"}
REGISTRY = {
    *("test_audit", "test_champion_waivers", "test_gate", "test_judged_as_trained"),
    *("test_live_metric", "test_projection", "test_promote_cli", "test_promotion_lease"),
    *("test_promotion_server", "test_reproduction", "test_serving_endpoint", "test_vacuum"),
}
"""Files on the registry of models: in CI their heavy tests run on Postgres as well."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that work on a home: they run on Postgres as well."""
    for item in items:
        on_a_home = STORE_FIXTURES & set(getattr(item, "fixturenames", ()))
        if on_a_home and item.get_closest_marker("embedded") is None:
            item.add_marker("store")
            if item.path.stem in REGISTRY:
                item.add_marker("registry")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A Postgres server; its URL without a database."""
    # Workers share homes, so they must share the server: whoever starts them starts it.
    if ON_POSTGRES and os.environ.get("PYTEST_XDIST_WORKER"):
        assert postgres_server.VARIABLE in os.environ
    if not postgres_server.is_there():
        pytest.skip(f"no Postgres server is installed; {postgres_server.ADVICE}")
    with postgres_server.server() as url:
        yield url


@pytest.fixture(scope="session")
def s3_variables() -> Iterator[dict[str, str]]:
    """An S3-compatible server, by the variables of its clients."""
    with s3.server() as variables:
        yield variables


@pytest.fixture
def s3_bucket(s3_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket, and the environment in which it is found."""
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.BUCKET}"


@pytest.fixture(scope="session")
def home_template(request: pytest.FixtureRequest, shared_folder: Path) -> Path:
    """A home that was made once: MLflow's migrations take seconds."""
    home = Home.locate(shared_folder / "home-template")
    if ON_POSTGRES:
        server = request.getfixturevalue("postgres")
        with (shared_folder / "home-template.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (home.root / DATABASES).exists():
                return home.root
            ledger, dagster = (postgres_server.create_database(server) for _ in range(2))
            home = replace(home, ledger_url=ledger, dagster_url=dagster)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(DAGSTER_URL, dagster)
                make_home(home)
            note_databases(home.root, ledger, dagster)
        return home.root
    make_home(home)
    return home.root


@pytest.fixture
def home(home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A fresh home, and the environment that points at it."""
    found = copy_home(home_template, tmp_path / "home")
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    yield found
    drop_home(found.root)


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
