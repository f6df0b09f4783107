"""Lanes: which slots of the queue a run may take, by where the run came from.

Where a run came from gives it its lane. What somebody wrote into its tags may put it into a lesser
one, never into a better one: a backfill that says it is daily would take today's slot.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError, model_validator

from platform_assets.domain.errors import SpecError, TransientError, UsageError
from platform_assets.domain.lease import Holder
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.source_spec import Frozen

LANE_TAG = "signalbox/lane"
PIPELINE_TAG = "signalbox/pipeline"
OVERRIDDEN_TAG = "signalbox/lane_overridden"
"""On a run that asked for a lane it may not have: what it asked for, and why it did not get it."""
LANE_PIPELINE_TAG = "signalbox/lane_pipeline"
LANE_KEY_TAG = "signalbox/lane_key"
"""Runs of backfills with the same value count against one limit: `backfill/flights/JFK`."""

BACKFILL_TAG = "dagster/backfill"
SIZE_TAG = "signalbox/runs_at_once"
"""On a backfill that was launched with a size: how many of its runs may be in progress at once."""
PRIORITY_TAG = "dagster/priority"
PARENT_TAG = "dagster/parent_run_id"
AUTO_RETRY_TAG = "dagster/auto_retry_run_id"
"""On a run that Dagster launched again by itself: the id of the run that it launched for it."""
SENSOR_TAG, SCHEDULE_TAG = "dagster/sensor_name", "dagster/schedule_name"
AUTOMATION_TAGS = ("dagster/from_automation_condition", "dagster/auto_materialize")
PARTITION_TAGS = (
    "dagster/partition",
    "dagster/asset_partition_range_start",
    "dagster/asset_partition_range_end",
)

LATE_SENSOR_ENDING = "_late_data"
SEVERAL = "several"
"""In place of a pipeline or key where one run has more than one of them."""


class Lane(StrEnum):
    """The lanes, the best first: a run may go down from the one it came in, not up."""

    DAILY = "daily"
    LATE = "late"
    ADHOC = "adhoc"
    BACKFILL = "backfill"


OTHERS = (Lane.LATE, Lane.ADHOC, Lane.BACKFILL)


class LaneSpec(Frozen):
    """A lane but the daily one: its slots at the most, and its place in the queue.

    Attributes:
        nice: by how much its runs give way to the others where all want the same cores, as in
            nice(1): 0 for not at all, 19 for whatever nobody else wants.
    """

    limit: int = Field(ge=1)
    priority: int
    nice: int = Field(default=0, ge=0, le=19)


class DailySpec(Frozen):
    """The daily lane: it has no limit, only a place in the queue."""

    priority: int


class LaneSpecs(Frozen):
    """The four lanes."""

    daily: DailySpec
    late: LaneSpec
    adhoc: LaneSpec
    backfill: LaneSpec


class BackfillLimits(Frozen):
    """Within the lane of backfills: runs at once of one backfill, one pipeline, one key."""

    per_backfill: int = Field(ge=1)
    per_pipeline: int = Field(ge=1)
    per_key: int = Field(ge=1)


class Lanes(Frozen):
    """One declaration of all limits.

    Attributes:
        slots: runs that may be in progress at once, of all lanes together.
    """

    slots: int = Field(ge=4)
    lanes: LaneSpecs
    backfill: BackfillLimits

    @model_validator(mode="after")
    def _daily_has_a_slot(self) -> "Lanes":
        wrong = starving({lane: self.limit(lane) for lane in OTHERS}, self.slots)
        if wrong:
            raise ValueError(wrong)
        priorities = [self.priority(lane) for lane in Lane]
        if priorities != sorted(set(priorities), reverse=True):
            order = " > ".join(Lane)
            raise ValueError(f"the priorities are {priorities}, they must go down: {order}")
        return self

    def limit(self, lane: Lane) -> int:
        """Runs of a lane that may be in progress at once; the daily lane may take every slot."""
        if lane is Lane.DAILY:
            return self.slots
        spec: LaneSpec = getattr(self.lanes, lane.value)
        return spec.limit

    def priority(self, lane: Lane) -> int:
        return int(getattr(self.lanes, lane.value).priority)

    def nice(self, lane: Lane) -> int:
        """By how much its runs give way on a machine whose cores are all taken; never the daily."""
        return int(getattr(getattr(self.lanes, lane.value), "nice", 0))


def starving(limits: Mapping[Lane, int | None], slots: int) -> str | None:
    """Why the daily lane could find every slot taken by the others; None if it could not.

    Args:
        limits: of each lane but the daily one; None where there is none.
        slots: of all lanes together; -1 for as many as anybody likes.
    """
    if slots < 0:
        return None
    open_ended = [lane.value for lane, limit in limits.items() if limit is None]
    if open_ended:
        return (
            f"{', '.join(open_ended)} has no limit and could fill all {slots} slots; the daily "
            "lane needs one that nobody else can take"
        )
    total = sum(limit or 0 for limit in limits.values())
    if total < slots:
        return None
    listed = " + ".join(f"{lane.value} {limit}" for lane, limit in limits.items())
    return (
        f"{listed} could fill all {slots} slots; the daily lane needs one that nobody else can "
        f"take: allowed are {slots - 1} for the others together, or more slots"
    )


def parse_lanes(document: Any, origin: str) -> Lanes:
    """Validate a document as the declaration of the lanes.

    Raises:
        SpecError: with one entry a wrong field.
    """
    if not isinstance(document, Mapping):
        found = type(document).__name__
        raise SpecError(
            origin,
            {"(file)": f"found {found}, a mapping with slots, lanes and backfill is needed"},
        )
    try:
        return Lanes.model_validate(document)
    except ValidationError as error:
        problems = {}
        for problem in error.errors(include_url=False):
            field = ".".join(map(str, problem["loc"])) or "(file)"
            message = problem["msg"].removeprefix("Value error, ")
            plain = not isinstance(problem["input"], Mapping)
            problems[field] = f"found {problem['input']!r}: {message}" if plain else message
        raise SpecError(origin, problems) from None


# --- which lane -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parent:
    """The run that a run is a retry or re-execution of.

    Attributes:
        lane: its own; None where that run is not there any more.
        retried: whether Dagster launched the run by itself, as a retry of it.
    """

    lane: Lane | None
    retried: bool = False


@dataclass(frozen=True)
class Origin:
    """Where a run came from.

    Attributes:
        lane: the best lane that runs from there may have.
        text: for a person: `a native backfill`.
    """

    lane: Lane
    text: str


@dataclass(frozen=True)
class Assigned:
    """The lane of a run, and why.

    Attributes:
        overridden: the lane that was asked for and not given.
    """

    lane: Lane
    reason: str
    overridden: str | None = None


def origin_of(tags: Mapping[str, str], parent: Parent | None = None) -> Origin:
    """Where a run came from, by the tags that Dagster itself puts onto it.

    Args:
        tags: of the run.
        parent: the run that it is a retry or re-execution of, if there is one.
    """
    if BACKFILL_TAG in tags:
        return Origin(Lane.BACKFILL, f"a run of backfill {tags[BACKFILL_TAG]}")
    if parent is not None:
        return _of_child(tags, parent)
    sensor = tags.get(SENSOR_TAG)
    if sensor is not None:
        lane = Lane.LATE if sensor.endswith(LATE_SENSOR_ENDING) else Lane.DAILY
        return Origin(lane, f"a run of sensor {sensor}")
    if SCHEDULE_TAG in tags:
        return Origin(Lane.DAILY, f"a run of schedule {tags[SCHEDULE_TAG]}")
    if any(tag in tags for tag in AUTOMATION_TAGS):
        return Origin(Lane.DAILY, "a run of an automation condition")
    return Origin(Lane.ADHOC, "a run that a person or a program launched")


def _of_child(tags: Mapping[str, str], parent: Parent) -> Origin:
    """A retry goes on where its parent was; what somebody executes once more is a click as any."""
    # The UI may name the parent beside the tags.
    which = f"run {tags[PARENT_TAG][:8]}" if PARENT_TAG in tags else "a run"
    if parent.lane is None:
        return Origin(Lane.ADHOC, f"a re-execution of {which} that is gone")
    if parent.retried:
        return Origin(parent.lane, f"a retry of {which} of lane {parent.lane}")
    lane = max(parent.lane, Lane.ADHOC, key=list(Lane).index)
    return Origin(lane, f"a re-execution of {which} of lane {parent.lane}")


def assign_lane(origin: Origin, asked: str | None) -> Assigned:
    """The lane of a run: its origin's, or a lesser one if it asks for that.

    Asking again for the lane that was given gives the same.
    """
    order = list(Lane)
    if asked is None:
        return Assigned(origin.lane, f"{origin.text} is in lane {origin.lane}")
    if asked not in order:
        why = f"{origin.text} is in lane {origin.lane}; {asked!r} is none of {', '.join(order)}"
        return Assigned(origin.lane, why, asked)
    lane = Lane(asked)
    if order.index(lane) >= order.index(origin.lane):
        return Assigned(lane, f"{origin.text} asked for lane {lane}")
    why = f"{origin.text} is in lane {origin.lane}; it may not take a slot of {lane}"
    return Assigned(origin.lane, why, asked)


def lane_of(tags: Mapping[str, str], parent: Parent | None = None) -> Lane:
    """The lane of a run by its tags, whether or not the queue has seen it."""
    return assign_lane(origin_of(tags, parent), tags.get(LANE_TAG)).lane


def lane_given(tags: Mapping[str, str]) -> Lane:
    """The lane that the queue has given a run; what it would give one that it has not seen."""
    given = tags.get(LANE_TAG)
    return Lane(given) if given in list(Lane) else lane_of(tags)


def tags_of_lane(
    lanes: Lanes, tags: Mapping[str, str], assets: Iterable[str], parent: Parent | None = None
) -> dict[str, str]:
    """What a run's tags have to be changed by before it is enqueued.

    Args:
        lanes: the declaration.
        tags: of the run, as it was launched.
        assets: the keys of the assets that it is to materialize: `flights/features`.
        parent: the run that it is a retry or re-execution of.
    """
    found = assign_lane(origin_of(tags, parent), tags.get(LANE_TAG))
    wanted = {
        LANE_TAG: found.lane.value,
        PRIORITY_TAG: str(min(_priority(tags), lanes.priority(found.lane)))
        if PRIORITY_TAG in tags
        else str(lanes.priority(found.lane)),
    }
    if found.overridden is not None:
        wanted[OVERRIDDEN_TAG] = f"{found.overridden}: {found.reason}"
    pipeline = _one({tags[PIPELINE_TAG]} if PIPELINE_TAG in tags else _pipelines(assets))
    if pipeline not in (None, SEVERAL):
        wanted[PIPELINE_TAG] = str(pipeline)
    if found.lane is Lane.BACKFILL and pipeline is not None:
        wanted[LANE_PIPELINE_TAG] = f"{found.lane}/{pipeline}"
        key = _one(_keys(tags))
        if key is not None:
            wanted[LANE_KEY_TAG] = f"{found.lane}/{pipeline}/{key}"
    return {name: value for name, value in wanted.items() if tags.get(name) != value}


def _priority(tags: Mapping[str, str]) -> int:
    try:
        return int(tags[PRIORITY_TAG])
    except ValueError:
        return 0  # as Dagster's queue takes it


def _pipelines(assets: Iterable[str]) -> set[str]:
    return {asset.split("/")[0] for asset in assets if "/" in asset}


def _keys(tags: Mapping[str, str]) -> set[str]:
    """The partition keys, not the dates, that a run's tags name."""
    found = set()
    for tag in PARTITION_TAGS:
        try:
            key = PartitionKey.parse(tags[tag]).key
        except (KeyError, UsageError):
            continue
        if key is not None:
            found.add(key)
    return found


def _one(values: set[str]) -> str | None:
    return next(iter(values), None) if len(values) < 2 else SEVERAL


# --- slots ------------------------------------------------------------------------------------


def slots_of(lanes: Lanes, lane: Lane) -> list[str]:
    """The leases of a lane's slots: whoever works in the lane holds one of them."""
    return [f"{slot_prefix(lane)}{n}" for n in range(lanes.limit(lane))]


def slot_prefix(lane: Lane) -> str:
    return f"lane/{lane}/"


class LaneFullError(TransientError):
    """Every slot of a lane was held for as long as one was willing to wait."""

    def __init__(self, lane: Lane, holders: Sequence[Holder], seconds: float) -> None:
        listed = ", ".join(f"run {h.run_id} (process {h.pid})" for h in holders)
        super().__init__(
            f"lane {lane} has {len(holders)} slot(s), held by {listed}, and none came free in "
            f"{seconds:.0f} seconds; nothing was done, try again when one of them has ended "
            "(`signalbox lanes` shows them)"
        )
