"""Late and corrected data: a look at the days that were used, and restatements by themselves."""

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from platform_assets.domain.attention import next_position, portion
from platform_assets.domain.manifest import describe_dates
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.events import source_event
from platform_assets.line.features import SourceChange
from platform_assets.line.late import may_go, note_changes, within_lateness
from platform_assets.line.restating import due
from platform_assets.line.services import Services
from platform_assets.line.sweep import sweep
from sensors.readiness import run_request

LANE, PRIORITY, INTERVAL_SECONDS = "late", 5, 30

MOST_DATES = 20
"""Swept dates that one tick looks at; the others stay in the cursor for the next ones."""

MOST_IN_TURN = 10
"""Dates that a tick looks at although nothing tells of a change.

The ledger may have learnt of one without the sweep: a run looked at the landing zone, or a tick
died before it could say what it had swept.
"""


def build_late_data_sensor(
    spec: PipelineSpec, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> dg.SensorDefinition:
    """Find what changed after it was used, restate what the catalog lets go, list the rest."""

    @dg.sensor(
        name=f"{spec.pipeline}_late_data",
        jobs=list(jobs),
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks at all days that were built, however old: an hour that arrives or "
        "changes within the lateness of its source is restated by itself, with the models and "
        "judgements that read it; beyond it is listed, and goes with `signalbox restate`.",
    )
    def late_data(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        services = Services.open(spec)
        cursor: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
        swept = sweep(services, int(cursor.get("position", 0)))
        older = {date.fromisoformat(day) for day in cursor.get("dates", ())} | set(swept.changed)
        now = sorted(older)[:MOST_DATES]
        turn = portion(int(cursor.get("turn", 0)), MOST_IN_TURN, len(spec.dates()))
        restated = filter(may_go, services.restatements.all(spec.pipeline, only_open=True))
        dates = {
            *within_lateness(services),
            *now,
            *spec.dates()[turn.start : turn.stop],
            *(PartitionKey.parse(record.partition).date for record in restated),
        }

        def tell(change: SourceChange) -> None:
            context.instance.report_runless_asset_event(source_event(spec, change))

        noted = note_changes(services, dates, tell)
        for change in noted.changes:
            context.log.info(f"{change.asset} {change.partition} has changed")
        for record in noted.found:
            context.log.warning(
                f"{record.partition} is no longer what it was built from "
                f"({record.changes['text']}): {record.decision}, {record.reason}"
            )
        if noted.unknown:
            days = {PartitionKey.parse(key).date for key in noted.unknown}
            context.log.info(
                f"{len(noted.unknown)} partition(s) of {describe_dates([*days])} were built before "
                "it was recorded what from; whether their hours changed cannot be told, "
                f"materialize {spec.asset('features')} for them once"
            )
        found = due(services, lambda key: _state_of(context.instance, key))
        for request in found.plan.requests:
            context.log.info(f"{request.job} {request.partition}: {request.reason}")
        for partition, outcome in found.ended.items():
            context.log.info(f"{partition} is restated: {outcome}")
        said = [f"{key}: {why}" for key, why in found.plan.held.items()]
        said += [f"{key} is restated: {outcome}" for key, outcome in found.ended.items()]
        for text in said:
            context.log.info(text)
        left = [day.isoformat() for day in sorted(older - set(now))]
        return dg.SensorResult(
            run_requests=[
                run_request(spec, request, LANE, PRIORITY) for request in found.plan.requests
            ],
            skip_reason=None if found.plan.requests else ("; ".join(said) or "nothing has changed"),
            cursor=json.dumps(
                {
                    "position": swept.position,
                    "dates": left,
                    "turn": next_position(turn.stop, len(spec.dates())),
                }
            ),
        )

    return late_data


def _state_of(instance: dg.DagsterInstance, key: str) -> str | None:
    """Dagster's state of the last run of a run key."""
    runs = instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": key}), limit=1)
    if not runs:
        return None
    run = runs[0]  # of several, the newest: one that was launched again has the same key
    waits = run.is_complete_and_waiting_to_retry
    return (dg.DagsterRunStatus.QUEUED if waits else run.status).value
