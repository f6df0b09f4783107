"""Backfills between plan and Dagster: ranges to launch, work elsewhere, the queue's limits."""

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES, DagsterRun

from platform_assets.domain.backfill import STAGES
from platform_assets.domain.backfill_cost import Queue
from platform_assets.domain.errors import UsageError
from platform_assets.domain.lane_limits import EACH_VALUE
from platform_assets.domain.lanes import LANE_KEY_TAG, LANE_PIPELINE_TAG
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import grid
from platform_assets.factory.lanes import BACKFILL_TAG, LANE_TAG, PIPELINE_TAG
from platform_assets.factory.pipeline import STAGES_OF_JOB, job_name
from platform_assets.instance.steered import limits_in_force
from platform_assets.line.backfill import span_of

PARTITION_TAG = "dagster/partition"
RANGE_TAGS = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"

OPEN_STATUSES = [
    status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES
]
"""A backfill of these may still request runs, or end some."""

ENDING_STATUSES = (BulkActionStatus.CANCELING, BulkActionStatus.FAILING)
"""One of these requests no more runs; the daemon ends those that it has."""


def ranges_of(
    spec: PipelineSpec, build: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[tuple[str, str]]]:
    """Partitions by stage as ranges by asset key, as `DagsterApi.launch_backfill` takes them."""
    models = grid.daily(spec, spec.first_model_date, spec.partitions.end)
    grids: dict[str, dg.PartitionsDefinition] = {
        "features": grid.keyed(spec),
        "day": grid.daily(spec, spec.partitions.start, spec.partitions.end),
        "snapshot": models,
        "model": models,
        "evaluation": grid.daily(spec, spec.first_model_date, spec.last_judged_date),
    }
    found = {}
    for stage, names in build.items():
        keys = [grid.dagster_key(spec, PartitionKey.parse(name)) for name in names]
        if keys:
            found[spec.asset(stage)] = grid.ranges(grids[stage], keys)
    return found


def in_work(instance: dg.DagsterInstance, spec: PipelineSpec) -> dict[tuple[str, str], str]:
    """By stage and partition, the run or backfill that is not finished and works on it."""
    found: dict[tuple[str, str], str] = {}
    open_ = instance.get_backfills(filters=BulkActionsFilter(statuses=OPEN_STATUSES))
    who_of = {}
    for backfill in open_:
        who = who_of[backfill.backfill_id] = _described(backfill)
        for stage, names in _wanted(instance, spec, backfill).items():
            found |= {(stage, name): who for name in names}
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        backfill_id = run.tags.get(BACKFILL_TAG)
        of = who_of.get(backfill_id or "", f"backfill {backfill_id}")
        who = f"run {run.run_id}" + (f" of {of}" if backfill_id else "")
        partitions = _partitions_of(spec, run)
        for stage in _stages_of(spec, run):
            found |= {(stage, name): who for name in partitions}
    return found


def ending(instance: dg.DagsterInstance) -> list[str]:
    """The backfills that are being cancelled, or given up: a launch waits for their end."""
    wanted = BulkActionsFilter(statuses=list(ENDING_STATUSES))
    return [backfill.backfill_id for backfill in instance.get_backfills(filters=wanted)]


def open_of(
    instance: dg.DagsterInstance, known: Sequence[PartitionBackfill]
) -> list[PartitionBackfill]:
    """Those of some backfills that may request runs still, or have runs that have not ended.

    `dagster job backfill` stores its backfill after the last run is queued, as completed already:
    what is left of it only its runs tell.
    """
    closed = [found.backfill_id for found in known if found.status not in OPEN_STATUSES]
    at_work = _with_unfinished_runs(instance, closed)
    return [
        found for found in known if found.status in OPEN_STATUSES or found.backfill_id in at_work
    ]


def _with_unfinished_runs(instance: dg.DagsterInstance, ids: Sequence[str]) -> set[str]:
    """One query where there are none, as nearly always; no run is read but for its id."""

    def any_of(names: Sequence[str]) -> bool:
        mine = dg.RunsFilter(tags={BACKFILL_TAG: names}, statuses=NOT_FINISHED_STATUSES)
        return bool(instance.get_run_ids(mine, limit=1))

    return {name for name in ids if any_of([name])} if ids and any_of(ids) else set()


def ended_of(instance: dg.DagsterInstance, ids: Iterable[str]) -> list[str]:
    """Those of some backfills that have ended; what Dagster does not know has not."""
    found = [instance.get_backfill(name) for name in ids]
    known = [backfill for backfill in found if backfill is not None]
    going_on = {backfill.backfill_id for backfill in open_of(instance, known)}
    return [one.backfill_id for one in known if one.backfill_id not in going_on]


def _described(backfill: PartitionBackfill) -> str:
    ends = ", which is being ended" if backfill.status in ENDING_STATUSES else ""
    return f"backfill {backfill.backfill_id}{ends}"


