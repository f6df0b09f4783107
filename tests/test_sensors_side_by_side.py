"""A receiver of alerts that hangs holds up the delivery, and no other sensor."""

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.daemon import SensorDaemon

from platform_assets.component import pipeline_definitions
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.instance import dagster_yaml
from platform_assets.line.alerting import deliver
from resources.catalog import load_catalog
from resources.home import Home
from resources.ledger.records import AlertRecord
from resources.webhook import Webhook
from tests.receiver import receiving
from tests.small import Line, Templates, copied, small_spec
from tests.test_sensor import Box

DAY = "2013-01-10"


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    spec = small_spec(schedule={"live_from": DAY})
    with copied(Templates(shared_folder, home_template).features, tmp_path, spec) as found:
        yield found


@pytest.mark.embedded
def test_the_instance_of_a_home_runs_its_sensors_side_by_side(home: Home) -> None:
    assert (home.dagster / "dagster.yaml").read_text() == dagster_yaml().read_text()
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        settings = instance.get_sensor_settings()
    assert (settings["use_threads"], settings["num_workers"]) == (True, 4)


def test_the_readiness_sensor_looks_every_ten_seconds_unless_told_otherwise() -> None:
    def interval(spec: PipelineSpec) -> int | None:
        sensor = pipeline_definitions(spec).resolve_sensor_def(f"{spec.pipeline}_readiness")
        return sensor.minimum_interval_seconds

    assert interval(load_catalog()["flights"]) == 10
    document = load_catalog()["flights"].model_dump(mode="json")
    del document["schedule"]["sensor_interval_seconds"]
    assert interval(parse_spec(document, "a test")) == 10
    document["schedule"]["sensor_interval_seconds"] = 7
    assert interval(parse_spec(document, "a test")) == 7


def test_a_receiver_that_hangs_does_not_hold_up_the_readiness_sensor(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    line.services.alerts.raise_all(
        [
            AlertRecord(
                pipeline="flights",
                kind="held",
                subject="flights/features 2013-01-09",
                key="k",
                text="t",
                advice="a",
                raised_at=datetime(2013, 1, 10, tzinfo=UTC),
                next_attempt_at=datetime(2020, 1, 1, tzinfo=UTC),
            )
        ]
    )
    line.land(DAY)
    asked = threading.Event()
    # What Dagster does without the setting: one sensor after the other.
    with SensorDaemon(settings={}) as serial:
        assert serial._threadpool_executor is None
    settings = line.instance.get_sensor_settings()
    with receiving(answer=lambda _: None, on_post=asked.set) as receiver:
        with SensorDaemon(settings=settings) as daemon:
            threads = daemon._threadpool_executor
            assert threads is not None
            hanging = Webhook(receiver.url, seconds=600.0)
            delivery = threads.submit(deliver, line.services, hanging, datetime.now(UTC))
            assert asked.wait(60)
            tick = threads.submit(Box(line).tick, False)
            done, _ = wait([tick], timeout=300)
            assert done
            assert [job for job, _ in tick.result().requested] == ["features", "features"]
            assert not delivery.done()
            receiver.released.set()
        assert delivery.result()[0] == 0
