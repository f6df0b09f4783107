"""A real daemon, queue and webserver: history, a held day, limits, killed processes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from platform_assets.domain.partition import date_range
from platform_assets.factory.instance import dagster_yaml
from resources.dagster_api import DagsterApi
from resources.home import Home
from resources.tracking.client import open_client
from tests.e2e.station import (
    BACKFILL,
    DAILY,
    FIRST,
    HELD,
    LAST_OF_HISTORY,
    LIVE_DAY,
    LIVE_FROM,
    ROOT,
    Station,
    backfill_limit,
    free_port,
    processes_of,
    require_nothing_left,
    until,
)

pytestmark = pytest.mark.e2e

SIGNALBOX = str(Path(sys.executable).with_name("signalbox"))


def mlflow_states(home: Home, dagster_run: str) -> list[str]:
    """The states of the MLflow runs that a Dagster run opened."""
    client = open_client(home.mlflow_uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`signalbox.dagster_run_id` = '{dagster_run}'")
    return [run.info.status for run in found]


def start(arguments: Sequence[str], home: Path, **variables: str) -> "subprocess.Popen[str]":
    """`signalbox …` as a person's process, with a home of its own and no terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SIGNALBOX_HOME": str(home), **variables}
    return subprocess.Popen(
        [SIGNALBOX, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_loaded(port: int, child: "subprocess.Popen[str]") -> None:
    """Wait until the Dagster that a command started has loaded its code location."""
    api = DagsterApi(f"http://127.0.0.1:{port}")

    def loaded() -> bool:
        assert child.poll() is None, child.communicate()
        try:
            return api.loaded()
        except Exception:
            return False

    until(loaded, 120, f"Dagster on port {port}")


class TestKilledWorker:
    def test_its_run_fails_and_mlflow_says_so_too(self, station: Station) -> None:
        run_id, pid = station.start_slow_training()
        assert mlflow_states(station.home, run_id) == ["RUNNING"]
        psutil.Process(pid).kill()
        until(
            lambda: station.run(run_id)["status"] == "FAILURE",
            90,
            f"run {run_id} to fail",
            station.server,
        )
        until(
            lambda: mlflow_states(station.home, run_id) == ["FAILED"],
            60,
            "its MLflow run to be FAILED",
            station.server,
        )


class TestNothingIsLeft:
    def test_after_the_block_with_a_run_in_progress(self, quiet_station: Station) -> None:
        home = quiet_station.home
        with quiet_station.server as server:
            server.wait_until_ready()
            run_id, pid = quiet_station.start_slow_training()
            assert pid in {process.pid for process in processes_of(home)}
        require_nothing_left(home, 0)
        assert mlflow_states(home, run_id) in (["KILLED"], ["FAILED"])

    def test_two_inits_and_a_server_at_once_on_a_new_home_then_kill_9(self, tmp_path: Path) -> None:
        home, port = tmp_path / "new", free_port()
        inits = [start(["init", "--json"], home) for _ in range(2)]
        server = start(["dev", "--port", str(port)], home)
        for init in inits:
            _, errors = init.communicate(timeout=120)
            assert init.returncode == 0, errors
            assert errors == ""
        wait_until_loaded(port, server)
        assert processes_of(Home.locate(home))
        server.kill()
        server.communicate()
        require_nothing_left(Home.locate(home), 60)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_when_the_demo_is_asked_to_end(
        self, number: signal.Signals, home_template: Path, tmp_path: Path
    ) -> None:
        home, port = tmp_path / "home", free_port()
        demo = start(["demo", "--port", str(port), "--json"], home)
        wait_until_loaded(port, demo)
        demo.send_signal(number)
        printed, errors = demo.communicate(timeout=60)
        assert demo.returncode == 130, errors
        assert "Traceback" not in printed + errors
        require_nothing_left(Home.locate(home), 0)

    def test_when_the_code_location_cannot_be_loaded(self, tmp_path: Path) -> None:
        document = yaml.safe_load((ROOT / "platform_assets/catalog/flights.yaml").read_text())
        document["model"]["trainer"] = "no_such_package.trainer:Trainer"
        document["partitions"]["values"] = ["JFK"]
        (tmp_path / "catalog").mkdir()
        (tmp_path / "catalog" / "flights.yaml").write_text(yaml.safe_dump(document))
        home = tmp_path / "home"
        demo = start(
            ["demo", "--port", str(free_port())], home, SIGNALBOX_CATALOG=str(tmp_path / "catalog")
        )
        _, errors = demo.communicate(timeout=180)
        assert demo.returncode == 1
        sentence = errors.strip().splitlines()
        assert len(sentence) == 1, errors
        assert sentence[0].startswith("signalbox: the demo failed: ")
        assert "no_such_package.trainer" in sentence[0]
        require_nothing_left(Home.locate(home), 0)


class TestHistory:
    """What the native backfill of the history left behind."""

    def test_it_ends_by_itself(self, station: Station) -> None:
        history = station.history
        assert history.status.startswith("COMPLETED"), history
        assert history.error is None
        states = Counter(run["status"] for run in history.runs)
        assert set(states) == {"SUCCESS"}, states

    def test_each_partition_that_could_be_built_is_built(self, station: Station) -> None:
        services, history = station.flights, station.history
        for stage, names in history.plan.build.items():
            versions = services.ledger.current_versions(services.spec.asset(stage))
            assert set(names) == set(versions), stage
        assert len(history.plan.build["features"]) == 2 * 10 - 1

    def test_the_ui_paints_the_same_partitions(self, station: Station) -> None:
        services = station.flights
        built = set(services.ledger.current_versions("flights/features"))
        painted = materialized(station.statuses("flights/features"))
        assert painted == built
        assert HELD not in painted

    def test_a_held_partition_is_left_out_and_its_windows_say_so(self, station: Station) -> None:
        services, history = station.flights, station.history
        assert "weather lacks" in history.plan.held["features"][HELD], history.plan.held
        assert services.ledger.current_version("flights/features", HELD) is None
        assert services.ledger.current_version("flights/model", "2013-01-06") is None
        next_day = services.ledger.current_version("flights/model", "2013-01-07")
        assert next_day is not None
        assert list(next_day.detail["held"]) == ["2013-01-06"]

    def test_there_is_a_champion_and_its_alias(self, station: Station) -> None:
        services = station.flights
        champion = services.ledger.champion("flights")
        assert champion is not None
        assert FIRST < champion.model_date <= LAST_OF_HISTORY
        alias = services.tracking.alias("flight-delay", "champion")
        assert alias == champion.version

    def test_the_queue_kept_to_its_limit(self, station: Station) -> None:
        history = station.history
        assert history.waiting > 0, "nothing ever waited, so the limit was not put to the test"
        assert 1 <= history.peak <= backfill_limit()

    def test_backfills_leave_a_slot_to_the_daily_lane(self) -> None:
        runs = yaml.safe_load(dagster_yaml().read_text())["concurrency"]["runs"]
        limits = [rule["limit"] for rule in runs["tag_concurrency_limits"]]
        assert max(limits) < runs["max_concurrent_runs"]

    def test_every_run_of_it_is_in_the_backfill_lane(self, station: Station) -> None:
        tagged = station.server.api.runs({"dagster/backfill": station.history.backfill})
        assert {run["runId"] for run in tagged} == {run["runId"] for run in station.history.runs}
        assert len(station.server.api.runs(BACKFILL)) >= len(tagged)


def materialized(statuses: dict[str, Any]) -> set[str]:
    """Keys of the green partitions, whichever of the two dimensions Dagster takes as primary."""
    assert statuses["__typename"] == "MultiPartitionStatuses"
    found = set()
    for block in statuses["ranges"]:
        outer, inner = (
            (block["primaryDimStartKey"], block["primaryDimEndKey"]),
            block["secondaryDim"],
        )
        if "ranges" in inner:
            green = [r for r in inner["ranges"] if r["status"] == "MATERIALIZED"]
            pairs = {(outer[0], day) for r in green for day in days(r["startKey"], r["endKey"])}
            assert outer[0] == outer[1]
        else:
            pairs = {(key, day) for key in inner["materializedPartitions"] for day in days(*outer)}
        found |= {f"{key}|{day}" for key, day in pairs}
    return found


def days(first: str, last: str) -> list[date]:
    return list(date_range(date.fromisoformat(first), date.fromisoformat(last)))


class TestLiveDay:
    def test_it_is_held_at_18_hours_and_leaves_by_itself_at_24(self, station: Station) -> None:
        services, api = station.flights, station.server.api
        name = LIVE_DAY.isoformat()

        def runs_of_the_day() -> list[dict[str, Any]]:
            return [
                run
                for run in api.runs(DAILY)
                if any(tag["value"].endswith(name) for tag in run["tags"])
            ]

        station.land(LIVE_FROM, LIVE_FROM)
        station.land(LIVE_DAY, LIVE_DAY, until_hour=18)
        landed = time.time()

        def two_ticks_that_held_it() -> list[dict[str, Any]]:
            ticks = station.ticks("flights_readiness", landed)
            naming = [t for t in ticks if f"JFK|{name}" in (t["skipReason"] or "")]
            return naming if len(naming) >= 2 else []

        ticks = until(two_ticks_that_held_it, 120, "two ticks that hold the day", station.server)
        for tick in ticks:
            assert tick["status"] == "SKIPPED"
            assert f"LGA|{name}" in tick["skipReason"]
            assert "18 of 24 hours" in tick["skipReason"]
        assert runs_of_the_day() == []
        assert services.ledger.current_version("flights/features", f"JFK|{name}") is None

        station.land(LIVE_DAY, LIVE_DAY)
        until(
            lambda: services.ledger.current_version("flights/model", name),
            120,
            f"the model of {name}",
            station.server,
        )
        until(
            lambda: all(run["status"] == "SUCCESS" for run in runs_of_the_day()),
            60,
            "its runs to end well",
            station.server,
        )
        jobs = Counter(run["jobName"] for run in runs_of_the_day())
        assert jobs == {"flights_features": 2, "flights_day": 1, "flights_train": 1}
        trained = next(r for r in runs_of_the_day() if r["jobName"] == "flights_train")
        tags = {tag["key"]: tag["value"] for tag in trained["tags"]}
        assert tags["signalbox/lane"] == "daily"
        assert tags["dagster/sensor_name"] == "flights_readiness"
        assert mlflow_states(station.home, trained["runId"]) == ["FINISHED"]


def test_the_live_days_lie_behind_the_history() -> None:
    assert LAST_OF_HISTORY < LIVE_FROM < LIVE_DAY < date(2013, 12, 31)
