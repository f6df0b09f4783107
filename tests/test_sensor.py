"""Retraining by itself, as a sequence of ticks: the landing zone fills, the sensor decides.

The clock is explicit: landing moves it. A tick evaluates the real sensor on the real instance and
cursor, and launches what it requests as the daemon does: each run key once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from platform_assets.domain.clock import FixedClock
from platform_assets.domain.errors import TransientError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.live import look
from platform_assets.line.services import Services
from resources.home import Home
from resources.landing.layout import hour_path
from sensors import tracking_truth
from sensors.tracking_truth import settle_tracking, tracking_truth_sensors
from tests.small import HELD, Line, Templates, copied, failure_of, opened, small_spec


@pytest.fixture
def templates(shared_folder: Path, home_template: Path) -> Templates:
    return Templates(shared_folder, home_template)


@dataclass
class Tick:
    """What one evaluation of the sensor came to.

    Attributes:
        requested: job and partition of each request, in order, whether it was launched or not.
        launched: the runs of those whose run key was new.
        said: the skip reason.
    """

    data: SensorExecutionData
    requested: list[tuple[str, str]]
    launched: list[tuple[str, str]] = field(default_factory=list)

    @property
    def said(self) -> str:
        return self.data.skip_message or ""

    @property
    def run_keys(self) -> list[str | None]:
        return [request.run_key for request in self.data.run_requests or []]


@dataclass
class Box:
    """A line with its sensor, tick by tick."""

    line: Line
    cursor: str | None = None

    def tick(self, launch: bool = True, must: bool = True) -> Tick:
        """Evaluate the sensor; then execute each request whose run key Dagster has not seen.

        Args:
            launch: execute at all.
            must: every run has to succeed.
        """
        line = self.line
        sensor = line.defs.resolve_sensor_def("flights_readiness")
        with dg.build_sensor_context(
            instance=line.instance,
            cursor=self.cursor,
            repository_def=line.defs.get_repository_def(),
            sensor_name=sensor.name,
        ) as context:
            data = sensor.evaluate_tick(context)
        requests = data.run_requests or []
        tick = Tick(data, [self._name(request) for request in requests])
        if not launch:
            return tick
        self.cursor = data.cursor
        for event in data.asset_events:
            line.instance.report_runless_asset_event(event)
        for request in requests:
            tags = {"dagster/sensor_name": sensor.name, "dagster/run_key": str(request.run_key)}
            if line.instance.get_runs_count(dg.RunsFilter(tags=tags)):
                continue
            (line.must if must else line.run)(
                job=request.job_name,
                partition=str(PartitionKey.parse(str(request.partition_key))),
                tags={**request.tags, **tags},
            )
            tick.launched.append(self._name(request))
        return tick

    def _name(self, request: dg.RunRequest) -> tuple[str, str]:
        job = str(request.job_name).removeprefix("flights_")
        return job, str(PartitionKey.parse(str(request.partition_key)))

    @property
    def open_from(self) -> str:
        found: str = json.loads(self.cursor or "{}")["open_from"]
        return found


@pytest.fixture
def box(templates: Templates, tmp_path: Path) -> Iterator[Box]:
    """All days until 2013-01-09 are built; live from the 10th."""
    spec = small_spec(schedule={"live_from": "2013-01-10"})
    with copied(templates.features, tmp_path, spec) as line:
        yield Box(line)


@contextmanager
def fresh(home: Home, live_from: str, **partitions: object) -> Iterator[Box]:
    """A box with nothing landed and nothing built."""
    spec = small_spec(schedule={"live_from": live_from}, partitions=partitions)
    with opened(home, spec) as line:
        yield Box(line)


# --- a day in the life ------------------------------------------------------------------------


def test_a_day_is_held_at_18_hours_and_leaves_at_24(box: Box) -> None:
    line = box.line
    # 18:00. Nothing may leave, and the tick says what is lacking.
    line.land("2013-01-10", until_hour=18)
    tick = box.tick()
    assert tick.requested == []
    for partition in ("JFK|2013-01-10", "LGA|2013-01-10"):
        assert f"{partition}: flights 18 of 24 hours, not due yet 18:00-23:00" in tick.said
    assert "weather 18 of 24 hours, not due yet 18:00-23:00" in tick.said
    assert line.instance.get_runs_count(dg.RunsFilter(tags={"signalbox/lane": "daily"})) == 0

    # Midnight. One request an airport, and the same again as long as nothing has run.
    line.land("2013-01-10")
    first, second = box.tick(launch=False), box.tick(launch=False)
    assert first.requested == [("features", "JFK|2013-01-10"), ("features", "LGA|2013-01-10")]
    assert first.run_keys == second.run_keys
    assert len(set(first.run_keys)) == 2
    request = (first.data.run_requests or [])[0]
    assert request.tags["signalbox/lane"] == "daily"
    assert request.tags["signalbox/pipeline"] == "flights"
    assert int(request.tags["dagster/priority"]) > 0
    assert box.tick().launched == first.requested

    # The features are there: roll-up and training leave in one tick.
    tick = box.tick()
    assert tick.launched == [("day", "2013-01-10"), ("train", "2013-01-10")]
    assert line.materializations("model")[-1].partition == "2013-01-10"

    # A candidate waits for the day that it is judged on: nothing new, nothing held.
    tick = box.tick()
    assert tick.requested == []
    assert tick.said == "nothing new, nothing held"

    # The next day, hour by hour.
    line.land("2013-01-11", until_hour=12)
    assert box.tick().requested == []
    line.land("2013-01-11")
    assert [job for job, _ in box.tick().launched] == ["features", "features"]
    assert box.tick().launched == [
        ("day", "2013-01-11"),
        ("train", "2013-01-11"),
        ("judge", "2013-01-10"),
    ]
    champion = line.services.ledger.champion("flights")
    assert champion is not None
    assert champion.model_date == date(2013, 1, 10)
    # The 10th is finished: the sensor looks from the 11th on.
    box.tick()
    assert box.open_from == "2013-01-11"
    assert box.tick().said == "nothing new, nothing held"


def test_a_run_that_is_still_going_is_not_launched_twice(box: Box) -> None:
    """Between launch and commit every tick asks again, with the same run keys."""
    box.line.land("2013-01-10")
    asked = {key for _ in range(3) for key in box.tick(launch=False).run_keys}
    assert len(asked) == 2
    box.tick()
    runs = box.line.instance.get_runs(dg.RunsFilter(tags={"signalbox/lane": "daily"}))
    assert len(runs) == 2


def test_what_the_source_assets_show(box: Box) -> None:
    """Observed while it fills, once a change; materialized by its producer when it is whole."""
    line, source = box.line, box.line.key("landed_weather")
    line.land("2013-01-10", until_hour=18)
    tick = box.tick()
    kinds = [type(event).__name__ for event in tick.data.asset_events]
    assert kinds == ["AssetObservation"] * 4
    assert box.tick().data.asset_events == []
    line.land("2013-01-10")
    tick = box.tick()
    kinds = [type(event).__name__ for event in tick.data.asset_events]
    assert kinds == ["AssetMaterialization"] * 4
    assert line.instance.get_materialized_partitions(source) >= {
        line.dagster_key("JFK|2013-01-10"),
        line.dagster_key("LGA|2013-01-10"),
    }
    event = line.materializations("landed_weather")[-1]
    assert event.metadata["hours"].value == "24 of 24"


# --- what does not leave ----------------------------------------------------------------------


@pytest.mark.heavy
def test_days_before_the_live_ones_belong_to_backfills(home: Home) -> None:
    with fresh(home, live_from="2013-01-05") as box:
        box.line.land("2013-01-02", "2013-01-04")
        assert box.tick().requested == []
        box.line.land("2013-01-05")
        tick = box.tick()
        assert tick.launched == [("features", "JFK|2013-01-05"), ("features", "LGA|2013-01-05")]
        assert set(box.line.versions("features")) == {"JFK|2013-01-05", "LGA|2013-01-05"}

        # The history is whole but was never built: the training is held, and says what to do.
        tick = box.tick()
        assert tick.requested == []
        assert "2013-01-05: 2 day(s) of its window have landed whole but are not built" in tick.said
        assert "(2013-01-03 to 2013-01-04); backfill flights/features for them first" in tick.said

        # A backfill of these days, and it leaves.
        for key in ("JFK", "LGA"):
            box.line.must("features", span=(f"{key}|2013-01-03", f"{key}|2013-01-04"))
        assert box.tick().launched == [("day", "2013-01-05"), ("train", "2013-01-05")]


def test_a_model_of_the_history_is_judged_when_a_live_day_completes_it(
    templates: Templates, tmp_path: Path
) -> None:
    spec = small_spec(schedule={"live_from": "2013-01-09"})
    with copied(templates.models, tmp_path, spec) as line:
        box = Box(line)
        # The model of the 8th was trained by a backfill; it is judged on the 9th, a live day.
        tick = box.tick()
        assert ("judge", "2013-01-08") in tick.launched
        # Those of the 4th and 7th are the backfill's own to judge.
        assert set(line.versions("evaluation")) == {"2013-01-08"}


@pytest.mark.heavy
def test_a_held_airport_keeps_the_others_going_but_not_the_training(
    templates: Templates, tmp_path: Path
) -> None:
    """LGA's 6th never becomes whole. JFK's is built; the 7th trains without the 6th."""
    spec = small_spec(schedule={"live_from": "2013-01-06"})
    with opened_history(templates, tmp_path, spec) as box:
        line = box.line
        line.land("2013-01-06")
        tick = box.tick()
        assert tick.launched == [("features", "JFK|2013-01-06")]
        # The day is over and held: its roll-up says so, once.
        assert box.tick().launched == [("day", "2013-01-06")]
        tick = box.tick()
        assert tick.requested == []
        assert tick.said.startswith(f"held: {HELD}: flights 24 of 24 hours; weather 23 of 24")
        assert "missing 06:00" in tick.said
        line.land("2013-01-07")
        assert [job for job, _ in box.tick().launched] == ["features", "features"]
        assert box.tick().launched == [("day", "2013-01-07"), ("train", "2013-01-07")]
        assert set(line.versions("model")) == {"2013-01-07"}
        # The 6th stays open: its hour may still come.
        assert box.open_from == "2013-01-06"


@contextmanager
def opened_history(templates: Templates, tmp_path: Path, spec: PipelineSpec) -> Iterator[Box]:
    """2013-01-04 and 05 landed and built, nothing later has landed."""
    with copied(templates.empty, tmp_path, spec) as line:
        line.land("2013-01-04", "2013-01-05")
        for key in ("JFK", "LGA"):
            line.must("features", span=(f"{key}|2013-01-04", f"{key}|2013-01-05"))
        yield Box(line)


def test_a_day_of_23_hours_is_whole_with_23(home: Home) -> None:
    """2013-03-10: at 02:00 it was 03:00."""
    with fresh(home, "2013-03-10", start="2013-03-10", end="2013-03-20") as box:
        box.line.land("2013-03-10", until_hour=23)
        tick = box.tick()
        assert tick.requested == []
        assert "JFK|2013-03-10: flights 22 of 23 hours, not due yet 23:00" in tick.said
        box.line.land("2013-03-10")
        tick = box.tick()
        assert tick.launched == [("features", "JFK|2013-03-10"), ("features", "LGA|2013-03-10")]


def test_a_day_of_25_hours_is_not_whole_with_24(home: Home) -> None:
    """2013-11-03: the hour from 01:00 came twice; the weather of midnight never came."""
    with fresh(home, "2013-11-03", start="2013-11-03", end="2013-11-10") as box:
        box.line.land("2013-11-03")
        assert box.tick().launched == [("day", "2013-11-03")]
        tick = box.tick()
        assert tick.requested == []
        expected = "LGA|2013-11-03: flights 25 of 25 hours; weather 24 of 25 hours, missing 00:00"
        assert expected in tick.said


def test_the_clock_tells_not_due_from_missing(home: Home) -> None:
    """The same files at two instants; the sensor's decision is a function of the clock."""
    with fresh(home, live_from="2013-01-02") as box:
        line = box.line
        line.land("2013-01-02", until_hour=18, airports=["JFK"])

        def held_at(instant: datetime) -> str:
            services = Services(line.home, line.spec, FixedClock(instant))
            return look(services).plan.held["JFK|2013-01-02"]

        evening = datetime(2013, 1, 2, 23, 0, tzinfo=UTC)
        assert "flights 18 of 24 hours, not due yet 18:00-23:00" in held_at(evening)
        later = datetime(2013, 1, 3, 2, 30, tzinfo=UTC)
        assert "18 of 24 hours, missing 18:00-20:00, not due yet 21:00-23:00" in held_at(later)
        next_day = datetime(2013, 1, 3, 5, 0, tzinfo=UTC)
        assert "flights 18 of 24 hours, missing 18:00-23:00;" in held_at(next_day)
        before = Services(line.home, line.spec, FixedClock(datetime(2013, 1, 2, 5, tzinfo=UTC)))
        assert look(before).plan.held == {}


