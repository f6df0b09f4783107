"""The lanes as the cluster keeps them: PriorityClasses, quotas by them, and Kueue's queues.

All lanes are in one namespace. dagster-k8s looks for a run's Job in the namespace that it works out
anew each time, from the launcher's config and the code location's, to end it, to see whether it is
well and to read its logs: a namespace by lane would have to be the same at each of these, though
tags of a run change. A PriorityClass is written into the pod when it is created and asked for by
nobody afterwards (docs/adr/0017-lanes-by-priority-class.md).
"""

from typing import Any

from platform_assets.domain.cluster_settings import ClusterSettings
from platform_assets.domain.lanes import Lane, Lanes
from platform_assets.domain.placing import (
    PLATFORM_CLASS,
    PLATFORM_PRIORITY,
    PREFIX,
    ROLES,
    class_of,
    preempts,
    priority_of,
    queue_of,
)

Manifest = dict[str, Any]

GPU = "nvidia.com/gpu"
KUEUE = "kueue.x-k8s.io/v1beta2"
PLATFORM_PODS = 8
"""Webserver, daemon and code location, old and new beside each other while they are replaced."""


def classes() -> list[str]:
    """Every PriorityClass that a pod of the namespace may have."""
    return [PLATFORM_CLASS, *(class_of(role, lane) for role in ROLES for lane in Lane)]


def priority_classes() -> list[Manifest]:
    """One for each role and lane, and one for what never ends."""
    found = [_priority_class(PLATFORM_CLASS, PLATFORM_PRIORITY, "webserver, daemon, code", True)]
    for role in ROLES:
        for lane in Lane:
            what = f"{role} workers of lane {lane}" if role == "run" else f"steps of lane {lane}"
            priority = priority_of(role, lane)
            found.append(
                _priority_class(class_of(role, lane), priority, what, preempts(role, lane))
            )
    return found


def _priority_class(name: str, value: int, what: str, preempting: bool) -> Manifest:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
        "globalDefault": False,
        "preemptionPolicy": "PreemptLowerPriority" if preempting else "Never",
        "description": f"Signalbox: {what}.",
    }


def quotas(lanes: Lanes, settings: ClusterSettings) -> list[Manifest]:
    """A quota a lane, one for the platform, and none at all for pods of no class."""
    found = []
    for lane in Lane:
        needs = settings.of_lane(lanes.limit(lane))
        found.append(
            _quota(
                f"lane-{lane}",
                settings,
                {
                    "pods": needs["pods"],
                    "requests.cpu": needs["cpu"],
                    "requests.memory": needs["memory"],
                    "limits.memory": needs["memory"],
                    f"requests.{GPU}": str(settings.gpus.get(lane, 0)),
                },
                "In",
                [class_of(role, lane) for role in ROLES],
            )
        )
    platform = {"pods": str(PLATFORM_PODS)}
    found.append(_quota("platform", settings, platform, "In", [PLATFORM_CLASS]))
    # Also matches pods without a PriorityClass: nothing runs beside the lanes.
    found.append(_quota("no-lane", settings, {"pods": "0"}, "NotIn", classes()))
    return found


def _quota(
    name: str, settings: ClusterSettings, hard: dict[str, str], operator: str, values: list[str]
) -> Manifest:
    scope = {"scopeName": "PriorityClass", "operator": operator, "values": values}
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": name, "namespace": settings.namespace},
        "spec": {"hard": hard, "scopeSelector": {"matchExpressions": [scope]}},
    }


def limit_range(settings: ClusterSettings) -> Manifest:
    """What a container has that says nothing, and the most that one may ask for."""
    own, largest = settings.containers.run, settings.containers.largest
    amounts = {"cpu": own.cpu, "memory": own.memory}
    limits = {
        "type": "Container",
        "default": dict(amounts),
        "defaultRequest": dict(amounts),
        "max": {"cpu": largest.cpu, "memory": largest.memory},
    }
    return {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "containers", "namespace": settings.namespace},
        "spec": {"limits": [limits]},
    }


def kueue(lanes: Lanes, settings: ClusterSettings) -> list[Manifest]:
    """Kueue's queues for the steps: one cluster queue with what all slots need, a queue a lane.

    It preempts nobody: a Job that Kueue suspends loses its pod, and Dagster has recorded the step
    as ended before a new one starts.
    """
    needs = settings.of_lane(lanes.slots)
    gpus = sum(settings.gpus.values())
    resources = [
        {"name": "cpu", "nominalQuota": needs["cpu"]},
        {"name": "memory", "nominalQuota": needs["memory"]},
        {"name": GPU, "nominalQuota": str(gpus)},
    ]
    flavor = {"name": PREFIX, "resources": resources}
    covered = [resource["name"] for resource in resources]
    here = {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}}
    found: list[Manifest] = [
        {"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": PREFIX}},
        {
            "apiVersion": KUEUE,
            "kind": "ClusterQueue",
            "metadata": {"name": PREFIX},
            "spec": {
                "namespaceSelector": here,
                "queueingStrategy": "BestEffortFIFO",
                "preemption": {"withinClusterQueue": "Never", "reclaimWithinCohort": "Never"},
                "resourceGroups": [{"coveredResources": covered, "flavors": [flavor]}],
            },
        },
    ]
    for lane in Lane:
        name = queue_of(lane)
        found.append(
            {
                "apiVersion": KUEUE,
                "kind": "WorkloadPriorityClass",
                "metadata": {"name": name},
                "value": priority_of("step", lane),
                "description": f"Signalbox: steps of lane {lane}.",
            }
        )
        found.append(
            {
                "apiVersion": KUEUE,
                "kind": "LocalQueue",
                "metadata": {"name": name, "namespace": settings.namespace},
                "spec": {"clusterQueue": PREFIX},
            }
        )
    return found
