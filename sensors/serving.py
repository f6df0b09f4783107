"""What is served follows the ledger: a look each few seconds, and the champion's live metric."""

from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg

from platform_assets.domain.attempts import Attempt, next_step
from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.lanes import Lane
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import job_name
from platform_assets.factory.lanes import LANE_TAG, PIPELINE_TAG, RETRIED_IF_KILLED
from platform_assets.line import unscored
from platform_assets.line.canary import due_canary
from platform_assets.line.live_metric import due_key
from platform_assets.line.projection import reconcile
from platform_assets.line.services import Services
from sensors.launched import REQUEST_TAG, LaunchedRuns

LIVE_SECONDS = 30


def build_serving_sensors(spec: PipelineSpec) -> list[dg.SensorDefinition]:
    """What keeps aliases and slot as the ledger says, and watches the champion if asked to; and
    tries a new environment where the catalog has promotions held for it."""
    return [
        _reconciling(spec),
        *([_watching(spec)] if spec.serving.rollback else []),
        *([_trying(spec)] if spec.environment.on_change == "hold" else []),
    ]


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
        services = Services.open(spec)
        key = due_key(services)
        if key is None or key == context.cursor:
            return dg.SkipReason("no date was judged since")
        # As the days' runs are: a champion past its bound must not stay for a server's bad minute.
        return _once(
            context,
            spec,
            key,
            Lane.DAILY,
            done="the champion was scored on them",
            undone="the champion was not scored",
            given_up=lambda found, cause: unscored.note(services, key, found, cause),
        )

    return watch


def _trying(spec: PipelineSpec) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{spec.pipeline}_canary",
        job_name=job_name(spec, "canary"),
        minimum_interval_seconds=LIVE_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Has the champion's own snapshot trained again where the newest model was "
        "trained in another environment and is held for it; once for each such change.",
    )
    def try_it(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        key = due_canary(Services.open(spec))
        if key is None or key == context.cursor:
            return dg.SkipReason("no canary is wanting")
        return _once(
            context, spec, key, Lane.LATE, done="it was tried", undone="no canary could be run"
        )

    return try_it


def _once(
    context: dg.SensorEvaluationContext,
    spec: PipelineSpec,
    key: str,
    lane: Lane,
    *,
    done: str,
    undone: str,
    given_up: Callable[[Attempt, str], object] = lambda _found, _cause: None,
) -> dg.SensorResult | dg.SkipReason:
    """Have the sensor's job launched for a key, again after 1, 5 and 30 minutes where it fails.

    Args:
        done, undone: what is said where it was, and where it was given up.
        given_up: is told the last step and why the run failed.
    """
    launched = LaunchedRuns(context.instance)
    runs = launched.of(key)
    if runs and runs[0].state == "SUCCESS":
        return dg.SensorResult(skip_reason=done, cursor=key)
    found = next_step(runs, datetime.now(UTC))
    if found.step in ("give up", "left"):
        why = f"{undone}, run {runs[0].run_id} failed: {found.reason}"
        context.log.error(why)
        given_up(found, launched.cause(runs[0].run_id))
        return dg.SensorResult(skip_reason=why, cursor=key)
    if found.step != "request":
        return dg.SkipReason(found.reason)
    tags = {
        LANE_TAG: lane.value,
        PIPELINE_TAG: spec.pipeline,
        REQUEST_TAG: key,
        **RETRIED_IF_KILLED,
    }
    name = key if found.number == 1 else f"{key}/{found.number}"
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=name, tags=tags)])
