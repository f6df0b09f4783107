"""Alerts: one sensor finds them, another one delivers them.

Neither waits for the other, nor any sensor for a receiver that hangs: `dagster.yaml` has them
evaluated side by side. Dagster's default is one after the other.
"""

from datetime import UTC, datetime

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.alerting import deliver, log_line, update
from platform_assets.line.services import Services
from resources.ledger.records import AlertRecord
from resources.webhook import URL_VARIABLE, Webhook

ALERT_SECONDS = 20
DELIVERY_SECONDS = 15


def build_alert_sensors(spec: PipelineSpec) -> list[dg.SensorDefinition]:
    """What raises the alerts of a pipeline, and what delivers them."""
    return [_raising(spec), _delivering(spec)]


def _raising(spec: PipelineSpec) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{spec.pipeline}_alerts",
        minimum_interval_seconds=ALERT_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Raises an alert, once, when a live day is held, late or quarantined, when the "
        "model that is due is not there, or when a person has to decide; and when it is over.",
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        def tell(alert: AlertRecord) -> None:
            context.log.warning(log_line(alert))

        raised = update(Services.open(spec), tell)
        said = "; ".join(f"{alert.kind} {alert.subject}" for alert in raised)
        return dg.SkipReason(f"raised: {said}" if said else "no new alert")

    return alerts


def _delivering(spec: PipelineSpec) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{spec.pipeline}_alert_delivery",
        minimum_interval_seconds=DELIVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Sends alerts to the webhook of {URL_VARIABLE}; what it does not take waits.",
    )
    def alert_delivery(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        webhook = Webhook.from_environment()
        taken, wrong = deliver(Services.open(spec), webhook, datetime.now(UTC))
        if webhook is None:
            return dg.SkipReason(f"{URL_VARIABLE} is not set: alerts are logged, and stay listed")
        if wrong:
            context.log.warning(f"the receiver of alerts did not take one: {wrong}; it will wait")
            return dg.SkipReason(f"delivered {taken}; the rest waits: {wrong}")
        return dg.SkipReason(f"delivered {taken}")

    return alert_delivery
