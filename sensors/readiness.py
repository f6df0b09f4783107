"""Retraining by itself: a look at the landing zone's live days every few seconds."""

import json
from collections.abc import Mapping, Sequence
from datetime import date

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from platform_assets.domain.attention import rules_version
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.readiness import Request
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import job_name
from platform_assets.factory.events import source_event
from platform_assets.factory.grid import dagster_key
from platform_assets.factory.held import held_check
from platform_assets.factory.lanes import LANE_TAG, PIPELINE_TAG, RETRIED_IF_KILLED
from platform_assets.line.clearance import still_held
from platform_assets.line.inputs import stage_version
from platform_assets.line.live import look
from platform_assets.line.services import Services
from sensors.launched import REQUEST_TAG, LaunchedRuns, undecided


def run_request(
    spec: PipelineSpec, request: Request, lane: str = "daily", priority: int = 10
) -> dg.RunRequest:
    """A decision of the domain as a run request of a lane."""
    return dg.RunRequest(
        run_key=request.launch_key,
        job_name=job_name(spec, request.job),
        partition_key=dagster_key(spec, PartitionKey.parse(request.partition)),
        tags={
            LANE_TAG: lane,
            PIPELINE_TAG: spec.pipeline,
            REQUEST_TAG: request.run_key,
            "dagster/priority": str(priority),
            **RETRIED_IF_KILLED,
        },
    )


def _date(cursor: Mapping[str, str], name: str) -> date | None:
    """A date of the cursor; older versions wrote fewer of them."""
    return date.fromisoformat(cursor[name]) if cursor.get(name) else None


def build_readiness_sensor(
    spec: PipelineSpec, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> dg.SensorDefinition:
    """Request what is whole; name what is held, and what it lacks."""
    rules = rules_version(spec, stage_version(spec, "features"))

    @dg.sensor(
        name=f"{spec.pipeline}_readiness",
        jobs=list(jobs),
        minimum_interval_seconds=spec.schedule.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks after the days from {spec.schedule.live_from} on: features when a "
        f"{spec.partitions.key}'s hours are whole, training when the day's are, judgement when "
        "the following days are. Older days belong to backfills.",
    )
    def readiness(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor = json.loads(context.cursor) if context.cursor else {}
        if cursor.get("live_from") != spec.schedule.live_from.isoformat():
            cursor = {}  # another start was declared: look at all of it
        services = Services.open(spec)
        if cursor.get("rules", rules) != rules:
            # What was held may be clear by the new rules: look at all of it once.
            cursor = {"told": cursor["told"]}
        tick = look(
            services,
            _date(cursor, "open_from"),
            cursor.get("told"),
            looked_to=_date(cursor, "looked_to"),
            attended_to=_date(cursor, "attended_to"),
            runs=LaunchedRuns(context.instance),
            undecided=undecided(context.instance, job_name(spec, "judge")),
        )
        for request in tick.plan.requests:
            again = f" (attempt {request.attempt})" if request.attempt > 1 else ""
            context.log.info(f"{request.job} {request.partition} is clear: {request.reason}{again}")
        for partition, reason in tick.plan.held.items():
            context.log.info(f"{partition} is held: {reason}")
        held = "; ".join(f"{key}: {why}" for key, why in tick.plan.held.items())
        every_held = still_held(services, cursor.get("held", ()), tick.plan.held)
        return dg.SensorResult(
            run_requests=[run_request(spec, request) for request in tick.plan.requests],
            skip_reason=None
            if tick.plan.requests
            else (f"held: {held}" if held else "nothing new, nothing held"),
            # Dagster keeps the cursor after it has stored the events: a tick that dies tells again.
            cursor=json.dumps(
                {
                    "live_from": spec.schedule.live_from.isoformat(),
                    "open_from": tick.open_from.isoformat(),
                    "told": dict(tick.told),
                    "looked_to": tick.looked_to and tick.looked_to.isoformat(),
                    "attended_to": tick.attended_to and tick.attended_to.isoformat(),
                    "rules": rules,
                    "held": sorted(every_held),
                }
            ),
            asset_events=[
                *(source_event(spec, change) for change in tick.changes),
                *held_check(context.instance, services, every_held),
            ],
        )

    return readiness
