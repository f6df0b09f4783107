"""`signalbox backfill` on a home, without webserver and daemon: planned, seen and steered."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._cli.job import execute_backfill_command
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationPlanned,
)
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.automation_tick_evaluation_context import (
    _build_run_requests_with_backfill_policy,
)
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemotePartitionSetOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.dagster_run import DagsterRun, DagsterRunStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.test_utils import in_process_test_workspace
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceRequestContext
from dagster._daemon.backfill import execute_backfill_iteration
from dagster_graphql.schema import create_schema
from dagster_shared.cli import WorkspaceOpts
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.cli import backfill_screen
from platform_assets.cli import backfill_steering as steering
from platform_assets.cli.app import main
from platform_assets.cli.lanes import describe
from platform_assets.domain.backfill_cost import Cost, Measured, batches
from platform_assets.domain.lane_limits import size_of
from platform_assets.domain.lanes import BACKFILL_TAG, LANE_KEY_TAG, tags_of_lane
from platform_assets.domain.partition import PartitionKey
from platform_assets.factory import assets, backfill_view, grid
from platform_assets.factory.backfill_view import Watcher
from platform_assets.factory.backfills import (
    OPEN_STATUSES,
    ended_of,
    in_work,
    open_of,
    ranges_of,
    read_queue,
)
from platform_assets.factory.instance import dagster_yaml
from platform_assets.line import stopwatch
from platform_assets.line.backfill import make_plan, read_measured, select, span_of
from platform_assets.line.features import build_features
from resources.dagster_api import DagsterApi
from resources.lanes import load_lanes
from resources.ledger.backfills import PAUSED, RUNNING, Backfills
from tests.small import HELD, Line, Templates, copied, small_spec

RANGE = ("--from", "2013-01-02", "--to", "2013-01-09")
SPEC = small_spec()
CELLS = [key for day in SPEC.dates() for key in SPEC.keys_of(day)]
unhurried = settings(deadline=None)  # a busy machine is no failure


@pytest.fixture
def line(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Line]:
    """Eight landed days with their features, and models of four; nothing is judged."""
    (tmp_path / "catalog").mkdir()
    document = small_spec().model_dump(mode="json")
    (tmp_path / "catalog" / "flights.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(tmp_path / "catalog"))
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        yield found


class Shell:
    """Calls `signalbox backfill …` in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture
        self.code = 0
        self.err = ""

    def __call__(self, *arguments: str) -> str:
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["backfill", *arguments])
        out, self.err = self.capture.readouterr()
        assert isinstance(ended.value.code, int)
        self.code = ended.value.code
        return out

    def json(self, *arguments: str) -> Any:
        out = self(*arguments, "--json")
        assert (self.code, self.err) == (0, "")
        return json.loads(out)

    def refused(self, code: int, *arguments: str) -> str:
        assert self(*arguments) == ""
        assert self.code == code, self.err
        assert self.err.count("\n") == 1
        return self.err