# --- bad deliveries ---------------------------------------------------------------------------


def hour_file(line: Line, source: str, key: str, hour: datetime) -> Path:
    return line.home.landing / "flights" / hour_path(source, key, hour)


@pytest.mark.heavy
def test_a_file_of_the_wrong_schema_keeps_its_hour_missing_until_it_is_delivered_again(
    box: Box,
) -> None:
    line = box.line
    line.land("2013-01-10")
    hour = local_hours(date(2013, 1, 10), line.spec.partitions.timezone)[7]
    path = hour_file(line, "weather", "JFK", hour)
    good = path.read_bytes()
    bad = pq.read_table(path).drop_columns(["temp"]).append_column("temp", pa.array(["mild"]))
    pq.write_table(bad, path)

    tick = box.tick()
    assert tick.launched == [("features", "LGA|2013-01-10")]
    assert box.tick().launched == [("day", "2013-01-10")]
    tick = box.tick()
    assert tick.requested == []
    assert "JFK|2013-01-10: flights 24 of 24 hours; weather 23 of 24 hours" in tick.said
    assert "rejected 2013-01-10T12Z: " in tick.said
    assert "temp" in tick.said
    # By hand it does not leave either.
    ran = line.run("features", partition="JFK|2013-01-10")
    assert not ran.success
    assert "rejected 2013-01-10T12Z" in failure_of(ran)

    path.write_bytes(b"PAR1 torn")
    assert "rejected 2013-01-10T12Z: " in box.tick().said
    path.unlink()
    assert "weather 23 of 24 hours, missing 07:00" in box.tick().said

    path.write_bytes(good)
    assert box.tick().launched == [("features", "JFK|2013-01-10")]
    assert box.tick().launched == [("day", "2013-01-10"), ("train", "2013-01-10")]


