"""How much of the free GPUs the expected jobs cannot use.

The measure of Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with
Fragmentation Gradient Descent" (USENIX ATC '23), for whole GPUs. A task of the workload M is of
type m with popularity p_m, and

    F_n(m) = the free GPUs of node n that a task of type m cannot take: all of them where it does
             not fit (too few are free, or they are of a model that it does not accept), none
             where it does,
    F_n(M) = sum over m of p_m * F_n(m),

in GPUs. F of a cluster is the sum over its nodes. Of a placement counts by how much it changes F
(the gradient); only the nodes that it takes from change. Shares of one GPU, which the paper has
too, are not here: what is placed are whole ones.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from platform_assets.domain.gpu_pool import Pool


@dataclass(frozen=True)
class Demand:
    """One type of task.

    Attributes:
        gpus: that it needs on one node.
        share: of the tasks that are expected, 0 to 1.
        model: that it must have; empty for any.
    """

    gpus: int
    share: float
    model: str = ""


@dataclass
class Workload:
    """The tasks that are expected; the measures of nodes are kept as they are found."""

    demands: tuple[Demand, ...]
    _known: dict[tuple[int, str], float] = field(default_factory=dict, repr=False)

    def fragmented(self, free: int, model: str = "") -> float:
        """F_n(M): GPUs of a node, of those that are free, that are expected to be unusable."""
        key = (free, model)
        if key not in self._known:
            self._known[key] = sum(d.share * unusable(free, model, d) for d in self.demands)
        return self._known[key]

    def increase(self, free: int, taken: int, model: str = "") -> float:
        """By how much F grows if so many are taken of a node; less than 0 if it falls."""
        return self.fragmented(free - taken, model) - self.fragmented(free, model)

    def of_pool(self, pool: Pool) -> float:
        """F of a cluster."""
        return sum(len(ranks) * self.fragmented(k.free, k.model) for k, ranks in pool.kinds.items())


def unusable(free: int, model: str, demand: Demand) -> int:
    """F_n(m)."""
    fits = demand.gpus <= free and demand.model in ("", model)
    return 0 if fits else free


def workload_of(tasks: Iterable[tuple[int, str]] | Sequence[tuple[int, str]]) -> Workload:
    """The popularity of tasks as they were seen: GPUs on one node and model that they must have."""
    seen = Counter(tasks)
    whole = sum(seen.values())
    return Workload(
        tuple(Demand(gpus, n / whole, model) for (gpus, model), n in sorted(seen.items()))
    )