@pytest.fixture
def backfill(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def pretend(
    line: Line,
    build: Mapping[str, Sequence[str]],
    backfill_id: str = "fromthui",
    status: BulkActionStatus = BulkActionStatus.REQUESTED,
    tags: Mapping[str, str] | None = None,
    launched: float = 1.0,
) -> PartitionBackfill:
    """Write a backfill into Dagster's storage as its UI does; no daemon takes it up."""
    assets = {node.key: node for node in line.defs.get_repository_def().asset_graph.asset_nodes}
    subsets = {}
    for stage, names in build.items():
        definition = assets[line.key(stage)].partitions_def
        assert definition is not None
        keys = [line.dagster_key(name) for name in names]
        subsets[line.key(stage)] = definition.subset_with_partition_keys(keys)
    target = AssetGraphSubset(partitions_subsets_by_asset_key=subsets)
    found = PartitionBackfill(
        backfill_id=backfill_id,
        status=status,
        from_failure=False,
        tags=dict(tags or {}),
        backfill_timestamp=launched,
        asset_selection=list(subsets),
        asset_backfill_data=AssetBackfillData.empty(target, launched, line.instance),
    )
    line.instance.add_backfill(found)
    return found


def running(
    line: Line,
    tags: Mapping[str, str],
    *stages: str,
    job: str = "__ASSET_JOB",
    status: DagsterRunStatus = DagsterRunStatus.STARTED,
) -> str:
    run = DagsterRun(
        job_name=job,
        run_id=f"run-{len(tags)}-{'-'.join(stages) or job}",
        status=status,
        tags=dict(tags),
        asset_selection=frozenset(line.key(stage) for stage in stages) or None,
    )
    line.instance.add_run(run)
    return str(run.run_id)


# --- plan ---------------------------------------------------------------------------------------


def test_a_plan_says_what_is_missing_complete_and_held(line: Line, backfill: Shell) -> None:
    runs_before = line.instance.get_runs_count()
    found = backfill.json("plan", "flights", *RANGE)
    assert found["assets"]["flights/features"] == {
        "missing": 0,
        "again": 0,
        "complete": 15,
        "held": 1,
        "elsewhere": 0,
    }
    assert "weather" in found["partitions"]["flights/features"]["held"][HELD]
    # Of the 4th to the 9th, the 6th is held; models of four dates are there, none is judged.
    assert found["partitions"]["flights/model"]["missing"] == ["2013-01-09"]
    assert "its own day is held" in found["partitions"]["flights/model"]["held"]["2013-01-06"]
    judged = found["partitions"]["flights/evaluation"]
    assert judged["missing"] == ["2013-01-04", "2013-01-07", "2013-01-08"]
    assert set(judged["held"]) == {"2013-01-05", "2013-01-06", "2013-01-09"}
    assert found["champion"] is True
    assert [b["assets"] for b in found["batches"]] == [
        ["flights/snapshot", "flights/model"],
        ["flights/evaluation"],
        ["flights/champion"],
    ]
    assert line.instance.get_runs_count() == runs_before
    assert line.instance.get_backfills() == []


def test_a_plan_is_a_table_for_people(line: Line, backfill: Shell) -> None:
    said = backfill("plan", "flights", *RANGE)
    assert backfill.code == 0
    assert "fill what is missing, 2013-01-02 to 2013-01-09, JFK LGA" in said
    assert f"held: flights/features {HELD}" in said
    assert "slots stay free for the daily lane" in said
    assert "flights/evaluation was never measured" in said


def test_restate_takes_what_is_there_but_not_what_is_held(line: Line, backfill: Shell) -> None:
    found = backfill.json("plan", "flights", *RANGE, "--restate", "--airport", "LGA")
    features = found["partitions"]["flights/features"]
    assert len(features["again"]) == 7
    assert list(features["held"]) == [HELD]
    assert not any("JFK" in name for names in features.values() for name in names)


def test_single_dates_are_ranges_with_gaps(line: Line, backfill: Shell) -> None:
    line.land("2013-01-10", "2013-01-16")
    found = backfill.json("plan", "flights", "--dates", "2013-01-16,2013-01-10,2013-01-12")
    assert found["dates"] == [
        ["2013-01-10", "2013-01-10"],
        ["2013-01-12", "2013-01-12"],
        ["2013-01-16", "2013-01-16"],
    ]
    build = {"features": found["partitions"]["flights/features"]["missing"]}
    assert len(build["features"]) == 6
    # Its window has a gap that nobody asked to fill: it would be refused when it runs.
    assert "2013-01-12" in found["partitions"]["flights/model"]["held"]
    ranges = ranges_of(line.spec, build)["flights/features"]
    assert ("JFK|2013-01-12", "JFK|2013-01-12") in ranges
    assert len(ranges) == 6


def test_a_gap_is_not_filled_by_the_ranges_that_are_launched() -> None:
    names = [name for name in CELLS if name not in (HELD, "JFK|2013-01-09")]
    definition = grid.keyed(SPEC)
    launched = [
        key
        for a, b in ranges_of(SPEC, {"features": names})["flights/features"]
        for key in definition.get_partition_keys_in_range(dg.PartitionKeyRange(a, b))
    ]
    assert sorted(str(PartitionKey.parse(key)) for key in launched) == sorted(names)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--from", "2013-01-02"), "needs --to"),
        (("--from", "2013-01-05", "--to", "2013-01-02"), "exchange them"),
        ((), "no date was given"),
        (("--dates", "2014-01-01"), "allowed are dates from 2013-01-02 to 2013-01-20"),
        (("--dates", "tomorrow"), "is no date"),
        ((*RANGE, "--airport", "SFO"), "allowed are JFK, LGA"),
    ],
)
def test_wrong_use_is_refused(
    line: Line, backfill: Shell, asked: tuple[str, ...], words: str
) -> None:
    assert words in backfill.refused(2, "plan", "flights", *asked)


def test_a_pipeline_that_is_not_there_is_refused(line: Line, backfill: Shell) -> None:
    assert "allowed are flights" in backfill.refused(2, "plan", "trains", *RANGE)


# --- in work elsewhere --------------------------------------------------------------------------


def test_what_a_run_or_a_backfill_works_on_is_left_out(line: Line) -> None:
    line.land("2013-01-10", "2013-01-13")
    start, end = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
    ranged = running(line, {start: "JFK|2013-01-10", end: "LGA|2013-01-11"}, "features")
    single = running(line, {"dagster/partition": "2013-01-09"}, job="flights_train")
    pretend(line, {"features": ["LGA|2013-01-12"]})
    selection = select(line.spec, first=date(2013, 1, 9), last=date(2013, 1, 13))

    busy = in_work(line.instance, line.spec)
    assert busy["features", "JFK|2013-01-11"] == f"run {ranged}"
    assert busy["features", "LGA|2013-01-10"] == f"run {ranged}"
    assert busy["snapshot", "2013-01-09"] == busy["model", "2013-01-09"] == f"run {single}"
    assert busy["features", "LGA|2013-01-12"] == "backfill fromthui"

    build = make_plan(line.services, selection, busy).build
    assert set(build["features"]) == {"JFK|2013-01-12", "JFK|2013-01-13", "LGA|2013-01-13"}
    assert "model" not in build
    # Without looking elsewhere all of it would be launched a second time.
    alone = make_plan(line.services, selection, {}).build
    assert len(alone["features"]) == 8
    assert "2013-01-09" in alone["model"]


def pretend_of_job(line: Line, job: str, names: Sequence[str]) -> PartitionBackfill:
    """The backfill of a job, as its page in the UI makes it; no daemon takes it up."""
    origin = RemotePartitionSetOrigin(
        repository_origin=RemoteRepositoryOrigin(
            RegisteredCodeLocationOrigin("signalbox"), repository_name="__repository__"
        ),
        partition_set_name=f"{job}_partition_set",
    )
    found = PartitionBackfill(
        backfill_id="ofthejob",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=1.0,
        partition_set_origin=origin,
        partition_names=list(names),
    )
    line.instance.add_backfill(found)
    return found


