"""Where a run's or step's Job stands in the cluster, and what its containers may do.

Looked at is the Job as it would be sent, whatever made it: it is given the PriorityClass of its
role and lane, and whatever the Pod Security Standard "restricted" asks for, where nobody said
anything. What says otherwise is refused: the cluster would admit the Job, and refuse its pods one
by one without an end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lanes import Lane

Role = Literal["run", "step"]

PREFIX = "signalbox"
PLATFORM_CLASS = f"{PREFIX}-platform"
"""PriorityClass of what never ends: webserver, daemon, code location."""

RUN_ACCOUNT = PREFIX
"""ServiceAccount of what creates Jobs: daemon, webserver, run workers."""

STEP_ACCOUNT = f"{PREFIX}-step"
"""ServiceAccount of what trains: it has no right to anything, and no token."""

USER = 10001
"""Numeric user and group of the image: a name could not be told from root by the node."""

ROLES: tuple[Role, ...] = ("run", "step")
_RUN_ABOVE = 100_000
PLATFORM_PRIORITY = 1_000_000


def class_of(role: Role, lane: Lane) -> str:
    """Name of the PriorityClass of a role in a lane."""
    return f"{PREFIX}-{role}-{lane}"


def queue_of(lane: Lane) -> str:
    """Name of a lane's LocalQueue and WorkloadPriorityClass, where the cluster has Kueue."""
    return f"{PREFIX}-{lane}"


def priority_of(role: Role, lane: Lane) -> int:
    """Lanes in their order; every run worker above every step, for its steps end with it."""
    rank = len(Lane) - list(Lane).index(lane)
    return 1000 * rank + (_RUN_ABOVE if role == "run" else 0)


def preempts(role: Role, lane: Lane) -> bool:
    """Whether pods of it may push others out.

    Run workers stand above all steps so that none of them is pushed out; of the lesser lanes they
    push out nobody, or a backfill would end today's training.
    """
    return lane is Lane.DAILY or (role == "step" and lane is Lane.LATE)


@dataclass(frozen=True)
class Place:
    """What a Job is, by the run that it belongs to.

    Attributes:
        queued: whether Kueue admits it; only steps are queued, for a run worker that waits for
            nobody must not take what its steps wait for.
    """

    role: Role
    lane: Lane
    queued: bool = False


def placed(job: Mapping[str, Any], place: Place, what: str) -> dict[str, Any]:
    """A Job in its place.

    Args:
        job: as the API is sent it, keys in camelCase.
        place: of its run.
        what: as in "step features", for the words of a refusal.

    Raises:
        RefusedError: it asks for another place, or for more than its containers may have.
    """
    spec: dict[str, Any] = dict(job["spec"]["template"]["spec"])
    wrong = [*_elsewhere(spec, place), *insecure(spec)]
    if wrong:
        raise RefusedError(
            f"{what} is refused, nothing was created: {'; '.join(wrong)}. Take it out of the "
            "dagster-k8s/config that brings it, docs/kubernetes.md says what pods may have"
        )
    spec["priorityClassName"] = class_of(place.role, place.lane)
    if spec.get("serviceAccountName") == STEP_ACCOUNT:
        spec["automountServiceAccountToken"] = False
    template = {**job["spec"]["template"], "spec": secured(spec)}
    document = {**job, "spec": {**job["spec"], "template": template}}
    if place.queued and place.role == "step":
        metadata = dict(job.get("metadata") or {})
        queue = queue_of(place.lane)
        labels = {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": queue}
        document["metadata"] = {**metadata, "labels": {**(metadata.get("labels") or {}), **labels}}
    return document


def _elsewhere(spec: Mapping[str, Any], place: Place) -> list[str]:
    asked, own = spec.get("priorityClassName"), class_of(place.role, place.lane)
    if asked in (None, "", own):
        return []
    return [
        f"it asks for PriorityClass {asked!r}, that of a {place.role} in lane {place.lane} is "
        f"{own} (a lesser lane is asked for by the tag signalbox/lane)"
    ]


def secured(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A pod's spec with what "restricted" asks for, a read-only root and a /tmp to write to.

    What is there already stays: see `insecure` for what may not be there.
    """
    pod = {
        "runAsNonRoot": True,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **(spec.get("securityContext") or {}),
    }
    found = {**spec, "securityContext": pod}
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            found[kind] = [_secured(container) for container in spec[kind]]
    volumes = list(spec.get("volumes") or ())
    if not any(volume.get("name") == "tmp" for volume in volumes):
        volumes.append({"name": "tmp", "emptyDir": {}})
    return {**found, "volumes": volumes}


def _secured(container: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        **(container.get("securityContext") or {}),
    }
    mounts = list(container.get("volumeMounts") or ())
    if not any(mount.get("mountPath", "").rstrip("/") == "/tmp" for mount in mounts):  # noqa: S108
        mounts.append({"name": "tmp", "mountPath": "/tmp"})  # noqa: S108
    return {**container, "securityContext": own, "volumeMounts": mounts}


def insecure(spec: Mapping[str, Any]) -> list[str]:
    """What a pod asks for that it may not have; what it does not say is no matter here."""
    found = [f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [
        f"volume {volume.get('name')} is a hostPath"
        for volume in spec.get("volumes") or ()
        if "hostPath" in volume
    ]
    found += _of_any(spec.get("securityContext") or {}, "the pod's securityContext")
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            where = f"securityContext of container {container.get('name')}"
            found += _of_container(container.get("securityContext") or {}, where)
    return found


def _of_any(context: Mapping[str, Any], where: str) -> list[str]:
    found = []
    if context.get("runAsNonRoot") is False:
        found.append(f"{where} has runAsNonRoot false")
    if context.get("runAsUser") == 0:
        found.append(f"{where} has runAsUser 0")
    profile = (context.get("seccompProfile") or {}).get("type")
    if profile not in (None, "RuntimeDefault", "Localhost"):
        found.append(f"{where} has seccompProfile {profile}")
    return found


def _of_container(context: Mapping[str, Any], where: str) -> list[str]:
    found = _of_any(context, where)
    if context.get("privileged"):
        found.append(f"{where} has privileged true")
    if context.get("allowPrivilegeEscalation"):
        found.append(f"{where} has allowPrivilegeEscalation true")
    if context.get("readOnlyRootFilesystem") is False:
        found.append(f"{where} has readOnlyRootFilesystem false")
    if context.get("procMount") not in (None, "Default"):
        found.append(f"{where} has procMount {context['procMount']}")
    capabilities = context.get("capabilities")
    if capabilities is not None:
        if capabilities.get("add"):
            found.append(f"{where} adds capabilities {', '.join(capabilities['add'])}")
        if "ALL" not in (capabilities.get("drop") or ()):
            found.append(f"{where} does not drop ALL capabilities")
    return found
