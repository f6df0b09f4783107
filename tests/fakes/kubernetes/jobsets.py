"""The JobSet controller of the fake: it makes the Jobs of a JobSet, and says how it ended.

As the controller of v1alpha2 is documented to: a Job by each replica, named by set, part and
replica, with the pods' label `jobset.sigs.k8s.io/jobset-name`; Failed with the first Job that fails
beyond `maxRestarts`, whose others are deleted then; Completed by its successPolicy. A suspended one
has no Job here, where the real one makes suspended Jobs.
"""

from typing import TYPE_CHECKING, Any

from platform_assets.domain.gang import JOBSET_LABEL

if TYPE_CHECKING:
    from tests.fakes.kubernetes.cluster import Cluster

Object = dict[str, Any]


def reconcile(cluster: "Cluster", jobset: Object) -> None:
    """Bring a JobSet one step on."""
    name, spec, status = jobset["metadata"]["name"], jobset["spec"], jobset["status"]
    if _has(status, "Completed", "Failed"):
        return
    if spec.get("suspend"):
        status["conditions"] = [_condition("Suspended", "SuspendedJobs", "jobset is suspended")]
        return
    status["conditions"] = []
    for part in spec["replicatedJobs"]:
        for replica in range(part.get("replicas", 1)):
            job = f"{name}-{part['name']}-{replica}"
            if job not in cluster.jobs:
                cluster.create(_job(job, name, part["template"]))
    own = [job for job in cluster.jobs.values() if _of(job) == name]
    failed = [job for job in own if _has(job["status"], "Failed")]
    targets = spec["successPolicy"]["targetReplicatedJobs"]
    awaited = [
        j for j in own if any(j["metadata"]["name"].startswith(f"{name}-{t}") for t in targets)
    ]
    if failed:
        first = failed[0]["metadata"]["name"]
        text = f"jobset failed due to one or more job failures (first failed job: {first})"
        status["conditions"] = [_condition("Failed", "FailedJobs", text)]
        _end(cluster, own)
    elif awaited and all(_has(job["status"], "Complete") for job in awaited):
        text = "jobset completed successfully"
        status["conditions"] = [_condition("Completed", "AllJobsCompleted", text)]
        _end(cluster, own)


def delete(cluster: "Cluster", name: str) -> Object:
    """Delete a JobSet with its Jobs and their pods."""
    for job in [job for job in cluster.jobs.values() if _of(job) == name]:
        cluster.delete_job(job["metadata"]["name"])
    return cluster.jobsets.pop(name)


def _end(cluster: "Cluster", jobs: list[Object]) -> None:
    for job in jobs:
        if not _has(job["status"], "Complete", "Failed"):
            cluster.delete_job(job["metadata"]["name"])


def _job(name: str, jobset: str, template: Object) -> Object:
    labels = {JOBSET_LABEL: jobset}
    spec = template["spec"]
    metadata = spec["template"].get("metadata") or {}
    own = {**metadata, "labels": {**(metadata.get("labels") or {}), **labels}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {**spec, "template": {**spec["template"], "metadata": own}},
    }


def _of(job: Object) -> str:
    return str((job["metadata"].get("labels") or {}).get(JOBSET_LABEL) or "")


def _has(status: Object, *kinds: str) -> bool:
    return any(c["type"] in kinds for c in status.get("conditions") or ())


def _condition(kind: str, reason: str, message: str) -> Object:
    return {"type": kind, "status": "True", "reason": reason, "message": message}
