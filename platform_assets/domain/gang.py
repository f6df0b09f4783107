"""A training on several nodes of a cluster as one JobSet, made of its step's Job.

The step's pod and the pods of its ranks start together or not at all: Kueue admits a JobSet as one
workload. The step's pod does what it does on one machine: it lays the rows into a folder, follows
the ranks and registers the model. The ranks' pods run torchrun, one a node. They share the folder
through a volume that many nodes can write.

The CRD is JobSet's `jobset.x-k8s.io/v1alpha2`. Nothing here can validate against its schema: the
rules that are known of it are in `wrong`, docs/distributed.md says what was not tried.
"""

import re
from collections.abc import Mapping
from typing import Any

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.placing import Place, placed
from platform_assets.domain.processes import ProcessesSpec

API_VERSION, GROUP, VERSION, PLURAL = (
    "jobset.x-k8s.io/v1alpha2",
    "jobset.x-k8s.io",
    "v1alpha2",
    "jobsets",
)
GPU = "nvidia.com/gpu"
MOUNT = "/ranks"
FOLDER = "SIGNALBOX_RANKS_FOLDER"
"""Variable: the folder that step and ranks share."""

STEP, RANKS = "step", "ranks"
PORT = 29400
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST = 63

Manifest = dict[str, Any]


def gang(job: Mapping[str, Any], asked: ProcessesSpec, place: Place, *, claim: str) -> Manifest:
    """The JobSet of a step that trains on several nodes.

    Args:
        job: the step's Job as it would be sent, keys in camelCase, its images by digest.
        asked: more than one node.
        place: lane, role and whether Kueue admits it.
        claim: a PersistentVolumeClaim that many nodes may write (ReadWriteMany).

    Raises:
        RefusedError: a rule is broken, or the Job asks for what its place does not allow.
    """
    name = str(job["metadata"]["name"])
    what = f"the JobSet of {name}"
    own = job["spec"]["template"]
    least = asked.min // asked.each
    templates = {
        STEP: _template(job, _of_step(own["spec"], name, claim), place, what),
        RANKS: _template(job, _of_ranks(own["spec"], name, asked, claim), place, what),
    }
    ranks = {
        "parallelism": asked.nodes,
        "completions": asked.nodes,
        "completionMode": "Indexed",
        # A pod that is lost comes back, and joins again; the step itself never does.
        "backoffLimit": asked.restarts + asked.nodes - least,
        "template": templates[RANKS],
    }
    step = {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 0,
        "template": templates[STEP],
    }
    # The Job has its place's labels from `placed`: Kueue's are of the whole.
    labels = placed(job, place, what)["metadata"].get("labels") or {}
    found: Manifest = {
        "apiVersion": API_VERSION,
        "kind": "JobSet",
        "metadata": {**job["metadata"], "labels": dict(labels)},
        "spec": {
            "suspend": place.queued,
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            # It is over when the step is: it ends its ranks by what it writes into the folder.
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [STEP]},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [
                {"name": STEP, "replicas": 1, "template": {"spec": step}},
                {"name": RANKS, "replicas": 1, "template": {"spec": ranks}},
            ],
        },
    }
    broken = wrong(found)
    if broken:
        raise RefusedError(f"{what} is refused, nothing was created: {'; '.join(broken)}")
    return found


def wrong(manifest: Mapping[str, Any]) -> list[str]:
    """The rules of JobSet and of the cluster that a manifest breaks, in words."""
    found: list[str] = []
    name = str((manifest.get("metadata") or {}).get("name") or "")
    jobs = (manifest.get("spec") or {}).get("replicatedJobs") or []
    for part in jobs:
        pods = int(part["template"]["spec"].get("parallelism", 1))
        # <set>-<part>-<replica>-<index>-<5 characters>: pods' names, and host names in DNS.
        longest = f"{name}-{part['name']}-{part['replicas'] - 1}-{pods - 1}-abcde"
        if not _LABEL.fullmatch(name) or len(longest) > _LONGEST:
            found.append(
                f"metadata.name is {name!r}, whose pods would be called {longest}; allowed are "
                f"{_LONGEST} lower-case letters, digits and -"
            )
        spec = part["template"]["spec"]["template"]["spec"]
        where = f"replicatedJobs {part['name']}"
        if spec.get("restartPolicy") != "Never":
            found.append(f"{where}: restartPolicy is {spec.get('restartPolicy')}, allowed is Never")
        for container in spec.get("containers") or ():
            amounts = container.get("resources") or {}
            limit = (amounts.get("limits") or {}).get(GPU)
            request = (amounts.get("requests") or {}).get(GPU, limit)
            if limit != request or (limit is not None and not str(limit).isdigit()):
                found.append(
                    f"{where}: {GPU} is requested as {request} and limited to {limit}; allowed is "
                    "the same whole number"
                )
    if len({part["name"] for part in jobs}) != len(jobs) or not jobs:
        found.append("spec.replicatedJobs must have parts, of different names")
    return found


def _template(job: Mapping[str, Any], spec: Mapping[str, Any], place: Place, what: str) -> Manifest:
    """A pod template in its place: class, account, threads, and what "restricted" asks for."""
    template = {**job["spec"]["template"], "spec": spec}
    whole = placed({**job, "spec": {**job["spec"], "template": template}}, place, what)
    found: Manifest = whole["spec"]["template"]
    return found


def _of_step(spec: Mapping[str, Any], name: str, claim: str) -> Manifest:
    """The step's own pod: with the folder, and without the GPUs, which the ranks have."""
    found = _sharing(spec, name, claim)
    first, *others = found["containers"]
    found["containers"] = [_without_gpus(first), *others]
    return found


def _of_ranks(spec: Mapping[str, Any], name: str, asked: ProcessesSpec, claim: str) -> Manifest:
    """A node's pod: the same image and volumes, torchrun in place of the step."""
    found = _sharing(spec, name, claim)
    first = dict(found["containers"][0])
    for key in ("args", "livenessProbe", "readinessProbe", "startupProbe"):
        first.pop(key, None)
    least = asked.min // asked.each
    first["command"] = [
        *("python", "-m", "resources.distributed.node"),
        *("--nodes", f"{least}:{asked.nodes}", "--processes", str(asked.each)),
        *("--rendezvous", f"{name}-{RANKS}-0-0.{name}:{PORT}"),
        f"{MOUNT}/{name}",
    ]
    found["containers"] = [first]
    return found


def _sharing(spec: Mapping[str, Any], name: str, claim: str) -> Manifest:
    volume = {"name": "ranks", "persistentVolumeClaim": {"claimName": claim}}
    mount = {"name": "ranks", "mountPath": MOUNT}
    first, *others = spec["containers"]
    told = [one for one in first.get("env") or () if one.get("name") != FOLDER]
    first = {
        **first,
        "env": [*told, {"name": FOLDER, "value": f"{MOUNT}/{name}"}],
        "volumeMounts": [*(first.get("volumeMounts") or ()), mount],
    }
    return {
        **spec,
        "containers": [first, *others],
        "volumes": [*(spec.get("volumes") or ()), volume],
    }


def _without_gpus(container: Mapping[str, Any]) -> Manifest:
    amounts = {
        kind: {name: amount for name, amount in of_kind.items() if name != GPU}
        for kind, of_kind in (container.get("resources") or {}).items()
        if isinstance(of_kind, Mapping)
    }
    return {**container, "resources": amounts} if amounts else dict(container)
