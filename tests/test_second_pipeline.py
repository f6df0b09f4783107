"""A second pipeline is a second YAML file and a trainer, and nothing else.

tests/pipelines/ holds one that differs from the flights in every way that a spec can tell: another
partition key, whose name sorts after "date"; another timezone, with its clock change; another
source; regression; a trainer outside of the project's packages; the wall clock. Its data is
synthetic.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date
from pathlib import Path
from typing import Any

import pytest

from platform_assets.cli import main
from platform_assets.demo.server import DagsterDev
from platform_assets.domain.errors import HeldError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.grid import asset_key
from platform_assets.line.days import as_partition_version
from platform_assets.line.features import build_features
from platform_assets.line.history import plan_history
from platform_assets.line.services import Services
from resources.catalog import load_catalog
from resources.home import Home
from tests.pipelines import grid_load_producer
from tests.pipelines.cases import GRID_LOAD_YAML, ROOT, line, registry, run_in, utc, with_forecast
from tests.pipelines.page import Page
from tests.ports import free_port

FIRST_HOUR = utc(27, 23, month=3)
"""00:00 of 28 March in Berlin, where clocks went forward on the 31st."""
HELD_FROM = utc(3, 19)
"""21:00 of 3 April in Berlin: what is landed until here leaves that day at 21 of 24 hours."""
DAYS = [f"2024-{day}" for day in ("03-28", "03-29", "03-30", "03-31", "04-01")]


@pytest.fixture
def grid_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineSpec:
    """The pipeline in a catalog beside the flights, as a user would have it."""
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    shutil.copy(ROOT / "platform_assets" / "catalog" / "flights.yaml", catalog)
    shutil.copy(GRID_LOAD_YAML, catalog)
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(catalog))
    found = load_catalog()
    assert list(found) == ["flights", "grid_load"]
    return found["grid_load"]


@pytest.fixture
def signalbox(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A command of the console script, with --json: `signalbox("status", "--pipeline", name)`."""

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return json.loads(printed.out)

    return run


# --- its producer --------------------------------------------------------------------------------


def test_the_producer_knows_nothing_of_signalbox() -> None:
    code = (
        "import sys, tests.pipelines.grid_load_producer\n"
        "print({'platform_assets', 'resources', 'sensors'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_the_producer_makes_the_same_data_again_and_the_zone_accepts_it(
    home: Home, grid_load: PipelineSpec, tmp_path: Path
) -> None:
    grid_load_producer.produce(home.root, FIRST_HOUR, utc(29, month=3))
    grid_load_producer.produce(tmp_path / "again", FIRST_HOUR, utc(29, month=3))
    for path in (tmp_path / "again").rglob("*.parquet"):
        assert path.read_bytes() == (home.root / path.relative_to(tmp_path / "again")).read_bytes()
    services = Services.open(grid_load, home)
    assert services.zone.refresh(date(2024, 3, 28), date(2024, 3, 28)) == 2 * 25
    report = services.zone.report("north", date(2024, 3, 28), utc(1))
    assert report.is_whole, report.reason()
    assert services.zone.read("feeders", "north", date(2024, 3, 28)).num_rows == 3 * 24


# --- the line, in process ------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_second_pipeline_runs_from_landing_to_champion(
    home: Home, grid_load: PipelineSpec, signalbox: Callable[..., Any]
) -> None:
    grid_load_producer.produce(home.root, FIRST_HOUR, HELD_FROM)
    with line(grid_load, home) as run:
        # The history, as the runs of a backfill.
        run.build(["features"], "2024-03-28|north", "2024-04-01|south")
        run.build(["day"], "2024-03-28", "2024-04-01")
        run.build(["snapshot", "model"], "2024-03-30", "2024-04-01")
        run.build(["evaluation"], "2024-03-30", "2024-03-31")
        run.build(["champion"])
        assert run.materialized("features") == {
            f"{day}|{key}" for day in DAYS for key in ("north", "south")
        }
        assert run.materialized("model") == {"2024-03-30", "2024-03-31", "2024-04-01"}

        # The live days, by the sensor.
        asked = run.run_requests(run.tick())
        assert asked == [
            ("features", "2024-04-02|north"),
            ("features", "2024-04-02|south"),
            # Over and held: the roll-up says so, and nothing trains on them.
            ("day", "2024-04-03"),
            ("day", "2024-04-04"),
            ("day", "2024-04-05"),
        ]
        asked = run.run_requests(run.tick())
        assert asked == [
            ("day", "2024-04-02"),
            ("train", "2024-04-02"),
            ("judge", "2024-04-01"),
        ]
        held = run.tick()
        assert not held.run_requests
        assert "north|2024-04-03: feeders 21 of 24 hours, missing 21:00-23:00" in str(
            held.skip_reason
        )

        # The rest of the held day arrives late.
        grid_load_producer.produce(home.root, HELD_FROM, utc(3, 22))
        assert len(run.run_requests(run.tick())) == 2
        assert set(run.run_requests(run.tick())) == {
            ("day", "2024-04-03"),
            ("train", "2024-04-03"),
            ("judge", "2024-04-02"),
        }
        assert run.materialized("features") == {
            f"{day}|{key}"
            for day in (*DAYS, "2024-04-02", "2024-04-03")
            for key in ("north", "south")
        }
        assert run.materialized("evaluation") == {
            "2024-03-30",
            "2024-03-31",
            "2024-04-01",
            "2024-04-02",
        }
        event = run.instance.get_latest_materialization_event(asset_key("grid_load/evaluation"))
        assert event is not None
        assert event.asset_materialization is not None
        assert {"rmse", "mae", "rows"} <= set(event.asset_materialization.metadata)
        assert not [m for m in event.asset_materialization.metadata if "calibration" in m]
        crowned = run.instance.get_latest_materialization_event(asset_key("grid_load/champion"))
        assert crowned is not None
        assert crowned.asset_materialization is not None
        assert "rmse over time" in crowned.asset_materialization.metadata

    assert_results(home, signalbox, [*DAYS[2:], "2024-04-02", "2024-04-03"])


