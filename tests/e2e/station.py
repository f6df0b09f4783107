"""A real Dagster on a small home: what the tests of this folder drive."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import yaml

from platform_assets.demo.play import ENDED, backfill_ranges
from platform_assets.demo.server import DagsterDev
from platform_assets.domain.partition import date_range
from platform_assets.factory.instance import dagster_yaml
from platform_assets.line.days import build_snapshot
from platform_assets.line.features import build_features
from platform_assets.line.history import HistoryPlan, plan_history
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import catalog_folder, load_catalog
from resources.dagster_api import DagsterApi
from resources.home import Home
from tests.e2e.trainers import PID_FILE

ROOT = Path(__file__).resolve().parents[2]
FIRST = date(2013, 1, 3)
LAST_OF_HISTORY = date(2013, 1, 12)
DIALOG_DAYS = (date(2013, 1, 13), date(2013, 1, 14))
"""Landed, but left out of the history: the browser builds them through the dialog."""
LAST = date(2013, 1, 20)
LIVE_FROM = date(2013, 1, 17)
LIVE_DAY = date(2013, 1, 18)
HELD = "LGA|2013-01-06"
"""Its weather lacks an hour in the data."""
SLOW_DAY = "2013-01-03"
DAILY = {"signalbox/lane": "daily"}
BACKFILL = {"signalbox/lane": "backfill"}
HISTORY_SECONDS = 800
IN_PROGRESS = {"STARTING", "STARTED", "CANCELING"}

LAUNCH = """
mutation Launch($job: String!, $tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: "signalbox", repositoryName: "__repository__", jobName: $job
    }
    executionMetadata: {tags: $tags}
  }) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""

TICKS = """
query Ticks($sensor: String!, $after: Float!) {
  sensorOrError(sensorSelector: {
    repositoryLocationName: "signalbox", repositoryName: "__repository__", sensorName: $sensor
  }) {
    ... on Sensor { sensorState { ticks(afterTimestamp: $after) {
      timestamp endTimestamp status skipReason runIds error { message }
    } } }
    ... on PythonError { message }
  }
}
"""

MATERIALIZED = """
query Materialized($path: [String!]!) {
  assetNodeOrError(assetKey: {path: $path}) {
    ... on AssetNode { assetPartitionStatuses {
      __typename
      ... on TimePartitionStatuses { ranges { status startKey endKey } }
      ... on MultiPartitionStatuses { ranges { primaryDimStartKey primaryDimEndKey secondaryDim {
        ... on DefaultPartitionStatuses { materializedPartitions failedPartitions }
        ... on TimePartitionStatuses { ranges { status startKey endKey } }
      } } }
    } }
  }
}
"""


def _document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((catalog_folder() / "flights.yaml").read_text())
    document["partitions"] |= {"start": FIRST, "end": LAST}
    document["evaluation"] |= {"days": 1}
    document["limits"] = {"partitions_per_run": 6, "models_per_run": 6}
    return document


def write_small_catalog(folder: Path, per_run: int = 6, interval_seconds: int = 3) -> Path:
    """The flights of the catalog, made small, with so many partitions a run."""
    document = _document()
    document["limits"] = {"partitions_per_run": per_run, "models_per_run": per_run}
    document["partitions"] |= {"values": ["JFK", "LGA"]}
    document["model"] |= {"window_days": 3, "min_days": 2}
    document["model"]["parameters"] |= {"num_boost_round": 20}
    document["schedule"] |= {"live_from": LIVE_FROM, "sensor_interval_seconds": interval_seconds}
    (folder / "flights.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def write_slow_catalog(folder: Path) -> Path:
    """A pipeline of one airport whose training takes minutes."""
    document = _document()
    document["pipeline"] = "slow"
    document["partitions"] |= {"values": ["JFK"]}
    document["model"] |= {
        "name": "slow",
        "trainer": "tests.e2e.trainers:SlowTrainer",
        "parameters": {"seconds": 240},
        "window_days": 1,
        "min_days": 1,
    }
    document["schedule"] |= {"live_from": LAST}
    (folder / "slow.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def backfill_limit() -> int:
    """How many runs of backfills dagster.yaml lets run at once."""
    runs = yaml.safe_load(dagster_yaml().read_text())["concurrency"]["runs"]
    return min(
        rule["limit"]
        for rule in runs["tag_concurrency_limits"]
        if rule["key"] == "dagster/backfill"
    )


def until(
    done: Callable[[], Any], seconds: float, what: str, server: DagsterDev | None = None
) -> Any:
    """Wait until something is true, and return it; fail with its name when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        found = done()
        if found:
            return found
        if server is not None:
            server.require_alive()
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.5)


def processes_of(home: Home) -> list[psutil.Process]:
    """The living processes that work on a home, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DAGSTER_HOME") == str(home.dagster):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def describe(processes: list[psutil.Process]) -> str:
    """Their command lines, for a message."""
    lines = []
    for process in processes:
        try:
            lines.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())[:160]}")
        except psutil.Error:
            continue
    return "\n".join(lines)


