"""`signalbox backfill` as an on-call engineer uses it, against a real webserver and daemon."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from shutil import copytree
from typing import Any

import dagster as dg
import pytest
from deltalake import DeltaTable

from platform_assets.demo.play import ENDED
from platform_assets.factory.backfill_view import Watcher
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.dagster_api import DagsterApi
from resources.home import Home
from resources.ledger.backfills import Backfills
from tests.e2e.conftest import Start, server_on
from tests.e2e.station import (
    FIRST,
    HELD,
    LIVE_DAY,
    LIVE_FROM,
    Station,
    until,
    write_small_catalog,
)

pytestmark = [pytest.mark.e2e, pytest.mark.heavy, pytest.mark.timeout(2400)]

SIGNALBOX = str(Path(sys.executable).with_name("signalbox"))

MIDDLE, LAST_LANDED = date(2013, 1, 8), date(2013, 1, 13)
ENDS = 1200.0
ENDED_RUN = {"SUCCESS", "FAILURE", "CANCELED"}


@pytest.fixture(scope="module")
def depot(home_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """Eleven days landed and nothing built, with Dagster on it. A run takes two partitions."""
    root = tmp_path_factory.mktemp("depot") / "home"
    catalog = write_small_catalog(tmp_path_factory.mktemp("catalog"), per_run=2)
    copytree(home_template, root)
    home = Home.locate(root)
    with server_on(home, catalog) as server:
        found = Station(home, catalog, server)
        found.land(FIRST, LAST_LANDED)
        server.wait_until_ready()
        yield found


class Shell:
    """Runs `signalbox backfill …` in a process of its own, on the station's home."""

    def __init__(self, depot: Station, start: Start) -> None:
        self.depot, self.start = depot, start

    def begin(self, *arguments: str) -> Any:
        variables = {**self.depot.home.environment(), "SIGNALBOX_CATALOG": str(self.depot.catalog)}
        return self.start([SIGNALBOX, "backfill", *arguments], **variables)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        child = self.begin(*arguments)
        out, err = child.communicate(timeout=ENDS)
        assert child.returncode == code, f"{arguments}: {out}\n{err}"
        return str(out if code == 0 else err)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def backfill(depot: Station, command: Start) -> Shell:
    return Shell(depot, command)


def span(first: date, last: date) -> tuple[str, ...]:
    return ("--from", first.isoformat(), "--to", last.isoformat())


def looked(depot: Station, backfill_id: str) -> Any:
    with dg.DagsterInstance.from_config(str(depot.home.dagster)) as instance:
        return Watcher(instance, backfill_id).look()


def services(depot: Station) -> Services:
    return Services.open(load_catalog(depot.catalog)["flights"], depot.home)


def test_a_history_is_launched_steered_watched_and_whole(depot: Station, backfill: Shell) -> None:
    """Launch, size, pause, resume, watch to the end, and there is nothing left to do."""
    url = ("--url", depot.server.url)
    first = span(FIRST, MIDDLE)
    launched = backfill.json("launch", "flights", *first, *url, "--runs", "1", "--by", "ana")
    name = launched["backfill"]
    assert launched["url"].endswith(f"/runs/b/{name}")
    planned = {a: counts["missing"] for a, counts in launched["plan"]["assets"].items()}
    # It is a native backfill: the UI has it, with what the plan would build and nothing more.
    seen = DagsterApi(depot.server.url).backfill(name)
    assert {a: of for a, (_, _, of) in seen["assets"].items() if a in planned and of} == {
        a: n for a, n in planned.items() if n
    }

    # Whoever plans the same meanwhile finds it in work elsewhere, and would launch none of it.
    again = backfill.json("plan", "flights", *first)
    assert again["runs"] == 0
    assert again["assets"]["flights/features"]["elsewhere"] == planned["flights/features"]

    def queue() -> Any:
        return looked(depot, name).runs

    until(lambda: queue()["queued"] >= 2, 180, "runs to queue", depot.server)
    assert "is paused" in backfill("pause", name)
    until(lambda: queue()["in_progress"] == 0, 240, "its runs to end", depot.server)
    standing = queue()
    assert standing["queued"] >= 1
    # Some looks of the queue later none of them has started.
    time.sleep(8)
    still = queue()
    assert (still["in_progress"], still["succeeded"]) == (0, standing["succeeded"])
    assert backfill.json("status", name)["paused"] is True

    backfill("resize", name, "--no-limit")
    assert "is running" in backfill("resume", name)
    said = backfill("watch", name)
    assert "completed_success" in said
    found = backfill.json("plan", "flights", *first)
    assert found["runs"] == 0
    assert list(found["partitions"]["flights/features"]["held"]) == [HELD]
    for asset, missing in planned.items():
        if asset != "flights/champion":
            assert found["assets"][asset]["complete"] == missing
    assert found["expected"]["measured"]["flights/model"]["seconds"] > 0
    assert found["expected"]["unmeasured"] == []
    assert depot.flights.ledger.champion("flights") is not None