def _wanted(
    instance: dg.DagsterInstance, spec: PipelineSpec, backfill: PartitionBackfill
) -> dict[str, set[str]]:
    """By stage, what an open backfill has yet to build."""
    if backfill.asset_backfill_data is not None:
        left = left_of(backfill.asset_backfill_data)
        return {stage: names for asset, names in left.items() if (stage := _stage(spec, asset))}
    runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_TAG: backfill.backfill_id}))
    requested = {run.tags.get(PARTITION_TAG, "") for run in runs}
    # Those that a run was requested for are that run's, as long as it goes on.
    names = set(backfill.partition_names or ()) - requested
    pipeline, stages = _of_job(backfill.job_name)
    return {stage: names_of(names) for stage in stages} if pipeline == spec.pipeline else {}


def _of_job(job: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The pipeline of a job with partitions, and the stages that have them: of `flights_train`."""
    pipeline, _, name = (job or "").rpartition("_")
    found = tuple(stage for stage in STAGES_OF_JOB.get(name, ()) if stage in STAGES)
    return (pipeline, found) if found else (None, ())


def names_of(keys: Iterable[str]) -> set[str]:
    """Dagster's partition keys as the domain writes them; others, of other assets, as they are."""
    return {_name_of(key) for key in keys}


def _name_of(key: str) -> str:
    try:
        return str(PartitionKey.parse(key))
    except UsageError:
        return key


def left_of(data: AssetBackfillData) -> dict[str, set[str]]:
    """What a backfill has yet to build, by asset key; only assets with partitions."""
    left = data.get_targeted_partitions_without_materialization_status()
    return {
        "/".join(key.path): names_of(subset.get_partition_keys())
        for key, subset in left.partitions_subsets_by_asset_key.items()
    }


def _stage(spec: PipelineSpec, asset: str) -> str | None:
    pipeline, _, stage = asset.partition("/")
    return stage if pipeline == spec.pipeline and stage in STAGES else None


def _stages_of(spec: PipelineSpec, run: DagsterRun) -> list[str]:
    if run.asset_selection:
        named = [_stage(spec, "/".join(key.path)) for key in run.asset_selection]
        return [stage for stage in named if stage is not None]
    for job, stages in STAGES_OF_JOB.items():
        if run.job_name == job_name(spec, job):
            return [stage for stage in stages if stage in STAGES]
    return []


def _partitions_of(spec: PipelineSpec, run: DagsterRun) -> list[str]:
    first, last = (run.tags.get(tag) for tag in RANGE_TAGS)
    try:
        if first and last:
            return span_of(spec, first, last)
        one = run.tags.get(PARTITION_TAG)
        return [str(PartitionKey.parse(one))] if one else []
    except UsageError:
        return []  # of another pipeline, whose keys are written otherwise


def read_queue(instance: dg.DagsterInstance) -> Queue:
    """The limits that are in force on the instance, whatever is declared."""
    config = limits_in_force(instance).run_queue_config
    if config is None:
        return Queue(0, {})
    lanes: dict[str, int] = {}
    each: dict[str, int] = {}
    for rule in config.tag_concurrency_limits:
        value = rule.get("value")
        if value == EACH_VALUE:
            each[rule["key"]] = rule["limit"]
            continue
        if rule["key"] == LANE_TAG and isinstance(value, str):
            lane = value
        elif rule["key"] == BACKFILL_TAG and value is None:
            lane = "backfill"
        else:
            continue
        lanes[lane] = min(lanes.get(lane, rule["limit"]), rule["limit"])
    return Queue(
        config.max_concurrent_runs,
        lanes,
        per_backfill=each.get(BACKFILL_TAG),
        per_pipeline=each.get(LANE_PIPELINE_TAG),
        per_key=each.get(LANE_KEY_TAG),
    )


def pipeline_of_backfill(backfill: PartitionBackfill) -> str | None:
    """The pipeline of a backfill, also of one that was started in the Dagster UI."""
    named = backfill.tags.get(PIPELINE_TAG)
    if named:
        return str(named)
    assets = backfill.asset_selection or ()
    of_job, _ = _of_job(backfill.job_name)
    return next((key.path[0] for key in assets if len(key.path) > 1), of_job)


def targets_of_job(backfill: PartitionBackfill) -> dict[str, set[str]]:
    """What the backfill of a job is for, by asset key; also one of `dagster job backfill`."""
    pipeline, stages = _of_job(backfill.job_name)
    names = names_of(backfill.partition_names or ()) if stages else set()
    return {f"{pipeline}/{stage}": names for stage in stages}


def targets_of(backfill: PartitionBackfill) -> dict[str, list[str]]:
    """What a backfill was launched for, by asset key; of a job's, its partitions."""
    data = backfill.asset_backfill_data
    if data is None:
        found = targets_of_job(backfill)
        if not found:
            return {backfill.job_name or "job": list(backfill.partition_names or ())}
        return {asset: sorted(names) for asset, names in found.items()}
    return {
        "/".join(key.path): sorted(names_of(subset.get_partition_keys()))
        for key, subset in data.target_subset.partitions_subsets_by_asset_key.items()
    }
