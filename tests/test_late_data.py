"""Late and corrected data, tick by tick: what changed after it was used, and what comes of it.

The 8th of January is built, a model of the 7th was judged on it, and one of the 8th was trained on
it and judged on the 9th. Then an hour of JFK's 8th is delivered again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from dagster._core.definitions.sensor_definition import SensorExecutionData

from platform_assets.cli.app import main
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.line.alerting import update
from platform_assets.line.explain import explain
from platform_assets.line.features import build_features
from platform_assets.line.late import note_changes
from platform_assets.line.restating import due
from platform_assets.line.services import Outcome, Services
from platform_assets.line.sweep import Swept
from resources.landing.layout import hour_path
from resources.ledger.records import AlertRecord, RestatementRecord
from tests.promoting import crowned
from tests.small import Line, Templates, built_once, copied, small_spec

pytestmark = pytest.mark.heavy

PARTITION = "JFK|2013-01-08"
DAY = date(2013, 1, 8)


def judge(line: Line) -> None:
    line.must("evaluation", span=("2013-01-07", "2013-01-08"))
    line.must("evaluation", partition="2013-01-04")
    # By hand: two blocks prove nothing.
    crowned(
        line.services.ledger,
        line.versions("model")["2013-01-08"].detail["model_version"],
        model_date=DAY,
    )
    line.must("champion")


@pytest.fixture
def template(shared_folder: Path, home_template: Path) -> Path:
    templates = Templates(shared_folder, home_template)
    return built_once(shared_folder, "small-judged", templates.models, judge)


@dataclass
class Tick:
    """One evaluation of the sensor: what it asked for, what was launched, what it said."""

    data: SensorExecutionData
    requested: list[tuple[str, str]]
    launched: list[tuple[str, str]] = field(default_factory=list)

    @property
    def said(self) -> str:
        return self.data.skip_message or ""


@dataclass
class Box:
    """A line with the sensor of late data, and a hand on the landing zone."""

    line: Line
    cursor: str | None = None

    def tick(self, launch: bool = True, sensor: str = "late_data") -> Tick:
        """Evaluate a sensor; execute each request whose run key Dagster has not seen."""
        line, name = self.line, f"flights_{sensor}"
        with dg.build_sensor_context(
            instance=line.instance,
            cursor=self.cursor if sensor == "late_data" else None,
            repository_def=line.defs.get_repository_def(),
            sensor_name=name,
        ) as context:
            data = line.defs.resolve_sensor_def(name).evaluate_tick(context)
        tick = Tick(data, [_name(request) for request in data.run_requests or []])
        if not launch:
            return tick
        self.cursor = data.cursor
        for request in data.run_requests or []:
            tags = {"dagster/sensor_name": name, "dagster/run_key": str(request.run_key)}
            if line.instance.get_runs_count(dg.RunsFilter(tags=tags)):
                continue
            line.run(
                job=request.job_name,
                partition=str(PartitionKey.parse(str(request.partition_key))),
                tags={**request.tags, **tags},
            )
            tick.launched.append(_name(request))
        return tick

    def until_quiet(self) -> list[list[tuple[str, str]]]:
        """Tick until nothing is launched; what each tick launched."""
        launched = []
        for _ in range(12):
            launched.append(self.tick().launched)
            if not launched[-1]:
                return launched[:-1]
        raise AssertionError(f"it never comes to rest: {launched}")

    def later(self, days: int) -> None:
        """Move the pipeline's clock on."""
        ledger = self.line.services.ledger
        now = ledger.clock("flights")
        assert now is not None
        ledger.advance_clock("flights", now + timedelta(days=days))

    def file(self, hour: int = 10, source: str = "flights", partition: str = PARTITION) -> Path:
        key = PartitionKey.parse(partition)
        assert key.key is not None
        instant = local_hours(key.date, self.line.spec.partitions.timezone)[hour]
        return self.line.home.landing / "flights" / hour_path(source, key.key, instant)

    def correct(self, minutes: float, hour: int = 10, partition: str = PARTITION) -> None:
        """Deliver an hour again, each flight this much later than it was said to be at first."""
        path = self.file(hour, partition=partition)
        first = path.with_name(f".{path.name}.first")
        if not first.exists():
            first.write_bytes(path.read_bytes())
        table = pq.read_table(first)
        delays = [None if v is None else v + minutes for v in table["arr_delay"].to_pylist()]
        at = table.column_names.index("arr_delay")
        table = table.set_column(at, "arr_delay", pa.array(delays, pa.float64()))
        self.deliver(path, table)

    def deliver(self, path: Path, table: pa.Table, compression: str = "none") -> None:
        before = path.stat().st_mtime_ns if path.exists() else 0
        temporary = path.with_name(f".{path.name}.new")
        pq.write_table(table, temporary, compression=compression)
        temporary.replace(path)
        assert path.stat().st_mtime_ns != before

    @property
    def open(self) -> list[RestatementRecord]:
        return self.line.services.restatements.all("flights", only_open=True)

    @property
    def every(self) -> list[RestatementRecord]:
        return self.line.services.restatements.all("flights")

    def version(self, partition: str = PARTITION) -> str:
        return self.line.versions("features")[partition].data_version

    def model(self, day: str) -> int:
        return int(self.line.versions("model")[day].detail["model_version"])

    def judged(self, day: str) -> tuple[int, str]:
        """The model version that was judged, and the version of the 8th that it was judged on."""
        detail = self.line.versions("evaluation")[day].detail
        read = {p["partition"]: p["data_version"] for p in detail["partitions"]}
        return int(detail["model_version"]), read.get(PARTITION, "")


