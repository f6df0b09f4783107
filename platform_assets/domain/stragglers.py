"""Which rank of a training keeps the others waiting: decided from step times alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from pydantic import Field

from platform_assets.domain.source_spec import Frozen

PARTS = 4
"""A rank has to be slow in each of so many parts of the while: one hiccup is no straggler."""

LEAST_SECONDS = 1e-4
"""Steps that are shorter count as so long: what a clock shows of them is noise."""


class StragglerTerms(Frozen):
    """When a rank is slow, and what is done about it.

    Attributes:
        ratio: so many times as long as the others it takes for its own work.
        steps, seconds: so long, by both: the last steps that make up at least so many seconds.
        action: `alert` names it; `replace` also ends it, and the training goes on from a
            checkpoint with another in its place.
        most_replaced: how many are replaced in one attempt; later ones are only named.
    """

    ratio: float = Field(default=1.5, gt=1.0)
    steps: int = Field(default=20, ge=PARTS)
    seconds: float = Field(default=10.0, ge=0.0)
    action: Literal["alert", "replace"] = "alert"
    most_replaced: int = Field(default=2, ge=0)


@dataclass(frozen=True)
class Place:
    """Where a rank runs.

    Attributes:
        rank: its number among the others, from 0.
        world: how many there are.
        host, pod, node: names; the last two are empty outside of Kubernetes.
        pid: of its process there.
    """

    rank: int
    world: int
    host: str
    pod: str = ""
    node: str = ""
    pid: int = 0

    def __str__(self) -> str:
        where = [f"host {self.host}", f"process {self.pid}"]
        where += [f"pod {self.pod}"] if self.pod else []
        where += [f"node {self.node}"] if self.node else []
        return f"rank {self.rank} of {self.world} ({', '.join(where)})"


@dataclass(frozen=True)
class Straggler:
    """A rank that the others wait for.

    Attributes:
        place: which, and where.
        ratio: its time over the median of the others', in the part where it was least slow.
        steps, seconds: of the while that was looked at, by its own clock.
        reason: one sentence for a person.
    """

    place: Place
    ratio: float
    steps: int
    seconds: float
    reason: str


def judge(
    times: Mapping[int, Sequence[float]], places: Mapping[int, Place], terms: StragglerTerms
) -> Straggler | None:
    """The rank that is slow against its peers by the terms, the slowest if there are several.

    Args:
        times: seconds of each rank's own work, step by step, the same steps in the same order;
            what it waited for the others is not in them.
        places: of the same ranks.
        terms: those of the catalog.

    Returns:
        None where no rank is, where there is one rank only, and as long as the stated while is
        not over.
    """
    length = min((len(found) for found in times.values()), default=0)
    if len(times) < 2 or length < terms.steps:
        return None
    aligned = {rank: list(found[:length]) for rank, found in times.items()}
    found = [
        straggler
        for rank in sorted(aligned)
        if (straggler := _judged(rank, aligned, places[rank], terms)) is not None
    ]
    return max(found, key=lambda s: s.ratio, default=None)


def _judged(
    rank: int, times: Mapping[int, Sequence[float]], place: Place, terms: StragglerTerms
) -> Straggler | None:
    own = times[rank]
    steps = _while(own, terms)
    if steps is None:
        return None
    size = steps / PARTS
    edges = [len(own) - steps + round(size * n) for n in range(PARTS + 1)]
    least = float("inf")
    for start, end in pairwise(edges):
        peers = median(_sum(times[other], start, end) for other in times if other != rank)
        least = min(least, _sum(own, start, end) / peers)
    if least < terms.ratio:
        return None
    seconds = sum(own[-steps:])
    others = median(sum(times[other][-steps:]) for other in times if other != rank)
    reason = (
        f"{place} took {seconds:.1f} s for its part of the last {steps} steps, the others "
        f"{others:.1f} s: {least:.1f} times as long or more in every quarter of them, allowed is "
        f"less than {terms.ratio:g} times for {terms.steps} steps and {terms.seconds:g} s"
    )
    return Straggler(place, least, steps, seconds, reason)


def _while(own: Sequence[float], terms: StragglerTerms) -> int | None:
    """How many of the last steps make up the stated while; None if they do not yet."""
    total = 0.0
    for steps, seconds in enumerate(reversed(own), 1):
        total += seconds
        if steps >= terms.steps and total >= terms.seconds:
            return steps
    return None


def _sum(times: Sequence[float], start: int, end: int) -> float:
    return max(sum(times[start:end]), LEAST_SECONDS * (end - start))
