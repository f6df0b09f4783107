"""What a backfill would do, read from landing zone and ledger in few queries, however long."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from platform_assets.domain.backfill import (
    STAGES,
    Item,
    Known,
    Selection,
    State,
    counts,
    needed_dates,
    plan_items,
    to_build,
)
from platform_assets.domain.backfill_cost import (
    Measured,
    Queue,
    advise,
    batches,
    daily_effect,
    estimate,
    median_costs,
    runs_at_once,
)
from platform_assets.domain.errors import UsageError
from platform_assets.domain.partition import PartitionKey, date_range, runs_of
from platform_assets.domain.source_spec import listed
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.clearance import assess_range
from platform_assets.line.days import built_and_lapsed, held_and_lapsed
from platform_assets.line.services import Services
from platform_assets.line.status import reached
from resources.ledger.records import VersionRecord

TICK_SECONDS = 2.0
"""Between two looks at backfills of `signalbox dev` and `signalbox daemon`; Dagster's own: 30."""

Versions = Mapping[str, Mapping[str, VersionRecord]]


@dataclass(frozen=True)
class BackfillPlan:
    """A selection, what each of its partitions is, and what history says it will take."""

    selection: Selection
    items: Mapping[str, tuple[Item, ...]]
    measured: Measured

    @property
    def build(self) -> dict[str, tuple[str, ...]]:
        """The partitions that are launched, by stage; stages without any are left out."""
        return to_build(self.items)


def select(
    spec: PipelineSpec,
    *,
    first: date | None = None,
    last: date | None = None,
    dates: Sequence[date] = (),
    airports: Sequence[str] = (),
    restate: bool = False,
) -> Selection:
    """What was asked for, checked against the pipeline: a range, listed dates, or both.

    Raises:
        UsageError: nothing was asked for, or something that the pipeline does not have.
    """
    grid = spec.partitions
    if (first is None) != (last is None):
        raise UsageError(
            f"--{'from' if first else 'to'} {first or last} needs --{'to' if first else 'from'} "
            "beside it"
        )
    wanted = set(dates)
    if first is not None and last is not None:
        if last < first:
            raise UsageError(f"--to {last} lies before --from {first}; exchange them")
        wanted |= {*date_range(max(first, grid.start), min(last, grid.end)), first, last}
    if not wanted:
        raise UsageError(
            "no date was given; give --from and --to, or --dates 2013-01-05,2013-01-09"
        )
    outside = sorted(day for day in wanted if not grid.start <= day <= grid.end)
    if outside:
        raise UsageError(
            f"{outside[0]} lies outside of pipeline {spec.pipeline}; allowed are dates from "
            f"{grid.start} to {grid.end}"
        )
    unknown = sorted(set(airports) - set(grid.values))
    if unknown:
        raise UsageError(
            f"{grid.key} {unknown[0]!r} is none of pipeline {spec.pipeline}; allowed are "
            f"{listed(grid.values)}"
        )
    keys = tuple(value for value in grid.values if not airports or value in airports)
    return Selection(tuple(sorted(wanted)), keys, restate)


def make_plan(
    services: Services, selection: Selection, elsewhere: Mapping[tuple[str, str], str]
) -> BackfillPlan:
    """Plan a backfill.

    Args:
        services: of the pipeline.
        selection: of `select`.
        elsewhere: by stage and partition, who works on it.
    """
    spec, ledger = services.spec, services.ledger
    versions = {stage: ledger.current_versions(spec.asset(stage)) for stage in STAGES}
    items = plan_items(spec, selection, _known(services, selection, versions, elsewhere))
    return BackfillPlan(selection, items, measured_by(versions))


def measured_by(versions: Versions) -> Measured:
    """What partitions cost, by the versions that are there."""
    return median_costs(
        {
            stage: [
                record.detail["cost"]
                for record in sorted(found.values(), key=lambda record: record.committed_at)
                if isinstance(record.detail.get("cost"), Mapping)
            ]
            for stage, found in versions.items()
        }
    )


def read_measured(services: Services) -> Measured:
    """What partitions cost, by the versions that are there."""
    spec, ledger = services.spec, services.ledger
    return measured_by({stage: ledger.current_versions(spec.asset(stage)) for stage in STAGES})


