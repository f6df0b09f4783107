"""The assets of a pipeline that are computed: features, day, snapshot, model, and the verdicts."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import dagster as dg

import resources.dataset
from platform_assets.domain.errors import HeldError, RefusedError
from platform_assets.domain.gpu_planning import gpu_tags
from platform_assets.domain.image_spec import IMAGE_TAG
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.processes import process_tags
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import grid
from platform_assets.factory.environments import environment_check_spec, environment_checks
from platform_assets.factory.events import (
    HELD_CHECK,
    NO_AUTOMATIC_EVENT,
    materialization,
    opened,
    run_partitions,
    source_event,
)
from platform_assets.factory.grid import asset_key
from platform_assets.factory.lanes import PIPELINE_TAG
from platform_assets.factory.promoting import GATE_CHECK, gate_check, undecided_check
from platform_assets.instance.claiming import in_lane, lane_of_run
from platform_assets.line.crowning import decide_champion
from platform_assets.line.days import build_day, build_snapshot, require_window
from platform_assets.line.features import SourceChange, build_features, require_clear
from platform_assets.line.inputs import stage_version
from platform_assets.line.judging import evaluate_model, require_judgeable
from platform_assets.line.models import require_snapshot, train_model
from platform_assets.line.outcomes import noted
from platform_assets.line.services import Outcome, Services

Work = Callable[[dg.AssetExecutionContext, Services, PartitionKey], Outcome]
Ask = Callable[[dg.AssetExecutionContext, Services, PartitionKey], object]
"""Raises HeldError if a partition is not clear, before anything is waited for."""


def build_assets(spec: PipelineSpec, origin: str) -> list[dg.AssetsDefinition]:
    """All computed assets of a pipeline, upstream first."""
    return [
        _features(spec),
        _day(spec),
        _snapshot(spec),
        _model(spec, origin),
        _evaluation(spec),
        _champion(spec),
    ]


def _freshness(spec: PipelineSpec) -> dg.FreshnessPolicy:
    return dg.FreshnessPolicy.time_window(
        fail_window=timedelta(hours=spec.freshness.fail_after_hours),
        warn_window=timedelta(hours=spec.freshness.warn_after_hours),
    )


def _spec(
    spec: PipelineSpec,
    stage: str,
    description: str,
    deps: Sequence[dg.AssetDep],
    version: str,
    kinds: set[str],
    *,
    metadata: dict[str, Any] | None = None,
    freshness: dg.FreshnessPolicy | None = None,
) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(spec.asset(stage)),
        deps=deps,
        description=description,
        group_name=spec.pipeline,
        owners=list(spec.owners),
        kinds=kinds,
        tags={PIPELINE_TAG: spec.pipeline},
        code_version=version,
        metadata=metadata,
        freshness_policy=freshness,
        skippable=True,
    )


def _partitioned(
    spec: PipelineSpec,
    asset: dg.AssetSpec,
    partitions: dg.PartitionsDefinition,
    per_run: int,
    work: Work,
    follower: str | None = None,
    ask: Ask | None = None,
    environment: bool = False,
) -> dg.AssetsDefinition:
    stage = asset.key.path[-1]
    version = asset.code_version or ""

    @dg.multi_asset(
        name=f"{spec.pipeline}__{stage}",
        specs=[asset],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(per_run),
        op_tags={
            IMAGE_TAG: spec.images.of(stage),
            **(gpu_tags(spec.model.gpus) if stage == "model" else {}),
            **(process_tags(spec.model.processes) if stage == "model" else {}),
        },
        check_specs=[
            dg.AssetCheckSpec(
                HELD_CHECK,
                asset=asset.key,
                description="The partitions of the last run were clear; held ones are named. The "
                "features' stays failed as long as a live day is held: the sensor sees to it.",
            ),
            *([environment_check_spec(asset.key)] if environment else ()),
        ],
    )
    def compute(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
        services, run_id = opened(context, spec), context.run.run_id

        def note(key: PartitionKey, refusal: HeldError | None) -> Outcome:
            def do() -> Outcome:
                if refusal is not None:
                    raise refusal
                return work(context, services, key)

            return noted(services, stage, key, run_id, do)

        first = None if ask is None else partial(ask, context, services)
        also = partial(environment_checks, spec) if environment else None
        yield from run_partitions(context, spec, stage, version, note, follower, first, also)

    return compute


def _features(spec: PipelineSpec) -> dg.AssetsDefinition:
    columns = resources.dataset.output_columns(spec)
    lineage = dg.TableColumnLineage(
        {
            column.name: [
                dg.TableColumnDep(asset_key(spec.landed(source)), name)
                for source, name in column.inputs
            ]
            for column in columns
        }
    )
    schema = dg.TableSchema(
        columns=[dg.TableColumn(c.name, c.type, description=c.description) for c in columns]
    )
    asset = _spec(
        spec,
        "features",
        f"{spec.dataset.description} One atomic Delta commit a {spec.partitions.key} and date, "
        "built only when every hour of its sources has landed. The freshness policy runs on the "
        "wall clock, whatever is replayed.",
        [dg.AssetDep(asset_key(spec.landed(source))) for source in spec.read_sources],
        stage_version(spec, "features"),
        {"deltalake", "pandas"},
        metadata={"dagster/column_schema": schema, "dagster/column_lineage": lineage},
        freshness=_freshness(spec),
    )

    def told(context: dg.AssetExecutionContext) -> Callable[[SourceChange], None]:
        return lambda change: context.instance.report_runless_asset_event(
            source_event(spec, change)
        )

    return _partitioned(
        spec,
        asset,
        grid.keyed(spec),
        spec.limits.partitions_per_run,
        lambda context, services, key: build_features(
            services, key, context.run.run_id, told(context)
        ),
        ask=lambda context, services, key: require_clear(services, key, told(context)),
    )


def _day(spec: PipelineSpec) -> dg.AssetsDefinition:
    asset = _spec(
        spec,
        "day",
        f"Roll-up of a date over its {spec.partitions.key}s: which features partitions it has, in "
        "which versions, and which are held and why. A held date is reported, not hidden.",
        [
            dg.AssetDep(
                asset_key(spec.asset("features")),
                partition_mapping=dg.MultiToSingleDimensionPartitionMapping(grid.DATE_DIMENSION),
            )
        ],
        stage_version(spec, "day"),
        {"json"},
    )
    partitions = grid.daily(spec, spec.partitions.start, spec.partitions.end)

    def work(context: dg.AssetExecutionContext, services: Services, key: PartitionKey) -> Outcome:
        # One map a run, on its newest date: a picture an event would fill the event log.
        newest = max(map(PartitionKey.parse, context.partition_keys))
        return build_day(services, key, context.run.run_id, with_map=key == newest)

    return _partitioned(spec, asset, partitions, spec.limits.partitions_per_run * 4, work)


def _snapshot(spec: PipelineSpec) -> dg.AssetsDefinition:
    asset = _spec(
        spec,
        "snapshot",
        f"Exactly which partition versions of the last {spec.model.window_days} days a training "
        f"reads: a small immutable manifest. Held if its own day is, or if fewer than "
        f"{spec.model.min_days} days are whole.",
        [
            dg.AssetDep(
                asset_key(spec.asset("day")),
                partition_mapping=dg.TimeWindowPartitionMapping(
                    start_offset=1 - spec.model.window_days, end_offset=0
                ),
            )
        ],
        stage_version(spec, "snapshot"),
        {"json"},
    )
    return _partitioned(
        spec,
        asset,
        grid.daily(spec, spec.first_model_date, spec.partitions.end),
        spec.limits.models_per_run,
        lambda context, services, key: build_snapshot(services, key, context.run.run_id),
        follower="model",
        ask=lambda _, services, key: require_window(services, key),
    )


def _model(spec: PipelineSpec, origin: str) -> dg.AssetsDefinition:
    asset = _spec(
        spec,
        "model",
        f"{spec.model.description} Trained on its date's snapshot, seeded and deterministic; a "
        "candidate until it is judged. The freshness policy runs on the wall clock, whatever is "
        "replayed.",
        [dg.AssetDep(asset_key(spec.asset("snapshot")))],
        stage_version(spec, "model", origin),
        {"mlflow", "python"},
        metadata={"registered_model": spec.model.name},
        freshness=_freshness(spec),
    )

    def work(context: dg.AssetExecutionContext, services: Services, key: PartitionKey) -> Outcome:
        return train_model(
            services,
            key,
            context.run.run_id,
            lane=lane_of_run(context),
            log=context.log.info,
        )

    return _partitioned(
        spec,
        asset,
        grid.daily(spec, spec.first_model_date, spec.partitions.end),
        spec.limits.models_per_run,
        work,
        ask=lambda _, services, key: require_snapshot(services, key.date),
        environment=True,
    )


def _evaluation(spec: PipelineSpec) -> dg.AssetsDefinition:
    days = spec.evaluation.days
    asset = _spec(
        spec,
        "evaluation",
        f"The date's model judged on the {days} days that follow, once they are whole.",
        [
            dg.AssetDep(asset_key(spec.asset("model"))),
            dg.AssetDep(
                asset_key(spec.asset("day")),
                partition_mapping=dg.TimeWindowPartitionMapping(start_offset=1, end_offset=days),
            ),
        ],
        stage_version(spec, "evaluation"),
        {"mlflow", "scikitlearn"},
    )
    return _partitioned(
        spec,
        asset,
        grid.daily(spec, spec.first_model_date, spec.last_judged_date),
        spec.limits.models_per_run,
        lambda context, services, key: evaluate_model(services, key, context.run.run_id),
        ask=lambda _, services, key: require_judgeable(services, key.date),
    )


def _champion(spec: PipelineSpec) -> dg.AssetsDefinition:
    asset = _spec(
        spec,
        "champion",
        "The judged model that is proven best: a candidate takes over if the evaluation gate finds "
        "it better than the champion in force, on later days. MLflow's alias follows the ledger.",
        [dg.AssetDep(asset_key(spec.asset("evaluation")))],
        stage_version(spec, "champion"),
        {"mlflow"},
        metadata={"registered_model": spec.model.name},
    )

    @dg.multi_asset(
        name=f"{spec.pipeline}__champion",
        specs=[asset],
        op_tags={IMAGE_TAG: spec.images.of("champion")},
        check_specs=[
            dg.AssetCheckSpec(
                GATE_CHECK,
                asset=asset.key,
                description="The newest candidate was proven better than the champion that it was "
                "judged against. A warning where it was not: the champion stays. An error where "
                "nothing could be decided.",
            )
        ],
    )
    def compute(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
        services = opened(context, spec)
        try:
            with in_lane(context):
                outcome = decide_champion(services, context.run.run_id)
        except RefusedError as error:
            # What the check said last was of another decision.
            yield undecided_check(asset.key, error)
            if not isinstance(error, HeldError):
                raise
            raise dg.Failure(description=str(error), allow_retries=False) from error
        backfill = context.run.tags.get("dagster/backfill")
        context.log_event(materialization(spec, outcome, asset.code_version or "", backfill))
        yield gate_check(asset.key, outcome.metadata.get("gate"))
        yield dg.MaterializeResult(asset_key=asset.key, metadata={NO_AUTOMATIC_EVENT: True})

    return compute