def assert_results(home: Home, signalbox: Callable[..., Any], models: Sequence[str]) -> None:
    """What registry and commands tell once all of these models but the last are judged.

    Each was trained once; the last one's own day is the last that is whole.
    """
    found = registry(home, "grid-load")
    versions = {v["partition"]: v for v in found["versions"].values()}
    assert sorted(versions) == list(models)
    assert len(found["versions"]) == len(models)
    assert {v["status"] for v in versions.values()} == {"FINISHED"}
    judged = {day: v["metrics"] for day, v in versions.items() if "judged_rmse" in v["metrics"]}
    assert sorted(judged) == list(models[:-1])
    # The noise has a deviation of 0.3 MW and the load varies by several: the trees have learned.
    assert all(0.2 < metrics["judged_rmse"] < 2.5 for metrics in judged.values())
    assert all(0.1 < m["judged_mae"] < m["judged_rmse"] for m in judged.values())

    document = signalbox("status", "--pipeline", "grid_load")["pipelines"]["grid_load"]
    assert document["clock"] == "wall"
    champion = document["champion"]
    assert champion["version"] == found["champion"]
    assert found["versions"][found["champion"]]["partition"] == champion["date"]
    assert "rmse" in champion["reason"]
    assets = document["assets"]
    for counts in assets.values():
        words = ("complete", "ready", "held", "missing")
        assert sum(counts[word] for word in words) == counts["partitions"]
    whole = len(DAYS) + len(models) - 3
    landed = assets["grid_load/landed_feeders"]
    assert (landed["partitions"], landed["complete"]) == (18, 2 * whole), "all days have begun"
    assert assets["grid_load/features"]["watermark"] == models[-1]
    assert assets["grid_load/evaluation"]["complete"] == len(models) - 1

    told = signalbox("explain", "grid_load/features", "north|2024-03-31")
    assert told["state"] == "done"
    assert told["sources"][0]["expected"] == 23, "clocks went forward in Berlin"
    assert told["versions"][0]["rows"] > 0
    by_dagsters_key = signalbox("explain", "grid_load/features", "2024-03-31|north")
    assert by_dagsters_key["partition"] == told["partition"] == "north|2024-03-31"
    assert by_dagsters_key["versions"] == told["versions"]
    waiting = signalbox("explain", "grid_load/evaluation", models[-1])
    assert waiting["state"] == "held"
    # The flights beside it are as they were.
    others = signalbox("status")["pipelines"]
    assert set(others) == {"flights", "grid_load"}
    assert others["flights"]["champion"] is None


def test_status_counts_a_judgement_whose_model_is_held(home: Home, grid_load: PipelineSpec) -> None:
    services = Services.open(grid_load, home)
    plan = plan_history(services, date(2024, 3, 28), date(2024, 4, 5))
    days = {f"2024-{day}" for day in ("03-30", "03-31", "04-01", "04-02", "04-03", "04-04")}
    assert set(plan.held["evaluation"]) == days
    assert all(why.startswith("there is no model: ") for why in plan.held["evaluation"].values())


