"""A backfill whose processes are killed at random points ends as if nobody had touched it."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from shutil import copytree

import dagster as dg
import pytest

from benchmarks.backfill_cost import run_loop
from platform_assets.domain.lease import TIMEOUT_SECONDS
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources import processes
from resources.catalog import load_catalog
from resources.home import Home
from resources.leasing import SLOWEST_POLL_SECONDS, acquire
from tests.e2e.conftest import server_on
from tests.e2e.station import FIRST, Station, write_small_catalog
from tests.e2e.storm import KINDS, Storm, tables_of, versions_of

pytestmark = [pytest.mark.e2e, pytest.mark.heavy, pytest.mark.timeout(2400)]

LAST = date(2013, 1, 10)
POINTS = 20


def require_as_undisturbed(storm: Storm, undisturbed: Services) -> None:
    """Tables row for row and versions as in the other home; nothing held, nothing stuck."""
    services = Services.open(load_catalog(storm.catalog)["flights"], storm.home)
    assert tables_of(services) == tables_of(undisturbed)
    # The loop rolls up the days of the catalog that never landed, too; nobody asked for those.
    of_span = {
        name: version
        for name, version in versions_of(undisturbed).items()
        if name[-10:] <= LAST.isoformat()
    }
    assert versions_of(services) == of_span
    champions = [one.ledger.champion("flights") for one in (services, undisturbed)]
    assert len({champion and champion.model_date for champion in champions}) == 1
    # A killed run's leases stand in the ledger until somebody wants them: each is to be had, and
    # none outlives its time-out by more than a waiter's look.
    limit = TIMEOUT_SECONDS + 2 * SLOWEST_POLL_SECONDS
    for record in services.leases.held():
        taken = acquire(services.leases, record.resource, processes.holder("after"), limit=limit)
        assert services.leases.release(taken)
    with dg.DagsterInstance.from_config(str(storm.home.dagster)) as instance:
        stuck = [run.run_id for run in instance.get_runs() if not run.is_finished]
    assert not stuck


def ride_out(
    template: Path, folder: Path, points: int, seed: int, say: Callable[[str], None]
) -> tuple[Storm, Services, int]:
    """A home whose backfill was killed at so many points, and one that a loop has built.

    The number is how often the command was typed at the end until nothing was left to do.
    """
    catalog = write_small_catalog(folder, per_run=3)
    spec = load_catalog(catalog)["flights"]
    homes = {}
    for name in ("stormy", "calm"):
        copytree(template, folder / name)
        homes[name] = Home.locate(folder / name)
        land_flights(Services.open(spec, homes[name]), FIRST, LAST, quiet=True)
    undisturbed = Services.open(spec, homes["calm"])
    run_loop(undisturbed)
    storm = Storm(homes["stormy"], catalog, FIRST, LAST, seed, log=say)
    storm.blow(points)
    with server_on(storm.home, catalog) as server:
        server.wait_until_ready()
        launches = storm.calm(Station(storm.home, catalog, server))
    return storm, undisturbed, launches


def test_killed_at_twenty_points(
    home_template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def say(line: str) -> None:
        with capfd.disabled():
            print(line)

    storm, undisturbed, _ = ride_out(home_template, tmp_path, POINTS, 20130105, say)
    assert storm.killed.total() == POINTS
    assert set(storm.killed) == set(KINDS)
    require_as_undisturbed(storm, undisturbed)
