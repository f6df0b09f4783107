"""How far a backfill is: a count a stage, and when it will have ended."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from platform_assets.domain.backfill_cost import Measured
from platform_assets.domain.errors import UsageError
from platform_assets.domain.partition import PartitionKey


@dataclass(frozen=True)
class StageFacts:
    """What was seen of one stage of a backfill.

    Attributes:
        wanted: the partitions that the backfill was launched for.
        done: those that were materialized by it.
        refused: those that a run found held, and why.
        errors: those that failed for another reason, and why.
        lost: those that Dagster counts as failed, or as behind a failed one.
        started: those that a run was requested for.
        canceled: whether somebody ended the backfill: what was lost by it was not tried.
    """

    wanted: Collection[str]
    done: Collection[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    lost: Collection[str] = ()
    started: Collection[str] = ()
    canceled: bool = False


@dataclass(frozen=True)
class StageProgress:
    """Each wanted partition is in one of the states.

    Attributes:
        failed: a run tried and failed.
        held: a run found them held: nothing was written.
        behind: never tried, since something that they need failed or is held.
        in_progress: a run was requested and has not ended.
        waiting: no run was requested yet.
        reasons: by partition, of what is failed or held.
        keys_left: of how many keys (airports) what is in progress or waiting is; 0 without keys.
    """

    wanted: int
    done: int
    failed: int
    held: int
    behind: int
    in_progress: int
    waiting: int
    reasons: Mapping[str, str] = field(default_factory=dict)
    keys_left: int = 0

    @property
    def left(self) -> int:
        return self.in_progress + self.waiting


def stage_progress(facts: StageFacts) -> StageProgress:
    """Sort a stage's partitions; a later success outweighs an earlier failure."""
    wanted, done = set(facts.wanted), set(facts.done) & set(facts.wanted)
    open_ = wanted - done
    held = open_ & set(facts.refused)
    lost = open_ & set(facts.lost)
    tried = set() if facts.canceled else lost & set(facts.started)
    failed = (open_ & set(facts.errors) | tried) - held
    behind = lost - held - failed
    rest = open_ - held - failed - behind
    running = rest & set(facts.started)
    reasons = {name: facts.refused[name] for name in sorted(held)}
    reasons |= {
        name: facts.errors.get(name, "its run ended before it was built") for name in sorted(failed)
    }
    return StageProgress(
        wanted=len(wanted),
        done=len(done),
        failed=len(failed),
        held=len(held),
        behind=len(behind),
        in_progress=len(running),
        waiting=len(rest - running),
        reasons=reasons,
        keys_left=len({_key_of(name) for name in rest} - {None}),
    )


def _key_of(name: str) -> str | None:
    try:
        return PartitionKey.parse(name).key
    except UsageError:
        return None  # of somebody's own asset, whose partitions are written otherwise


def seconds_left(
    stages: Mapping[str, StageProgress],
    measured: Measured,
    parallel: int,
    per_key: int | None = None,
) -> float | None:
    """Seconds until a backfill will have ended, by the costs of history.

    Args:
        stages: by name, the asset key without its pipeline.
        measured: what a partition of each costs.
        parallel: how many runs of the backfill may be in progress at once.
        per_key: how many runs of one key may; None: any number.

    Returns:
        None where a stage that is not done was never measured.
    """
    total = 0.0
    for stage, progress in stages.items():
        if not progress.left:
            continue
        if stage not in measured.stages:
            if stage == "champion":
                continue
            return None
        at_once = parallel
        if per_key is not None and progress.keys_left:
            at_once = min(parallel, progress.keys_left * per_key)
        total += measured.stages[stage].seconds * progress.left / max(1, at_once)
    return round(total, 1)


def describe_seconds(seconds: float | None) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
