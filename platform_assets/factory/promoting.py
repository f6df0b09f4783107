"""Promotion in Dagster: the gate's verdict as an asset check, and a job that rolls back."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from platform_assets.domain.errors import RefusedError, SignalboxError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.events import as_metadata
from platform_assets.factory.grid import asset_key
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.line.projection import projected
from platform_assets.line.promoting import roll_back, told
from platform_assets.line.services import Services

GATE_CHECK = "gate"


def gate_check(key: dg.AssetKey, verdict: Mapping[str, Any] | None) -> dg.AssetCheckResult:
    """The newest verdict as a check of the champion; without one it has not passed."""
    if verdict is None:
        return dg.AssetCheckResult(
            asset_key=key,
            check_name=GATE_CHECK,
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description="no candidate has been judged by the gate yet",
        )
    conditions = {
        condition["name"]: {k: condition[k] for k in ("passed", "found", "allowed", "reason")}
        for condition in verdict.get("conditions", ())
    }
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=GATE_CHECK,
        passed=bool(verdict["passed"]),
        severity=dg.AssetCheckSeverity.WARN,
        description=str(verdict["reason"]),
        metadata={
            "evaluation": verdict["evaluation"],
            "candidate": verdict["candidate"],
            "champion": "none" if verdict["champion"] is None else verdict["champion"],
            "conditions": dg.MetadataValue.json(conditions),
        },
    )


def undecided_check(key: dg.AssetKey, refusal: RefusedError) -> dg.AssetCheckResult:
    """The check where nothing could be decided: it has not passed, whatever it said before."""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=GATE_CHECK,
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"nothing was decided: {refusal}",
    )


class RollbackConfig(dg.Config):
    """What the launchpad asks for."""

    reason: str = Field(description="Why the present champion has to go.")
    by: str = Field(description="Who answers for it.")
    version: int = Field(default=0, description="That was champion; 0: the one before.")


def build_rollback_job(spec: PipelineSpec) -> dg.JobDefinition:
    """A job that rolls back: fill in the launchpad, launch."""

    @dg.op(name=f"{spec.pipeline}__rollback")
    def rollback(context: dg.OpExecutionContext, config: RollbackConfig) -> None:
        try:
            services = Services.open(spec)
            change = roll_back(
                services,
                config.version or None,
                by=config.by,
                reason=config.reason,
                run_id=context.run.run_id,
            )
        except SignalboxError as error:
            if error.retryable:
                raise
            raise dg.Failure(description=str(error), allow_retries=False) from error
        late = projected(services)
        context.log_event(
            dg.AssetObservation(
                asset_key=asset_key(spec.asset("champion")),
                description=f"Version {change.version} is champion again, {change.previous} held.",
                metadata=as_metadata(told(change), {}),
            )
        )
        context.log.info(f"{change.describe()}: {change.reason}")
        if late:
            context.log.warning(late)

    @dg.job(
        name=f"{spec.pipeline}_rollback",
        description=f"Make the champion of {spec.model.name} before the present one champion "
        "again: reason and by whom go into the launchpad. The present one is held.",
        tags={PIPELINE_TAG: spec.pipeline},
    )
    def job() -> None:
        rollback()

    return job