def test_the_backfill_of_a_job_is_work_elsewhere_and_has_progress(
    line: Line, backfill: Shell
) -> None:
    line.land("2013-01-10", "2013-01-11")
    names = [f"JFK|2013-01-{day}" for day in ("08", "10", "11")]
    pretend_of_job(line, "flights_features", names)
    busy = in_work(line.instance, line.spec)
    assert busy == {("features", name): "backfill ofthejob" for name in names}

    tags = {"dagster/backfill": "ofthejob"}
    line.must("features", partition="JFK|2013-01-10", tags=tags, job="flights_features")
    running(line, {**tags, "dagster/partition": "JFK|2013-01-11"}, "features")
    busy = in_work(line.instance, line.spec)
    assert set(busy) == {("features", "JFK|2013-01-08"), ("features", "JFK|2013-01-11")}
    assert "of backfill ofthejob" in busy["features", "JFK|2013-01-11"]

    found = backfill.json("status", "ofthejob")
    stage = found["assets"]["flights/features"]
    assert (found["pipeline"], stage["wanted"], stage["done"]) == ("flights", 3, 1)
    assert (stage["in_progress"], stage["waiting"], stage["failed"]) == (1, 1, 0)
    assert backfill.json("pause", "ofthejob")["paused"] is True
    (record,) = Backfills(line.home.ledger_url).steered()
    assert record.selection == {"flights/features": names}


def test_backfills_of_other_assets_stand_in_nobodys_way(line: Line, backfill: Shell) -> None:
    """Somebody's own assets beside the pipelines have partitions and jobs of their own."""
    static = dg.StaticPartitionsDefinition(["a", "b"])
    key = dg.AssetKey("regions")

    @dg.asset(key=key, partitions_def=static)
    def regions() -> None: ...

    subset = AssetGraphSubset({key: static.subset_with_partition_keys(["a"])})
    line.instance.add_backfill(
        PartitionBackfill(
            backfill_id="regional",
            status=BulkActionStatus.REQUESTED,
            from_failure=False,
            tags={},
            backfill_timestamp=1.0,
            asset_selection=[key],
            asset_backfill_data=AssetBackfillData.empty(subset, 1.0, line.instance),
        )
    )
    pretend_of_job(line, "weekly_train", ["week 1"])
    assert in_work(line.instance, line.spec) == {}
    found = {one["backfill"]: one for one in backfill.json("status")["backfills"]}
    assert found["regional"]["assets"]["regions"]["wanted"] == 1
    assert set(found) == {"regional", "ofthejob"}


@unhurried
@given(st.sampled_from(CELLS), st.sampled_from(CELLS))
def test_a_range_means_what_dagster_means_by_it(one: str, other: str) -> None:
    a, b = PartitionKey.parse(one), PartitionKey.parse(other)
    keys = sorted((a.key or "", b.key or ""))
    dates = sorted((a.date, b.date))
    first, last = PartitionKey(dates[0], keys[0]), PartitionKey(dates[1], keys[1])
    found = grid.keyed(SPEC).get_partition_keys_in_range(
        dg.PartitionKeyRange(grid.dagster_key(SPEC, first), grid.dagster_key(SPEC, last))
    )
    assert {str(PartitionKey.parse(key)) for key in found} == set(
        span_of(SPEC, str(first), str(last))
    )


@unhurried
@given(st.sets(st.sampled_from(CELLS), min_size=1), st.integers(1, 9))
def test_runs_are_counted_as_dagster_makes_them(names: set[str], per_run: int) -> None:
    spec = small_spec(limits={"partitions_per_run": per_run})
    requests = _build_run_requests_with_backfill_policy(
        [grid.asset_key(spec.asset("features"))],
        [],
        dg.BackfillPolicy.multi_run(per_run),
        frozenset(grid.dagster_key(spec, PartitionKey.parse(name)) for name in names),
        grid.keyed(spec),
        tags={},
        dynamic_partitions_store=None,  # type: ignore[arg-type]
    )
    (batch,) = batches(spec, {"features": tuple(names)})
    assert batch.runs == len(requests)
    # As many limits as the queue will have for them.
    lanes, asset = load_lanes(), spec.asset("features")
    tags = [tags_of_lane(lanes, {BACKFILL_TAG: "abc", **r.tags}, [asset]) for r in requests]
    assert batch.keys == len({found[LANE_KEY_TAG] for found in tags})


def test_the_queue_is_read_from_the_instance(line: Line) -> None:
    declared = yaml.safe_load(dagster_yaml().read_text())["concurrency"]["runs"]
    found = read_queue(line.instance)
    assert found.slots == declared["max_concurrent_runs"]
    for rule in declared["tag_concurrency_limits"]:
        if rule["key"] == "signalbox/lane":
            assert found.lanes[rule["value"]] <= rule["limit"]
        if rule["key"] == "dagster/backfill":
            assert found.per_backfill == rule["limit"]
        if rule["key"] == "signalbox/lane_pipeline":
            assert found.per_pipeline == rule["limit"]
        if rule["key"] == "signalbox/lane_key":
            assert found.per_key == rule["limit"]
    assert None not in (found.per_backfill, found.per_pipeline, found.per_key)


