"""The environment of a model in Dagster: an asset check, and the canary as a job."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from platform_assets.domain.canary import Crossing
from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.gpu_planning import gpu_tags
from platform_assets.domain.image_spec import IMAGE_TAG
from platform_assets.domain.processes import process_tags
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.events import as_metadata
from platform_assets.factory.grid import asset_key
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.instance.claiming import RETRIES, RETRY_SECONDS, in_lane
from platform_assets.line.canary import run_canary
from platform_assets.line.environments import described, passage_of, told
from platform_assets.line.services import Outcome, Services

ENVIRONMENT_CHECK = "environment"


def environment_check_spec(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """What stands under the model's checks."""
    return dg.AssetCheckSpec(
        ENVIRONMENT_CHECK,
        asset=asset,
        description="It was trained in the environment that the champion was trained in: image, "
        "packages and their files, instruction sets, threads, GPU. What has changed is named. An "
        "error where the catalog holds its promotion until a canary has passed.",
    )


def environment_checks(
    spec: PipelineSpec, outcomes: Sequence[Outcome]
) -> Iterator[dg.AssetCheckResult]:
    """The check of a run's models; one that has changed nothing says so."""
    found: dict[str, dict[str, Any]] = {
        str(outcome.partition): outcome.metadata["environment_change"]
        for outcome in outcomes
        if "environment_change" in outcome.metadata
    }
    if found:
        yield dg.AssetCheckResult(**_check(spec, found))


def _check(spec: PipelineSpec, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the check says of some partitions, by what each has found."""
    changed = {name: change for name, change in found.items() if change["changes"]}
    held = [name for name, change in changed.items() if change["state"] == Crossing.HELD]
    shown = [name for name, change in changed.items() if change["state"] == Crossing.SHOWN]
    newest = list(changed.values())[-1:]
    words = {word: None for change in changed.values() for word in change["changes"]}
    return {
        "asset_key": asset_key(spec.asset("model")),
        "check_name": ENVIRONMENT_CHECK,
        "passed": len(shown) == len(changed),
        "severity": dg.AssetCheckSeverity.ERROR if held else dg.AssetCheckSeverity.WARN,
        "description": str(newest[0]["reason"])
        if newest
        else "nothing has changed since the champion was trained, or there is none",
        "metadata": {
            "changes": dg.MetadataValue.json(list(words)),
            "partitions": dg.MetadataValue.json({n: c["state"] for n, c in changed.items()}),
            "on_change": spec.environment.on_change,
        },
    }


class CanaryConfig(dg.Config):
    """What the launchpad asks for."""

    by: str = Field(default="signalbox", description="Who asks for it.")


def build_canary_job(spec: PipelineSpec) -> dg.JobDefinition:
    """A job that trains the champion's own snapshot again where models are trained now."""

    # In the image of the models, with their GPUs: it is this environment that it speaks of.
    where = {
        IMAGE_TAG: spec.images.of("model"),
        **gpu_tags(spec.model.gpus),
        **process_tags(spec.model.processes),
    }

    @dg.op(name=f"{spec.pipeline}__canary", tags=where)
    def canary(context: dg.OpExecutionContext, config: CanaryConfig) -> None:
        try:
            services = Services.open(spec, tell=context.log.info)
            with in_lane(context):
                found = run_canary(services, by=config.by, run_id=context.run.run_id)
        except SignalboxError as error:
            if error.retryable:
                raise dg.RetryRequested(RETRIES, RETRY_SECONDS) from error
            raise dg.Failure(description=str(error), allow_retries=False) from error
        document = dict(told(found, spec.environment.tolerance))
        newest = services.ledger.newest_version(spec.asset("model"))
        if newest is not None:
            # What the check said was said before there was this canary.
            now = described(passage_of(services, newest, found.champion))["environment_change"]
            said = _check(spec, {newest.partition: now})
            context.instance.report_runless_asset_event(dg.AssetCheckEvaluation(**said))
        context.log_event(
            dg.AssetObservation(
                asset_key=asset_key(spec.asset("champion")),
                description=f"canary {found.id} {'passed' if found.passed else 'did not pass'}: "
                f"{document['reason']}",
                metadata=as_metadata(document, {}),
            )
        )
        if not found.passed:
            raise dg.Failure(
                description=f"canary {found.id} is against the new environment: "
                f"{document['reason']}",
                metadata=as_metadata(document, {}),
                allow_retries=False,
            )
        context.log.info(f"canary {found.id}: {document['reason']}")

    @dg.job(
        name=f"{spec.pipeline}_canary",
        description=f"Train the own snapshot of the champion of {spec.model.name} again in the "
        "environment that models are trained in now, and compare metrics with the recorded ones. "
        "Nothing is registered. It fails where they are others.",
        tags={PIPELINE_TAG: spec.pipeline},
    )
    def job() -> None:
        canary()

    return job
