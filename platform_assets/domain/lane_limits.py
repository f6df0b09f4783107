"""The lanes as limits of Dagster's queue, and whether the limits in force are those."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from platform_assets.domain.lanes import (
    BACKFILL_TAG,
    LANE_KEY_TAG,
    LANE_PIPELINE_TAG,
    LANE_TAG,
    OTHERS,
    SIZE_TAG,
    Lane,
    Lanes,
    lane_of,
    starving,
)

EACH_VALUE = {"applyLimitPerUniqueValue": True}

Limit = dict[str, Any]
"""`{key, value, limit}` as Dagster has it; value is a text, EACH_VALUE, or left out."""


def concurrency_section(lanes: Lanes) -> dict[str, Any]:
    """The section `concurrency` of dagster.yaml. Signalbox has no pools: see docs/lanes.md."""
    within = {
        BACKFILL_TAG: lanes.backfill.per_backfill,
        LANE_PIPELINE_TAG: lanes.backfill.per_pipeline,
        LANE_KEY_TAG: lanes.backfill.per_key,
    }
    rules: list[Limit] = [
        {"key": LANE_TAG, "value": lane.value, "limit": lanes.limit(lane)} for lane in OTHERS
    ]
    rules += [
        {"key": key, "value": dict(EACH_VALUE), "limit": limit} for key, limit in within.items()
    ]
    return {"runs": {"max_concurrent_runs": lanes.slots, "tag_concurrency_limits": rules}}


@dataclass(frozen=True)
class Steering:
    """How fast one backfill may go.

    Attributes:
        backfill: Dagster's id.
        limit: of its runs, how many may be in progress at once; 0 while it is paused.
    """

    backfill: str
    limit: int


def size_of(tags: Mapping[str, str]) -> int | None:
    """The size that a backfill was launched with; None if it has none.

    What is no number of runs, which only a person can have typed, counts as the least.
    """
    given = tags.get(SIZE_TAG)
    if given is None:
        return None
    return max(1, int(given)) if given.isascii() and given.isdigit() else 1


def with_steering(rules: Sequence[Mapping[str, Any]], steering: Sequence[Steering]) -> list[Limit]:
    """The limits, and one for each backfill that is steered; the smaller one counts."""
    return [
        *(dict(rule) for rule in rules),
        *({"key": BACKFILL_TAG, "value": s.backfill, "limit": s.limit} for s in steering),
    ]


def without_backfills(rules: Sequence[Mapping[str, Any]]) -> list[Limit]:
    """The limits with no slot for backfills: while nobody knows which of them are paused."""
    lane = (LANE_TAG, Lane.BACKFILL.value)
    kept = [dict(rule) for rule in rules if (rule["key"], rule.get("value")) != lane]
    return [*kept, {"key": lane[0], "value": lane[1], "limit": 0}]


@dataclass(frozen=True)
class InProgress:
    """A run that is in progress.

    Attributes:
        tags: of the run.
        queued: whether the queue has started it, which kept to the limits then.
    """

    tags: Mapping[str, str]
    queued: bool


def beyond(rules: Sequence[Mapping[str, Any]], runs: Iterable[InProgress]) -> int:
    """How many runs are in progress beyond the limits of their lanes without the queue's doing.

    They wait for a slot of their lane, but are in progress to Dagster, and it counts them against
    all the slots: as many more are needed for the slot of the daily lane to be one.

    Args:
        rules: tag_concurrency_limits in force.
        runs: all that are in progress.
    """
    every: Counter[str] = Counter()
    past: Counter[str] = Counter()
    for run in runs:
        # Without the tag where it has not come to its claim yet.
        lane = run.tags.get(LANE_TAG) or lane_of(run.tags).value
        every[lane] += 1
        past[lane] += not run.queued
    limits = {
        rule["value"]: int(rule["limit"])
        for rule in rules
        if rule["key"] == LANE_TAG and isinstance(rule.get("value"), str)
    }
    return sum(min(past[lane], max(0, every[lane] - limit)) for lane, limit in limits.items())


def differences(lanes: Lanes, slots: int | None, rules: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with limits that are in force; nothing if they are the declared ones.

    Limits of single backfills are left out: those are steered.

    Args:
        lanes: the declaration.
        slots: max_concurrent_runs in force; None where there is no queue at all.
        rules: tag_concurrency_limits in force.
    """
    if slots is None:
        return ["there is no queue: every run starts at once, whatever its lane"]
    declared = concurrency_section(lanes)["runs"]
    found = []
    if slots != declared["max_concurrent_runs"]:
        found.append(f"max_concurrent_runs is {slots}, declared are {lanes.slots} slots")
    wanted = {_name(rule): rule["limit"] for rule in declared["tag_concurrency_limits"]}
    live: dict[str, int] = {}
    for rule in rules:
        if rule["key"] == BACKFILL_TAG and isinstance(rule.get("value"), str):
            continue
        live[_name(rule)] = rule["limit"]  # of two with one name Dagster takes the later one
    for name in sorted({*wanted, *live}):
        if name not in live:
            found.append(f"{name} has no limit, declared is {wanted[name]}")
        elif name not in wanted:
            found.append(f"{name} has a limit of {live[name]}, declared is none")
        elif live[name] != wanted[name]:
            found.append(f"{name} has a limit of {live[name]}, declared is {wanted[name]}")
    limits = {lane: live.get(_name({"key": LANE_TAG, "value": lane.value})) for lane in OTHERS}
    starves = starving(limits, slots)
    return [*([starves] if starves else []), *found]


def _name(rule: Mapping[str, Any]) -> str:
    value: Any = rule.get("value")
    if isinstance(value, str):
        return f"{rule['key']}={value}"
    each = bool(value and value.get("applyLimitPerUniqueValue"))
    return f"each {rule['key']}" if each else f"all of {rule['key']}"
