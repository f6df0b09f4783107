"""A real daemon, queue and webserver: history, a held day, limits, killed processes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import yaml

from platform_assets.demo.play import ENDED
from platform_assets.domain.partition import PartitionKey
from platform_assets.factory.grid import dagster_key
from platform_assets.factory.instance import dagster_yaml
from platform_assets.factory.lanes import RETRIED_IF_KILLED
from resources.dagster_api import DagsterApi
from resources.home import Home
from resources.tracking.client import open_client
from tests.e2e.conftest import Start
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
    materialized,
    processes_of,
    require_nothing_left,
    until,
)
from tests.e2e.trainers import PID_FILE
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


SIGNALBOX = str(Path(sys.executable).with_name("signalbox"))


def mlflow_states(home: Home, dagster_run: str) -> list[str]:
    """The states of the MLflow runs that a Dagster run opened."""
    client = open_client(home.mlflow_uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`signalbox.dagster_run_id` = '{dagster_run}'")
    return [run.info.status for run in found]


def status_in(home: Home, run_id: str) -> str:
    """The state of a run in Dagster's storage, read without a server."""
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    return str(run.status.value)


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


def test_dagster_comes_up_with_its_daemons(station: Station) -> None:
    assert station.server.api.loaded()


class TestKilled:
    @pytest.mark.heavy
    def test_a_worker_and_then_its_server(self, slow_station: Station) -> None:
        station, home = slow_station, slow_station.home
        with station.server as server:
            server.wait_until_ready()
            first, pid = station.start_slow_training()
            assert mlflow_states(home, first) == ["RUNNING"]
            psutil.Process(pid).kill()
            until(lambda: station.run(first)["status"] == "FAILURE", 90, "its run to fail", server)
            until(lambda: mlflow_states(home, first) == ["FAILED"], 60, "MLflow to say so", server)
            # It was nobody's run but its own: nothing launches it again.
            assert not server.api.runs({"dagster/parent_run_id": first})

            sensors = {"dagster/sensor_name": "slow_readiness"}
            watched, pid = station.start_slow_training({**RETRIED_IF_KILLED, **sensors})
            (home.root / PID_FILE).unlink()
            psutil.Process(pid).kill()
            assert station.training_process() != pid, "the run is launched again"
            (again,) = server.api.runs({"dagster/parent_run_id": watched})
            second = str(again["runId"])
            tags = {tag["key"]: tag["value"] for tag in again["tags"]}
            assert tags["signalbox/lane"] == "daily", "as the run that it is a retry of"
        require_nothing_left(home, 0)
        assert mlflow_states(home, second) == ["KILLED"]
        assert status_in(home, second) == "FAILURE"

    @pytest.mark.heavy
    def test_everything_at_once_and_the_next_start_sets_it_right(
        self, slow_station: Station
    ) -> None:
        station, home = slow_station, slow_station.home
        with station.server as server:
            server.wait_until_ready()
            run, _ = station.start_slow_training()
            for process in processes_of(home):
                process.kill()
        require_nothing_left(home, 0)
        assert status_in(home, run) == "STARTED"
        with station.server as server:
            assert status_in(home, run) == "FAILURE"
            server.wait_until_ready()
            until(lambda: mlflow_states(home, run) == ["FAILED"], 60, "MLflow to say so", server)


