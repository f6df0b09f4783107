"""What every door leads to, and the third door: a Dagster Component for `dg scaffold`."""

import re
import warnings
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any

import click
import dagster as dg

from platform_assets.domain.clock import WallClock
from platform_assets.domain.errors import SignalboxError, UsageError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import build_jobs, build_pipeline
from platform_assets.factory.due import build_due_checks
from resources.catalog import PIPELINE_FILE, load_catalog, read_pipeline
from sensors.alerts import build_alert_sensors
from sensors.due import build_due_sensor
from sensors.late_data import build_late_data_sensor
from sensors.readiness import build_readiness_sensor
from sensors.serving import build_serving_sensors

TEMPLATE = Path(__file__).with_name("pipeline_template.yaml")


def pipeline_definitions(
    spec: PipelineSpec, origin: str = "a spec written in Python"
) -> dg.Definitions:
    """Assets, checks, jobs and sensors of one pipeline: what every door leads to.

    Args:
        spec: the pipeline.
        origin: where it stands, for messages.

    Raises:
        SpecError: it cannot be built: there is no such trainer, a column cannot be used.
    """
    with warnings.catch_warnings():
        # Partition mappings by dimension are beta in Dagster; tests here tell when they change.
        warnings.simplefilter("ignore", dg.BetaWarning)
        jobs = build_jobs(spec)
        return dg.Definitions.merge(
            build_pipeline(spec, jobs, origin),
            dg.Definitions(
                asset_checks=build_due_checks(spec),
                sensors=[
                    build_readiness_sensor(spec, jobs),
                    build_late_data_sensor(spec, jobs),
                    build_due_sensor(spec),
                    *build_alert_sensors(spec),
                    *build_serving_sensors(spec),
                ],
            ),
        )


class SignalboxPipelineScaffolder(dg.Scaffolder[Any]):
    """Writes a pipeline.yaml to start from beside the component's defs.yaml."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write both files, or nothing; `dg` has made the folder already."""
        folder = Path(request.target_path)
        try:
            text = _starter(_pipeline_name(request))
        except SignalboxError as error:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            # `dg` prints this one as a sentence, and any other with its traceback.
            raise click.UsageError(str(error)) from error
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PIPELINE_FILE).write_text(text)
        dg.scaffold_component(request, {})


def _pipeline_name(request: dg.ScaffoldRequest[Any]) -> str:
    folder = Path(request.target_path)
    name = folder.name.replace("-", "_")
    if request.append or request.scaffold_format != "yaml":
        raise UsageError(
            f"{folder} would hold a pipeline beside something else, or one written in Python; each "
            f"pipeline has a folder of its own with defs.yaml and {PIPELINE_FILE}, name a new "
            "folder and no other --format than yaml"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(
            f"{folder.name!r} cannot name a pipeline; allowed are lower-case letters, digits, - "
            "and _, starting with a letter: name another folder"
        )
    if name in load_catalog():
        raise UsageError(f"there is a pipeline {name!r} already; name another folder")
    return name


def _starter(name: str) -> str:
    """A pipeline.yaml to start from: 60 days back, a year ahead, live from today."""
    today = WallClock().as_of().date()
    return Template(TEMPLATE.read_text()).substitute(
        pipeline=name,
        model=name.replace("_", "-"),
        start=today - timedelta(days=60),
        end=today + timedelta(days=365),
        today=today,
    )


@dg.scaffold_with(SignalboxPipelineScaffolder)
class SignalboxPipeline(dg.Component, dg.Model, dg.Resolvable):
    """A training pipeline: pipeline.yaml beside this file, which the catalog knows too."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """What the catalog would build from the file."""
        path = context.path / PIPELINE_FILE
        return pipeline_definitions(read_pipeline(path), str(path))
