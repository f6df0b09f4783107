"""MLflow's run states follow Dagster's and the ledger's, also when a run's process was killed."""

from collections.abc import Mapping

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from resources.tracking.client import AwayError
from resources.tracking.settling import reconcile, sweep

SWEEP_SECONDS = 30


def settle_tracking(
    instance: dg.DagsterInstance, spec: PipelineSpec, *, look_at_all: bool = True
) -> list[tuple[str, str]]:
    """End the MLflow runs whose process is gone; returns (MLflow run, state) of each.

    Args:
        instance: Dagster's.
        spec: of any pipeline of the home; all share one tracking store.
        look_at_all: ask MLflow for the runs that it calls RUNNING, too; else only what the home
            knows to be unfinished, which costs nothing where there is nothing.

    Raises:
        AwayError: the tracking server is away; nothing is lost.
    """
    services = Services.open(spec)

    def state_of(run_id: str) -> str | None:
        run = instance.get_run_by_id(run_id) if run_id else None
        return run.status.value if run else None

    def recorded(tags: Mapping[str, str], run_id: str) -> bool:
        pipeline = tags.get("signalbox.pipeline", "")
        partition = tags.get("signalbox.partition", "")
        versions = services.ledger.history(f"{pipeline}/model", partition)
        return any(version.detail.get("mlflow_run_id") == run_id for version in versions)

    ended: list[tuple[str, str]] = []
    failed: Exception | None = None
    try:
        ended += sweep(services.tracking, state_of, recorded)
    except AwayError:
        raise
    except Exception as error:  # noqa: BLE001 - of one entry; the others' runs shall end
        failed = error
    if look_at_all:
        ended += reconcile(services.tracking, state_of, recorded)
    if failed is not None:
        raise failed
    return ended


def tracking_truth_sensors(catalog: Mapping[str, PipelineSpec]) -> list[dg.SensorDefinition]:
    """One sensor for each way in which a run can end without its own last word, and a sweep."""
    ends = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return [*(_sensor(status, catalog) for status in ends), _sweeping(catalog)]


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


def _sweeping(catalog: Mapping[str, PipelineSpec]) -> dg.SensorDefinition:
    @dg.sensor(
        name="tracking_sweep",
        minimum_interval_seconds=SWEEP_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells the tracking server what it missed while it was away, and how runs "
        "ended whose process is gone. Dagster tells a failure once; this looks again.",
    )
    def tracking_sweep(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = []
        try:
            for spec in list(catalog.values())[:1]:
                ended = settle_tracking(context.instance, spec, look_at_all=False)
        except AwayError as error:
            context.log.warning(str(error))
            return dg.SkipReason(str(error))
        said = "; ".join(f"{run} is {state}" for run, state in ended)
        return dg.SkipReason(f"MLflow was told: {said}" if said else "MLflow knows all")

    return tracking_sweep