def _known(
    services: Services,
    selection: Selection,
    versions: Versions,
    elsewhere: Mapping[tuple[str, str], str],
) -> Known:
    spec = services.spec
    built, lapsed = built_and_lapsed(services, versions["features"])
    held: dict[str, str] = {}
    # What is built and stays so need not be looked at: a year's arrivals take seconds to read.
    asked = set(selection.dates) if selection.restate else set()
    open_dates = [
        day
        for day in needed_dates(spec, selection.dates)
        if day in asked or any(key not in built for key in spec.keys_of(day))
    ]
    for first, last in runs_of(open_dates):
        if services.zone.refresh(first, last):
            # The look that is to follow would not know that anything has changed.
            services.attend(date_range(first, last), "files changed, found by a backfill's plan")
        reports = assess_range(services, first, last)
        held |= {str(p): report.reason() for p, report in reports.items() if not report.is_clear}
    versions_of_models = {
        stage: {
            name: int(record.detail["model_version"]) for name, record in versions[stage].items()
        }
        for stage in ("model", "evaluation")
    }
    return Known(
        reached=reached(services),
        held=held_and_lapsed(held, lapsed),
        built=built,
        days={name: record.data_version for name, record in versions["day"].items()},
        snapshots=frozenset(versions["snapshot"]),
        models=versions_of_models["model"],
        judged=versions_of_models["evaluation"],
        elsewhere=elsewhere,
    )


def document(
    spec: PipelineSpec, plan: BackfillPlan, queue: Queue, max_runs: int | None = None
) -> dict[str, Any]:
    """A plan for people and programs.

    Args:
        spec: the pipeline.
        plan: of `make_plan`.
        queue: the instance's.
        max_runs: the size that the backfill is to have.
    """
    build = plan.build
    runs = batches(spec, build)
    effect = daily_effect(queue, max_runs)
    expected = estimate(runs, plan.measured, effect["backfill"], TICK_SECONDS, queue.per_key)
    return {
        "pipeline": spec.pipeline,
        "dates": [[str(a), str(b)] for a, b in runs_of(plan.selection.dates)],
        "keys": list(plan.selection.keys),
        "restate": plan.selection.restate,
        "assets": {spec.asset(stage): counts(items) for stage, items in plan.items.items()},
        "partitions": {spec.asset(stage): _by_state(items) for stage, items in plan.items.items()},
        "champion": "evaluation" in build,
        "batches": [
            {
                "assets": [spec.asset(stage) for stage in batch.stages],
                "partitions": batch.partitions,
                "runs": batch.runs,
                "partitions_per_run": batch.per_run,
                "runs_at_once": runs_at_once(batch, effect["backfill"], queue.per_key),
            }
            for batch in runs
        ],
        "runs": sum(batch.runs for batch in runs),
        "expected": {
            "seconds": expected.seconds,
            "cpu_seconds": expected.cpu_seconds,
            "runs_at_once": expected.parallel,
            "unmeasured": [spec.asset(stage) for stage in expected.unmeasured],
            "measured": {
                spec.asset(stage): {
                    "seconds": cost.seconds,
                    "cpu_seconds": cost.cpu_seconds,
                    "partitions": cost.samples,
                }
                for stage, cost in plan.measured.stages.items()
            },
        },
        "daily_lane": effect,
        "advice": [
            {"field": a.field, "now": a.now, "advised": a.advised, "why": a.why}
            for a in advise(spec, plan.measured)
        ],
    }


def _by_state(items: Iterable[Item]) -> dict[str, Any]:
    """Names of what is missing and complete; of the rest also why."""
    found: dict[str, Any] = {}
    for state in State:
        mine = [item for item in items if item.state is state]
        if state in (State.MISSING, State.COMPLETE):
            found[state.value] = [item.partition for item in mine]
        else:
            found[state.value] = {item.partition: item.why for item in mine}
    return found


def span_of(spec: PipelineSpec, first: str, last: str) -> list[str]:
    """The partitions from first to last as a run's range tags mean them: dates x keys."""
    start, end = PartitionKey.parse(first), PartitionKey.parse(last)
    days = date_range(start.date, end.date)
    if start.key is None or end.key is None:
        return [day.isoformat() for day in days]
    values = spec.partitions.values
    if start.key not in values or end.key not in values:
        return []
    keys = values[values.index(start.key) : values.index(end.key) + 1]
    return [str(PartitionKey(day, key)) for day in days for key in keys]
