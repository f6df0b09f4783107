"""One pipeline as Dagster definitions."""

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.assets import build_assets
from platform_assets.factory.grid import asset_key
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.factory.sources import build_source

STAGES_OF_JOB = {
    "features": ("features",),
    "train": ("day", "snapshot", "model"),
    "judge": ("evaluation", "champion"),
}
"""The jobs that the sensors launch, and the stages of each."""


def job_name(spec: PipelineSpec, job: str) -> str:
    """`flights_train` and so on."""
    return f"{spec.pipeline}_{job}"


def build_jobs(spec: PipelineSpec) -> list[dg.UnresolvedAssetJobDefinition]:
    """A job a step of the day: features when they are whole, then training, then judgement."""
    return [
        dg.define_asset_job(
            job_name(spec, job),
            selection=dg.AssetSelection.assets(*(asset_key(spec.asset(s)) for s in stages)),
            tags={PIPELINE_TAG: spec.pipeline},
            description=f"{', '.join(stages)} of {spec.pipeline}, for one partition",
        )
        for job, stages in STAGES_OF_JOB.items()
    ]


def build_pipeline(spec: PipelineSpec, origin: str = "a spec written in Python") -> dg.Definitions:
    """Assets, checks and jobs of a pipeline.

    Raises:
        SpecError: the trainer's module does not exist.
    """
    return dg.Definitions(
        assets=[*(build_source(spec, name) for name in spec.sources), *build_assets(spec, origin)],
        jobs=build_jobs(spec),
    )