class TestNothingIsLeft:
    @pytest.mark.heavy
    def test_two_inits_and_a_server_at_once_on_a_new_home_then_kill_9(
        self, command: Start, tmp_path: Path
    ) -> None:
        root, port = tmp_path / "new", free_port()
        inits = [command([SIGNALBOX, "init", "--json"], SIGNALBOX_HOME=str(root)) for _ in "12"]
        server = command([SIGNALBOX, "dev", "--port", str(port)], SIGNALBOX_HOME=str(root))
        for init in inits:
            _, errors = init.communicate(timeout=120)
            assert init.returncode == 0, errors
            assert errors == ""
        wait_until_loaded(port, server)
        home = Home.locate(root)
        assert len(processes_of(home)) > 3
        server.kill()
        require_nothing_left(home, 60)

    @pytest.mark.heavy
    def test_when_the_demo_gets_ctrl_c(
        self, command: Start, home_template: Path, tmp_path: Path
    ) -> None:
        home, port = Home.locate(tmp_path / "home"), free_port()
        shutil.copytree(home_template, home.root)
        demo = command(
            [SIGNALBOX, "demo", "--port", str(port), "--json"], SIGNALBOX_HOME=str(home.root)
        )
        wait_until_loaded(port, demo)
        demo.send_signal(signal.SIGINT)
        printed, errors = demo.communicate(timeout=60)
        assert demo.returncode == 130, errors
        assert printed + errors == ""
        require_nothing_left(home, 0)

    @pytest.mark.heavy
    def test_when_the_code_location_cannot_be_loaded(
        self, command: Start, home_template: Path, tmp_path: Path
    ) -> None:
        document = yaml.safe_load((ROOT / "platform_assets/catalog/flights.yaml").read_text())
        document["model"]["trainer"] = "no_such_package.trainer:Trainer"
        document["partitions"]["values"] = ["JFK"]
        (tmp_path / "catalog").mkdir()
        (tmp_path / "catalog" / "flights.yaml").write_text(yaml.safe_dump(document))
        home = Home.locate(tmp_path / "home")
        shutil.copytree(home_template, home.root)
        demo = command(
            [SIGNALBOX, "demo", "--exit", "--json", "--port", str(free_port())],
            SIGNALBOX_HOME=str(home.root),
            SIGNALBOX_CATALOG=str(tmp_path / "catalog"),
        )
        printed, errors = demo.communicate(timeout=180)
        assert demo.returncode == 1
        (sentence,) = errors.strip().splitlines()
        assert sentence.startswith("signalbox: the demo failed: code location signalbox fails: ")
        assert "no module 'no_such_package.trainer'" in sentence
        assert json.loads(printed)["ok"] is False
        require_nothing_left(home, 0)


def test_a_second_daemon_on_a_home_is_refused(command: Start, station: Station) -> None:
    second = command(
        [SIGNALBOX, "dev", "--port", str(free_port())], SIGNALBOX_HOME=str(station.home.root)
    )
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "works on" in errors
    assert len(errors.strip().splitlines()) == 1
    assert station.server.api.loaded()


def test_a_backfill_over_a_held_partition_builds_the_clear_ones(station: Station) -> None:
    """As the UI launches it, with nobody looking at what is held before."""
    spec, api = station.flights.spec, station.server.api
    assert station.history.status in ENDED  # not beside it: it builds the same partitions
    first, last = (dagster_key(spec, PartitionKey.parse(f"LGA|2013-01-{d:02}")) for d in (5, 7))
    backfill = api.launch_backfill(
        {"flights/features": [(first, last)]}, title="over a held day", tags={}
    )
    until(lambda: api.backfill(backfill)["status"] in ENDED, 300, "its end", station.server)
    found = api.backfill(backfill)
    assert found["status"] == "COMPLETED_FAILED"
    assert found["assets"]["flights/features"] == (2, 1, 3)
    ledger = station.flights.ledger
    assert ledger.current_version("flights/features", HELD) is None
    verdict = ledger.verdict("flights", "flights/features", HELD)
    assert verdict is not None
    assert verdict.verdict == "late"
    runs = api.runs({"dagster/backfill": backfill})
    assert [run["status"] for run in runs] == ["FAILURE"]
    assert {tag["value"] for tag in runs[0]["tags"] if tag["key"] == "signalbox/lane"} == {
        "backfill"
    }


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
        assert "weather 23 of 24 hours" in history.plan.held["features"][HELD]
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