def test_a_held_day_asks_for_another_run_when_its_data_has_changed(box: Box) -> None:
    """The run key holds what has arrived: another delivery is another run, the same is not."""
    line = box.line
    line.land("2013-01-10")
    before = box.tick(launch=False).run_keys
    hour = local_hours(date(2013, 1, 10), line.spec.partitions.timezone)[17]
    path = hour_file(line, "flights", "JFK", hour)
    content = pq.read_table(path)
    pq.write_table(content.slice(0, content.num_rows - 1), path)
    after = box.tick(launch=False).run_keys
    assert after[0] != before[0]
    assert after[1] == before[1]


# --- the truth about runs in MLflow -----------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("number", [0, 2])
def test_a_killed_training_gets_its_true_state(
    templates: Templates, tmp_path: Path, number: int
) -> None:
    """The process is gone before it can say a last word; Dagster finds out, and MLflow follows."""
    with copied(templates.features, tmp_path) as line:
        line.must("snapshot", partition="2013-01-04")
        killed = subprocess.run(
            [sys.executable, "-m", "tests.small", "--killed-while-training", "2013-01-04"],
            env={**os.environ, **line.home.environment()},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            check=False,
        )
        assert killed.returncode == -9, killed.stderr[-500:]
        (run,) = line.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))

        # As long as Dagster believes that the run goes on, nothing is touched.
        assert states(line) == ["RUNNING"]
        assert settle_tracking(line.instance, line.spec) == []
        assert states(line) == ["RUNNING"]
        assert line.versions("model") == {}

        # At Dagster's news of the failure, or when that is missed by the sweep alone.
        sensor = tracking_truth_sensors({"flights": line.spec})[number]
        cursor = evaluated(line, sensor, None)
        line.instance.report_run_failed(run, "the run worker was killed")
        evaluated(line, sensor, cursor)
        assert states(line) == ["FAILED"]
        assert settle_tracking(line.instance, line.spec) == []


