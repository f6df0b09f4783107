"""MLflow's run states follow Dagster's, also when a run's process was killed."""

from collections.abc import Mapping

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services


def settle_tracking(instance: dg.DagsterInstance, spec: PipelineSpec) -> list[tuple[str, str]]:
    """End the MLflow runs whose Dagster run is over; returns (MLflow run, state) of each."""

    def state_of(run_id: str) -> str | None:
        run = instance.get_run_by_id(run_id)
        return run.status.value if run else None

    return Services.open(spec).tracking.reconcile(state_of)


def tracking_truth_sensors(catalog: Mapping[str, PipelineSpec]) -> list[dg.SensorDefinition]:
    """One sensor for each way in which a run can end without its own last word."""
    return [
        _sensor(status, catalog)
        for status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    ]


def _sensor(
    status: dg.DagsterRunStatus, catalog: Mapping[str, PipelineSpec]
) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=status,
        name=f"tracking_truth_{status.value.lower()}",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="Ends the MLflow run of a training whose process died before it could.",
    )
    def settle(context: dg.RunStatusSensorContext) -> None:
        # Every run of a pipeline shares one tracking store: any spec opens it.
        for spec in list(catalog.values())[:1]:
            for run, state in settle_tracking(context.instance, spec):
                context.log.warning(f"MLflow run {run} was still RUNNING, it is {state} now")

    return settle
