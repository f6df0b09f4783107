"""What a backfill will take by history: runs, seconds, CPU; and what is left for daily runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from statistics import median
from typing import Any

from platform_assets.domain.partition import PartitionKey, runs_of
from platform_assets.domain.spec import PipelineSpec

RECENT = 200
"""How many measurements of a stage count, the newest."""

START_SHARE = 0.1
"""What a batch is sized for: of a run's time its start takes at most this share."""

LONGEST_RUN_SECONDS = 300.0
"""But no run is advised to take longer: a slot is only given back, or paused, between runs."""


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of one partition, or of one run's start; the median of samples."""

    seconds: float
    cpu_seconds: float
    samples: int


@dataclass(frozen=True)
class Measured:
    """What history tells: the cost of a partition by stage, and of starting a run."""

    stages: Mapping[str, Cost] = field(default_factory=dict)
    start: Cost | None = None


@dataclass(frozen=True)
class Batch:
    """The runs that one backfill policy makes of some stages' partitions.

    Attributes:
        keys: how many values of the lane's key the runs have, each of which has a limit of its
            own; 0 where partitions have no key.
    """

    stages: tuple[str, ...]
    partitions: int
    runs: int
    per_run: int
    keys: int = 0


@dataclass(frozen=True)
class Estimate:
    """What is expected; None where a stage was never measured.

    Attributes:
        seconds: wall time, with nothing else on the machine.
        parallel: how many runs are in progress at once, at the most.
        unmeasured: the stages without history.
    """

    seconds: float | None
    cpu_seconds: float | None
    parallel: int
    unmeasured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """A better batch size for a field of the catalog's `limits`."""

    field: str
    now: int
    advised: int
    why: str


@dataclass(frozen=True)
class Queue:
    """The run queue's slots, and the limits of lanes that have one.

    Attributes:
        per_backfill: runs of one backfill at once; None where there is no such limit.
        per_pipeline: runs of backfills of one pipeline at once.
        per_key: those of one pipeline and key (an airport).
    """

    slots: int
    lanes: Mapping[str, int]
    per_backfill: int | None = None
    per_pipeline: int | None = None
    per_key: int | None = None


