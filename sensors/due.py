"""What is due, told to Dagster as soon as it changes, without a run."""

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.due import due_evaluation
from platform_assets.line.due import read_due
from platform_assets.line.services import Services

DUE_SECONDS = 30


def build_due_sensor(spec: PipelineSpec) -> dg.SensorDefinition:
    """Report the check `due` of dataset and model whenever it says something else."""

    @dg.sensor(
        name=f"{spec.pipeline}_due",
        minimum_interval_seconds=DUE_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Is the partition there that is due by now? Reports the check `due` of "
        f"{spec.asset('features')} and {spec.asset('model')} when the answer changes.",
    )
    def due(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        report = read_due(Services.open(spec))
        said = "; ".join(found.describe(spec.partitions.timezone) for found in report.assets)
        changed = report.digest() != context.cursor
        return dg.SensorResult(
            skip_reason=said if changed else f"no change: {said}",
            # Dagster keeps the cursor after it has stored the events: a tick that dies tells again.
            cursor=report.digest(),
            asset_events=[due_evaluation(spec, a) for a in report.assets] if changed else [],
        )

    return due