def test_a_batch_that_was_cut_off_goes_on_with_what_is_missing(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.land("2013-01-10", "2013-01-12")
    built: list[str] = []

    def cut_off(services: Any, key: PartitionKey, *rest: Any) -> Any:
        if len(built) == 2:
            raise KeyboardInterrupt  # no Exception: nothing in the run comes after it
        built.append(str(key))
        return build_features(services, key, *rest)

    monkeypatch.setattr(assets, "build_features", cut_off)
    with suppress(BaseException):
        line.run("features", span=("JFK|2013-01-10", "JFK|2013-01-12"))
    monkeypatch.undo()
    assert built == ["JFK|2013-01-10", "JFK|2013-01-11"]
    days = select(line.spec, first=date(2013, 1, 10), last=date(2013, 1, 12), airports=["JFK"])
    assert make_plan(line.services, days, {}).build == {"features": ("JFK|2013-01-12",)}
    line.must("features", partition="JFK|2013-01-12")
    assert [len(line.history("features", name)) for name in built] == [1, 1]


# --- costs --------------------------------------------------------------------------------------


def test_each_version_says_what_it_cost(line: Line) -> None:
    line.land("2013-01-10")
    line.must("features", span=("JFK|2013-01-10", "LGA|2013-01-10"))
    for name in line.spec.keys_of(date(2013, 1, 10)):
        cost = line.versions("features")[name].detail["cost"]
        assert 0 < cost["seconds"] < 600
        assert 0 < cost["cpu_seconds"] < 600
    measured = read_measured(line.services)
    assert set(measured.stages) == {"features", "day", "snapshot", "model"}
    assert measured.stages["model"].samples == 4


def test_a_plan_for_one_airport_expects_its_runs_one_at_a_time(
    line: Line, backfill: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane takes two runs of a backfill at once, of one airport one."""
    document = small_spec(limits={"partitions_per_run": 1}).model_dump(mode="json")
    (tmp_path / "catalog" / "flights.yaml").write_text(yaml.safe_dump(document))
    cost = Measured({"features": Cost(10.0, 9.0, 5), "day": Cost(0.0, 0.0, 5)}, Cost(1.0, 1.0, 5))
    monkeypatch.setattr("platform_assets.line.backfill.measured_by", lambda _: cost)
    asked = ("flights", "--from", "2013-01-02", "--to", "2013-01-03", "--restate")
    one = backfill.json("plan", *asked, "--airport", "JFK")
    assert [(b["runs"], b["runs_at_once"]) for b in one["batches"]] == [(2, 1), (1, 1)]
    # The features take 22 s, where two at once would have taken 11; 2 s each and 1 s for the days.
    assert (one["expected"]["seconds"], one["expected"]["runs_at_once"]) == (27.0, 1)
    assert "with at most 1 run(s) at once" in backfill("plan", *asked, "--airport", "JFK")
    both = backfill.json("plan", *asked)
    assert [(b["runs"], b["runs_at_once"]) for b in both["batches"]] == [(4, 2), (1, 1)]
    assert (both["expected"]["seconds"], both["expected"]["runs_at_once"]) == (27.0, 2)


def test_the_time_left_of_one_airport_is_that_of_one_run_at_a_time(
    line: Line, backfill: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = Measured({"features": Cost(10.0, 9.0, 5)})
    monkeypatch.setattr("platform_assets.line.backfill.read_measured", lambda _: cost)
    names = [f"JFK|2013-01-{day}" for day in range(10, 14)]
    pretend(line, {"features": names}, "one")
    pretend(line, {"features": [*names, *(n.replace("JFK", "LGA") for n in names)]}, "both")
    assert backfill.json("status", "one")["seconds_left"] == 40.0  # two at once: 20 s
    assert backfill.json("status", "both")["seconds_left"] == 40.0


def test_laps_follow_each_other_and_the_first_tells_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall, cpu = iter([10.0, 12.0, 15.0]), iter([1.0, 1.5, 1.75])
    monkeypatch.setattr(stopwatch, "_start_is_told", False)
    monkeypatch.setattr(stopwatch, "_since_start", lambda: {"start_seconds": 4.0})
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: next(wall))
    monkeypatch.setattr(stopwatch.time, "process_time", lambda: next(cpu))
    found = stopwatch.Stopwatch.of_process()
    assert found.lap() == {"seconds": 2.0, "cpu_seconds": 0.5, "start_seconds": 4.0}
    assert found.lap() == {"seconds": 3.0, "cpu_seconds": 0.25}
    monkeypatch.undo()
    monkeypatch.setattr(stopwatch, "_start_is_told", True)
    assert "start_seconds" not in stopwatch.Stopwatch.of_process().lap()


# --- watched ------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_look_tells_done_held_failed_and_waiting(line: Line, backfill: Shell) -> None:
    line.land("2013-01-10", "2013-01-11", airports=["JFK"])
    names = [HELD, "JFK|2013-01-09", "JFK|2013-01-10", "JFK|2013-01-11"]
    pretend(line, {"features": names, "day": ["2013-01-09", "2013-01-11"]})
    watcher = Watcher(line.instance, "fromthui")
    assert watcher.look().stages["flights/features"].waiting == 4

    tags = {"dagster/backfill": "fromthui"}
    line.must("features", span=("JFK|2013-01-09", "JFK|2013-01-10"), tags=tags)
    assert not line.run("features", partition=HELD, tags=tags).success
    line.must("features", partition="JFK|2013-01-11")  # somebody else's run
    seen = watcher.look()
    features = seen.stages["flights/features"]
    # Dagster's own count is still nil: its daemon has not looked.
    assert (features.done, features.held, features.waiting) == (2, 1, 1)
    assert "weather" in features.reasons[HELD]
    assert seen.runs["succeeded"] == 1
    assert seen.runs["failed"] == 1
    assert not seen.ended

    document = backfill.json("status", "fromthui")
    assert document["assets"]["flights/features"]["done"] == 2
    assert document["assets"]["flights/day"]["waiting"] == 2
    said = backfill("status", "fromthui")
    assert HELD in said
    assert [one["backfill"] for one in backfill.json("status")["backfills"]] == ["fromthui"]
    assert "fromthui" in backfill("status")


def test_a_home_without_backfills_says_so(line: Line, backfill: Shell) -> None:
    assert backfill("status") == "no backfill was launched in this home\n"
    assert backfill.json("status") == {"backfills": []}
    assert "no backfill 'abc' is known" in backfill.refused(2, "status", "abc")


def refused_by_others(line: Line, count: int) -> None:
    """So many results of the check `clear` of the features that are no run's of a backfill."""
    line.instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=line.key("features"),
            check_name="clear",
            passed=False,
            metadata={"held": dg.MetadataValue.json({HELD: "another reason"})},
        )
    )
    # The others are copies of its row: to report each takes seconds.
    rows, storage = AssetCheckExecutionsTable, line.instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        newest = rows.select().order_by(rows.c.id.desc()).limit(1)
        row = dict(connection.execute(newest).mappings().one())
        del row["id"]
        connection.execute(rows.insert(), [row] * (count - 1))


