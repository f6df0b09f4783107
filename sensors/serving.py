"""What is served follows the ledger: a look each few seconds, and the champion's live metric."""

from datetime import UTC, datetime

import dagster as dg

from platform_assets.domain.attempts import next_step
from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import job_name
from platform_assets.factory.lanes import LANE_TAG, PIPELINE_TAG, RETRIED_IF_KILLED
from platform_assets.line import unscored
from platform_assets.line.live_metric import due_key
from platform_assets.line.projection import reconcile
from platform_assets.line.services import Services
from sensors.launched import REQUEST_TAG, LaunchedRuns

LIVE_SECONDS = 30


def build_serving_sensors(spec: PipelineSpec) -> list[dg.SensorDefinition]:
    """What keeps aliases and slot as the ledger says, and watches the champion if asked to."""
    return [_reconciling(spec), *([_watching(spec)] if spec.serving.rollback else [])]


def _reconciling(spec: PipelineSpec) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{spec.pipeline}_reconcile",
        minimum_interval_seconds=spec.schedule.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Compares the ledger with MLflow's aliases, the serving slot and the endpoint; "
        "alerts of what another hand changed, and sets it right or leaves it to a person, as "
        "serving.on_drift says.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        try:
            found = reconcile(Services.open(spec), context.log.warning)
        except SignalboxError as error:
            if not error.retryable:
                raise
            context.log.warning(f"whether anything drifted cannot be told now: {error}")
            return dg.SkipReason(f"cannot be told now: {error}")
        left = "; ".join(drift.reason for drift in found.remaining)
        done = f"brought up to the ledger: {', '.join(found.done)}" if found.done else ""
        return dg.SkipReason("; ".join(filter(None, (done, left))) or "all as the ledger says")

    return look


def _watching(spec: PipelineSpec) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{spec.pipeline}_live_metric",
        job_name=job_name(spec, "live_metric"),
        minimum_interval_seconds=LIVE_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Has the champion scored on each date that was judged since, and rolled back "
        "from where serving.rollback says so.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        services, launched = Services.open(spec), LaunchedRuns(context.instance)
        key = due_key(services)
        if key is None or key == context.cursor:
            return dg.SkipReason("no date was judged since")
        runs = launched.of(key)
        if runs and runs[0].state == "SUCCESS":
            return dg.SensorResult(skip_reason="the champion was scored on them", cursor=key)
        # As the days' runs are: a champion past its bound must not stay for a server's bad minute.
        found = next_step(runs, datetime.now(UTC))
        if found.step in ("give up", "left"):
            why = f"the champion was not scored, run {runs[0].run_id} failed: {found.reason}"
            context.log.error(why)
            unscored.note(services, key, found, launched.cause(runs[0].run_id))
            return dg.SensorResult(skip_reason=why, cursor=key)
        if found.step != "request":
            return dg.SkipReason(found.reason)
        tags = {
            LANE_TAG: "daily",
            PIPELINE_TAG: spec.pipeline,
            REQUEST_TAG: key,
            **RETRIED_IF_KILLED,
        }
        name = key if found.number == 1 else f"{key}/{found.number}"
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=name, tags=tags)])

    return watch
