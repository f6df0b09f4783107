"""Where a run's or step's Job stands in the cluster, and what its containers may do.

Looked at is the Job as it would be sent, whatever made it: it is given the PriorityClass of its
role and lane, and whatever the Pod Security Standard "restricted" asks for, where nobody said
anything. What says otherwise is refused: the cluster would admit the Job, and refuse its pods one
by one without an end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from platform_assets.domain.cluster_settings import quantity
from platform_assets.domain.environments import THREADS
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.gpu_pods import GPU, GpuAsk, with_gpus
from platform_assets.domain.lanes import Lane
from platform_assets.domain.ranks_folder import Ranks, sharing, without_gpus

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

NODE = "SIGNALBOX_NODE"
"""Variable: the cluster's node that a process runs on."""

VOLUMES = (
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
    "image",  # judged by the image lock
)
"""Kinds of volumes that a pod may have."""

SYSCTLS = (
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range"),
    *("net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies"),
    *("net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout"),
    *("net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes"),
)
"""Those that the standard calls safe."""

SELINUX_TYPES = ("container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"

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
        gpus: what the planner chose for a step; None where its asset names no shapes.
        ranks: those of a step, which have the GPUs then; None where it trains by itself.
    """

    role: Role
    lane: Lane
    queued: bool = False
    gpus: GpuAsk | None = None
    ranks: Ranks | None = None


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
    metadata = job["spec"]["template"].get("metadata") or {}
    wrong = [
        *_elsewhere(spec, place),
        *_as_launcher(spec, place),
        *insecure(spec),
        *_unconfined(metadata.get("annotations") or {}),
    ]
    if wrong:
        raise RefusedError(
            f"{what} is refused, nothing was created: {'; '.join(wrong)}. Take it out of the "
            "dagster-k8s/config that brings it, docs/kubernetes.md says what pods may have"
        )
    if place.ranks is not None:
        spec = sharing(spec, str(job["metadata"]["name"]), place.ranks.claim)
        first, *others = spec["containers"]
        spec["containers"] = [without_gpus(first, GPU), *others]
    elif place.gpus is not None:
        spec = with_gpus(spec, place.gpus, what)
    spec["priorityClassName"] = class_of(place.role, place.lane)
    if spec.get("serviceAccountName") == STEP_ACCOUNT:
        spec["automountServiceAccountToken"] = False
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            spec[kind] = [surrounded(container) for container in spec[kind]]
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


def _as_launcher(spec: Mapping[str, Any], place: Place) -> list[str]:
    """A step that may create Jobs could start whatever it likes, in any lane."""
    asked = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if place.role != "step" or asked != RUN_ACCOUNT:
        return []
    return [
        f"it asks for ServiceAccount {asked!r}, which creates Jobs; that of steps is "
        f"{STEP_ACCOUNT} (step_service_account_name of the run launcher)"
    ]


def surrounded(container: Mapping[str, Any]) -> dict[str, Any]:
    """A container that knows its node, and computes with as many threads as it has CPU.

    A library sees all cores of the node: it would start so many threads, wait for its quota, and
    add up in another order on another node. Whoever sets the number of threads keeps it; without an
    amount of CPU it is not known.
    """
    reads = {"name": NODE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    told = [one for one in container.get("env") or () if one.get("name") != NODE]
    amounts = container.get("resources") or {}
    cpu = (amounts.get("limits") or {}).get("cpu") or (amounts.get("requests") or {}).get("cpu")
    if cpu is not None and not any(one.get("name") == THREADS for one in told):
        told.append({"name": THREADS, "value": str(max(1, int(quantity(str(cpu)))))})
    return {**container, "env": [*told, reads]}


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
    """What a pod asks for that "restricted" refuses; what it does not say is no matter here."""
    found = [f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [
        f"volume {volume.get('name')} is a {kind}"
        for volume in spec.get("volumes") or ()
        for kind in volume
        if kind not in ("name", *VOLUMES)
    ]
    context = spec.get("securityContext") or {}
    found += _of_any(context, "the pod's securityContext")
    found += [
        f"the pod's securityContext has sysctl {sysctl.get('name')}"
        for sysctl in context.get("sysctls") or ()
        if sysctl.get("name") not in SYSCTLS
    ]
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            where = f"securityContext of container {container.get('name')}"
            found += _of_container(container.get("securityContext") or {}, where)
            found += _reaching_out(container)
    return found


def _reaching_out(container: Mapping[str, Any]) -> list[str]:
    """Ports of the node, and probes that have the node speak to another host."""
    name = container.get("name")
    found = [
        f"container {name} has hostPort {port['hostPort']}"
        for port in container.get("ports") or ()
        if port.get("hostPort")
    ]
    asked = [(probe, container.get(probe)) for probe in _PROBES]
    asked += [(moment, said) for moment, said in (container.get("lifecycle") or {}).items()]
    for what, said in asked:
        for kind in ("httpGet", "tcpSocket"):
            host = ((said or {}).get(kind) or {}).get("host")
            if host:
                found.append(f"{what} of container {name} asks host {host}")
    return found


def _unconfined(annotations: Mapping[str, str]) -> list[str]:
    return [
        f"annotation {name} is {value}"
        for name, value in annotations.items()
        if name.startswith(_APPARMOR)
        and value != "runtime/default"
        and not value.startswith("localhost/")
    ]


def _of_any(context: Mapping[str, Any], where: str) -> list[str]:
    found = []
    if context.get("runAsNonRoot") is False:
        found.append(f"{where} has runAsNonRoot false")
    if context.get("runAsUser") == 0:
        found.append(f"{where} has runAsUser 0")
    for field in ("seccompProfile", "appArmorProfile"):
        profile = (context.get(field) or {}).get("type")
        if profile not in (None, "RuntimeDefault", "Localhost"):
            found.append(f"{where} has {field} {profile}")
    labels = context.get("seLinuxOptions") or {}
    found += [
        f"{where} has seLinuxOptions.{field} {value}"
        for field, value in labels.items()
        if value and (field in ("user", "role") or (field == "type" and value not in SELINUX_TYPES))
    ]
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        found.append(f"{where} has windowsOptions.hostProcess true")
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
