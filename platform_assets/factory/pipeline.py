"""One pipeline as Dagster definitions."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from platform_assets.domain.errors import SpecError, UsageError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.assets import build_assets
from platform_assets.factory.due import due_selection
from platform_assets.factory.environments import build_canary_job
from platform_assets.factory.grid import asset_key
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.factory.promoting import build_rollback_job
from platform_assets.factory.serving import build_serving_jobs
from platform_assets.factory.sources import build_source
from platform_assets.factory.upkeep import build_maintenance_job, build_maintenance_schedule
from platform_assets.factory.waiving import build_waive_job
from resources.columns import output_columns
from resources.versions import trainer_file

STAGES_OF_JOB = {
    "features": ("features",),
    "day": ("day",),
    "train": ("snapshot", "model"),
    "judge": ("evaluation", "champion"),
}
"""The jobs that the sensors launch, and the stages of each.

A run has one partitions definition: the roll-up has all dates, a model only those with a window.
"""


def job_name(spec: PipelineSpec, job: str) -> str:
    """`flights_train` and so on."""
    return f"{spec.pipeline}_{job}"


def build_jobs(spec: PipelineSpec) -> list[UnresolvedAssetJobDefinition]:
    """A job a step of the day: features when they are whole, then training, then judgement."""
    return [
        dg.define_asset_job(
            job_name(spec, job),
            selection=dg.AssetSelection.assets(*(asset_key(spec.asset(s)) for s in stages))
            - due_selection(spec),
            tags={PIPELINE_TAG: spec.pipeline},
            description=f"{', '.join(stages)} of {spec.pipeline}, for one partition",
        )
        for job, stages in STAGES_OF_JOB.items()
    ]


def check_spec(spec: PipelineSpec, origin: str) -> None:
    """Refuse what only shows beyond the spec itself, before anything is built.

    Raises:
        SpecError: the trainer's module does not exist, or a column cannot be used.
    """
    try:
        output_columns(spec)
    except UsageError as error:
        raise SpecError(origin, {"dataset": str(error)}) from None
    trainer_file(spec.model.trainer, origin)


def build_pipeline(
    spec: PipelineSpec, jobs: Sequence[UnresolvedAssetJobDefinition], origin: str
) -> dg.Definitions:
    """Assets, checks and jobs of a pipeline.

    Args:
        spec: the pipeline.
        jobs: those of `build_jobs`.
        origin: where the spec stands, for messages.

    Raises:
        SpecError: the trainer's module does not exist, or a column cannot be used.
    """
    check_spec(spec, origin)
    maintenance = build_maintenance_job(spec)
    return dg.Definitions(
        assets=[*(build_source(spec, name) for name in spec.sources), *build_assets(spec, origin)],
        jobs=[
            *jobs,
            build_waive_job(spec),
            build_rollback_job(spec),
            build_canary_job(spec),
            *build_serving_jobs(spec),
            maintenance,
        ],
        schedules=[build_maintenance_schedule(spec, maintenance)],
    )
