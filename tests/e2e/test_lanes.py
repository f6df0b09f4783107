"""Lanes with a real daemon: a backfill fills its lane, and nobody else waits for it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES

from platform_assets.domain.lanes import Lane
from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.line.days import build_snapshot
from platform_assets.line.features import build_features
from platform_assets.line.landing import land_flights
from resources.home import Home
from resources.lanes import load_lanes
from resources.ledger.backfills import PAUSED, RUNNING, Backfills
from resources.ledger.records import BackfillRecord
from resources.slots import slot
from tests.e2e.conftest import Start, server_on
from tests.e2e.station import IN_PROGRESS, Station, until, write_slow_catalog
from tests.e2e.test_forked import TERMINATE
from tests.e2e.trainers import TRAINING
from tests.queueing import past_the_queue

FIRST, LAST = date(2013, 1, 3), date(2013, 1, 8)
LIVE = (date(2013, 1, 10), date(2013, 1, 11))
KEY = "JFK|2013-01-03"
LIMIT = load_lanes().limit(Lane.BACKFILL)
DG = str(Path(sys.executable).with_name("dg"))

pytestmark = [pytest.mark.e2e, pytest.mark.heavy]


@pytest.fixture
def gated(home_template: Path, tmp_path: Path) -> Iterator[Station]:
    """Six days whose models are trained as long as a test wants, and Dagster running."""
    shutil.copytree(home_template, tmp_path / "home")
    (tmp_path / "catalog").mkdir()
    home, catalog = Home.locate(tmp_path / "home"), write_slow_catalog(tmp_path / "catalog")
    file = catalog / "slow.yaml"
    document = yaml.safe_load(file.read_text())
    document["model"] |= {"trainer": "tests.e2e.trainers:GatedTrainer", "parameters": {}}
    document["limits"] |= {"models_per_run": 1}
    document["schedule"] |= {"live_from": LIVE[0], "sensor_interval_seconds": 3}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    station = Station(home, catalog, server_on(home, catalog))
    services = station.slow
    land_flights(services, FIRST, LAST, quiet=True)
    for day in date_range(FIRST, LAST):
        build_features(services, PartitionKey(day, "JFK"), "by-hand")
        build_snapshot(services, PartitionKey(day), "by-hand")
    with station.server as server:
        server.wait_until_ready()
        yield station


def trainings(station: Station) -> set[Path]:
    """The trainings that are at work."""
    return set(station.home.root.glob(f"{TRAINING}*"))


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["tags"]}


def launch_backfill(station: Station) -> str:
    """As somebody does who is in a hurry: it says that it is daily, and very urgent."""
    return station.server.api.launch_backfill(
        {"slow/model": [(FIRST.isoformat(), LAST.isoformat())]},
        title="six days",
        tags={"signalbox/lane": "daily", "dagster/priority": "99"},
    )


def states(station: Station, backfill: str) -> list[str]:
    return [run["status"] for run in station.server.api.runs({"dagster/backfill": backfill})]


def at_work(station: Station, backfill: str) -> int:
    return sum(state in IN_PROGRESS for state in states(station, backfill))


def daily_features(station: Station, day: date) -> bool:
    """Whether the sensor's run has built a day's features, in the daily lane."""
    runs = station.server.api.runs({"signalbox/lane": "daily"})
    return any(
        run["status"] == "SUCCESS"
        and run["jobName"] == "slow_features"
        and day.isoformat() in tags_of(run).get("dagster/partition", "")
        for run in runs
    )


def steer(station: Station, backfill: str, state: str, max_runs: int | None) -> None:
    now = datetime.now(UTC)
    record = BackfillRecord(backfill, "slow", state, max_runs, {}, "test", now, now, "test")
    store = Backfills(station.home.ledger_url)
    store.put(record)
    store.set_state(backfill, state, "test")
    store.set_size(backfill, max_runs, "test")


def test_a_backfill_keeps_to_its_lane_and_is_steered_while_it_runs(gated: Station) -> None:
    station, server = gated, gated.server
    backfill = launch_backfill(station)
    until(lambda: len(states(station, backfill)) == 6, 240, "its six runs", server)
    until(lambda: len(trainings(station)) == LIMIT, 240, "its lane to be full", server)
    for run in server.api.runs({"dagster/backfill": backfill}):
        tags = tags_of(run)
        assert tags["signalbox/lane"] == "backfill"
        assert tags["signalbox/lane_overridden"].startswith("daily: ")
        assert tags["signalbox/lane_pipeline"] == "backfill/slow"
        assert tags["dagster/priority"] == "-10"
    first = trainings(station)

    # A person clicks, and does not wait for it.
    click = station.launch("slow_features", KEY, {"signalbox/lane": "daily"})
    until(lambda: station.run(click)["status"] == "SUCCESS", 240, "the click's run", server)
    (clicked,) = server.api.runs({"signalbox/lane": "adhoc"})
    assert clicked["runId"] == click

    # Today's data lands, and the sensor's runs do not wait either.
    land_flights(station.slow, LIVE[0], LIVE[0], quiet=True)
    until(lambda: daily_features(station, LIVE[0]), 240, "today's features", server)
    assert at_work(station, backfill) == LIMIT
    assert first <= trainings(station), "they are the same ones that filled the lane at first"
    assert states(station, backfill).count("QUEUED") == 6 - LIMIT

    # Paused, with what is at work coming to its end: no other one starts, however often the queue
    # looks; it does look, since tomorrow's features start.
    steer(station, backfill, PAUSED, None)
    for training in first:
        training.unlink()
    until(lambda: at_work(station, backfill) == 0, 120, "its runs to end", server)
    land_flights(station.slow, LIVE[1], LIVE[1], quiet=True)
    until(lambda: daily_features(station, LIVE[1]), 240, "tomorrow's features", server)
    assert at_work(station, backfill) == 0
    assert states(station, backfill).count("QUEUED") == 6 - LIMIT, "none is lost"

    # One at a time, and then as many as the lane has.
    steer(station, backfill, RUNNING, 1)
    until(lambda: at_work(station, backfill) == 1, 120, "one run", server)
    click = station.launch("slow_features", KEY)
    until(lambda: station.run(click)["status"] == "SUCCESS", 240, "another click's run", server)
    assert at_work(station, backfill) == 1
    steer(station, backfill, RUNNING, None)
    until(lambda: at_work(station, backfill) == LIMIT, 120, "its whole lane", server)


def test_dg_launch_waits_for_the_runs_that_a_person_has_clicked(
    gated: Station, command: Start
) -> None:
    station, server = gated, gated.server
    for day in ("2013-01-03", "2013-01-04"):
        station.launch("slow_train", day)
    until(lambda: len(trainings(station)) == 2, 240, "the lane adhoc to be full", server)
    launched = command(
        [DG, "launch", "--assets", "slow/features", "--partition", KEY,
         "--module-name", "platform_assets.definitions", "--attribute", "defs"],
        **station.home.environment(),
        SIGNALBOX_CATALOG=str(station.catalog),
    )  # fmt: skip

    def said() -> list[str]:
        with dg.DagsterInstance.from_config(str(station.home.dagster)) as instance:
            runs = instance.get_runs(dg.RunsFilter(tags={"signalbox/lane": "adhoc"}))
            newest = [run for run in runs if run.status is dg.DagsterRunStatus.STARTED]
            return [
                entry.user_message
                for run in newest
                for entry in instance.all_logs(run.run_id)
                if entry.user_message.startswith("waiting for one of")
            ]

    (line,) = until(said, 240, "dg launch to wait", server)
    assert line.startswith("waiting for one of 2 slot(s) of lane adhoc, held by run ")
    assert launched.poll() is None

    # Three more of it, as far as Dagster can tell: as many are in progress as there are slots, and
    # today's data lands.
    with dg.DagsterInstance.from_config(str(station.home.dagster)) as instance:
        for _ in range(3):
            past_the_queue(instance)
        in_progress = dg.RunsFilter(statuses=ACTIVE_RUN_STATUSES)
        assert instance.get_runs_count(in_progress) == load_lanes().slots
    land_flights(station.slow, LIVE[0], LIVE[0], quiet=True)
    until(lambda: daily_features(station, LIVE[0]), 240, "today's features", server)
    assert launched.poll() is None, "its own lane is as full as it was"
    for training in trainings(station):
        training.unlink()
    _, errors = launched.communicate(timeout=240)
    assert launched.returncode == 0, errors


def test_dg_launch_is_watched_and_terminated_as_any_run(gated: Station, command: Start) -> None:
    station, server = gated, gated.server
    day = FIRST.isoformat()

    def launch() -> tuple[subprocess.Popen[str], Path, str]:
        """`dg launch` of a training, once it trains; and its run."""
        before = {run["runId"] for run in server.api.runs({"signalbox/lane": "adhoc"})}
        launched = command(
            [DG, "launch", "--assets", "slow/model", "--partition", day,
             "--module-name", "platform_assets.definitions", "--attribute", "defs"],
            **station.home.environment(),
            SIGNALBOX_CATALOG=str(station.catalog),
        )  # fmt: skip
        (training,) = until(lambda: trainings(station), 240, "it to train", server)
        runs = [run["runId"] for run in server.api.runs({"signalbox/lane": "adhoc"})]
        (run,) = set(runs) - before
        assert training.name == f"{TRAINING}{launched.pid}"
        return launched, training, run

    launched, training, run = launch()
    assert station.run(run)["status"] == "STARTED"
    launched.kill()
    launched.communicate()
    training.unlink()
    until(lambda: station.run(run)["status"] == "FAILURE", 90, "monitoring to find it", server)
    url, lanes = station.home.ledger_url, load_lanes()
    with ExitStack() as stack:
        for name in ("next", "after"):
            stack.enter_context(slot(url, lanes, Lane.ADHOC, name, limit=0))
    assert station.slow.ledger.current_version("slow/model", day) is None

    launched, training, run = launch()
    found = server.api.query(TERMINATE, {"run": run})["terminateRun"]
    assert found["__typename"] == "TerminateRunSuccess"
    launched.communicate(timeout=60)
    until(lambda: station.run(run)["status"] == "CANCELED", 30, "the run to end", server)