def median_costs(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Measured:
    """The medians of what was recorded with versions, by stage, oldest first.

    Each is {"seconds", "cpu_seconds"}; the first of a process also has {"start_seconds",
    "start_cpu_seconds"}. What is no number is left out.
    """
    stages, starts = {}, []
    for stage, found in costs.items():
        pairs = _pairs(found, "seconds", "cpu_seconds")
        if pairs:
            stages[stage] = _median(pairs)
        starts += _pairs(found, "start_seconds", "start_cpu_seconds")
    return Measured(stages, _median(starts) if starts else None)


def _pairs(
    found: Iterable[Mapping[str, Any]], first: str, second: str
) -> list[tuple[float, float]]:
    pairs = [(cost.get(first), cost.get(second)) for cost in found]
    return [
        (float(a), float(b))
        for a, b in pairs
        if isinstance(a, int | float)
        and isinstance(b, int | float)
        and math.isfinite(a)
        and math.isfinite(b)
        and min(a, b) >= 0
    ][-RECENT:]


def _median(pairs: Sequence[tuple[float, float]]) -> Cost:
    return Cost(median(a for a, _ in pairs), median(b for _, b in pairs), len(pairs))


def batches(spec: PipelineSpec, build: Mapping[str, Sequence[str]]) -> tuple[Batch, ...]:
    """The runs of a backfill that meets no failure; one that does may take some more.

    A run takes a range of dates without a gap, of one key; snapshot and model share their runs.
    """
    limits = spec.limits
    found = [_batch(("features",), build.get("features", ()), limits.partitions_per_run)]
    found.append(_batch(("day",), build.get("day", ()), limits.partitions_per_run * 4))
    snapshots, models = set(build.get("snapshot", ())), set(build.get("model", ()))
    for stages, names in (
        (("snapshot", "model"), snapshots & models),
        (("snapshot",), snapshots - models),
        (("model",), models - snapshots),
    ):
        found.append(_batch(stages, sorted(names), limits.models_per_run))
    judged = build.get("evaluation", ())
    found.append(_batch(("evaluation",), judged, limits.models_per_run))
    if judged:
        found.append(Batch(("champion",), 1, 1, 1))
    return tuple(batch for batch in found if batch.partitions)


def _batch(stages: tuple[str, ...], names: Iterable[str], per_run: int) -> Batch:
    by_key: dict[str | None, list[date]] = {}
    by_date: dict[date, list[str | None]] = {}
    keys = [PartitionKey.parse(name) for name in names]
    for partition in sorted(keys):
        by_key.setdefault(partition.key, []).append(partition.date)
        by_date.setdefault(partition.date, []).append(partition.key)
    if len(by_date) <= len(by_key) and None not in by_key:
        # Dagster holds the dimension with fewer values and ranges over the other one. Keys that
        # are not neighbours make one run more; that is not looked at here.
        spans = [len(found) for found in by_date.values()]
        # Runs of several keys share one limit, whichever keys those are.
        of_runs = {
            found[at] if len(found[at : at + per_run]) == 1 else None
            for found in by_date.values()
            for at in range(0, len(found), per_run)
        }
    else:
        spans = [
            (last - first).days + 1 for dates in by_key.values() for first, last in runs_of(dates)
        ]
        of_runs = by_key.keys() - {None}
    runs = sum(math.ceil(span / per_run) for span in spans)
    return Batch(stages, len(keys), runs, per_run, len(of_runs))


def runs_at_once(batch: Batch, parallel: int, per_key: int | None) -> int:
    """How many of a batch's runs may be in progress at once, at least 1.

    Args:
        batch: of `batches`.
        parallel: how many of the backfill may.
        per_key: how many of one key may; None where there is no such limit.
    """
    of_keys = batch.keys * per_key if batch.keys and per_key is not None else parallel
    return max(1, min(parallel, batch.runs, of_keys))


def estimate(
    planned: Sequence[Batch],
    measured: Measured,
    parallel: int,
    tick_seconds: float,
    per_key: int | None = None,
) -> Estimate:
    """What the runs will take, the stages one after the other.

    Args:
        planned: of `batches`.
        measured: of `median_costs`.
        parallel: how many runs of the backfill may be in progress at once.
        tick_seconds: between two looks of Dagster's backfill daemon, each of which starts the
            stage whose inputs have become ready.
        per_key: how many runs of one key may be in progress at once; None: any number.
    """
    most = max((runs_at_once(batch, parallel, per_key) for batch in planned), default=1)
    unmeasured = {
        stage
        for batch in planned
        for stage in batch.stages
        if stage not in measured.stages and stage != "champion"
    }
    if unmeasured:
        return Estimate(None, None, most, tuple(sorted(unmeasured)))
    start = measured.start or Cost(0.0, 0.0, 0)
    nothing = Cost(0.0, 0.0, 0)
    seconds = cpu = 0.0
    for batch in planned:
        costs = [measured.stages.get(stage, nothing) for stage in batch.stages]
        busy = sum(cost.seconds for cost in costs) * batch.partitions + start.seconds * batch.runs
        cpu += sum(cost.cpu_seconds for cost in costs) * batch.partitions
        cpu += start.cpu_seconds * batch.runs
        seconds += tick_seconds + busy / runs_at_once(batch, parallel, per_key)
    return Estimate(round(seconds, 1), round(cpu, 1), most)


def advise(spec: PipelineSpec, measured: Measured) -> tuple[Advice, ...]:
    """Batch sizes by measured cost, where they differ from the catalog's by more than half."""
    if measured.start is None:
        return ()
    limits = spec.limits
    found = []
    for name, now, stages in (
        ("partitions_per_run", limits.partitions_per_run, ("features",)),
        ("models_per_run", limits.models_per_run, ("snapshot", "model")),
    ):
        if not all(stage in measured.stages for stage in stages):
            continue
        each = sum(measured.stages[stage].seconds for stage in stages)
        size = batch_size(each, measured.start.seconds)
        if not now / 1.5 <= size <= now * 1.5:
            why = (
                f"a partition takes {each:.2f} s and the start of a run "
                f"{measured.start.seconds:.2f} s: with {size} a run its start is at most "
                f"{START_SHARE:.0%} of it, unless it would take over {LONGEST_RUN_SECONDS:.0f} s"
            )
            found.append(Advice(f"limits.{name}", now, size, why))
    return tuple(found)


def batch_size(partition_seconds: float, start_seconds: float) -> int:
    """How many partitions a run should take: at least 1, at most 1,000."""
    if partition_seconds <= 0:
        return 1000
    enough = math.ceil(start_seconds * (1 / START_SHARE - 1) / partition_seconds)
    longest = int(LONGEST_RUN_SECONDS / partition_seconds)
    return max(1, min(enough, longest, 1000))


def daily_effect(queue: Queue, max_runs: int | None = None) -> dict[str, Any]:
    """What a backfill leaves of the slots to the daily lane, when every other lane is full.

    Args:
        queue: as the instance has it.
        max_runs: of the backfill, if it has a size of its own.

    Returns:
        of it `backfill` is how many runs of one backfill, of one pipeline, may be in progress.
    """
    limit = queue.lanes.get("backfill")
    limits = (limit, max_runs, queue.per_backfill, queue.per_pipeline, queue.slots)
    mine = min(found for found in limits if found is not None)
    others = {lane: n for lane, n in queue.lanes.items() if lane not in ("backfill", "daily")}
    # Whatever this one takes: another backfill may have the rest of the lane.
    left = queue.slots - (queue.slots if limit is None else limit) - sum(others.values())
    if limit is None:
        text = (
            "no limit holds the lane backfill, it may fill every slot; run `signalbox doctor` "
            "before launching"
        )
    elif left < 1:
        text = (
            f"the other lanes may fill all {queue.slots} slots, a daily run may have to wait; "
            "run `signalbox doctor` before launching"
        )
    else:
        text = (
            f"{left} of {queue.slots} slots stay free for the daily lane, whatever is queued "
            f"(backfill {limit}" + "".join(f", {lane} {n}" for lane, n in others.items()) + ")"
        )
        if mine < limit:
            text += f"; of this backfill at most {mine} run(s) at once"
    return {"slots": queue.slots, "backfill": mine, "left_for_daily": max(0, left), "text": text}