# --- with a join ---------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_variation_with_a_join_needs_no_more_than_its_spec(
    home: Home, grid_load: PipelineSpec
) -> None:
    spec = with_forecast(grid_load)
    services = Services.open(spec, home)

    def land(day: date, *, forecast_of: tuple[str, ...] = ("north", "south")) -> None:
        for hour in local_hours(day, spec.partitions.timezone):
            for station in spec.partitions.values:
                rows = grid_load_producer.readings(station, hour)
                grid_load_producer.land(home.root, spec.pipeline, "feeders", station, hour, rows)
                if station in forecast_of:
                    grid_load_producer.land(
                        home.root,
                        spec.pipeline,
                        "forecast",
                        station,
                        hour,
                        grid_load_producer.forecast(station, hour),
                    )

    for day in spec.dates()[:3]:
        land(day)
    land(spec.dates()[3], forecast_of=("north",))
    with pytest.raises(HeldError, match="forecast 0 of 23 hours, missing 00:00-23:00"):
        build_features(services, PartitionKey(spec.dates()[3], "south"), "by hand")
    land(spec.dates()[3])

    with line(spec, home) as run:
        asked = []
        while requests := run.run_requests(run.tick()):
            asked += requests
        assert asked.count(("judge", "2024-03-30")) == 1
        assert [job for job, _ in asked].count("features") == 8
        assert run.materialized("model") == {"2024-03-30", "2024-03-31"}
    found = services.ledger.current_versions(spec.asset("features"), ["south|2024-03-30"])
    versions = [as_partition_version(record) for record in found.values()]
    rows = services.dataset.read(versions).to_pylist()
    assert len(rows) > 40
    for row in rows:
        expected = grid_load_producer.forecast(row["station"], row["hour"].astimezone(UTC))
        assert row["temperature"] == expected["temperature"][0].as_py()
    assert registry(home, "grid-forecast")["champion"] == 1


# --- through a real Dagster: webserver, daemon, queue --------------------------------------------


@pytest.mark.e2e
@pytest.mark.heavy
def test_a_second_pipeline_runs_through_a_real_daemon(
    home: Home,
    grid_load: PipelineSpec,
    signalbox: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As a person would write it; Dagster's processes work in another folder.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNALBOX_CATALOG", "catalog")
    grid_load_producer.produce(home.root, FIRST_HOUR, HELD_FROM)
    services = Services.open(grid_load, home)

    def built(stage: str) -> set[str]:
        return set(services.ledger.current_versions(grid_load.asset(stage)))

    with DagsterDev(home, free_port()) as server:
        server.wait_until_ready()
        command = Page.read().block("run while Dagster is up")
        command = command.replace("http://127.0.0.1:3000", server.url)
        launched = run_in(ROOT, home.root, "bash", "-c", command)
        assert launched.returncode == 0, launched.stderr
        backfill = launched.stdout.strip()

        def wait(done: Callable[[], bool], what: str, seconds: float = 480) -> None:
            deadline = time.monotonic() + seconds
            while not done():
                server.require_alive()
                runs = server.api.runs({"signalbox/pipeline": "grid_load"})
                failed = [r for r in runs if r["status"] in ("FAILURE", "CANCELED")]
                assert not failed, f"{failed}; see {server.log}"
                assert time.monotonic() < deadline, f"waited in vain for {what}"
                time.sleep(0.5)

        def ended() -> bool:
            found = server.api.backfill(backfill)
            assert not any(failed for _, failed, _ in found["assets"].values()), found
            return str(found["status"]).startswith("COMPLETED")

        wait(ended, "the backfill of the history")
        counts = server.api.backfill(backfill)["assets"]
        assert counts["grid_load/features"] == (10, 0, 10)
        assert counts["grid_load/model"] == (3, 0, 3)
        assert counts["grid_load/champion"] == (1, 0, 1)

        wait(lambda: "2024-04-02" in built("model"), "the sensor's training of 2 April")
        wait(lambda: "2024-04-01" in built("evaluation"), "the judgement that waited for it")

        def settled() -> bool:
            runs = server.api.runs({"signalbox/pipeline": "grid_load"})
            return all(run["status"] == "SUCCESS" for run in runs)

        wait(settled, "the last runs to end")
        lanes = {
            tag["value"]
            for run in server.api.runs({"signalbox/pipeline": "grid_load"})
            for tag in run["tags"]
            if tag["key"] == "signalbox/lane"
        }
        assert lanes == {"backfill", "daily"}
    assert_results(home, signalbox, [*DAYS[2:], "2024-04-02"])
    held = signalbox("explain", "grid_load/features", "north|2024-04-03")
    assert held["state"] == "held"
    assert held["sources"][0]["missing_local"] == "21:00-23:00"
    models = {v["partition"]: v["lane"] for v in registry(home, "grid-load")["versions"].values()}
    assert models["2024-03-30"] == "backfill"
    assert models["2024-04-02"] == "daily"