def test_ctrl_c_ends_the_watching_and_cancel_the_backfill(depot: Station, backfill: Shell) -> None:
    """A second stretch with gaps: watched, left, cancelled in the middle, launched again."""
    url = ("--url", depot.server.url)
    asked = ("--dates", "2013-01-10,2013-01-11,2013-01-13")
    child = backfill.begin("launch", "flights", *asked, *url, "--runs", "1")
    store = Backfills(depot.home.ledger_url)

    def mine() -> Any:
        return next((r for r in store.all() if any("2013-01-13" in p for p in _all(r))), None)

    record = until(mine, 180, "the backfill to be recorded", depot.server)
    until(lambda: looked(depot, record.id).runs["queued"] >= 1, 180, "its runs", depot.server)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"backfill {record.id} goes on" in out
    assert not looked(depot, record.id).ended
    assert {p.split("|")[1] for p in record.selection["flights/features"]} == set(
        asked[1].split(",")
    )

    assert "is being cancelled" in backfill("cancel", record.id, *url)
    until(lambda: looked(depot, record.id).ended, 300, "it to be cancelled", depot.server)
    view = looked(depot, record.id)
    assert view.status == "canceled"
    assert (view.runs["queued"], view.runs["in_progress"]) == (0, 0)
    said = backfill("pause", record.id, code=1)
    assert "has ended (canceled)" in said

    done = backfill.json("plan", "flights", *asked)
    assert done["runs"] > 0
    said = backfill("launch", "flights", *asked, *url)
    assert "completed_success" in said
    assert backfill.json("plan", "flights", *asked)["runs"] == 0
    # Each partition was recorded once: what was committed before the cancelling was not redone.
    ledger = services(depot).ledger
    for day in asked[1].split(","):
        for key in ("JFK", "LGA"):
            assert len(ledger.history("flights/features", f"{key}|{day}")) == 1


def test_two_backfills_and_the_sensor_write_each_partition_once(depot: Station) -> None:
    """Three askers for the same partitions of live days: all content, and one commit each."""
    days = (LIVE_FROM, LIVE_DAY)
    wanted = [f"{key}|{day}" for key in ("JFK", "LGA") for day in days]
    api = depot.server.api
    depot.land(LIVE_FROM, LIVE_DAY)

    def asked() -> Any:
        runs = api.runs({"dagster/sensor_name": "flights_readiness"})
        return runs if len(runs) >= len(wanted) else None

    until(asked, 180, "the sensor to ask for them", depot.server)
    ranges = {"flights/features": [(f"{k}|{days[0]}", f"{k}|{days[1]}") for k in ("JFK", "LGA")]}
    names = [api.launch_backfill(ranges, title=title, tags={}) for title in ("one", "two")]
    for name in names:
        until(lambda n=name: api.backfill(n)["status"] in ENDED, 600, "it to end", depot.server)
        found = api.backfill(name)
        assert (found["status"], found["error"]) == ("COMPLETED_SUCCESS", None)
        assert found["assets"]["flights/features"] == (4, 0, 4)
    until(
        lambda: all(run["status"] in ENDED_RUN for run in asked()),
        300,
        "the sensor's",
        depot.server,
    )
    assert {run["status"] for run in asked()} == {"SUCCESS"}

    # In plain Dagster each of the three would have written them (docs/backfills.md, the drill).
    ledger = services(depot).ledger
    once = dict.fromkeys(wanted, 1)
    assert {p: len(ledger.history("flights/features", p)) for p in wanted} == once
    tables = [DeltaTable(table.path) for table in services(depot).dataset.tables().values()]
    commits = [entry.get("signalbox.partition") for table in tables for entry in table.history()]
    assert {p: commits.count(p) for p in wanted} == once


def test_only_the_airport_that_is_named_is_restated(depot: Station, backfill: Shell) -> None:
    url = ("--url", depot.server.url)
    ledger = services(depot).ledger
    both = [f"{key}|{day}" for key in ("JFK", "LGA") for day in (FIRST, FIRST + timedelta(days=1))]

    def runs() -> dict[str, tuple[str, str]]:
        found = {p: ledger.current_version("flights/features", p) for p in both}
        return {p: (v.run_id, v.data_version) for p, v in found.items() if v is not None}

    before = runs()
    assert len(before) == 4
    asked = (*span(FIRST, FIRST + timedelta(days=1)), "--airport", "JFK")
    # What is there is left alone, unless it is to be made anew.
    assert backfill.json("plan", "flights", *asked)["runs"] == 0
    planned = backfill.json("plan", "flights", *asked, "--restate")
    assert planned["assets"]["flights/features"]["again"] == 2
    said = backfill("launch", "flights", *asked, "--restate", *url)
    assert "completed_success" in said
    after = runs()
    for name in both:
        (run, data), (run_after, data_after) = before[name], after[name]
        assert data_after == data  # the same rows
        assert (run_after != run) == name.startswith("JFK"), name


def test_a_webserver_of_another_home_is_refused(
    depot: Station, backfill: Shell, home_template: Path, tmp_path: Path
) -> None:
    copytree(home_template, tmp_path / "other")
    other = Station(Home.locate(tmp_path / "other"), depot.catalog, depot.server)
    other.land(FIRST, FIRST)
    before = {one["backfill"] for one in backfill.json("status")["backfills"]}
    shell = Shell(other, backfill.start)
    day = ("--dates", FIRST.isoformat())
    said = shell("launch", "flights", *day, "--url", depot.server.url, code=1)
    assert "works on another home" in said
    # What it launched there is cancelled, and nothing is recorded here.
    (stray,) = {one["backfill"] for one in backfill.json("status")["backfills"]} - before
    until(lambda: looked(depot, stray).ended, 300, "the stray one to end", depot.server)
    assert looked(depot, stray).status == "canceled"
    assert Backfills(other.home.ledger_url).all() == []


def _all(record: Any) -> list[str]:
    return [name for names in record.selection.values() for name in names]
