"""A backfill whose ledger and Dagster storage lie in Postgres, steered while a daemon runs it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from shutil import copytree
from typing import Any

import dagster as dg
import pytest

from benchmarks.backfill_cost import run_loop
from platform_assets.factory.backfill_view import Watcher
from platform_assets.factory.instance import make_home
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import DAGSTER_URL, Home
from tests import postgres as postgres_server
from tests.e2e.conftest import server_on
from tests.e2e.station import FIRST, Station, until, write_small_catalog
from tests.e2e.storm import WORKER, Storm, found_by_kind, tables_of, versions_of

pytestmark = [
    *(pytest.mark.e2e, pytest.mark.heavy, pytest.mark.embedded, pytest.mark.timeout(1800))
]

LAST = date(2013, 1, 9)


@pytest.fixture
def homes(
    postgres: str, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Home, Home]]:
    """One whose databases are in Postgres, and one in a folder, which nobody disturbs."""
    copytree(home_template, tmp_path / "calm")
    calm = Home.locate(tmp_path / "calm")
    ledger, dagster = (postgres_server.create_database(postgres) for _ in range(2))
    found = replace(Home.locate(tmp_path / "home"), ledger_url=ledger, dagster_url=dagster)
    monkeypatch.setenv(DAGSTER_URL, dagster)
    make_home(found)
    yield found, calm
    for url in (ledger, dagster):
        postgres_server.drop_database(url)


def test_it_is_steered_killed_cancelled_and_launched_again(
    homes: tuple[Home, Home], tmp_path: Path
) -> None:
    home, _ = homes
    catalog = write_small_catalog(tmp_path, per_run=2)
    spec = load_catalog(catalog)["flights"]
    stormy, undisturbed = (Services.open(spec, each) for each in homes)
    for services in (stormy, undisturbed):
        land_flights(services, FIRST, LAST, quiet=True)
    run_loop(undisturbed)
    storm = Storm(home, catalog, FIRST, LAST, seed=1)

    def looked(name: str) -> Any:
        with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
            return Watcher(instance, name).look()

    with server_on(home, catalog) as server:
        server.wait_until_ready()
        at = ("--url", server.url)
        name = storm.shell("launch", *storm.span, *at, "--runs", "1")["backfill"]
        until(lambda: looked(name).runs["queued"] >= 2, 180, "runs to queue", server)
        worker = until(lambda: found_by_kind(home).get(WORKER), 60, "a run to work on", server)
        worker[0].kill()
        assert storm.shell("pause", name)["paused"] is True
        until(lambda: looked(name).runs["in_progress"] == 0, 240, "its runs to end", server)
        standing = looked(name).runs
        time.sleep(6)  # looks of the queue
        assert looked(name).runs["in_progress"] == 0
        assert looked(name).runs["succeeded"] == standing["succeeded"]
        storm.shell("resize", name, "--runs", "2")
        assert storm.shell("resume", name)["paused"] is False
        succeeded = standing["succeeded"]
        until(lambda: looked(name).runs["succeeded"] > succeeded, 240, "it to go on", server)
        storm.shell("cancel", name, *at)
        until(lambda: looked(name).ended, 300, "it to be cancelled", server)
        assert looked(name).status == "canceled"
        storm.calm(Station(home, catalog, server))

    assert tables_of(stormy) == tables_of(undisturbed)
    of_span = {
        partition: version
        for partition, version in versions_of(undisturbed).items()
        if partition[-10:] <= LAST.isoformat()
    }
    assert versions_of(stormy) == of_span
    assert not list(home.root.rglob("ledger.db")), "the ledger is in the folder after all"
    assert not list(home.dagster.rglob("runs.db")), "so are Dagster's runs"
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        assert instance.get_runs_count() > 0
        assert all(run.is_finished for run in instance.get_runs())