def test_why_partitions_are_held_stands_behind_the_results_of_later_runs(line: Line) -> None:
    """More of them than are read at once: a year of an airport, or some months of all."""
    pretend(line, {"features": [HELD]})
    tags = {"dagster/backfill": "fromthui"}
    assert not line.run("features", partition=HELD, tags=tags).success
    refused_by_others(line, backfill_view.CHECKS + 1)
    found = Watcher(line.instance, "fromthui").look().stages["flights/features"]
    assert (found.held, found.failed, found.waiting) == (1, 0, 0)
    assert "weather" in found.reasons[HELD]


def test_reasons_are_looked_for_no_further_back_than_the_backfill(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_view, "CHECKS", 4)
    refused_by_others(line, 20)
    storage = line.instance.event_log_storage
    history = storage.get_asset_check_execution_history
    pages: list[int | None] = []

    def counted(*given: Any, **how: Any) -> Any:
        pages.append(how["cursor"])
        return history(*given, **how)

    monkeypatch.setattr(storage, "get_asset_check_execution_history", counted)
    launched = time.time() + 2 * backfill_view.CLOCK_SECONDS
    pretend(line, {"features": [HELD]}, launched=launched)
    watcher = Watcher(line.instance, "fromthui")
    watcher.look()
    assert pages == []
    running(line, {"dagster/backfill": "fromthui"}, "features", status=DagsterRunStatus.FAILURE)
    watcher.look()
    watcher.look()  # no other run has failed: what they said is known
    assert pages == [None]