def _name(request: dg.RunRequest) -> tuple[str, str]:
    job = str(request.job_name).removeprefix("flights_")
    return job, str(PartitionKey.parse(str(request.partition_key)))


@pytest.fixture
def box(template: Path, tmp_path: Path) -> Iterator[Box]:
    """As of the end of the 9th: the 8th ended 24 hours ago, the lateness is 72."""
    with copied(template, tmp_path) as line:
        yield Box(line)


RESTATED = [
    [("features", PARTITION)],
    [("day", "2013-01-08"), ("train", "2013-01-08"), ("judge", "2013-01-07")],
    [("judge", "2013-01-08")],
]
"""All that reads JFK's 8th: the model of the 8th, and the judgements of the 7th and the 8th."""


# --- within the lateness ----------------------------------------------------------------------


def test_nothing_changed_nothing_happens(box: Box) -> None:
    tick = box.tick()
    assert (tick.requested, tick.said, box.every) == ([], "nothing has changed", [])


def test_a_correction_within_the_lateness_is_restated_by_itself(box: Box) -> None:
    box.later(1)  # two days after the end of the 8th
    before, models = box.version(), {d: box.model(d) for d in ("2013-01-07", "2013-01-08")}
    judged_before = box.judged("2013-01-07")
    box.correct(40)

    first = box.tick(launch=False)
    assert first.requested == RESTATED[0]
    (request,) = first.data.run_requests or []
    assert request.tags["signalbox/lane"] == "late"
    assert 0 < int(request.tags["dagster/priority"]) < 10
    (found,) = box.open
    assert (found.decision, found.state) == ("restate", "open")
    assert found.reason == "found 48 hours after the end of its day, within the lateness"
    assert found.changes["text"] == "flights: corrected 10:00"
    assert found.touches == {
        "snapshots": ["2013-01-08"],
        "models": [{"date": "2013-01-08", "version": models["2013-01-08"]}],
        "evaluations": ["2013-01-07", "2013-01-08"],
        "champion": {"date": "2013-01-08", "version": models["2013-01-08"]},
    }
    # The source asset shows the new data version, once.
    box.tick(launch=False)
    told = [
        event
        for event in box.line.materializations("landed_flights")
        if PartitionKey.parse(str(event.partition)) == PartitionKey.parse(PARTITION)
    ]
    versions = [(event.tags or {})["dagster/data_version"] for event in told]
    assert len(versions) == 2
    assert versions[1] == found.changes["now"]["flights"] != versions[0]

    assert box.until_quiet() == RESTATED
    assert box.open == []
    after = box.version()
    assert after != before
    assert box.model("2013-01-08") > models["2013-01-08"]
    assert box.model("2013-01-07") == models["2013-01-07"]
    # The model of the 7th is as it was, and judged on the corrected flights.
    assert judged_before == (models["2013-01-07"], before)
    assert box.judged("2013-01-07") == (models["2013-01-07"], after)
    assert box.judged("2013-01-08")[0] == box.model("2013-01-08")
    (done,) = box.every
    assert done.state == "done"
    assert done.outcome is not None
    assert f"features {before[:12]} -> {after[:12]}" in done.outcome
    assert f"2013-01-08 version {models['2013-01-08']} -> {box.model('2013-01-08')}" in done.outcome
    assert "judged again: 2013-01-07, 2013-01-08" in done.outcome
    lanes = [run.tags["signalbox/lane"] for run in box.line.instance.get_runs(limit=5)]
    assert lanes == ["late"] * 5