def test_one_entry_that_fails_keeps_no_other_run_from_its_end(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise TransientError("the ledger is locked")

    looked = []
    monkeypatch.setattr(tracking_truth, "sweep", fails)
    monkeypatch.setattr(tracking_truth, "reconcile", lambda *_: looked.append(1) or [])
    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(TransientError, match="locked"),
    ):
        settle_tracking(instance, small_spec())
    assert looked


def evaluated(line: Line, sensor: dg.SensorDefinition, cursor: str | None) -> str | None:
    with dg.build_sensor_context(
        instance=line.instance,
        cursor=cursor,
        repository_def=line.defs.get_repository_def(),
        sensor_name=sensor.name,
    ) as context:
        data = sensor.evaluate_tick(context)
    assert not [r for r in data.dagster_run_reactions or [] if r.error]
    return data.cursor


def states(line: Line) -> list[str]:
    """States of the MLflow runs of the pipeline."""
    from mlflow import MlflowClient

    client = MlflowClient(line.home.mlflow_uri)
    found = client.get_experiment_by_name("flights")
    assert found is not None
    return [run.info.status for run in client.search_runs([found.experiment_id])]


def test_a_training_that_fails_says_so_itself(templates: Templates, tmp_path: Path) -> None:
    spec = small_spec(model={"trainer": "tests.small:FailingTrainer"})
    with copied(templates.features, tmp_path, spec) as line:
        ran = line.run("snapshot", "model", partition="2013-01-04")
        assert not ran.success
        assert "the trainer gave up" in failure_of(ran)
        assert states(line) == ["FAILED"]
        assert line.versions("model") == {}
        assert line.services.tracking.alias("flight-delay", "champion") is None


def test_there_is_a_sensor_for_each_way_a_run_ends_badly() -> None:
    sensors = tracking_truth_sensors({"flights": small_spec()})
    assert [sensor.name for sensor in sensors] == [
        "tracking_truth_failure",
        "tracking_truth_canceled",
        "tracking_sweep",
    ]
    for sensor in sensors:
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