def test_a_run_that_was_killed_before_its_check_was_judged_is_no_reason(line: Line) -> None:
    """Of its check there is the plan alone, which Dagster keeps in the same place."""
    pretend(line, {"features": [HELD]})
    tags = {"dagster/backfill": "fromthui"}
    killed = running(line, tags, "features", status=DagsterRunStatus.FAILURE)
    planned = AssetCheckEvaluationPlanned(asset_key=line.key("features"), check_name="clear")
    kind = DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value
    event = DagsterEvent(kind, "__ASSET_JOB", event_specific_data=planned)
    line.instance.report_dagster_event(event, killed)
    found = Watcher(line.instance, "fromthui").look()
    assert found.runs["failed"] == 1
    assert found.stages["flights/features"].reasons == {}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_followed_to_the_end(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def state(done: int, status: str) -> dict[str, Any]:
        stage = dict.fromkeys(backfill_screen.COLUMNS, 0) | {"wanted": 2, "done": done}
        runs = dict.fromkeys(("queued", "in_progress", "succeeded", "failed", "canceled"), 0)
        return {
            "backfill": "abc",
            "status": status,
            "ended": status != "requested",
            "paused": False,
            "max_runs": 1,
            "runs": runs,
            "seconds_left": 30.0,
            "assets": {"flights/features": stage},
        }

    looks = iter([state(0, "requested"), state(1, "requested"), state(2, "completed_success")])
    monkeypatch.setattr(backfill_screen, "LOOK_SECONDS", 0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert backfill_screen.follow(lambda: next(looks))["assets"]["flights/features"]["done"] == 2
    said = capsys.readouterr().out
    assert "backfill abc completed_success; at most 1 at once" in said
    assert ("features 2/2" in said) is not terminal


def test_what_goes_on_is_what_dagster_has_not_ended() -> None:
    assert {status.value for status in OPEN_STATUSES} == {"REQUESTED", "CANCELING", "FAILING"}


# --- steered ------------------------------------------------------------------------------------


def test_a_backfill_of_the_ui_is_adopted_when_it_is_steered(line: Line, backfill: Shell) -> None:
    pretend(line, {"features": ["JFK|2013-01-09"]})
    store = Backfills(line.home.ledger_url)
    assert store.find("fromthui") is None

    found = backfill.json("pause", "fromthui", "--by", "ana")
    assert found["paused"] is True
    record = store.find("fromthui")
    assert record is not None
    assert (record.pipeline, record.state, record.changed_by) == ("flights", "paused", "ana")
    assert record.selection == {"flights/features": ["JFK|2013-01-09"]}
    assert [r.id for r in store.steered()] == ["fromthui"]

    found = backfill.json("resize", "fromthui", "--runs", "1", "--by", "ben")
    assert (found["paused"], found["max_runs"]) == (True, 1)
    assert "is running, at most 1 run(s) at once" in backfill("resume", "fromthui")
    assert [(r.state, r.max_runs) for r in store.steered()] == [("running", 1)]
    assert backfill.json("resize", "fromthui", "--no-limit")["max_runs"] is None
    assert store.steered() == []
    # What was adopted is not forgotten by steering it again.
    again = store.find("fromthui")
    assert again is not None
    assert again.selection == record.selection


def test_a_pause_that_comes_before_the_launch_is_recorded_counts(
    line: Line, backfill: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster has the backfill, and another terminal sees it, before `launch` knows its id."""
    store = Backfills(line.home.ledger_url)

    def paused_at_once(_: DagsterApi, *rest: Any, tags: Mapping[str, str], **more: Any) -> str:
        pretend(line, {"model": ["2013-01-09"]}, "eager", tags=tags)
        with steering._steering("eager", "ana") as (found, name):
            found.set_state("eager", PAUSED, name)
        return "eager"

    monkeypatch.setattr(DagsterApi, "launch_backfill", paused_at_once)
    backfill.json("launch", "flights", *RANGE, "--runs", "1", "--by", "ben")
    record = store.find("eager")
    assert record is not None
    assert (record.state, record.max_runs, record.changed_by) == (PAUSED, 1, "ana")
    assert (record.launched_by, "flights/model" in record.selection) == ("ben", True)


def test_of_two_who_steer_first_neither_undoes_the_other(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(line, {"features": ["JFK|2013-01-09"]})
    store = Backfills(line.home.ledger_url)
    with steering._steering("fromthui", "ana") as (found, name):
        found.set_state("fromthui", PAUSED, name)
        found.set_size("fromthui", 1, name)
    monkeypatch.setattr(Backfills, "find", lambda *_: None)  # the other one has looked before
    with steering._steering("fromthui", "ben"):
        pass
    (record,) = store.steered()
    assert (record.state, record.max_runs) == (PAUSED, 1)


def test_a_launch_that_is_stopped_in_the_middle_has_said_its_size(
    line: Line, backfill: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: DagsterApi, *rest: Any, tags: Mapping[str, str], **more: Any) -> str:
        pretend(line, {"model": ["2013-01-09"]}, "lone", tags=tags)
        raise KeyboardInterrupt

    monkeypatch.setattr(DagsterApi, "launch_backfill", stopped)
    backfill("launch", "flights", *RANGE, "--runs", "1")
    assert backfill.code == 130
    assert Backfills(line.home.ledger_url).find("lone") is None
    (known,) = line.instance.get_backfills()
    assert size_of(known.tags) == 1
    assert backfill.json("pause", "lone")["max_runs"] == 1


def test_a_size_that_the_lane_does_not_have_is_said(line: Line, backfill: Shell) -> None:
    pretend(line, {"features": ["JFK|2013-01-09"]})
    assert "at most 99 run(s) at once (its lane allows 2)" in backfill("resize", "--runs", "99")
    assert "its lane allows" not in backfill("resize", "--runs", "2")
    assert backfill.json("status", "fromthui")["runs_at_once"] == 2


def test_what_has_ended_is_no_limit_any_more(line: Line, backfill: Shell) -> None:
    """The queue reads the limits of steered backfills once a second, for ever."""
    one = {"features": ["JFK|2013-01-09"]}
    first = pretend(line, one, "first")
    store = Backfills(line.home.ledger_url)
    backfill("pause", "first")
    backfill("resize", "first", "--runs", "1")
    line.instance.update_backfill(first.with_status(BulkActionStatus.CANCELED))
    assert [r.id for r in store.steered()] == ["first"]
    assert "first" not in json.dumps(describe(line.home, load_lanes())["steered"])

    pretend(line, one, "second")
    backfill("resize", "second", "--runs", "1")
    assert [r.id for r in store.steered()] == ["second"]
    assert backfill.json("status", "first")["max_runs"] == 1, "what it had is still told"


def test_watching_as_json_tells_how_it_ended(
    line: Line, backfill: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = pretend(line, {"features": ["JFK|2013-01-09"]})

    def ends(_: float) -> None:
        line.instance.update_backfill(going.with_status(BulkActionStatus.CANCELED))

    monkeypatch.setattr("platform_assets.cli.backfill_screen.time.sleep", ends)
    found = json.loads(backfill("watch", "--json"))
    assert (found["backfill"], found["status"]) == ("fromthui", "canceled")
    assert backfill.code == 1
    assert "ended as canceled" in backfill.err


def test_only_what_goes_on_can_be_steered(line: Line, backfill: Shell) -> None:
    pretend(line, {"features": ["JFK|2013-01-09"]}, status=BulkActionStatus.COMPLETED_SUCCESS)
    for command in (("pause",), ("resume",), ("resize", "--runs", "2"), ("cancel",)):
        said = backfill.refused(1, command[0], "fromthui", *command[1:])
        assert "has ended (completed_success)" in said
        assert Backfills(line.home.ledger_url).all() == []
    assert "no backfill 'none' is known" in backfill.refused(2, "pause", "none")
    assert "give --runs N, or --no-limit" in backfill.refused(2, "resize", "fromthui")


def test_the_only_one_that_goes_on_need_not_be_named(line: Line, backfill: Shell) -> None:
    assert "no backfill goes on in this home" in backfill.refused(1, "pause")
    one = {"features": ["JFK|2013-01-03"]}
    pretend(line, one, "first", BulkActionStatus.COMPLETED_SUCCESS)
    pretend(line, one, "second")
    assert backfill.json("pause")["backfill"] == "second"
    assert backfill.json("resize", "--runs", "1")["max_runs"] == 1
    pretend(line, one, "third")
    said = backfill.refused(2, "resume")
    assert "2 backfills go on, " in said
    assert "second" in said
    assert "third" in said
    assert backfill.json("status", "second")["paused"] is True
    listed = backfill("status")
    assert "completed " in listed
    assert "paused" in listed


def test_without_a_webserver_nothing_is_launched_or_recorded(line: Line, backfill: Shell) -> None:
    nowhere = ("--url", "http://127.0.0.1:9")
    backfill("launch", "flights", *RANGE, *nowhere)
    assert backfill.code == 1
    assert "start it with `signalbox dev`" in backfill.err
    assert Backfills(line.home.ledger_url).all() == []


@pytest.mark.parametrize(
    "url", ["nonsense", "127.0.0.1:3000", "ftp://host", "http://", "http://a:b"]
)
def test_what_is_no_address_of_a_webserver_is_wrong_use(
    line: Line, backfill: Shell, url: str
) -> None:
    pretend(line, {"features": ["JFK|2013-01-09"]})
    for command in (("launch", "flights", *RANGE), ("cancel", "fromthui")):
        assert f"{url!r} is no address" in backfill.refused(2, *command, "--url", url)


@pytest.mark.parametrize("status", [BulkActionStatus.CANCELING, BulkActionStatus.FAILING])
def test_a_launch_waits_for_the_end_of_what_was_cancelled(
    line: Line, backfill: Shell, monkeypatch: pytest.MonkeyPatch, status: BulkActionStatus
) -> None:
    """What a backfill that ends has in work nobody would build, if it was left out."""
    line.land("2013-01-10")
    asked = ("launch", "flights", "--dates", "2013-01-10", "--url", "http://127.0.0.1:9")
    cancelled = pretend(line, {"features": ["JFK|2013-01-10", "LGA|2013-01-10"]}, status=status)
    planned = backfill.json("plan", *asked[1:4])
    assert planned["assets"]["flights/features"]["elsewhere"] == 2
    assert planned["runs"] == 0

    monkeypatch.setattr("platform_assets.cli.backfill.ENDING_SECONDS", 0.0)
    said = backfill.refused(1, *asked)
    assert "backfill fromthui is being ended, and has partitions in work that were asked" in said
    # Of other partitions nobody waits.
    others = ("launch", "flights", "--dates", "2013-01-02", *asked[4:])
    assert backfill.json(*others)["backfill"] is None

    def ends(_: float) -> None:
        line.instance.update_backfill(cancelled.with_status(BulkActionStatus.CANCELED))

    monkeypatch.setattr("platform_assets.cli.backfill.ENDING_SECONDS", 60.0)
    monkeypatch.setattr("platform_assets.cli.backfill.time.sleep", ends)
    assert "2 │" in backfill(*asked)
    assert "waiting for the end of backfill fromthui" in backfill.err
    assert "http://127.0.0.1:9 does not answer" in backfill.err  # it was about to launch them


def test_where_nothing_is_missing_nothing_is_launched(line: Line, backfill: Shell) -> None:
    asked = ("--dates", "2013-01-02", "--url", "http://127.0.0.1:9")
    found = backfill.json("launch", "flights", *asked)
    assert found["backfill"] is None
    assert "there is nothing to launch" in backfill("launch", "flights", *asked)


# --- `dagster job backfill` ---------------------------------------------------------------------


@pytest.fixture
def workspace(line: Line) -> Iterator[WorkspaceRequestContext]:
    """The code location of the line, as webserver, daemon and Dagster's CLI see one."""
    origin = LoadableTargetOrigin(
        executable_path=None,
        module_name="tests.small",
        attribute="repository",
        working_directory=str(Path(__file__).parent.parent),
    )
    with in_process_test_workspace(line.instance, origin) as found:
        yield found


@pytest.fixture
def of_a_job(
    line: Line, workspace: WorkspaceRequestContext, monkeypatch: pytest.MonkeyPatch
) -> PartitionBackfill:
    """What `dagster job backfill` makes, by Dagster's own code: two runs in the queue."""

    @contextmanager
    def here(*_: Any, **__: Any) -> Iterator[WorkspaceRequestContext]:
        yield workspace  # in place of a code server in a process of its own

    line.land("2013-01-10", "2013-01-11")
    monkeypatch.setattr("dagster._cli.job.get_workspace_from_cli_opts", here)
    execute_backfill_command(
        workspace_opts=WorkspaceOpts(),
        partitions=",".join(line.dagster_key(f"JFK|2013-01-{day}") for day in (10, 11)),
        job_name="flights_features",
        tags=json.dumps({"signalbox/runs_at_once": "1"}),
        noprompt=True,
        print_fn=lambda *_: None,
        instance=line.instance,
    )
    (found,) = line.instance.get_backfills()
    return found


def runs_of_backfill(line: Line, backfill_id: str) -> list[DagsterRun]:
    tagged = dg.RunsFilter(tags={"dagster/backfill": backfill_id})
    return list(line.instance.get_runs(tagged, ascending=True))


def steered(line: Line) -> dict[str, tuple[str, int | None]]:
    """Of the backfills that the queue slows down, state and size."""
    return {r.id: (r.state, r.max_runs) for r in Backfills(line.home.ledger_url).steered()}


def test_what_dagsters_cli_has_launched_goes_on_until_its_runs_have_ended(
    line: Line, of_a_job: PartitionBackfill, backfill: Shell
) -> None:
    """Dagster calls it completed from the start: it was queued, and that is all it looks at."""
    name = of_a_job.backfill_id
    assert of_a_job.status is BulkActionStatus.COMPLETED
    runs = runs_of_backfill(line, name)
    assert [run.status for run in runs] == [DagsterRunStatus.QUEUED] * 2
    assert steered(line) == {name: (RUNNING, 1)}

    found = backfill.json("status", name)
    assert (found["status"], found["ended"], found["runs"]["queued"]) == ("completed", False, 2)
    assert f"backfill {name} running; at most 1 at once" in backfill("status", name)
    # Unnamed, it is the one that goes on.
    assert backfill.json("pause")["backfill"] == name
    assert steered(line) == {name: (PAUSED, 1)}
    assert "paused" in backfill("status")
    assert backfill.json("resume")["paused"] is False
    assert backfill.json("resize", "--runs", "2")["max_runs"] == 2

    # Its size outlives the steering of another one.
    pretend(line, {"features": ["JFK|2013-01-09"]}, "other")
    backfill("resize", "other", "--runs", "1")
    assert backfill.code == 0
    assert steered(line) == {name: (RUNNING, 2), "other": (RUNNING, 1)}
    assert name in json.dumps(describe(line.home, load_lanes())["steered"])

    line.instance.report_run_canceled(runs[0])
    assert backfill.json("status", name)["ended"] is False
    line.instance.report_run_canceled(runs[1])
    assert backfill.json("status", name)["ended"] is True
    assert "has ended (completed)" in backfill.refused(1, "pause", name)
    assert backfill.json("pause")["backfill"] == "other"
    assert steered(line) == {"other": (PAUSED, 1)}


def test_watching_a_backfill_of_dagsters_cli_waits_for_its_runs(
    line: Line, of_a_job: PartitionBackfill, backfill: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(runs_of_backfill(line, of_a_job.backfill_id))
    monkeypatch.setattr(
        "platform_assets.cli.backfill_screen.time.sleep",
        lambda _: line.instance.report_run_canceled(next(looks)),
    )
    found = json.loads(backfill("watch", "--json"))
    assert (found["status"], found["runs"]["canceled"]) == ("completed", 2)
    assert list(looks) == []
    assert "ended as completed (flights/features 2 failed" in backfill.err


class Launcher:
    """Of the instance: ends a run as soon as it is asked to."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.ended: list[str] = []

    def terminate(self, run_id: str) -> bool:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        self.instance.report_run_canceled(run)
        self.ended.append(run_id)
        return True


def test_cancelling_a_backfill_of_dagsters_cli_ends_its_runs(
    line: Line,
    workspace: WorkspaceRequestContext,
    of_a_job: PartitionBackfill,
    backfill: Shell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked of the webserver's GraphQL, and done by the daemon: both Dagster's own code here."""

    def answered(_: DagsterApi, text: str, variables: Mapping[str, Any] | None = None) -> Any:
        found = create_schema().execute(text, variables=variables, context=workspace)
        assert not found.errors
        return found.data

    monkeypatch.setattr(DagsterApi, "query", answered)
    launcher = Launcher(line.instance)
    monkeypatch.setattr(type(line.instance), "run_launcher", launcher)
    first, _ = runs_of_backfill(line, of_a_job.backfill_id)
    starts = DagsterEvent(DagsterEventType.RUN_START.value, first.job_name)
    line.instance.report_dagster_event(starts, first.run_id)

    assert "is being cancelled" in backfill("cancel")
    for _ in range(2):  # it asks for the end of the runs, and sees that they have
        list(execute_backfill_iteration(workspace.process_context, logging.getLogger(__name__)))
    runs = runs_of_backfill(line, of_a_job.backfill_id)
    assert [run.status for run in runs] == [DagsterRunStatus.CANCELED] * 2
    assert launcher.ended == [first.run_id]
    found = backfill.json("status", of_a_job.backfill_id)
    assert (found["status"], found["ended"]) == ("canceled", True)
    assert "has ended (canceled)" in backfill.refused(1, "cancel", of_a_job.backfill_id)


def test_a_run_of_an_ended_backfill_that_is_launched_again_can_be_slowed_down(
    line: Line, backfill: Shell
) -> None:
    one = {"features": ["JFK|2013-01-09"]}
    first = pretend(line, one, "first")
    backfill("resize", "first", "--runs", "2")
    line.instance.update_backfill(first.with_status(BulkActionStatus.COMPLETED_FAILED))
    pretend(line, one, "second")
    backfill("resize", "second", "--runs", "1")
    assert steered(line) == {"second": (RUNNING, 1)}

    running(line, {"dagster/backfill": "first"}, "features")
    backfill("resize", "first", "--runs", "1")
    assert steered(line) == {"first": (RUNNING, 1), "second": (RUNNING, 1)}


def test_that_many_have_ended_costs_one_query_and_reads_no_run(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        name = f"old{number}"
        pretend(line, {"features": [HELD]}, name, BulkActionStatus.COMPLETED)
    asked: list[Any] = []
    ids = line.instance.get_run_ids

    def counted(*given: Any, **how: Any) -> Any:
        asked.append(given)
        return ids(*given, **how)

    monkeypatch.setattr(line.instance, "get_run_ids", counted)
    monkeypatch.setattr(line.instance, "get_runs", None)
    known = line.instance.get_backfills()
    assert (len(known), open_of(line.instance, known), len(asked)) == (20, [], 1)
    assert len(ended_of(line.instance, [one.backfill_id for one in known])) == 20
    assert len(asked) == 2
