"""Which node of the fake a pod with GPUs is put on: required and preferred node affinity, and fit.

Where nothing is preferred the node with the most free is taken, as LeastAllocated does. Taints,
preemption and everything that is not a GPU are left out.
"""

from typing import Any

Object = dict[str, Any]
GPU = "nvidia.com/gpu"


def gpu_node(name: str, gpus: int, model: str = "", **spec: Any) -> Object:
    """A node that is ready, as the API server lists it."""
    labels = {"kubernetes.io/hostname": name}
    if model:
        labels["nvidia.com/gpu.product"] = model
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "64", GPU: str(gpus)},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def held_pod(name: str, node: str, gpus: int, namespace: str = "others") -> Object:
    """A pod of somebody else that runs."""
    resources = {"requests": {GPU: str(gpus)}, "limits": {GPU: str(gpus)}}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace, "labels": {"job-name": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": resources}]},
        "status": {"phase": "Running"},
    }


def gpus_of(pod: Object) -> int:
    """GPUs of a pod's containers."""
    resources = [c.get("resources") or {} for c in pod["spec"]["containers"]]
    return sum(int((r.get("limits") or {}).get(GPU, 0)) for r in resources)


def schedule(nodes: dict[str, Object], pods: list[Object], pod: Object) -> tuple[str, str]:
    """The node, or why there is none."""
    wanted = gpus_of(pod)
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms")
    scores: dict[str, tuple[int, int]] = {}
    short = 0
    for name, node in nodes.items():
        if node["spec"].get("unschedulable"):
            continue
        if terms is not None and not any(_matches(node, term) for term in terms):
            continue
        held = sum(gpus_of(p) for p in pods if p["spec"].get("nodeName") == name)
        free = int(node["status"]["allocatable"].get(GPU, 0)) - held
        if free < wanted:
            short += 1
            continue
        soft = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        likes = sum(one["weight"] for one in soft if _matches(node, one["preference"]))
        scores[name] = (likes, free)
    if scores:
        return max(scores, key=lambda name: scores[name]), ""
    return "", f"0/{len(nodes)} nodes are available: {short} Insufficient {GPU}."


def _matches(node: Object, term: Object) -> bool:
    labels = node["metadata"]["labels"]
    return all(labels.get(e["key"]) in e["values"] for e in term["matchExpressions"])
