"""A backfill as data: what of a selection is missing, complete, held or in work elsewhere.

    missing      is not there, and can be built
    again        is there, but is asked for anew, or rests on what is built anew
    complete     is there
    held         cannot be built now, and why
    elsewhere    another run or backfill works on it already, and which

Only what is missing or again is launched. What needs something that is in work elsewhere is held:
it would be built on what is about to be replaced.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum

from platform_assets.domain.manifest import (
    Day,
    DayState,
    PartitionVersion,
    WindowRefusal,
    roll_up,
    take_snapshot,
    window,
)
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec

STAGES = ("features", "day", "snapshot", "model", "evaluation")
"""The stages with partitions, upstream first."""


class State(StrEnum):
    MISSING = "missing"
    AGAIN = "again"
    COMPLETE = "complete"
    HELD = "held"
    ELSEWHERE = "elsewhere"


BUILT_BY_IT = (State.MISSING, State.AGAIN)


@dataclass(frozen=True)
class Item:
    """One partition of a stage, what it is, and why it is held, again, or in whose work."""

    partition: str
    state: State
    why: str = ""


@dataclass(frozen=True)
class Selection:
    """What is asked for: dates, in order and maybe with gaps, and keys (airports)."""

    dates: tuple[date, ...]
    keys: tuple[str, ...]
    restate: bool = False


@dataclass(frozen=True)
class Known:
    """What there is, of the selection's dates and of those that they need.

    Attributes:
        reached: the last date that has begun by the pipeline's clock.
        held: why features partitions may not leave now.
        built: the current version of each features partition that may be read.
        days: data version of each roll-up.
        snapshots: the dates that have one.
        models: model version by date.
        judged: by date, the model version that its evaluation judged.
        elsewhere: by stage and partition, who works on it.
    """

    reached: date | None = None
    held: Mapping[str, str] = field(default_factory=dict)
    built: Mapping[str, PartitionVersion] = field(default_factory=dict)
    days: Mapping[str, str] = field(default_factory=dict)
    snapshots: frozenset[str] = frozenset()
    models: Mapping[str, int] = field(default_factory=dict)
    judged: Mapping[str, int] = field(default_factory=dict)
    elsewhere: Mapping[tuple[str, str], str] = field(default_factory=dict)


def needed_dates(spec: PipelineSpec, dates: Iterable[date]) -> tuple[date, ...]:
    """The dates of a selection, of their windows, and those that their models are judged on."""
    grid = spec.partitions
    every = {
        needed
        for day in dates
        for needed in (*window(day, spec.model.window_days), *spec.judged_on(day))
    }
    return tuple(sorted(day for day in every if grid.start <= day <= grid.end))


def plan_items(
    spec: PipelineSpec, selection: Selection, known: Known
) -> dict[str, tuple[Item, ...]]:
    """What each selected partition is, by stage.

    Args:
        spec: the pipeline.
        selection: dates and keys, within the pipeline.
        known: of the selection's `needed_dates`.
    """
    return _Planner(spec, selection, known).plan()


@dataclass
class _Planner:
    spec: PipelineSpec
    selection: Selection
    known: Known

    def plan(self) -> dict[str, tuple[Item, ...]]:
        spec, dates = self.spec, self.selection.dates
        features = [
            self._features(day, value)
            for value in spec.partitions.values
            if value in self.selection.keys
            for day in dates
        ]
        self._roll_up(features)
        trained = [day for day in dates if day >= spec.first_model_date]
        snapshots = [self._windowed("snapshot", day) for day in trained]
        taken = {item.partition: item for item in snapshots}
        models = [self._windowed("model", day, taken[day.isoformat()]) for day in trained]
        found = {item.partition: item for item in models}
        judged = [
            self._evaluation(day, found[day.isoformat()])
            for day in trained
            if day <= spec.last_judged_date
        ]
        return {
            "features": tuple(features),
            "day": tuple(self._day(day) for day in dates),
            "snapshot": tuple(snapshots),
            "model": tuple(models),
            "evaluation": tuple(judged),
        }

    def _common(self, stage: str, name: str, day: date) -> Item | None:
        by = self.known.elsewhere.get((stage, name))
        if by is not None:
            return Item(name, State.ELSEWHERE, by)
        if self.known.reached is None or day > self.known.reached:
            return Item(name, State.HELD, f"{day} has not begun by the pipeline's clock")
        return None

    def _asked(self, name: str, *, there: bool, why: str = "--restate") -> Item:
        return Item(name, State.AGAIN, why) if there else Item(name, State.MISSING)

    def _features(self, day: date, value: str) -> Item:
        known, name = self.known, str(PartitionKey(day, value))
        there = name in known.built
        common = self._common("features", name, day)
        if common is not None:
            return common
        if there and not self.selection.restate:
            return Item(name, State.COMPLETE)
        if name in known.held:
            return Item(name, State.HELD, known.held[name])
        return self._asked(name, there=there)

    def _roll_up(self, features: Iterable[Item]) -> None:
        """The roll-ups as they will be once the planned features are built."""
        spec, known = self.spec, self.known
        planned = {
            item.partition: PartitionVersion(
                partition=item.partition, data_version="", table_version=0, rows=0
            )
            for item in features
            if item.state in BUILT_BY_IT
        }
        built = {**known.built, **planned}
        self.days: dict[date, Day] = {}
        self.waits: dict[date, str] = {}
        for day in needed_dates(spec, self.selection.dates):
            keys = spec.keys_of(day)
            self.days[day] = roll_up(day, keys, built, known.held)
            busy = [key for key in keys if ("features", key) in known.elsewhere]
            if busy:
                by = known.elsewhere["features", busy[0]]
                self.waits[day] = f"waits for {', '.join(busy)}, in work elsewhere ({by})"

    def _day(self, day: date) -> Item:
        name = day.isoformat()
        common = self._common("day", name, day)
        if common is not None:
            return common
        if day in self.waits:
            return Item(name, State.HELD, self.waits[day])
        found = self.days[day]
        if found.state is DayState.UNBUILT:
            return Item(name, State.HELD, found.reason())
        before = self.known.days.get(name)
        if before == found.data_version():
            if not self.selection.restate:
                return Item(name, State.COMPLETE)
            return self._asked(name, there=True)
        return self._asked(name, there=before is not None, why="a partition of it has changed")

    def _windowed(self, stage: str, day: date, snapshot: Item | None = None) -> Item:
        """A snapshot, or a model and the item of its snapshot."""
        spec, name = self.spec, day.isoformat()
        there = name in (self.known.snapshots if snapshot is None else self.known.models)
        common = self._common(stage, name, day)
        if common is not None:
            return common
        if there and not self.selection.restate:
            return Item(name, State.COMPLETE)
        if snapshot is not None and snapshot.state is State.ELSEWHERE:
            return Item(name, State.HELD, f"its snapshot is in work elsewhere ({snapshot.why})")
        waiting = [d for d in window(day, spec.model.window_days) if d in self.waits]
        if waiting:
            return Item(name, State.HELD, f"its window {self.waits[waiting[0]]}")
        taken = take_snapshot(
            pipeline=spec.pipeline,
            dataset=spec.asset("features"),
            day=day,
            data_start=spec.partitions.start,
            window_days=spec.model.window_days,
            min_days=spec.model.min_days,
            days=self.days,
        )
        if isinstance(taken, WindowRefusal):
            return Item(name, State.HELD, taken.reason)
        return self._asked(name, there=there)

    def _evaluation(self, day: date, model: Item) -> Item:
        known, name = self.known, day.isoformat()
        there = name in known.judged
        common = self._common("evaluation", name, day)
        if common is not None:
            return common
        current = there and known.judged[name] == known.models.get(name)
        if model.state is State.COMPLETE and current and not self.selection.restate:
            return Item(name, State.COMPLETE)
        if model.state is State.ELSEWHERE:
            return Item(name, State.HELD, f"its model is in work elsewhere ({model.why})")
        if model.state is State.HELD:
            return Item(name, State.HELD, f"there is no model: {model.why}")
        following = self.spec.judged_on(day)
        late = [d for d in following if known.reached is None or d > known.reached]
        if late:
            return Item(
                name,
                State.HELD,
                f"judged on {following[0]} to {following[-1]}, of which {late[0]} has not begun",
            )
        waiting = [d for d in following if d in self.waits]
        if waiting:
            return Item(name, State.HELD, f"judged on {waiting[0]}, which {self.waits[waiting[0]]}")
        lacking = [d for d in following if self.days[d].state is not DayState.WHOLE]
        if lacking:
            listed = "; ".join(f"{d}: {self.days[d].reason()}" for d in lacking)
            return Item(name, State.HELD, f"judged on days that are not whole: {listed}")
        again = "its model is trained anew" if not self.selection.restate else "--restate"
        return self._asked(name, there=there, why=again)


def to_build(items: Mapping[str, Iterable[Item]]) -> dict[str, tuple[str, ...]]:
    """The partitions that a plan launches, by stage; stages without any are left out."""
    found = {
        stage: tuple(item.partition for item in listed if item.state in BUILT_BY_IT)
        for stage, listed in items.items()
    }
    return {stage: names for stage, names in found.items() if names}


def counts(items: Iterable[Item]) -> dict[str, int]:
    """How many items there are of each state."""
    found = {state.value: 0 for state in State}
    for item in items:
        found[item.state.value] += 1
    return found
