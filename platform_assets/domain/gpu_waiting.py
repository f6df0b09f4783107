"""Why a job waits for GPUs, in one sentence: what is idle, what leaves now, and what later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median
from typing import Any, Literal

from platform_assets.domain.gpu_inventory import Holding, Inventory
from platform_assets.domain.gpu_placing import (
    Placement,
    Policy,
    Request,
    Waits,
    asked,
    idle,
    never_fits,
)
from platform_assets.domain.gpu_shapes import GpusSpec, Shape

ENOUGH_RUNS = 3
"""Runs in a shape whose median duration is believed rather than the estimate."""


@dataclass(frozen=True)
class Leaves:
    """A shape, and when it could start.

    Attributes:
        longer: how many times as long as in the shape that was asked for.
        nodes: where it fits now; empty where it does not.
        at: when it is expected to fit; None where it fits now or nobody knows.
        after: who has to end for it, the last one.
    """

    shape: Shape
    longer: float
    nodes: tuple[str, ...] = ()
    at: datetime | None = None
    after: str = ""


@dataclass(frozen=True)
class Waiting:
    """What is said of a job.

    Attributes:
        state: `fits` now, `waits`, or `never` fits.
        now: other shapes that would leave now, the fastest first.
        later: the shape that was asked for, once others have ended.
    """

    state: Literal["fits", "waits", "never"]
    sentence: str
    now: tuple[Leaves, ...] = ()
    later: Leaves | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""

        def one(leaves: Leaves) -> dict[str, Any]:
            return {
                "shape": str(leaves.shape),
                "times_as_long": round(leaves.longer, 2),
                "nodes": list(leaves.nodes),
                "at": leaves.at.isoformat() if leaves.at else None,
                "after": leaves.after or None,
            }

        return {
            "state": self.state,
            "sentence": self.sentence,
            "leaves_now": [one(leaves) for leaves in self.now],
            "later": one(self.later) if self.later else None,
        }


def explain(inventory: Inventory, request: Request, policy: Policy, now: datetime) -> Waiting:
    """Why a job waits.

    Args:
        request: its first shape is the one that it asked for, the others are what it could use.
        policy: that places.
    """
    pool = inventory.pool()
    wanted = replace(request, shapes=request.shapes[:1], speeds=())
    (shape,) = wanted.shapes
    place = policy.place(pool, wanted, inventory.daily_holds)
    if isinstance(place, Placement):
        where = ", ".join(place.nodes)
        sentence = f"{idle(pool, request.required)}; {shape} fits now on {where}"
        return Waiting("fits", sentence, later=Leaves(shape, 1.0, place.nodes))
    head = _head(place, idle(pool, request.required), asked(wanted))
    others = _leave_now(inventory, request, policy)
    never = never_fits(pool, wanted)
    if never:
        told = [f"it never starts in {shape}: {never}", *map(_now_words, others)]
        state: Literal["waits", "never"] = "waits" if others else "never"
        return Waiting(state, "; ".join([head, *told]), others)
    later = forecast(inventory, wanted, policy)
    told = [*map(_now_words, others), _later_words(later, inventory, now)]
    if not others and len(request.shapes) > 1:
        told.insert(0, f"none of {', '.join(map(str, request.shapes[1:]))} fits now either")
    return Waiting("waits", "; ".join([head, *told]), others, later)


def _head(place: Waits, free: str, wanted: str) -> str:
    return place.reason if place.reserved else f"{free}; asked for {wanted}"


def _leave_now(inventory: Inventory, request: Request, policy: Policy) -> tuple[Leaves, ...]:
    found = []
    for shape in request.shapes[1:]:
        alone = replace(request, shapes=(shape,), speeds=())
        place = policy.place(inventory.pool(), alone, inventory.daily_holds)
        if isinstance(place, Placement):
            found.append(Leaves(shape, 1 / request.speed(shape), place.nodes))
    return tuple(sorted(found, key=lambda leaves: leaves.longer))


def forecast(inventory: Inventory, request: Request, policy: Policy) -> Leaves:
    """When a job would fit, if nobody else came: those that hold GPUs end as they are expected to.

    Of those whose end nobody knows none is taken for ended.
    """
    (shape,) = request.shapes
    known = sorted(
        (h for h in inventory.holdings if h.ends is not None), key=lambda h: (h.ends, h.who)
    )
    for number, last in enumerate(known, 1):
        later = inventory.after(known[:number])
        place = policy.place(later.pool(), request, later.daily_holds)
        if isinstance(place, Placement):
            return Leaves(shape, 1.0, place.nodes, last.ends, last.who)
    return Leaves(shape, 1.0)


def _now_words(leaves: Leaves) -> str:
    factor = leaves.longer
    if factor >= 1.05:
        return f"{leaves.shape} leaves now, ~{factor:.1f} x longer"
    if factor <= 0.95:
        return f"{leaves.shape} leaves now, and takes ~{factor:.1f} x as long"
    return f"{leaves.shape} leaves now, and takes as long"


def _later_words(later: Leaves, inventory: Inventory, now: datetime) -> str:
    if later.at is not None:
        minutes = max(0.0, (later.at - now).total_seconds() / 60)
        return f"{later.shape} {about(minutes)}, when {later.after} ends"
    unknown = [h for h in inventory.holdings if h.ends is None]
    if unknown:
        return f"{later.shape} when enough of {_some(unknown)} end, nobody knows when"
    return f"{later.shape} does not fit even when all that is held ends"


def _some(holdings: Sequence[Holding]) -> str:
    names = [h.who for h in holdings[:3]]
    more = len(holdings) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def about(minutes: float) -> str:
    """A time to wait, as a person says it."""
    if minutes < 1:
        return "in less than a minute"
    if minutes < 100:
        return f"in about {minutes:.0f} min"
    if minutes < 48 * 60:
        return f"in about {minutes / 60:.0f} h"
    return f"in about {minutes / 1440:.0f} days"


def speeds(
    gpus: GpusSpec, shapes: Sequence[Shape], seconds: Mapping[Shape, Sequence[float]]
) -> tuple[float, ...]:
    """The speeds of shapes: as runs have shown them, else as the catalog estimates.

    Args:
        seconds: durations of runs by shape.

    With some shapes measured, the others are estimated from the measured one that is nearest in
    GPUs.
    """
    shown = {
        shape: 1 / median(found)
        for shape, found in seconds.items()
        if len(found) >= ENOUGH_RUNS and median(found) > 0
    }

    def one(shape: Shape) -> float:
        if shape in shown or not shown:
            return shown.get(shape, gpus.speed(shape))
        near = min(shown, key=lambda other: (abs(other.total - shape.total), other))
        return shown[near] * gpus.speed(shape) / gpus.speed(near)

    return tuple(map(one, shapes))
