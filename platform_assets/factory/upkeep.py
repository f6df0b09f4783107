"""Maintenance of the lake as a job, and its schedule, which somebody has to start."""

import dagster as dg

from platform_assets.domain.lanes import Lane
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.lanes import LANE_TAG, PIPELINE_TAG
from platform_assets.instance.claiming import in_lane
from platform_assets.line.maintenance import maintain
from platform_assets.line.services import Services

EVERY_NIGHT = "30 2 * * *"
"""By the pipeline's time zone: before the day's last files are due."""


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


def build_maintenance_schedule(spec: PipelineSpec, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """The job every night; stopped, until somebody starts it in the UI."""
    return dg.ScheduleDefinition(
        name=f"{job.name}_nightly",
        job=job,
        cron_schedule=EVERY_NIGHT,
        execution_timezone=spec.partitions.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"{job.description} Stopped by default.",
        # A run of a schedule would be in the daily lane: nobody waits for this one.
        tags={LANE_TAG: Lane.ADHOC.value},
    )
