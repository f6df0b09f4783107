"""How far each asset has come: watermark, complete, ready, held, missing; and the champion."""

from collections import Counter
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any

from platform_assets.domain.completeness import Verdict
from platform_assets.domain.manifest import DayState
from platform_assets.domain.partition import PartitionKey, local_date
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.due import read_due
from platform_assets.line.history import STAGES, Grid, plan_history, read_grid
from platform_assets.line.launching import asset_of, describe, open_failures
from platform_assets.line.services import Services

EMPTY: dict[str, Any] = {
    "partitions": 0,
    "complete": 0,
    "ready": 0,
    "held": 0,
    "missing": 0,
    "waived": 0,
    "watermark": None,
}


def reached(services: Services) -> date | None:
    """The last date that has begun, within the pipeline; None before its first."""
    grid = services.spec.partitions
    as_of = services.clock.as_of() - timedelta(microseconds=1)
    today = local_date(as_of, grid.timezone)
    return min(today, grid.end) if today >= grid.start else None


def status(services: Services, grid: Grid | None = None) -> dict[str, Any]:
    """Counts by asset over the partitions that have begun by now.

    complete: built, or for a source: all hours delivered, or let go without (accepted, waived).
    ready: could be built now. held: some of what it needs is missing or not built. missing:
    nothing of it has arrived. waived: how many of the complete rest on a waiver. watermark: the
    latest date that is complete, for an asset with keys: for every key.

    Args:
        services: of the pipeline.
        grid: all dates that have begun, not as if built; read if not given.
    """
    spec = services.spec
    last = reached(services)
    champion = services.ledger.champion(spec.pipeline)
    assets = {spec.landed(name): dict(EMPTY) for name in spec.sources}
    assets |= {spec.asset(stage): dict(EMPTY) for stage in STAGES}
    if last is not None:
        grid = grid or read_grid(services, spec.partitions.start, last, as_if_built=False)
        assets |= _sources(spec, grid)
        assets |= _stages(services, last, grid)
    return {
        "pipeline": spec.pipeline,
        "as_of": services.clock.as_of().isoformat(),
        "clock": spec.schedule.clock,
        "live_from": spec.schedule.live_from.isoformat(),
        "assets": assets,
        "due": _due(services),
        "failed": [
            {
                "asset": asset_of(services, record),
                "partition": record.partition,
                "run_id": record.run_id,
                "step": record.step,
                "reason": describe(record),
            }
            for record in open_failures(services)
        ],
        "champion": None
        if champion is None
        else {
            "model": champion.model,
            "version": champion.version,
            "date": champion.model_date.isoformat(),
            "reason": champion.reason,
        },
    }


def _due(services: Services) -> dict[str, dict[str, Any]]:
    timezone = services.spec.partitions.timezone
    return {
        found.asset: {
            **found.model_dump(mode="json", exclude={"asset"}),
            "text": found.describe(timezone),
        }
        for found in read_due(services).assets
    }


def _sources(spec: PipelineSpec, grid: Grid) -> dict[str, dict[str, Any]]:
    counts = {}
    for name in spec.sources:
        count = dict(EMPTY)
        complete = []
        for partition, report in grid.reports.items():
            own = next(s for s in report.sources if s.source == name)
            count["partitions"] += 1
            clear = own.is_clear
            count["complete" if clear else "missing" if own.is_absent else "held"] += 1
            count["waived"] += own.verdict is Verdict.WAIVED
            if clear:
                complete.append(partition)
        count["watermark"] = _watermark(complete, len(spec.partitions.values))
        counts[spec.landed(name)] = count
    return counts


def _watermark(complete: Iterable[PartitionKey], keys: int) -> str | None:
    """The latest date of which this many partitions are complete."""
    dates = Counter(partition.date for partition in complete)
    latest = max((day for day, count in dates.items() if count == keys), default=None)
    return latest.isoformat() if latest else None


def _stages(services: Services, last: date, grid: Grid) -> dict[str, dict[str, Any]]:
    spec = services.spec
    plan = plan_history(services, spec.partitions.start, last, grid)
    dates = (last - spec.partitions.start).days + 1
    models = max(0, (last - spec.first_model_date).days + 1)
    judged = max(0, (min(last, spec.last_judged_date) - spec.first_model_date).days + 1)
    expected = {
        "features": dates * len(spec.partitions.values),
        "day": dates,
        "snapshot": models,
        "model": models,
        "evaluation": judged,
    }
    absent = {str(p) for p, r in grid.reports.items() if r.is_absent}
    counts = {}
    for stage in STAGES:
        done = [PartitionKey.parse(name) for name in plan.done[stage]]
        held = set(plan.held[stage])
        nothing = held & absent
        counts[spec.asset(stage)] = {
            "partitions": expected[stage],
            "complete": len(done),
            "ready": len(plan.build[stage]),
            "held": len(held - nothing),
            "missing": len(nothing),
            "waived": 0,
            "watermark": _watermark(
                done, len(spec.partitions.values) if stage == "features" else 1
            ),
        }
    counts[spec.asset("features")]["waived"] = sum(
        bool(grid.built[name].waivers) for name in plan.done["features"]
    )
    whole = sum(day.state is DayState.WHOLE for day in grid.days.values())
    counts[spec.asset("day")]["whole"] = whole
    return counts
