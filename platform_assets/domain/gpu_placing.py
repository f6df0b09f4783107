"""Which nodes a job is put on, and in which shape, by several policies; each says why.

`random`, `first-fit`, `best-fit` and `fgd` know one shape a job, the preferred one. `fgd-any` is
FGD that tries the next shape where one does not fit. `ours` weighs all shapes against each other
and keeps a reserve.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from platform_assets.domain.errors import UsageError
from platform_assets.domain.fragmentation import Workload, workload_of
from platform_assets.domain.gpu_pool import Kind, Pool
from platform_assets.domain.gpu_shapes import Shape, speed_of
from platform_assets.domain.lanes import Lane

POLICIES = ("random", "first-fit", "best-fit", "fgd", "fgd-any", "ours")


@dataclass(frozen=True)
class Request:
    """What a job asks for.

    Attributes:
        shapes: that it can use, the preferred one first.
        model: of GPUs; required with `only_model`, else preferred.
        speeds: of the shapes, in any unit; by default as `speed_of` estimates.
    """

    name: str
    shapes: tuple[Shape, ...]
    lane: Lane = Lane.ADHOC
    model: str = ""
    only_model: bool = False
    speeds: tuple[float, ...] = ()

    @property
    def required(self) -> str:
        """The model that it must have."""
        return self.model if self.only_model else ""

    def speed(self, shape: Shape) -> float:
        """Of a shape, 1 for the preferred one."""
        if not self.speeds:
            return speed_of(shape) / speed_of(self.shapes[0])
        return self.speeds[self.shapes.index(shape)] / self.speeds[0]


@dataclass(frozen=True)
class Reserve:
    """What has to stay free for the next training of the daily lane.

    Once jobs of that lane hold as many GPUs, it is in use and nothing is kept.
    """

    shape: Shape

    def kept(self, daily_holds: int) -> Shape | None:
        """What is to be kept, given what the daily lane holds."""
        return self.shape if daily_holds < self.shape.total else None


@dataclass(frozen=True)
class Placement:
    """Where a job goes.

    Attributes:
        ranks: the nodes' places in the pool.
        increase: of the expected fragmentation, in GPUs; None where the policy does not look.
    """

    shape: Shape
    ranks: tuple[int, ...]
    nodes: tuple[str, ...]
    reason: str
    increase: float | None = None


@dataclass(frozen=True)
class Waits:
    """Why a job cannot be placed now.

    Attributes:
        never: whether it would not fit if every GPU were free.
        reserved: whether only the reserve is in its way.
    """

    reason: str
    never: bool = False
    reserved: bool = False


Decision = Placement | Waits
Key = tuple[float, ...]


class Policy:
    """One way to place; `place` changes nothing.

    Args:
        name: one of POLICIES.
        requests: what is expected, for the policies that look at fragmentation.
        seed: of `random`.
        reserve: kept by `ours` alone.

    Raises:
        UsageError: there is no policy of that name.
    """

    def __init__(
        self,
        name: str,
        requests: Sequence[Request] = (),
        seed: int = 0,
        reserve: Reserve | None = None,
    ) -> None:
        if name not in POLICIES:
            raise UsageError(f"{name!r} is no policy; allowed are {', '.join(POLICIES)}")
        self.name, self.reserve = name, reserve
        self._random = random.Random(seed)  # noqa: S311 - a draw, no secret
        self.workload: Workload = workload_of(
            (least_gpus(r) if name == "ours" else r.shapes[0].gpus, r.required) for r in requests
        )

    def place(self, pool: Pool, request: Request, daily_holds: int = 0) -> Decision:
        """Where the job goes, or why it waits.

        Args:
            daily_holds: GPUs that jobs of the daily lane hold.
        """
        shapes = self.shapes(request)
        kept = self.kept(request, daily_holds)
        found: list[Placement] = []
        for shape in shapes:
            placed = self._in_shape(pool, request, shape, kept)
            if placed is not None:
                found.append(placed)
                if self.name != "ours":
                    break
        if found:
            return min(found, key=lambda p: (self.cost(request, p), shapes.index(p.shape)))
        if kept and any(pool.count(s.gpus, request.required) >= s.nodes for s in shapes):
            reason = f"{idle(pool)}; what would fit is kept for the daily lane ({kept})"
            return Waits(reason, reserved=True)
        return Waits(f"{idle(pool, request.required)}; asked for {asked(request, shapes)}")

    def kept(self, request: Request, daily_holds: int) -> Shape | None:
        """What the job has to leave free; None if nothing is kept from it."""
        if self.name != "ours" or self.reserve is None or request.lane is Lane.DAILY:
            return None
        return self.reserve.kept(daily_holds)

    def shapes(self, request: Request) -> tuple[Shape, ...]:
        """Those of a job that the policy looks at."""
        return request.shapes if self.name in ("fgd-any", "ours") else request.shapes[:1]

    def cost(self, request: Request, placed: Placement) -> float:
        """What a placement costs in GPUs: what it makes unusable, and the speed that it gives up.

        A shape that is half as fast as the preferred one gives away half of that one's GPUs.
        """
        lost = (1 - request.speed(placed.shape)) * request.shapes[0].total
        return round((placed.increase or 0.0) + lost, 9)

    def _in_shape(
        self, pool: Pool, request: Request, shape: Shape, kept: Shape | None
    ) -> Placement | None:
        fitting = list(pool.fitting(shape.gpus, request.required))
        if sum(len(ranks) for _, ranks in fitting) < shape.nodes:
            return None
        if self.name == "random":
            everywhere = sorted(rank for _, ranks in fitting for rank in ranks)
            ranks = tuple(sorted(self._random.sample(everywhere, shape.nodes)))
            return self._placement(pool, shape, ranks, "drawn among all nodes where it fits")
        if self.name == "first-fit":
            ranks = tuple(islice(merge(*(ranks for _, ranks in fitting)), shape.nodes))
            return self._placement(pool, shape, ranks, "the first nodes of the list that have room")
        if self.name == "best-fit":
            ranks = _best(pool, fitting, shape, lambda kind: (kind.free - shape.gpus,))
            return self._placement(pool, shape, ranks, "the nodes that it fills best")
        return self._least_fragmented(pool, request, shape, fitting, kept)

    def _least_fragmented(
        self,
        pool: Pool,
        request: Request,
        shape: Shape,
        fitting: list[tuple[Kind, list[int]]],
        kept: Shape | None,
    ) -> Placement | None:
        def key(kind: Kind) -> Key:
            grows = round(self.workload.increase(kind.free, shape.gpus, kind.model), 9)
            wanted = float(bool(request.model) and kind.model != request.model)
            # Of what leaves the same fragmentation the fullest node: the paper leaves it open.
            return (wanted, grows, kind.free)

        ranks = _best(pool, fitting, shape, key, kept)
        if len(ranks) < shape.nodes:
            return None
        kinds = [(pool.free_on(rank), pool.nodes[rank].model) for rank in ranks]
        grows = sum(self.workload.increase(free, shape.gpus, model) for free, model in kinds)
        left = ", ".join(f"{free} to {free - shape.gpus}" for free, _ in kinds[:4])
        more = ", …" if len(kinds) > 4 else ""
        reason = f"expected fragmentation changes by {grows:+.2f} GPUs (free: {left}{more})"
        return self._placement(pool, shape, ranks, reason, grows)

    def _placement(
        self,
        pool: Pool,
        shape: Shape,
        ranks: tuple[int, ...],
        why: str,
        grows: float | None = None,
    ) -> Placement:
        return Placement(shape, ranks, tuple(map(pool.name, ranks)), why, grows)


def _best(
    pool: Pool,
    fitting: list[tuple[Kind, list[int]]],
    shape: Shape,
    key: Callable[[Kind], Key],
    kept: Shape | None = None,
) -> tuple[int, ...]:
    """So many nodes as the shape has, those with the least key; fewer where the reserve forbids.

    What a node adds to the fragmentation does not depend on the others of the gang, so the least
    ones together are the least. Nodes of the reserve are taken only as far as enough of them stay.
    """
    spare = pool.count(kept.gpus) - kept.nodes if kept else 0
    found: list[int] = []
    for rank in _in_order(fitting, key):
        free = pool.free_on(rank)
        if kept and free >= kept.gpus > free - shape.gpus:
            if spare <= 0:
                continue
            spare -= 1
        found.append(rank)
        if len(found) == shape.nodes:
            break
    return tuple(found)


def _in_order(fitting: list[tuple[Kind, list[int]]], key: Callable[[Kind], Key]) -> Iterator[int]:
    """Nodes by key, those with the same key by their place in the list."""
    by_key: dict[Key, list[list[int]]] = {}
    for kind, ranks in fitting:
        by_key.setdefault(key(kind), []).append(ranks)
    for one in sorted(by_key):
        yield from merge(*by_key[one])


def reserved_nodes(pool: Pool, kept: Shape, placed: Placement | None) -> tuple[str, ...]:
    """The nodes on which a reserve lies once a job is placed: the fullest that have room for it.

    Fewer than it needs where there are fewer.
    """
    taken = dict.fromkeys(placed.ranks, placed.shape.gpus) if placed else {}
    left = [
        (pool.free_on(rank) - taken.get(rank, 0), rank)
        for rank, node in enumerate(pool.nodes)
        if not node.out
    ]
    room = sorted((free, rank) for free, rank in left if free >= kept.gpus)
    return tuple(pool.name(rank) for _, rank in room[: kept.nodes])


def least_gpus(request: Request) -> int:
    """GPUs that a node must have free to be of any use to a job."""
    return min(shape.gpus for shape in request.shapes)


def never_fits(pool: Pool, request: Request, shapes: Sequence[Shape] | None = None) -> str:
    """Why no shape, of all or of these, would fit if every GPU were free; empty if one would."""
    usable = [node for node in pool.nodes if not node.out]
    if not usable:
        return "there is no node with GPUs that may be used"
    for shape in shapes or request.shapes:
        there = [
            node
            for node in usable
            if node.total >= shape.gpus and request.required in ("", node.model)
        ]
        if len(there) >= shape.nodes:
            return ""
    of = f" of model {request.required}" if request.required else ""
    largest = max(
        (node.total for node in usable if request.required in ("", node.model)), default=0
    )
    if not largest:
        return f"no node has GPUs{of}"
    return (
        f"there is no room for {' or '.join(map(str, shapes or request.shapes))}{of} even when all "
        f"is idle: the largest of {len(usable)} nodes has {largest} GPUs"
    )


def idle(pool: Pool, model: str = "") -> str:
    """How many GPUs are free, and how many of them together."""
    kinds = [(k.free, len(r)) for k, r in pool.kinds.items() if not model or k.model == model]
    free, most = sum(f * n for f, n in kinds), max((f for f, _ in kinds), default=0)
    of = f" of model {model}" if model else ""
    if not free:
        return f"no GPU{of} is idle"
    return f"{free} GPU{'s' if free > 1 else ''}{of} idle, at most {most} on any node"


def asked(request: Request, shapes: Sequence[Shape] | None = None) -> str:
    """What was asked for, in words."""

    def one(shape: Shape) -> str:
        together = f"{shape.gpus} together" if shape.gpus > 1 else "1"
        return together if shape.nodes == 1 else f"{together} on each of {shape.nodes} nodes"

    return " or ".join(map(one, shapes or request.shapes))