def test_the_readiness_sensor_leaves_the_judgement_to_the_late_lane(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.correct(40)
    box.tick()
    box.tick()
    judgement = ("judge", "2013-01-08")
    assert judgement not in box.tick(launch=False, sensor="readiness").requested
    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.line.live.left_to_late", lambda _: frozenset())
        # Without it both would judge the model that was trained again.
        assert judgement in box.tick(launch=False, sensor="readiness").requested
    assert box.tick(launch=False).requested == [judgement]


def test_plain_dagster_restates_nothing_of_an_older_day() -> None:
    """`eager()` looks at the latest partition alone: what the sensor here is for."""
    partitions = dg.DailyPartitionsDefinition("2013-01-01", end_date="2013-01-10")

    @dg.asset(partitions_def=partitions)
    def landed() -> None: ...

    @dg.asset(
        partitions_def=partitions,
        deps=[landed],
        automation_condition=dg.AutomationCondition.eager(),
    )
    def features() -> None: ...

    defs, now = dg.Definitions([landed, features]), datetime(2013, 1, 10, 12, tzinfo=UTC)

    def requested_after(corrected: str) -> int:
        with dg.DagsterInstance.ephemeral() as instance:
            for day in partitions.get_partition_keys():
                for key in ("landed", "features"):
                    instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=day))
            seen = dg.evaluate_automation_conditions(defs, instance, evaluation_time=now)
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    "landed", partition=corrected, tags={"dagster/data_version": "corrected"}
                )
            )
            result = dg.evaluate_automation_conditions(
                defs, instance, cursor=seen.cursor, evaluation_time=now
            )
            return result.total_requested

    assert requested_after("2013-01-09") == 1
    assert requested_after("2013-01-07") == 0


def test_an_hour_that_was_waived_and_arrives_later_is_restated(box: Box) -> None:
    """LGA's 6th left without its weather of 06:00; then the hour comes."""
    name = "LGA|2013-01-06"
    waive(box, name)
    box.line.must("features", partition=name)
    assert box.line.versions("features")[name].detail["waivers"]
    deliver_missing_hour(box)
    assert box.tick().launched == [("features", name)]
    (found,) = box.open
    assert found.changes["text"] == "weather: added 06:00"
    box.until_quiet()
    record = box.line.versions("features")[name]
    assert record.detail["verdict"] == "complete"
    assert not record.detail["waivers"]
    assert [r.state for r in box.every] == ["done"]


def deliver_missing_hour(box: Box) -> None:
    """The weather of 06:00 that LGA's 6th lacks."""
    name = "LGA|2013-01-06"
    path = box.file(6, "weather", name)
    table = pq.read_table(box.file(7, "weather", name))
    at = table.column_names.index("time_hour")
    hour = local_hours(date(2013, 1, 6), box.line.spec.partitions.timezone)[6]
    table = table.set_column(at, "time_hour", pa.array([hour], table.schema.field(at).type))
    box.deliver(path, table)


def waive(box: Box, partition: str) -> None:
    from platform_assets.domain.waiver import Waiver, shortage_of
    from platform_assets.line.clearance import assess

    services = box.line.services
    report = assess(services, PartitionKey.parse(partition))
    services.waivers.give(
        Waiver(
            name="",
            pipeline="flights",
            partition=partition,
            reason="the station was down",
            by="ann",
            given_at=report.as_of,
            until=report.as_of + timedelta(days=30),
            covers={s.source: shortage_of(s) for s in report.sources if not s.is_clear},
        )
    )


# --- beyond the lateness ----------------------------------------------------------------------


