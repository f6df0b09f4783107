"""The champion's live metric as a job: the sensor launches it, and a person may."""

import dagster as dg

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.events import as_metadata
from platform_assets.factory.grid import asset_key
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.instance.claiming import RETRIES, RETRY_SECONDS, in_lane
from platform_assets.line.live_metric import watch_champion
from platform_assets.line.services import Services


def build_serving_jobs(spec: PipelineSpec) -> list[dg.JobDefinition]:
    """A job that watches the champion; none where the catalog asks for no roll back."""
    return [_watching(spec)] if spec.serving.rollback else []


def _watching(spec: PipelineSpec) -> dg.JobDefinition:
    @dg.op(name=f"{spec.pipeline}__live_metric")
    def live_metric(context: dg.OpExecutionContext) -> None:
        try:
            services = Services.open(spec)
            with in_lane(context):
                verdict, change = watch_champion(services, context.run_id)
        except SignalboxError as error:
            if error.retryable:
                raise dg.RetryRequested(RETRIES, RETRY_SECONDS) from error
            raise dg.Failure(description=str(error), allow_retries=False) from error
        say = context.log.warning if verdict and verdict.past else context.log.info
        say(verdict.reason if verdict else "no date was judged since")
        if change is not None:
            told = {
                "registered_version": change.version,
                "rolled_back_from": change.previous,
                "reason": change.reason,
                "by": change.by,
            }
            context.log_event(
                dg.AssetObservation(
                    asset_key=asset_key(spec.asset("champion")),
                    description=f"{change.describe()}, {change.previous} is held.",
                    metadata=as_metadata(told, {}),
                )
            )

    @dg.job(
        name=f"{spec.pipeline}_live_metric",
        description=f"Score the champion of {spec.model.name} on the newest judged dates, and roll "
        "back where it is past the bound of serving.rollback.",
        tags={PIPELINE_TAG: spec.pipeline},
    )
    def job() -> None:
        live_metric()

    return job
