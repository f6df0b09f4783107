"""The GPUs of a cluster: nodes that are alike in what they have free are looked at together."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from platform_assets.domain.errors import UsageError


@dataclass(frozen=True)
class GpuNode:
    """One node.

    Attributes:
        model: of its GPUs; empty where nobody says.
        total, free: whole GPUs.
        out: why nothing may be placed on it; empty if it may.
    """

    name: str
    model: str
    total: int
    free: int
    out: str = ""


class Kind(NamedTuple):
    """What makes two nodes equal for a placement."""

    free: int
    total: int
    model: str


class Pool:
    """Nodes by kind; within a kind by their place in the list, so that equal input places equally.

    A placement looks at the kinds, of which there are few, and not at each node.
    """

    def __init__(self, nodes: Sequence[GpuNode]) -> None:
        self.nodes = tuple(nodes)
        self.rank = {node.name: n for n, node in enumerate(self.nodes)}
        if len(self.rank) != len(self.nodes):
            raise UsageError("two nodes have one name; names of nodes must differ")
        self._free = [node.free for node in self.nodes]
        self.kinds: dict[Kind, list[int]] = {}
        for n, node in enumerate(self.nodes):
            if not node.out:
                self.kinds.setdefault(Kind(node.free, node.total, node.model), []).append(n)
        usable = [node for node in self.nodes if not node.out]
        self.total = sum(node.total for node in usable)
        self.free = sum(node.free for node in usable)

    def name(self, rank: int) -> str:
        """Of the node at a place."""
        return self.nodes[rank].name

    def free_on(self, rank: int) -> int:
        """GPUs that are free on the node at a place."""
        return self._free[rank]

    def fitting(self, gpus: int, model: str = "") -> Iterator[tuple[Kind, list[int]]]:
        """Kinds with so many free on one node, of the model if one is named."""
        for kind, ranks in self.kinds.items():
            if kind.free >= gpus and (not model or kind.model == model):
                yield kind, ranks

    def count(self, gpus: int, model: str = "") -> int:
        """Nodes with so many free."""
        return sum(len(ranks) for _, ranks in self.fitting(gpus, model))

    def change(self, ranks: Iterable[int], gpus: int) -> None:
        """Take so many GPUs of each node; less than nothing gives them back.

        Raises:
            ValueError: a node has not so many; nothing was changed.
        """
        found = tuple(ranks)
        for rank in found:
            left = self._free[rank] - gpus
            if not 0 <= left <= self.nodes[rank].total or self.nodes[rank].out:
                raise ValueError(f"{self.name(rank)} would have {left} GPUs free")
        for rank in found:
            node = self.nodes[rank]
            before = Kind(self._free[rank], node.total, node.model)
            self._free[rank] -= gpus
            self._move(rank, before, before._replace(free=self._free[rank]))
            self.free -= gpus

    def _move(self, rank: int, before: Kind, after: Kind) -> None:
        here = self.kinds[before]
        del here[bisect_left(here, rank)]
        if not here:
            del self.kinds[before]
        insort(self.kinds.setdefault(after, []), rank)