def require_nothing_left(home: Home, seconds: float) -> None:
    """Fail unless every process of a home is gone in time."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"still alive:\n{describe(left)}"


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
            pairs = {(outer[0], day) for r in green for day in _days(r["startKey"], r["endKey"])}
            assert outer[0] == outer[1]
        else:
            pairs = {(key, day) for key in inner["materializedPartitions"] for day in _days(*outer)}
        found |= {f"{key}|{day}" for key, day in pairs}
    return found


def _days(first: str, last: str) -> list[date]:
    return list(date_range(date.fromisoformat(first), date.fromisoformat(last)))


@dataclass
class History:
    """What was seen while the history was backfilled."""

    plan: HistoryPlan
    backfill: str
    status: str = ""
    error: str | None = None
    peak: int = 0
    waiting: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Station:
    """A home, its services, and the Dagster that runs on it."""

    home: Home
    catalog: Path
    server: DagsterDev
    ending: bool = False
    _history: History | None = None
    _watcher: threading.Thread | None = None

    @property
    def flights(self) -> Services:
        return Services.open(load_catalog(self.catalog)["flights"], self.home)

    @property
    def slow(self) -> Services:
        return Services.open(load_catalog(self.catalog)["slow"], self.home)

    def land(self, first: date, last: date, until_hour: int | None = None) -> None:
        land_flights(self.flights, first, last, until_hour, quiet=True)

    def launch(self, job: str, partition: str, tags: Mapping[str, str] | None = None) -> str:
        """Launch a job for a partition; its run id."""
        every = {"dagster/partition": partition, **(tags or {})}
        listed = [{"key": key, "value": value} for key, value in every.items()]
        found = self.server.api.query(LAUNCH, {"job": job, "tags": listed})["launchRun"]
        assert found["__typename"] == "LaunchRunSuccess", found
        return str(found["run"]["runId"])

    def run(self, run_id: str) -> dict[str, Any]:
        text = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { runId status } } }"
        found: dict[str, Any] = self.server.api.query(text, {"id": run_id})["runOrError"]
        return found

    def ticks(self, sensor: str, after: float) -> list[dict[str, Any]]:
        """The finished ticks of a sensor since a moment, newest first."""
        variables = {"sensor": sensor, "after": after}
        found = self.server.api.query(TICKS, variables)["sensorOrError"]["sensorState"]["ticks"]
        return [tick for tick in found if tick["status"] != "STARTED"]

    def statuses(self, asset: str) -> dict[str, Any]:
        """The ranges of materialized partitions, as the UI paints them."""
        path = {"path": asset.split("/")}
        found = self.server.api.query(MATERIALIZED, path)["assetNodeOrError"]
        statuses: dict[str, Any] = found["assetPartitionStatuses"]
        return statuses

    def start_history(self) -> None:
        """Launch a native backfill of the history; a thread watches it while tests go on."""
        services, api = self.flights, self.server.api
        plan = plan_history(services, FIRST, LAST_OF_HISTORY)
        ranges = backfill_ranges(services.spec, plan)
        seen = History(plan, api.launch_backfill(ranges, title="history", tags=BACKFILL))
        self._history = seen
        self._watcher = threading.Thread(target=self._watch, args=(seen,), daemon=True)
        self._watcher.start()

    def _watch(self, seen: History) -> None:
        api = DagsterApi(self.server.url)
        while seen.status not in ENDED and not self.ending:
            runs = api.runs({"dagster/backfill": seen.backfill})
            states = [run["status"] for run in runs]
            seen.peak = max(seen.peak, sum(state in IN_PROGRESS for state in states))
            seen.waiting = max(seen.waiting, states.count("QUEUED"))
            found = api.backfill(seen.backfill)
            seen.runs, seen.status, seen.error = runs, found["status"], found["error"]
            time.sleep(0.3)

    @property
    def history(self) -> History:
        """The backfill of the history, once it has ended."""
        assert self._watcher is not None
        assert self._history is not None
        self._watcher.join(HISTORY_SECONDS)
        assert self._history.status in ENDED, f"it is {self._history.status} still"
        return self._history

    def start_slow_training(self, tags: Mapping[str, str] | None = None) -> tuple[str, int]:
        """Start a training that takes minutes; its run, and the process that it is in."""
        self.prepare_slow()
        file = self.home.root / PID_FILE
        file.unlink(missing_ok=True)
        run_id = self.launch("slow_train", SLOW_DAY, tags)
        return run_id, self.training_process()

    def prepare_slow(self) -> None:
        """Build what the slow pipeline's model reads, unless it is there."""
        services = self.slow
        day = services.partition(SLOW_DAY, keyed=False)
        if services.ledger.current_version(services.spec.asset("snapshot"), SLOW_DAY) is None:
            land_flights(services, day.date, day.date, quiet=True)
            build_features(services, services.partition(f"JFK|{day}", keyed=True), "by-hand")
            build_snapshot(services, day, "by-hand")

    def training_process(self) -> int:
        """The process that the slow training is in, once it is."""
        file = self.home.root / PID_FILE
        until(file.exists, 180, "a run to train", self.server)
        return int(file.read_text())
