"""Maintenance of the lake as a job: launch it, or put it on a schedule."""

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.instance.claiming import in_lane
from platform_assets.line.maintenance import maintain
from platform_assets.line.services import Services


def build_maintenance_job(spec: PipelineSpec) -> dg.JobDefinition:
    """A job that looks after the pipeline's table."""

    @dg.op(name=f"{spec.pipeline}__maintain")
    def look_after(context: dg.OpExecutionContext) -> None:
        services = Services.open(spec, tell=context.log.info)
        with in_lane(context):
            done = maintain(services, context.run_id)
        context.log.info(f"{done}")

    @dg.job(
        name=f"{spec.pipeline}_maintain",
        description=f"Compaction, checkpoint and removal of orphaned files for "
        f"{spec.asset('features')}; no version of it loses anything.",
        tags={PIPELINE_TAG: spec.pipeline},
    )
    def job() -> None:
        look_after()

    return job
