"""The check `due`: whether the partition that is due by now is there."""

from typing import Any

import dagster as dg

from platform_assets.domain.freshness import AssetDue
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.events import as_metadata
from platform_assets.factory.grid import asset_key
from platform_assets.line.due import STAGES, read_due
from platform_assets.line.services import Services

DUE_CHECK = "due"


def due_selection(spec: PipelineSpec) -> dg.AssetSelection:
    """The checks of a pipeline that the sensor reports, so that no job has to run them."""
    return dg.AssetSelection.checks(
        *(dg.AssetCheckKey(asset_key(spec.asset(stage)), DUE_CHECK) for stage in STAGES)
    )


def due_evaluation(spec: PipelineSpec, found: AssetDue) -> dg.AssetCheckEvaluation:
    """A report as the event that Dagster shows."""
    return dg.AssetCheckEvaluation(
        asset_key=asset_key(found.asset),
        check_name=DUE_CHECK,
        passed=found.is_fresh,
        severity=dg.AssetCheckSeverity.ERROR,
        description=found.describe(spec.partitions.timezone),
        metadata=_metadata(found),
    )


def build_due_checks(spec: PipelineSpec) -> list[dg.AssetChecksDefinition]:
    """The check of the dataset and of the model; the UI can run it at any time."""
    return [_check(spec, stage) for stage in STAGES]


def _check(spec: PipelineSpec, stage: str) -> dg.AssetChecksDefinition:
    name = spec.asset(stage)

    @dg.asset_check(
        asset=asset_key(name),
        name=DUE_CHECK,
        description="The partition that is due by now, by the pipeline's clock, is there; "
        "Dagster's own freshness does not ask which partition was materialized.",
    )
    def due() -> dg.AssetCheckResult:
        try:
            found = read_due(Services.open(spec), [stage]).of(name)
        except Exception as error:  # noqa: BLE001 - must not fail the run that it comes along with
            return dg.AssetCheckResult(
                passed=False, description=f"what is due could not be told: {error}"
            )
        return dg.AssetCheckResult(
            passed=found.is_fresh,
            severity=dg.AssetCheckSeverity.ERROR,
            description=found.describe(spec.partitions.timezone),
            metadata=_metadata(found),
        )

    return due


def _metadata(found: AssetDue) -> dict[str, Any]:
    values = found.model_dump(mode="json", exclude={"asset"})
    return as_metadata({key: value for key, value in values.items() if value != ""}, {})