def test_beyond_the_lateness_it_is_listed_and_a_person_lets_it_go(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.later(10)
    before = box.version()
    box.correct(40)
    assert box.until_quiet() == []
    tick = box.tick()
    reason = "found 264 hours after the end of its day, the lateness is 72 of flights"
    assert tick.said == f"{PARTITION}: listed: {reason}"
    assert box.version() == before
    (found,) = box.open
    assert (found.decision, found.state) == ("list", "open")

    document = said(box, capsys, "restatements", "--json")
    (listed,) = document["pipelines"]["flights"]
    assert listed["partition"] == PARTITION
    assert listed["changed"] == "flights: corrected 10:00"
    assert listed["reason"] == reason
    assert listed["to_do"] == f"`signalbox restate '{PARTITION}' --by NAME`"
    assert listed["touches"]["evaluations"] == ["2013-01-07", "2013-01-08"]

    document = said(box, capsys, "restate", PARTITION, "--by", "ann", "--json")
    assert document["approved"] == [PARTITION]
    assert document["sensor"] == "flights_late_data"
    assert box.until_quiet() == RESTATED
    (done,) = box.every
    assert (done.state, done.approved_by) == ("done", "ann")
    assert box.version() != before


def test_what_was_trained_since_on_the_old_rows_is_touched_too(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.later(10)
    box.correct(40)
    box.tick()
    (found,) = box.open
    assert [model["date"] for model in found.touches["models"]] == ["2013-01-08"]
    box.line.must("snapshot", "model", partition="2013-01-09")
    document = said(box, capsys, "restatements", "--json")
    (listed,) = document["pipelines"]["flights"]
    assert listed["touches"]["snapshots"] == ["2013-01-08", "2013-01-09"]
    assert listed["touches"]["models"] == [
        {"date": day, "version": box.model(day)} for day in ("2013-01-08", "2013-01-09")
    ]
    told = explain(box.line.services, "model", "2013-01-09")
    assert told["restatement"]["partition"] == PARTITION
    assert "restatement" not in explain(box.line.services, "model", "2013-01-07")
    said(box, capsys, "restate", PARTITION, "--by", "ann", "--json")
    old = box.model("2013-01-09")
    box.until_quiet()
    assert box.model("2013-01-09") > old
    (done,) = said(box, capsys, "restatements", "--all", "--json")["pipelines"]["flights"]
    assert f"2013-01-09 version {old} -> {box.model('2013-01-09')}" in done["outcome"]
    assert done["touches"]["models"] == listed["touches"]["models"], "as it was when it went"


def said(box: Box, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints, on the small pipeline."""
    text = run(box, capsys, *arguments)
    return json.loads(text)


def run(box: Box, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    folder = box.line.home.root / "catalog"
    folder.mkdir(exist_ok=True)
    (folder / "flights.yaml").write_text(yaml.safe_dump(box.line.spec.model_dump(mode="json")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGNALBOX_CATALOG", str(folder))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return err if code else out


def test_restated_without_training(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.later(10)
    box.correct(40)
    box.tick()
    models = {day: box.model(day) for day in ("2013-01-07", "2013-01-08")}
    said(box, capsys, "restate", "--all", "--by", "ann", "--no-retrain", "--json")
    assert box.until_quiet() == [
        [("features", PARTITION)],
        [("day", "2013-01-08"), ("judge", "2013-01-07")],
    ]
    assert {day: box.model(day) for day in models} == models
    assert box.judged("2013-01-07") == (models["2013-01-07"], box.version())
    (done,) = box.every
    assert done.outcome is not None
    assert "1 model(s) left as they are, as ann said" in done.outcome
    # That the model reads the older version is known and meant: it is not found again.
    assert box.until_quiet() == []
    assert len(box.every) == 1


def test_wrong_use_of_the_commands(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        return run(box, capsys, *arguments, code=2)

    assert "say who does with --by NAME" in refused("restate", PARTITION)
    assert "one of the two" in refused("restate", "--by", "ann")
    assert "one of the two" in refused("restate", PARTITION, "--all", "--by", "ann")
    assert f"{PARTITION}: no restatement is open" in refused("restate", PARTITION, "--by", "ann")
    assert "airport SFO" in refused("restate", "SFO|2013-01-08", "--by", "ann")
    assert "is not what models are trained on" in refused("impact", "model", "2013-01-08")
    out = run(box, capsys, "restate", "--all", "--by", "ann")
    assert out == "no restatement waits for a person\n"
    assert "no restatement is open" in run(box, capsys, "restatements")


def test_impact_and_explain_name_what_reads_a_partition(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    document = said(box, capsys, "impact", "features", "JFK|2013-01-07", "--json")
    assert document["snapshots"] == ["2013-01-07", "2013-01-08"]
    assert [m["date"] for m in document["models"]] == ["2013-01-07", "2013-01-08"]
    # The model of the 5th would be judged on the 6th, which is held; that of the 6th is not there.
    assert document["evaluations"] == ["2013-01-07", "2013-01-08"]
    assert document["champion"] == {"date": "2013-01-08", "version": box.model("2013-01-08")}
    assert (
        said(box, capsys, "impact", "day", "2013-01-07", "--json")["models"] == document["models"]
    )
    lines = run(box, capsys, "impact", "landed_flights", "JFK|2013-01-02").splitlines()
    assert lines[0] == "flights/landed_flights JFK|2013-01-02 is read by"
    assert lines[2] == f"  models: 2013-01-04 version {box.model('2013-01-04')}"
    assert "  champion: no" in lines

    assert "restatement" not in explain(box.line.services, "features", PARTITION)
    box.later(10)
    box.correct(40)
    box.tick()
    for asset, partition in (
        ("features", PARTITION),
        ("landed_weather", PARTITION),
        ("day", "2013-01-08"),
        ("model", "2013-01-08"),
        ("evaluation", "2013-01-07"),
    ):
        found = explain(box.line.services, asset, partition)
        assert found["state"] == "done"
        assert found["restatement"]["partition"] == PARTITION
        assert found["restatement"]["state"] == "open"
    assert "restatement" not in explain(box.line.services, "model", "2013-01-07")
    out = run(box, capsys, "explain", "features", PARTITION)
    assert f"  changed since: {PARTITION}, flights: corrected 10:00" in out
    out = run(box, capsys, "restatements")
    assert f"{PARTITION}: open, flights: corrected 10:00" in out
    assert "  touches snapshots 2013-01-08; models 2013-01-08 version" in out
    assert f"  to do: `signalbox restate '{PARTITION}' --by NAME`" in out


# --- what is no correction --------------------------------------------------------------------


def test_the_same_file_again_is_no_change(box: Box) -> None:
    path = box.file()
    path.write_bytes(path.read_bytes())
    assert box.until_quiet() == []
    assert box.every == []


def test_a_correction_that_is_delivered_twice_is_one(box: Box) -> None:
    box.correct(40)
    box.tick(launch=False)
    box.correct(40)
    assert box.until_quiet() == RESTATED
    box.correct(40)
    assert box.until_quiet() == []
    assert len(box.every) == 1


def test_other_bytes_of_the_same_rows_train_nothing(box: Box) -> None:
    path = box.file()
    model = box.model("2013-01-08")
    box.deliver(path, pq.read_table(path), compression="zstd")
    assert box.until_quiet() == [[("features", PARTITION)]]
    (done,) = box.every
    assert done.outcome is not None
    assert done.outcome.startswith("identical: the hours differ, the rows do not")
    assert box.model("2013-01-08") == model
    # It is known now that the same rows were built from these files: it is not found again.
    history = box.line.history("features", PARTITION)
    assert [v.data_version for v in history] == [box.version()] * 2
    assert box.until_quiet() == []
    assert len(box.every) == 1


# --- what cannot be rebuilt -------------------------------------------------------------------


def test_an_hour_that_vanishes_is_listed_and_what_was_built_stays(box: Box) -> None:
    path, before = box.file(), box.version()
    first = path.read_bytes()
    path.unlink()
    assert box.until_quiet() == []
    (found,) = box.open
    assert found.decision == "list"
    assert found.changes["text"] == "flights: vanished 10:00"
    assert found.reason.startswith("it is held now and cannot be rebuilt (flights 23 of 24 hours")
    assert found.reason.endswith("what was built stays in use")
    assert box.version() == before
    document = explain(box.line.services, "features", PARTITION)
    assert document["state"] == "done"
    assert "cannot be rebuilt" in document["restatement"]["reason"]

    # Let go by a person, it waits until it is clear, and nothing fails meanwhile.
    box.line.services.restatements.approve("flights", [PARTITION], "ann")
    tick = box.tick()
    assert tick.requested == []
    assert f"{PARTITION}: it waits until it is clear: flights 23 of 24 hours" in tick.said

    # Nobody is asked any more, and it does not go: that is said, once.
    (told,) = blocked_alerts(box)
    assert "JFK: features JFK|2013-01-08 is held: flights 23 of 24 hours" in told.text
    assert "what was built stays in use" in told.text
    box.tick()
    assert blocked_alerts(box) == [told]
    assert [kind for kind, _ in every_alert(box)].count("blocked") == 1

    # The same hour comes back: nothing is to be done.
    path.write_bytes(first)
    assert box.until_quiet() == []
    assert box.open == []
    (over,) = box.every
    assert over.state == "superseded"
    assert over.outcome is not None
    assert "nothing is to be done" in over.outcome
    assert blocked_alerts(box) == []
    assert ("healed", told.subject) in every_alert(box)


def blocked_alerts(box: Box) -> list[AlertRecord]:
    """What is open after a look at all there is to alert of."""
    update(box.line.services)
    opened = box.line.services.alerts.all("flights", only_open=True)
    return [alert for alert in opened if alert.kind == "blocked"]


def every_alert(box: Box) -> list[tuple[str, str]]:
    return [(alert.kind, alert.subject) for alert in box.line.services.alerts.all("flights")]


def test_a_model_whose_window_is_held_stays_in_use_and_is_alerted(
    template: Path, tmp_path: Path
) -> None:
    """The window of the 8th begins on LGA's 6th, which is held; the catalog asks for three days."""
    with copied(template, tmp_path, small_spec(model={"min_days": 3})) as line:
        box = Box(line)
        old = box.model("2013-01-08")
        box.correct(40)
        assert box.tick(launch=False).requested == RESTATED[0]
        assert blocked_alerts(box) == [], "to wait for a run is nothing to tell of"
        launched = box.until_quiet()
        assert ("train", "2013-01-08") not in [run for tick in launched for run in tick]
        assert box.model("2013-01-08") == old
        (found,) = box.open
        assert (found.decision, found.state) == ("restate", "open")
        (told,) = blocked_alerts(box)
        assert told.subject == "flights/features 2013-01-08"
        assert "JFK: train 2013-01-08 is held: 2 of 3 days are whole" in told.text
        assert f"version {old}, trained on the rows before, stays in use as champion" in told.text
        assert "have the missing hours of what is held delivered" in told.advice
        assert "signalbox restatements --pipeline flights" in told.advice
        # Another look, and another one that has no request to give away.
        box.tick()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("platform_assets.line.restating.MOST_REQUESTS", 0)
            box.tick()
        assert blocked_alerts(box) == [told]

        deliver_missing_hour(box)
        line.must("features", partition="LGA|2013-01-06")
        box.until_quiet()
        assert box.model("2013-01-08") > old
        assert box.open == []
        assert blocked_alerts(box) == []
        told_of = [kind for kind, subject in every_alert(box) if subject == told.subject]
        assert told_of == ["blocked", "healed"]


def test_a_window_that_the_daily_lane_still_builds_is_not_alerted(
    template: Path, tmp_path: Path
) -> None:
    """LGA's 6th is whole, and not built yet: before `live_from` a person has to."""
    for live_from, told in (("2013-01-02", False), ("2013-01-08", True)):
        spec = small_spec(model={"min_days": 3}, schedule={"live_from": live_from})
        with copied(template, tmp_path / live_from, spec) as line:
            box = Box(line)
            deliver_missing_hour(box)
            box.correct(40)
            box.until_quiet()
            assert box.open, live_from
            found = blocked_alerts(box)
            assert bool(found) is told
            assert not found or "backfill flights/features for them first" in found[0].text


def test_an_hour_that_comes_back_corrected_is_restated(box: Box) -> None:
    box.correct(0)
    box.until_quiet()
    path = box.file()
    path.unlink()
    box.tick()
    assert [r.decision for r in box.open] == ["list"]
    first = path.with_name(f".{path.name}.first")
    table = pq.read_table(first)
    box.deliver(path, table.slice(0, table.num_rows - 1))
    assert box.until_quiet() == RESTATED
    assert [r.state for r in box.every][-2:] == ["superseded", "done"]


def test_a_correction_that_is_refused_on_arrival(box: Box) -> None:
    before = box.version()
    box.file().write_bytes(b"PAR1 torn")
    assert box.until_quiet() == []
    (found,) = box.open
    assert found.changes["text"] == "flights: refused 10:00"
    assert found.decision == "list"
    assert box.version() == before


# --- in the middle of it ----------------------------------------------------------------------


def test_a_second_correction_while_the_first_is_under_way(box: Box) -> None:
    box.correct(40)
    first = box.tick(launch=False)
    box.correct(80)
    second = box.tick(launch=False)
    assert [r.run_key for r in first.data.run_requests or []] != [
        r.run_key for r in second.data.run_requests or []
    ]
    assert box.until_quiet() == RESTATED
    assert [r.state for r in box.every] == ["superseded", "done"]
    newest = box.version()
    assert box.judged("2013-01-07")[1] == newest


def test_a_second_correction_after_the_features_were_built(box: Box) -> None:
    box.correct(40)
    assert box.tick().launched == RESTATED[0]
    middle = box.version()
    box.correct(80)
    assert box.until_quiet() == RESTATED
    assert box.version() != middle
    assert box.judged("2013-01-07")[1] == box.version()
    assert [r.state for r in box.every] == ["superseded", "done"]


def test_a_correction_after_the_approval_goes_without_another(box: Box) -> None:
    box.later(10)
    box.correct(40)
    box.tick()
    box.line.services.restatements.approve("flights", [PARTITION], "ann", retrain=False)
    box.correct(80)
    launched = box.until_quiet()
    assert launched == [[("features", PARTITION)], [("day", "2013-01-08"), ("judge", "2013-01-07")]]
    first, second = box.every
    assert (first.state, second.state) == ("superseded", "done")
    assert second.approved_by == "ann"


def test_there_and_back_again_and_there(box: Box) -> None:
    """The same hours for the second time need a second run, though its inputs are the same."""
    versions = []
    box.later(10)
    for minutes in (40.0, 0.0, 40.0):
        box.correct(minutes)
        box.tick()
        box.line.services.restatements.approve("flights", [PARTITION], "ann", retrain=False)
        assert len(box.until_quiet()) == 2, minutes
        versions.append(box.version())
        assert box.judged("2013-01-07")[1] == versions[-1]
    assert versions[0] == versions[2] != versions[1]


def test_killed_between_features_and_training(box: Box) -> None:
    """All that goes on is in the ledger: another process with no cursor takes it up."""
    box.correct(40)
    assert box.tick().launched == RESTATED[0]
    again = Box(box.line)
    assert again.until_quiet() == RESTATED[1:]
    assert again.open == []


def test_a_change_that_the_sweep_could_not_report_is_found(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick dies after it has swept, before it has said what: the days' turn comes anyway."""
    box.later(10)
    box.correct(40)
    with monkeypatch.context() as patch:
        patch.setattr("sensors.late_data.sweep", lambda *_: Swept((), 0, 0))
        patch.setattr("sensors.late_data.MOST_IN_TURN", 4)
        found = []
        for _ in range(5):
            box.tick()
            found.append(len(box.every))
    assert found[0] == 0  # the first turn ends before the 8th
    assert found[-1] == 1


def test_features_that_were_built_anew_by_hand_before_anybody_looked(box: Box) -> None:
    """Then nothing differs between hours and features; but the model reads an older version."""
    box.correct(40)
    box.line.must("features", partition=PARTITION)
    assert box.until_quiet() == RESTATED[1:]
    (done,) = box.every
    assert done.state == "done"
    assert done.changes["text"] == "flights: corrected 10:00"
    assert box.judged("2013-01-07")[1] == box.version()


def test_built_by_hand_from_newer_hours_than_were_found(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    """It does not wait for hours that there will never be again."""
    with copied(Templates(shared_folder, home_template).features, tmp_path) as line:
        box = Box(line)
        box.correct(40)
        box.tick(launch=False)
        box.correct(80)
        line.must("features", partition=PARTITION)
        assert box.until_quiet() == [[("day", "2013-01-08")]]
        assert [r.state for r in box.every] == ["superseded", "done"]


def test_features_of_other_code_are_no_late_data(box: Box) -> None:
    record = box.line.versions("features")[PARTITION]
    box.line.services.ledger.record_version(replace(record, data_version="b" * 64))
    assert box.until_quiet() == []
    assert box.every == []


def test_what_was_built_before_its_inputs_were_recorded_is_named(box: Box) -> None:
    record = box.line.versions("features")[PARTITION]
    detail = {k: v for k, v in record.detail.items() if k != "arrivals"}
    box.line.services.ledger.record_version(replace(record, detail=detail))
    box.correct(40)
    noted = note_changes(box.line.services, [DAY])
    assert (noted.found, noted.unknown) == ((), (PARTITION,))
    # Built once more, it is known.
    box.line.must("features", partition=PARTITION)
    assert note_changes(box.line.services, [DAY]).unknown == ()


# --- runs that fail ---------------------------------------------------------------------------


def refuse(services: Services, partition: PartitionKey, *rest: Any) -> Outcome:
    """Hours that arrive in order, and whose rows the dataset refuses."""
    if str(partition) == PARTITION:
        raise RefusedError("these rows cannot be joined")
    return build_features(services, partition, *rest)


def test_a_failed_run_is_not_lost_and_keeps_nobody_else(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = box.version()
    monkeypatch.setattr("platform_assets.factory.assets.build_features", refuse)
    box.correct(30)
    box.correct(40, partition="LGA|2013-01-08")
    assert box.tick().launched == [("features", PARTITION), ("features", "LGA|2013-01-08")]
    assert box.version() == before
    tick = box.tick()
    # It waits for a person now, and is alerted as whatever is listed.
    failed = next(record for record in box.open if record.partition == PARTITION)
    assert (failed.decision, failed.state) == ("list", "open")
    assert failed.reason == (
        f"the run of features {PARTITION} ended as FAILURE, what was there stays; see it in "
        "Dagster, have the hours corrected or the run re-executed, or try again"
    )
    # LGA goes on: its model does not wait for what has failed.
    assert ("train", "2013-01-08") in tick.launched
    box.until_quiet()
    assert [record.partition for record in box.open] == [PARTITION]

    # A person may try again: another run, which fails as well.
    box.line.services.restatements.approve("flights", [PARTITION], "ann")
    assert box.until_quiet() == [[("features", PARTITION)]]
    assert [record.state for record in box.open] == ["open"]
    # Corrected, it goes by itself.
    monkeypatch.undo()
    box.correct(50)
    assert box.until_quiet() == RESTATED
    assert box.open == []


def test_a_killed_run_that_dagster_launches_again_has_not_failed(box: Box) -> None:
    box.correct(40)
    (request,) = box.tick(launch=False).data.run_requests or []
    assert request.tags["dagster/max_retries"] == "2"
    state = {"now": "STARTED"}
    note_changes(box.line.services, [DAY])
    assert due(box.line.services, lambda _: state["now"]).plan.requests == ()
    (record,) = box.open
    assert record.outcome == f"features {PARTITION} is under way"
    job = box.line.defs.resolve_job_def("flights_features")
    run = box.line.instance.create_run_for_job(
        job,
        tags={
            **request.tags,
            "dagster/run_key": str(request.run_key),
            "dagster/partition": str(request.partition_key),
        },
    )
    box.line.instance.report_run_failed(run, "its process was killed")
    box.tick()
    assert [r.decision for r in box.open] == ["restate"]
    box.line.instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    box.tick()
    assert [r.decision for r in box.open] == ["list"]


def test_what_is_listed_and_done_by_hand_is_over(box: Box) -> None:
    box.later(10)
    box.correct(40)
    box.tick()
    box.line.must("features", partition=PARTITION)
    box.tick()
    assert [r.state for r in box.open] == ["open"]  # what reads it does not know yet
    box.line.must("day", partition="2013-01-08")
    box.line.must("snapshot", "model", partition="2013-01-08")
    box.line.must("evaluation", span=("2013-01-07", "2013-01-08"))
    assert box.tick().launched == []
    assert [r.state for r in box.every] == ["done"]


def test_training_waits_for_all_features_of_its_window(box: Box) -> None:
    """Two corrections, one training: the second airport's features are still to come."""
    box.correct(40)
    box.correct(40, partition="LGA|2013-01-08")
    services = box.line.services
    note_changes(services, [DAY])
    requests = due(services).plan.requests
    assert [(r.job, r.partition) for r in requests] == [
        ("features", PARTITION),
        ("features", "LGA|2013-01-08"),
    ]
    box.line.must("features", partition=PARTITION)
    found = due(services).plan
    assert [(r.job, r.partition) for r in found.requests] == [
        ("features", "LGA|2013-01-08"),
        ("day", "2013-01-08"),
    ]
    assert "train 2013-01-08 waits for the features of 2013-01-08" in found.held[PARTITION]
    model = box.model("2013-01-08")
    box.until_quiet()
    assert box.model("2013-01-08") == model + 1


def test_one_look_hands_over_a_bounded_number(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform_assets.line.restating.MOST_REQUESTS", 1)
    box.correct(40)
    box.correct(40, partition="LGA|2013-01-08")
    launched = box.until_quiet()
    assert all(len(tick) == 1 for tick in launched)
    assert ("features", PARTITION) in launched[0]
    assert box.open == []
