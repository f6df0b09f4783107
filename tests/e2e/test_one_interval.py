"""From the last hour's landing to the runs' request: one interval of the sensor, as recorded.

The interval is the catalog's own, 10 s. Counted are ticks, not seconds: the runs are made by the
first tick that began after the newest file's time of change, whatever the receiver of alerts does.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from platform_assets.demo.server import DagsterDev
from platform_assets.domain.partition import local_hours
from platform_assets.line.landing import land_flights
from resources.catalog import load_catalog
from resources.home import Home
from resources.landing.layout import hour_path
from resources.webhook import URL_VARIABLE
from tests.e2e.station import (
    LIVE_FROM,
    ROOT,
    Station,
    until,
    write_small_catalog,
)
from tests.ports import free_port
from tests.receiver import Receiver, receiving

pytestmark = [pytest.mark.e2e, pytest.mark.heavy, pytest.mark.timeout(600)]

INTERVAL_SECONDS = load_catalog()["flights"].schedule.sensor_interval_seconds
READINESS, DELIVERY = "flights_readiness", "flights_alert_delivery"
FIRST_DAY, SECOND_DAY = LIVE_FROM + timedelta(days=1), LIVE_FROM + timedelta(days=2)


@dataclass
class Alerted:
    """A Dagster on a home without history, and the receiver of its alerts."""

    station: Station
    receiver: Receiver
    asked: threading.Event

    def held(self, day: date) -> None:
        """18 of 24 hours; wait until two ticks have said so."""
        self.station.land(day, day, until_hour=18)
        landed = time.time()

        def naming() -> bool:
            ticks = self.station.ticks(READINESS, landed)
            return sum(f"JFK|{day}: flights 18 of 24" in (t["skipReason"] or "") for t in ticks) > 1

        until(naming, 120, f"two ticks that hold {day}", self.station.server)
        assert self.requests(day) == {}

    def requests(self, day: date) -> dict[str, tuple[str, float]]:
        """The runs of the features of a day: the airport, and when the run was made."""
        return {
            run["runId"]: (tags["dagster/partition/airport"], run["creationTime"])
            for run in self.station.server.api.runs({"dagster/partition/date": day.isoformat()})
            for tags in [{tag["key"]: tag["value"] for tag in run["tags"]}]
            if run["jobName"] == "flights_features"
        }

    def landed_at(self, day: date) -> float:
        """When the newest file of a day changed, by its own time."""
        services = self.station.flights
        spec = services.spec
        folder = services.home.landing / spec.pipeline
        return max(
            (folder / hour_path(source, key, hour)).stat().st_mtime
            for source in spec.sources
            for key in spec.partitions.values
            for hour in local_hours(day, spec.partitions.timezone)
        )

    def ticks_after_landing(self, day: date) -> list[dict[str, Any]]:
        """Land the rest of a day: the ticks from then to the second that began after it."""
        before = time.time()
        self.station.land(day, day)
        landed = self.landed_at(day)
        assert before <= landed, "the last hours were delivered now"

        def ticks() -> list[dict[str, Any]]:
            found = sorted(self.station.ticks(READINESS, before), key=lambda t: t["timestamp"])
            later = [tick["timestamp"] for tick in found if tick["timestamp"] > landed]
            return [t for t in found if t["timestamp"] <= later[1]] if len(later) > 1 else []

        found: list[dict[str, Any]] = until(
            ticks, 120, "two ticks after the landing", self.station.server
        )
        return found


@pytest.fixture(scope="module")
def alerted(home_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerted]:
    root = tmp_path_factory.mktemp("alerted") / "home"
    shutil.copytree(home_template, root)
    home, catalog = (
        Home.locate(root),
        write_small_catalog(tmp_path_factory.mktemp("catalog"), interval_seconds=INTERVAL_SECONDS),
    )
    asked = threading.Event()
    with receiving(on_post=asked.set) as receiver:
        variables = {
            "SIGNALBOX_CATALOG": str(catalog),
            "PYTHONPATH": str(ROOT),
            URL_VARIABLE: receiver.url,
            "NO_PROXY": "127.0.0.1",
        }
        with DagsterDev(home, free_port(), variables) as server:
            server.wait_until_ready()
            found = Alerted(Station(home, catalog, server), receiver, asked)
            # One airport lacks a live day that is over, so that there is something to alert.
            land_flights(found.station.flights, LIVE_FROM, LIVE_FROM, None, ["JFK"], quiet=True)
            yield found
            receiver.released.set()


def assert_requested(alerted: Alerted, day: date, ticks: list[dict[str, Any]]) -> None:
    """The runs of both airports were made by the first tick that began after the landing, or by one
    that was at work when the files came."""
    landed = alerted.landed_at(day)
    first, second = [tick for tick in ticks if tick["timestamp"] > landed]
    runs = alerted.requests(day)
    assert sorted(airport for airport, _ in runs.values()) == ["JFK", "LGA"]
    assert set(runs) <= {run for tick in ticks[:-1] for run in tick["runIds"]}, ticks
    assert not set(runs) & set(second["runIds"])
    assert all(made <= first["endTimestamp"] for _, made in runs.values()), (runs, ticks)
    # And the next tick is an interval away: it is this one or none.
    assert second["timestamp"] - first["timestamp"] >= INTERVAL_SECONDS - 1


def test_with_a_receiver_that_takes_alerts(alerted: Alerted) -> None:
    alerted.held(FIRST_DAY)
    server = alerted.station.server
    until(
        lambda: "late" in alerted.receiver.kinds(), 120, "the alert of the day that lacks", server
    )
    assert_requested(alerted, FIRST_DAY, alerted.ticks_after_landing(FIRST_DAY))


def test_with_a_receiver_that_accepts_and_never_answers(alerted: Alerted) -> None:
    station, server = alerted.station, alerted.station.server
    alerted.held(SECOND_DAY)
    alerted.receiver.answer = lambda _: None
    alerted.asked.clear()
    began = time.time()
    # Heals: there is an alert to deliver again.
    land_flights(station.flights, LIVE_FROM, LIVE_FROM, None, ["LGA"], quiet=True)
    until(alerted.asked.is_set, 120, "an alert that hangs at the receiver", server)
    assert_requested(alerted, SECOND_DAY, alerted.ticks_after_landing(SECOND_DAY))

    def beside_one_that_hung() -> bool:
        """Sensors that take turns cannot do that: their ticks never overlap."""
        now, waiting = datetime.now(UTC), station.flights.alerts
        for record in waiting.undelivered("flights"):
            if record.next_attempt_at > now:  # it would be tried less and less often
                waiting.failed(record.number, "tried again at once", now)
        hung = [t for t in station.ticks(DELIVERY, began) if "the rest waits" in t["skipReason"]]
        return any(
            tick["timestamp"] < one["endTimestamp"] and one["timestamp"] < tick["endTimestamp"]
            for one in hung
            for tick in station.ticks(READINESS, began - 60)
        )

    until(beside_one_that_hung, 180, "a look beside a delivery that hung", server)
