"""A trace replayed under a policy, event by event: what was allocated, and who waited how long.

When a job ends, those that wait are tried in the order of their lanes and arrival; one that does
not fit lets those behind it pass. Of jobs that ask for the same, in the same lane, the first one
answers for the others, so that a queue of thousands costs as much as its few kinds. Nothing is
preempted or moved.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from statistics import fmean
from typing import Any

from platform_assets.domain.gpu_placing import (
    Placement,
    Policy,
    Request,
    Reserve,
    never_fits,
)
from platform_assets.domain.gpu_pool import Pool
from platform_assets.domain.gpu_shapes import Shape
from platform_assets.domain.gpu_trace import Trace, TraceJob, requests_of
from platform_assets.domain.lanes import Lane

_RANK = {lane: n for n, lane in enumerate(Lane)}


@dataclass(frozen=True)
class Started:
    """A job that was placed.

    Attributes:
        at, ends: seconds from the start; `ends` is None where it stays for good.
    """

    job: TraceJob
    placed: Placement
    at: float
    ends: float | None

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return self.at - self.job.arrival


@dataclass(frozen=True)
class Outcome:
    """What came of a trace under one policy.

    Attributes:
        started: in the order of their start.
        waiting: names of the jobs that were not placed by the end.
        never: why, by job, of those that fit in no case.
        curve: seconds and GPUs allocated from then on.
        gpus: of all nodes.
        idle_reason: why the first of those that still wait does.
        fragmented: GPUs that are expected to be unusable, at the end, by the measure of FGD.
    """

    policy: str
    started: tuple[Started, ...]
    waiting: tuple[str, ...]
    never: Mapping[str, str]
    curve: tuple[tuple[float, int], ...]
    gpus: int
    idle_reason: str
    fragmented: float

    @property
    def allocated(self) -> float:
        """Share of the GPUs that is allocated at the end."""
        return self.curve[-1][1] / self.gpus if self.gpus else 0.0

    @property
    def most(self) -> float:
        """The largest share that was allocated."""
        return max(gpus for _, gpus in self.curve) / self.gpus if self.gpus else 0.0

    def mean(self, until: float | None = None) -> float:
        """Share of the GPUs that was allocated, over the time until the last event."""
        end = self.curve[-1][0] if until is None else until
        if not self.gpus or end <= 0:
            return self.allocated
        times = [*(at for at, _ in self.curve), end]
        held = sum(
            gpus * max(0.0, min(later, end) - min(at, end))
            for (at, gpus), later in zip(self.curve, times[1:], strict=True)
        )
        return held / (end * self.gpus)

    def waits(self, lane: Lane | None = None) -> list[float]:
        """Seconds that placed jobs have waited, in order."""
        return sorted(s.waited for s in self.started if lane in (None, s.job.request.lane))

    def document(self) -> dict[str, Any]:
        """The figures, as JSON."""
        waits = self.waits()
        lanes = {lane.value: self.waits(lane) for lane in Lane}
        return {
            "policy": self.policy,
            "jobs": len(self.started) + len(self.waiting) + len(self.never),
            "placed": len(self.started),
            "waiting": len(self.waiting),
            "never": dict(self.never),
            "gpus": self.gpus,
            "allocated_at_end": round(self.allocated, 4),
            "allocated_most": round(self.most, 4),
            "allocated_mean": round(self.mean(), 4),
            "fragmented_at_end": round(self.fragmented, 2),
            "first_waiting": self.idle_reason,
            "ends_at": self.curve[-1][0],
            "wait_seconds": spread(waits),
            "wait_seconds_by_lane": {lane: spread(found) for lane, found in lanes.items() if found},
            "shapes": dict(sorted(Counter(str(s.placed.shape) for s in self.started).items())),
        }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, 95th percentile and greatest of values in order."""
    if not values:
        return {"mean": None, "median": None, "p95": None, "most": None}
    last = len(values) - 1
    return {
        "mean": round(fmean(values), 1),
        "median": round(values[last // 2], 1),
        "p95": round(values[round(last * 0.95)], 1),
        "most": round(values[-1], 1),
    }


Signature = tuple[Lane, tuple[Shape, ...], str, bool]


@dataclass
class _Replay:
    trace: Trace
    policy: Policy
    pool: Pool = field(init=False)
    running: list[tuple[float, int, Started]] = field(default_factory=list)
    waiting: dict[Signature, deque[tuple[float, int, TraceJob]]] = field(default_factory=dict)
    started: list[Started] = field(default_factory=list)
    curve: list[tuple[float, int]] = field(default_factory=list)
    never: dict[str, str] = field(default_factory=dict)
    daily: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        self.pool = Pool(self.trace.nodes)
        self.curve.append((0.0, self.pool.total - self.pool.free))

    def run(self) -> Outcome:
        for number, job in enumerate(self.trace.jobs):
            self._until(job.arrival)
            self._arrive(number, job)
        self._until(None)
        waiting = sorted(
            (number, job.name) for queue in self.waiting.values() for _, number, job in queue
        )
        fgd = Policy("fgd", requests_of(self.trace.jobs)).workload
        return Outcome(
            self.policy.name,
            tuple(self.started),
            tuple(name for _, name in waiting),
            self.never,
            tuple(self.curve),
            self.pool.total,
            self.reason if waiting else "",
            fgd.of_pool(self.pool),
        )

    def _arrive(self, number: int, job: TraceJob) -> None:
        why = never_fits(self.pool, job.request, self.policy.shapes(job.request))
        if why:
            self.never[job.name] = why
            return
        key = _signature(job.request)
        queue = self.waiting.get(key)
        if not queue and self._try(job, job.arrival):
            return
        self.waiting.setdefault(key, deque()).append((job.arrival, number, job))

    def _until(self, time: float | None) -> None:
        """End what ends by then, and let those that wait take its place."""
        while self.running and (time is None or self.running[0][0] <= time):
            now = self.running[0][0]
            while self.running and self.running[0][0] == now:
                _, _, ended = heappop(self.running)
                self._change(ended, -ended.placed.shape.gpus, now)
            self._drain(now)

    def _drain(self, now: float) -> None:
        """Try those that wait; which of a kind is first says whether any of it fits."""
        heads = [
            (_RANK[key[0]], queue[0][0], queue[0][1], key)
            for key, queue in self.waiting.items()
            if queue
        ]
        heapify(heads)
        while heads and self.pool.free:
            _, _, _, key = heappop(heads)
            queue = self.waiting[key]
            if not self._try(queue[0][2], now):
                continue
            queue.popleft()
            if queue:
                heappush(heads, (_RANK[key[0]], queue[0][0], queue[0][1], key))

    def _try(self, job: TraceJob, now: float) -> bool:
        placed = self.policy.place(self.pool, job.request, self.daily)
        if not isinstance(placed, Placement):
            self.reason = f"{job.name}: {placed.reason}"
            return False
        ends = None
        if job.duration is not None:
            ends = now + job.duration / job.request.speed(placed.shape)
        start = Started(job, placed, now, ends)
        self._change(start, placed.shape.gpus, now)
        self.started.append(start)
        if ends is not None:
            heappush(self.running, (ends, len(self.started), start))
        return True

    def _change(self, one: Started, gpus: int, now: float) -> None:
        self.pool.change(one.placed.ranks, gpus)
        if one.job.request.lane is Lane.DAILY:
            self.daily += gpus * one.placed.shape.nodes
        held = self.pool.total - self.pool.free
        if self.curve[-1][0] == now:
            self.curve[-1] = (now, held)
        else:
            self.curve.append((now, held))


def _signature(request: Request) -> Signature:
    return (request.lane, request.shapes, request.model, request.only_model)


def simulate(
    trace: Trace, policy: str, *, seed: int = 0, reserve: Reserve | None = None
) -> Outcome:
    """Replay a trace.

    Args:
        policy: one of POLICIES; those that look at fragmentation take the popularity of tasks
            from the trace.
        seed: of the policy `random`.
        reserve: what `ours` keeps for the daily lane.

    Raises:
        UsageError: there is no policy of that name.
    """
    chosen = Policy(policy, requests_of(trace.jobs), seed, reserve)
    return _Replay(trace, chosen).run()
