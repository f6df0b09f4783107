"""A placement as a pod says it: plain requests and affinities, for the cluster's own scheduler."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from platform_assets.domain.cluster_settings import quantity
from platform_assets.domain.errors import RefusedError

GPU = "nvidia.com/gpu"
MODEL_LABEL = "nvidia.com/gpu.product"
HOST_LABEL = "kubernetes.io/hostname"
HOST_WEIGHT, MODEL_WEIGHT = 100, 50
"""Of preferred affinities: where the planner looked, its node already has the model if any has."""


@dataclass(frozen=True)
class GpuAsk:
    """What one pod asks for.

    Attributes:
        gpus: whole ones, as request and limit.
        model: label of the nodes; required with `only_model`, else preferred.
        hosts: nodes that the planner chose; the scheduler may take others.
        avoid: nodes that it may not take, for they are kept for the daily lane.
    """

    gpus: int
    model: str = ""
    only_model: bool = False
    hosts: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()

    def affinity(self) -> dict[str, Any]:
        """The node affinity; empty where there is nothing to say."""
        preferred = []
        if self.hosts:
            preferred.append(_preferred(HOST_WEIGHT, HOST_LABEL, self.hosts))
        if self.model and not self.only_model:
            preferred.append(_preferred(MODEL_WEIGHT, MODEL_LABEL, (self.model,)))
        found: dict[str, Any] = {}
        if preferred:
            found["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
        required = []
        if self.only_model:
            required.append(_in(MODEL_LABEL, (self.model,)))
        if self.avoid:
            required.append({**_in(HOST_LABEL, self.avoid), "operator": "NotIn"})
        if required:
            terms = [{"matchExpressions": required}]
            found["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
        return found


def with_gpus(spec: Mapping[str, Any], ask: GpuAsk, what: str) -> dict[str, Any]:
    """A pod's spec with what it asks for in its first container, beside what is there already.

    Raises:
        RefusedError: somebody else put GPUs into it; two planners would take two places.
    """
    containers = [dict(container) for container in spec["containers"]]
    every = (*containers, *(spec.get("initContainers") or ()))
    other = [
        f"container {container.get('name')} asks for {amount} of {GPU}"
        for container in every
        for kind in ("requests", "limits")
        for amount in [((container.get("resources") or {}).get(kind) or {}).get(GPU)]
        if amount is not None and quantity(str(amount)) != 0
    ]
    if other:
        raise RefusedError(
            f"{what} is refused, nothing was created: {'; '.join(sorted(set(other)))}, and its "
            "asset names shapes in the catalog (model.gpus); keep one of the two"
        )
    first = containers[0]
    resources = dict(first.get("resources") or {})
    for kind in ("requests", "limits"):
        resources[kind] = {**(resources.get(kind) or {}), GPU: str(ask.gpus)}
    containers[0] = {**first, "resources": resources}
    found = {**spec, "containers": containers}
    own = ask.affinity()
    if own:
        affinity = dict(spec.get("affinity") or {})
        affinity["nodeAffinity"] = _merged(affinity.get("nodeAffinity") or {}, own)
        found["affinity"] = affinity
    return found


def _merged(there: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both: what is preferred is preferred beside it, what is required is required as well."""
    soft = "preferredDuringSchedulingIgnoredDuringExecution"
    hard = "requiredDuringSchedulingIgnoredDuringExecution"
    found = {**there}
    if soft in own:
        found[soft] = [*(there.get(soft) or ()), *own[soft]]
    if hard in own:
        (mine,) = own[hard]["nodeSelectorTerms"]
        # The terms are alternatives, so each has to have it.
        terms = (there.get(hard) or {}).get("nodeSelectorTerms") or [{}]
        both = [
            {
                **term,
                "matchExpressions": [
                    *(term.get("matchExpressions") or ()),
                    *mine["matchExpressions"],
                ],
            }
            for term in terms
        ]
        found[hard] = {"nodeSelectorTerms": both}
    return found


def _in(label: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"key": label, "operator": "In", "values": list(values)}


def _preferred(weight: int, label: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"weight": weight, "preference": {"matchExpressions": [_in(label, values)]}}
