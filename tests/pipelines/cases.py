"""What the tests of grid_load share: its spec with a join, runs in process, the registry."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from platform_assets.component import pipeline_definitions
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import job_name
from platform_assets.factory.grid import asset_key
from resources.catalog import read_document
from resources.home import Home

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
GRID_LOAD_YAML = FOLDER / "grid_load.yaml"


def utc(day: int, hour: int = 0, month: int = 4) -> datetime:
    """An hour of the days that grid_load has, in 2024."""
    return datetime(2024, month, day, hour, tzinfo=UTC)


def with_forecast(spec: PipelineSpec) -> PipelineSpec:
    """grid_load under another name, with forecast_join.yaml added, live from its first day."""
    added = read_document(FOLDER / "forecast_join.yaml")
    document = spec.model_dump()
    document["pipeline"] = "grid_forecast"
    document["model"]["name"] = "grid-forecast"
    document["schedule"]["live_from"] = spec.partitions.start
    document["sources"] |= added["sources"]
    document["dataset"] |= added["dataset"]
    return PipelineSpec.model_validate(document)


def copy_project(folder: Path) -> Path:
    """The project as a fresh clone has it, with the example's part of the tests only."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        wanted = not name.startswith(("tests/", "docs/")) or name.startswith("tests/pipelines/")
        if wanted and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "tests" / "__init__.py").touch()
    return folder


def run_in(
    project: Path, home: Path, *command: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A command as a person types it in the project's folder, on a home."""
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(project),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "DAGSTER_HOME": str(home / "dagster"),
        "SIGNALBOX_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "COLUMNS": "250",
    }
    environment.pop("SIGNALBOX_CATALOG", None)
    return subprocess.run(
        command,
        cwd=project,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


class Line:
    """A pipeline's definitions on the home's own Dagster instance, run in this process."""

    def __init__(self, spec: PipelineSpec, instance: dg.DagsterInstance) -> None:
        self.spec = spec
        self.instance = instance
        self.repository = dg.Definitions.merge(
            pipeline_definitions(spec), dg.Definitions(executor=dg.in_process_executor)
        ).get_repository_def()
        self._cursor: str | None = None

    def build(
        self, stages: Sequence[str], first: str | None = None, last: str | None = None
    ) -> None:
        """Run stages, over a range of partition keys as a backfill's run does it."""
        tags = {}
        if first is not None:
            assert last is not None
            tags = {
                "dagster/asset_partition_range_start": first,
                "dagster/asset_partition_range_end": last,
            }
        job = self.repository.get_implicit_job_def_for_assets(
            [asset_key(self.spec.asset(stage)) for stage in stages]
        )
        assert job is not None
        done = job.execute_in_process(
            instance=self.instance,
            asset_selection=[asset_key(self.spec.asset(stage)) for stage in stages],
            tags=tags,
        )
        assert done.success

    def tick(self) -> dg.SensorResult:
        """One look of the readiness sensor."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self._cursor, repository_def=self.repository
        )
        sensor = self.repository.get_sensor_def(f"{self.spec.pipeline}_readiness")
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        self._cursor = result.cursor
        return result

    def run_requests(self, result: dg.SensorResult) -> list[tuple[str, str]]:
        """Run what the sensor asks for; returns job and partition key of each."""
        asked = []
        for request in result.run_requests or ():
            assert request.job_name is not None
            assert request.partition_key is not None
            done = self.repository.get_job(request.job_name).execute_in_process(
                instance=self.instance, partition_key=request.partition_key, tags=request.tags
            )
            assert done.success
            prefix = job_name(self.spec, "")
            asked.append((request.job_name.removeprefix(prefix), request.partition_key))
        return asked

    def materialized(self, stage: str) -> set[str]:
        return set(self.instance.get_materialized_partitions(asset_key(self.spec.asset(stage))))


@contextmanager
def line(spec: PipelineSpec, home: Home) -> Iterator[Line]:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        yield Line(spec, instance)


def registry(home: Home, model: str) -> Mapping[str, Any]:
    """The versions of a registered model with their runs' tags and metrics, and its alias."""
    from mlflow import MlflowClient

    client = MlflowClient(home.mlflow_uri)
    versions = {}
    for version in client.search_model_versions(f"name='{model}'"):
        run = client.get_run(version.run_id)
        versions[int(version.version)] = {
            "partition": run.data.tags["signalbox.partition"],
            "lane": run.data.tags["signalbox.lane"],
            "status": run.info.status,
            "metrics": run.data.metrics,
        }
    return {
        "versions": versions,
        "champion": int(client.get_model_version_by_alias(model, "champion").version),
    }
