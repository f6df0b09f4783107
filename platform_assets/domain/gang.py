"""The ranks of a training on several nodes of a cluster: one JobSet, made of the step's Job.

The step's pod does what it does on one machine: it lays the rows into a folder, keeps the
rendezvous, follows the ranks and registers the model. The ranks' pods run torchrun, one a node, and
start together or not at all: Kueue admits a JobSet as one workload. It belongs to the step's Job.

The CRD is JobSet's `jobset.x-k8s.io/v1alpha2`. Nothing here can validate against its schema: the
rules that are known of it are in `wrong`, docs/distributed.md says what was not tried.
"""

import re
from collections.abc import Mapping
from typing import Any

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.gpu_pods import GPU, HOST_LABEL
from platform_assets.domain.placing import Place, placed
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.domain.ranks_folder import MOUNT, Ranks, sharing

API_VERSION, GROUP, VERSION, PLURAL = (
    "jobset.x-k8s.io/v1alpha2",
    "jobset.x-k8s.io",
    "v1alpha2",
    "jobsets",
)
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""Label of every pod of a JobSet, by its controller."""

RANKS = "rank"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST = 63

Manifest = dict[str, Any]


def gang(job: Mapping[str, Any], uid: str, ranks: Ranks, place: Place) -> Manifest:
    """The JobSet of the ranks of a step.

    Args:
        job: the step's Job as it came to be placed, keys in camelCase, its images by digest.
        uid: of that Job in the cluster.
        ranks: on more than one node.
        place: of the step; its GPUs are those of one node.

    Raises:
        RefusedError: a rule is broken, or the Job asks for what its place does not allow.
    """
    name, asked = str(job["metadata"]["name"]), ranks.asked
    what = f"the JobSet of {name}"
    own = job["spec"]["template"]
    spec = _of_ranks(own["spec"], name, asked, ranks.claim)
    # As any other step's: class, account, threads, GPUs, and what "restricted" asks for.
    alone = Place(place.role, place.lane, place.queued, place.gpus)
    whole = placed({**job, "spec": {**job["spec"], "template": {**own, "spec": spec}}}, alone, what)
    labels = whole["metadata"].get("labels") or {}
    part = {
        "parallelism": asked.nodes,
        "completions": asked.nodes,
        "completionMode": "Indexed",
        # A pod that is lost comes back, and joins again; the step itself never does.
        "backoffLimit": asked.restarts + asked.nodes - asked.least_nodes,
        "template": whole["spec"]["template"],
    }
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    found: Manifest = {
        "apiVersion": API_VERSION,
        "kind": "JobSet",
        "metadata": {"name": name, "labels": dict(labels), "ownerReferences": [owner]},
        "spec": {
            "suspend": place.queued,
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [RANKS]},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [{"name": RANKS, "replicas": 1, "template": {"spec": part}}],
        },
    }
    broken = wrong(found)
    if broken:
        raise RefusedError(f"{what} is refused, nothing was created: {'; '.join(broken)}")
    return found


def ranks_job(name: str) -> str:
    """Name of the Job of a JobSet's ranks, as its controller makes it."""
    return f"{name}-{RANKS}-0"


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


def _of_ranks(spec: Mapping[str, Any], name: str, asked: ProcessesSpec, claim: str) -> Manifest:
    """A node's pod: the same image and volumes, torchrun in place of the step."""
    found = sharing(spec, name, claim)
    first = dict(found["containers"][0])
    for key in ("args", "livenessProbe", "readinessProbe", "startupProbe"):
        first.pop(key, None)
    first["command"] = [
        *("python", "-m", "resources.distributed.node"),
        *("--nodes", f"{asked.least_nodes}:{asked.nodes}", "--processes", str(asked.each)),
        f"{MOUNT}/{name}",
    ]
    found["containers"] = [first]
    return {**found, "affinity": _apart(found.get("affinity") or {}, name)}


def _apart(affinity: Mapping[str, Any], name: str) -> Manifest:
    """No two of them on one node: the loss of a node is the loss of one."""
    others = dict(affinity.get("podAntiAffinity") or {})
    kind = "requiredDuringSchedulingIgnoredDuringExecution"
    term = {"labelSelector": {"matchLabels": {JOBSET_LABEL: name}}, "topologyKey": HOST_LABEL}
    return {**affinity, "podAntiAffinity": {**others, kind: [*(others.get(kind) or ()), term]}}
