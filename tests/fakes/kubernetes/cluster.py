"""What the fake knows, its Job controller, and what may happen to its pods."""

import itertools
import string
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.fakes.kubernetes import jobsets
from tests.fakes.kubernetes.kubelet import Kubelet

NAMESPACE = "signalbox"
NODE = "node-1"
AGAIN_SECONDS = 0.3
"""Between two tries of the Job controller to make a pod; a real one waits 10 s and more."""

Object = dict[str, Any]


@dataclass
class Fault:
    """Something that comes between a request and its answer.

    Attributes:
        method, path: of the requests that it hits; the path is a part of it.
        does: a status to answer with; `drop` breaks the connection before anything is done,
            `late` after it was done; `hang` never answers.
        times: how many requests it hits.
    """

    method: str
    path: str
    does: int | str
    times: int = 1
    message: str = "the server is currently unable to handle the request"
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Cluster:
    """One namespace of a cluster with one node.

    Attributes:
        jobs: as they were sent, with what the server adds, by name.
        jobsets: the same of JobSets.
        volumes: folders of this machine, by the claims that stand for them.
        requests: method and path of every request that writes.
        asked: method and path of every request.
        runs: whether the containers of Jobs are executed.
        image_ids: what pods report as their imageID, by image; by default the image.
        late: seconds after its end until a container's imageID is reported, by image; by default
            it is from its start on.
        removes: whether a pod is gone as soon as it has ended well, as where its node goes.
        priority_classes: those that there are; None: any.
        quota: pods that there may be at once; None: any number.
        unpullable: messages by image that cannot be pulled.
        config_error: why no container can be made.
        full: why no pod is scheduled.
        suspends: whether Jobs are suspended, as a queue does it, before they have a pod.
        nodes: with GPUs, by name; without any each pod is put on node-1.
        tokens: those that are valid.
        faults: what comes in the way of requests, the first that fits.
        webhook: changes each pod before it is stored, as one of the cluster may.
        grace: seconds between SIGTERM and SIGKILL.
    """

    folder: Path
    runs: bool = False
    jobs: dict[str, Object] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    jobsets: dict[str, Object] = field(default_factory=dict)
    volumes: dict[str, Path] = field(default_factory=dict)
    events: list[Object] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    image_ids: dict[str, str] = field(default_factory=dict)
    late: dict[str, float] = field(default_factory=dict)
    removes: bool = False
    priority_classes: set[str] | None = None
    quota: int | None = None
    unpullable: dict[str, str] = field(default_factory=dict)
    config_error: str = ""
    full: str = ""
    suspends: bool = False
    nodes: dict[str, Object] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=lambda: {"fake"})
    faults: list[Fault] = field(default_factory=list)
    webhook: Callable[[Object], None] | None = None
    grace: float = 5.0
    wrong: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _tried: dict[str, float] = field(default_factory=dict)
    _succeeded: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kubelet = Kubelet(self)

    @property
    def kubeconfig(self) -> str:
        return str(self.folder / "kubeconfig")

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def images(self) -> list[str]:
        """Every image of every Job, in the order of its containers."""
        return [
            container["image"]
            for job in self.jobs.values()
            for kind in ("initContainers", "containers")
            for container in job["spec"]["template"]["spec"].get(kind) or ()
        ]

    def of_job(self, name: str) -> list[Object]:
        return [p for p in self.pods.values() if p["metadata"]["labels"]["job-name"] == name]

    def metadata(self, sent: Object | None) -> Object:
        """What the server adds to what it is sent."""
        number = next(self._numbers)
        added = {"uid": f"00000000-0000-4000-8000-{number:012d}", "resourceVersion": str(number)}
        return {**(sent or {}), **added, "namespace": NAMESPACE, "creationTimestamp": now()}

    def when(
        self,
        condition: Callable[[], object],
        action: Callable[[], object],
        over: threading.Event | None = None,
    ) -> None:
        """Do something once a condition holds, unless it is over before."""

        def follow() -> None:
            for _ in range(1200):
                if over is not None and over.is_set():
                    return
                if condition():
                    try:
                        action()
                    except Exception as error:
                        self.wrong.append(repr(error))
                    return
                time.sleep(0.05)
            self.wrong.append("a condition that a test waits for never came")

        threading.Thread(target=follow, daemon=True).start()

    # --- the API --------------------------------------------------------------------------------

    def create(self, sent: Object) -> tuple[int, Object]:
        name = sent["metadata"]["name"]
        with self.lock:
            if name in self.jobs:
                return 409, failure(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
            metadata = self.metadata(sent["metadata"])
            self.jobs[name] = {**sent, "metadata": metadata, "status": {}}
            self.reconcile(name)
            return 201, self.jobs[name]

    def delete_job(self, name: str) -> tuple[int, Object]:
        with self.lock:
            if name not in self.jobs:
                return 404, failure(404, "NotFound", f'jobs.batch "{name}" not found')
            del self.jobs[name]
            for pod in self.of_job(name):
                self.delete_pod(pod["metadata"]["name"])
        return 200, {"kind": "Status", "status": "Success"}

    def delete_pod(self, name: str, disruption: Object | None = None) -> tuple[int, Object]:
        with self.lock:
            pod = self.pods.get(name)
            if pod is None:
                return 404, failure(404, "NotFound", f'pods "{name}" not found')
            if disruption is not None:
                condition = {"type": "DisruptionTarget", "status": "True", **disruption}
                pod["status"].setdefault("conditions", []).append(condition)
            if "deletionTimestamp" not in pod["metadata"]:
                pod["metadata"]["deletionTimestamp"] = now(timedelta(seconds=self.grace))
                self.kubelet.end(pod)
        return 200, pod

    # --- what may happen ------------------------------------------------------------------------

    def the_pod(self) -> Object:
        """The only pod that runs."""
        running = [p for p in self.pods.values() if p["status"]["phase"] == "Running"]
        (pod,) = [p for p in running if "deletionTimestamp" not in p["metadata"]]
        return pod

    def preempt(self) -> None:
        pod = self.the_pod()
        text = "default-scheduler: preempting to accommodate a higher priority pod"
        self.tell("Pod", pod["metadata"]["name"], "Preempted", "Preempted by pod 1f on node node-1")
        disruption = {"reason": "PreemptionByScheduler", "message": text}
        self.delete_pod(pod["metadata"]["name"], disruption)

    def drain(self) -> None:
        text = "Eviction API: evicting"
        disruption = {"reason": "EvictionByEvictionAPI", "message": text}
        self.delete_pod(self.the_pod()["metadata"]["name"], disruption)

    def evict(self) -> None:
        """The kubelet kills, for its node has no memory left; the pod stays as Failed."""
        text = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi."
        pod = self.the_pod()
        condition = {"type": "DisruptionTarget", "status": "True", "message": text}
        pod["status"]["conditions"].append({**condition, "reason": "TerminationByKubelet"})
        self.kubelet.kill(pod, phase_reason="Evicted", message=text)

    def out_of_memory(self) -> None:
        self.kubelet.kill(self.the_pod(), container_reason="OOMKilled")

    def expire(self) -> None:
        """The Job has been active for longer than it may."""
        job = self.the_pod()["metadata"]["labels"]["job-name"]
        self.jobs[job]["spec"]["activeDeadlineSeconds"] = 0

    def delete_by_hand(self) -> None:
        self.delete_job(self.the_pod()["metadata"]["labels"]["job-name"])

    def lose_node(self, ago: timedelta = timedelta(minutes=2)) -> None:
        """The node answers no more; its pods were to be gone some time ago, and nobody knows."""
        with self.lock:
            pod = self.the_pod()
            name = pod["metadata"]["name"]
            text = "Taint manager: deleting due to NoExecute taint"
            condition = {"type": "DisruptionTarget", "status": "True"}
            condition |= {"reason": "DeletionByTaintManager", "message": text}
            pod["status"].setdefault("conditions", []).append(condition)
            pod["metadata"]["deletionTimestamp"] = now(-ago)
            self.kubelet.freeze(pod)
        self.tell("Pod", name, "TaintManagerEviction", f"Marking for deletion Pod {name}")

    def tell(self, kind: str, name: str, reason: str, message: str) -> None:
        """An event; the same one again only counts."""
        about = {"kind": kind, "name": name, "namespace": NAMESPACE}
        with self.lock:
            for event in self.events:
                same = (event["involvedObject"], event["reason"], event["message"])
                if same == (about, reason, message):
                    event["count"] += 1
                    event["lastTimestamp"] = now()
                    return
            event = {"metadata": self.metadata({"name": f"{name}.{len(self.events)}"})}
            event |= {"involvedObject": about, "reason": reason, "message": message, "count": 1}
            self.events.append({**event, "firstTimestamp": now(), "lastTimestamp": now()})

    # --- the Job controller ---------------------------------------------------------------------

    def work(self) -> None:
        """One turn of everything that goes on by itself."""
        with self.lock:
            for jobset in list(self.jobsets.values()):
                jobsets.reconcile(self, jobset)
            for name in list(self.jobs):
                self.reconcile(name)
            for pod in list(self.pods.values()):
                self.kubelet.advance(pod)

    def reconcile(self, name: str) -> None:
        job = self.jobs[name]
        status, spec = job["status"], job["spec"]
        if any(c["type"] in ("Complete", "Failed") for c in status.get("conditions") or ()):
            return
        if self.suspends and not status.get("conditions"):
            text = {"reason": "JobSuspended", "message": "Job suspended"}
            status["conditions"] = [{"type": "Suspended", "status": "True", **text}]
        if self.suspends:
            return
        pods = self.of_job(name)
        for pod in pods:
            over = pod["status"]["phase"] in ("Succeeded", "Failed")
            if over and not pod.get("_counted"):
                pod["_counted"] = True
                self.count(name, pod)
        active = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        status["active"] = len(active)
        deadline = spec.get("activeDeadlineSeconds")
        age = time.time() - datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp()
        if deadline is not None and age > deadline:
            for pod in active:
                self.delete_pod(pod["metadata"]["name"])
            text = "Job was active longer than specified deadline"
            self._finish(job, "Failed", "DeadlineExceeded", text)
        elif status.get("succeeded", 0) >= spec.get("completions", 1):
            self._finish(job, "Complete", "CompletionsReached", "Reached expected number of pods")
        elif status.get("failed", 0) > spec.get("backoffLimit", 6):
            if not active:
                text = "Job has reached the specified backoff limit"
                self._finish(job, "Failed", "BackoffLimitExceeded", text)
        elif time.monotonic() - self._tried.get(name, 0) > AGAIN_SECONDS:
            there = {p["_index"] for p in active} | self._succeeded.get(name, set())
            for index in range(spec.get("completions", 1)):
                if index not in there:
                    self._tried[name] = time.monotonic()
                    self._make_pod(job, index)

    def count(self, job: str, pod: Object) -> None:
        """A pod has ended; what a podFailurePolicy ignores does not count."""
        if job not in self.jobs:
            return
        status, spec = self.jobs[job]["status"], self.jobs[job]["spec"]
        key = "succeeded" if pod["status"]["phase"] == "Succeeded" else "failed"
        had = {c["type"] for c in pod["status"].get("conditions") or () if c["status"] == "True"}
        for rule in (spec.get("podFailurePolicy") or {}).get("rules") or ():
            named = {pattern["type"] for pattern in rule.get("onPodConditions") or ()}
            if key == "failed" and rule["action"] == "Ignore" and named & had:
                return
        status[key] = status.get(key, 0) + 1
        if key == "succeeded":
            self._succeeded.setdefault(job, set()).add(pod["_index"])

    def _finish(self, job: Object, kind: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        job["status"].setdefault("conditions", []).append(condition)
        job["status"]["active"] = 0

    def _make_pod(self, job: Object, index: int) -> None:
        name, template = job["metadata"]["name"], job["spec"]["template"]
        indexed = job["spec"].get("completionMode") == "Indexed"
        pod_name = f"{name}-{index}" if indexed else name
        pod_name = f"{pod_name}-{_ending(next(self._numbers))}"
        wanted = template["spec"].get("priorityClassName")
        there = [p for p in self.pods.values() if p["status"]["phase"] in ("Pending", "Running")]
        if self.priority_classes is not None and wanted not in (None, *self.priority_classes):
            text = f"no PriorityClass with name {wanted} was found"
            self._forbid(name, f'pods "{pod_name}" is forbidden: {text}')
        elif self.quota is not None and len(there) >= self.quota:
            text = f"exceeded quota: lane, requested: pods=1, used: pods={len(there)}, "
            self._forbid(name, f'pods "{pod_name}" is forbidden: {text}limited: pods={self.quota}')
        else:
            labels = {"job-name": name, "batch.kubernetes.io/job-name": name}
            metadata = self.metadata({"name": pod_name})
            own = (template.get("metadata") or {}).get("labels") or {}
            metadata["labels"] = {**own, **labels}
            pod = {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}
            pod |= {"spec": {**template["spec"]}, "status": {"phase": "Pending"}, "_index": index}
            if self.webhook is not None:
                self.webhook(pod)
            self.pods[pod_name] = pod
            self.tell("Job", name, "SuccessfulCreate", f"Created pod: {pod_name}")
            job["status"]["active"] = 1
            self.kubelet.advance(pod)

    def _forbid(self, job: str, text: str) -> None:
        self.tell("Job", job, "FailedCreate", f"Error creating: {text}")


def now(later: timedelta = timedelta(0)) -> str:
    return (datetime.now(UTC) + later).strftime("%Y-%m-%dT%H:%M:%SZ")


def failure(code: int, reason: str, message: str) -> Object:
    """The API server's word for what went wrong."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**status, "code": code, "reason": reason, "message": message}


def _ending(number: int) -> str:
    letters = string.ascii_lowercase
    return "".join(letters[(number // 26**place) % 26] for place in range(5))
