"""Waivers in Dagster: a job for the launchpad, and an event on the partition that is let go."""

from collections.abc import Callable

import dagster as dg
from pydantic import Field

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.domain.waiver import Waiver
from platform_assets.factory.events import as_metadata
from platform_assets.factory.grid import asset_key, dagster_key, partition_tags
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.line.services import Services
from platform_assets.line.waive import give_waiver, next_step, until_of
from resources.home import Home


class WaiveConfig(dg.Config):
    """What the launchpad asks for."""

    partition: str = Field(description="Of the features, such as JFK|2013-10-25.")
    reason: str = Field(description="Why it may leave without what it lacks.")
    by: str = Field(description="Who answers for it.")
    until: str = Field(description="The local date, 2013-11-30, from whose start it counts no more")


def waiver_event(spec: PipelineSpec, waiver: Waiver, advice: str = "") -> dg.AssetObservation:
    """A waiver as it is seen on the partition in the UI; given, or revoked."""
    partition = PartitionKey.parse(waiver.partition)
    metadata = {
        "waiver": waiver.name,
        "reason": waiver.reason,
        "by": waiver.by,
        "given_at": waiver.given_at.isoformat(),
        "until": waiver.until.isoformat(),
        "covers": {source: short.model_dump() for source, short in waiver.covers.items()},
        "next": advice or None,
        "revoked_at": waiver.revoked_at.isoformat() if waiver.revoked_at else None,
        "revoked_by": waiver.revoked_by,
        "revoke_reason": waiver.revoke_reason,
    }
    verb = "revoked" if waiver.revoked_at else "given"
    return dg.AssetObservation(
        asset_key=asset_key(spec.asset("features")),
        partition=dagster_key(spec, partition),
        description=f"Waiver {waiver.name} was {verb}.",
        metadata=as_metadata(metadata, {}),
        tags=partition_tags(spec, partition),
    )


def report_waiver(
    home: Home, spec: PipelineSpec, waiver: Waiver, complain: Callable[[str], None]
) -> None:
    """Tell the Dagster of a home, if it has one, of a waiver that no run gave.

    The ledger has it already: what goes wrong here is said, and changes nothing.
    """
    if not (home.dagster / "dagster.yaml").exists():
        return
    try:
        with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
            instance.report_runless_asset_event(waiver_event(spec, waiver))
    except Exception as error:  # noqa: BLE001 - of any storage that Dagster may be configured with
        complain(f"waiver {waiver.name} counts, but Dagster could not be told of it ({error})")


def build_waive_job(spec: PipelineSpec) -> dg.JobDefinition:
    """A job that gives a waiver: fill in the launchpad, launch."""

    @dg.op(name=f"{spec.pipeline}__waive")
    def waive(context: dg.OpExecutionContext, config: WaiveConfig) -> None:
        try:
            services = Services.open(spec)
            until = until_of(spec, config.until)
            waiver = give_waiver(services, config.partition, config.reason, config.by, until)
            advice = next_step(services, waiver)
        except SignalboxError as error:
            if error.retryable:
                raise
            raise dg.Failure(description=str(error), allow_retries=False) from error
        context.log_event(waiver_event(spec, waiver, advice))
        context.log.info(f"{waiver.describe()}; {advice}")

    @dg.job(
        name=f"{spec.pipeline}_waive",
        description=f"Let a partition of {spec.asset('features')} leave although it is short of "
        "something: partition, reason, by whom and until when go into the launchpad.",
        tags={PIPELINE_TAG: spec.pipeline},
    )
    def job() -> None:
        waive()

    return job
