"""Why a Job of the cluster does not do what it was asked for, in the cluster's own words.

What is read is what the API server says of a Job: the Job, its pods and the events of both, as the
JSON that it sends. Nothing is asked for here, so that every failure can be tried without a cluster.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

Said = Mapping[str, Any]
"""An object of the API as JSON, keys in camelCase."""

SIGKILLED = 137
"""Exit code of a container whose process got signal 9."""

SLACK = timedelta(seconds=30)
"""A pod that should have been gone for longer is not ended by anybody: its node does not answer."""


class Fault(StrEnum):
    """Whose it is to do something about it."""

    CLUSTER = "the cluster"
    CODE = "the code"
    SETTING = "a setting"
    PERSON = "a person"


class Cause(StrEnum):
    """What happened, as it stands in failures.yaml and in the metadata of a run's events."""

    EVICTED = "evicted"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    OUT_OF_MEMORY = "out_of_memory"
    IMAGE = "image"
    CONTAINER_CONFIG = "container_config"
    QUOTA = "quota"
    PRIORITY_CLASS = "priority_class"
    FORBIDDEN = "forbidden"
    UNSCHEDULABLE = "unschedulable"
    SUSPENDED = "suspended"
    API = "api"
    CREDENTIALS = "credentials"
    DELETED = "deleted"
    RESTARTED = "restarted"
    DEADLINE = "deadline"
    EXITED = "exited"
    KILLED = "killed"

    @property
    def fault(self) -> Fault:
        """Whose it is; a retry of the op's own counts only for the code's."""
        return _FAULTS.get(self, Fault.CLUSTER)


_FAULTS = {
    Cause.OUT_OF_MEMORY: Fault.SETTING,
    Cause.IMAGE: Fault.SETTING,
    Cause.CONTAINER_CONFIG: Fault.SETTING,
    Cause.PRIORITY_CLASS: Fault.SETTING,
    Cause.FORBIDDEN: Fault.SETTING,
    Cause.CREDENTIALS: Fault.SETTING,
    Cause.DEADLINE: Fault.SETTING,
    Cause.DELETED: Fault.PERSON,
    Cause.EXITED: Fault.CODE,
}

State = Literal["waits", "over"]


@dataclass(frozen=True)
class Finding:
    """What keeps a Job from its work.

    Attributes:
        state: `waits`: it may still start by itself; `over`: it will not.
        words: the cluster's, with the name of the object that they are of.
        killed: the process is gone without a word: out of memory, or by SIGKILL of nobody known.
    """

    cause: Cause
    state: State
    words: str
    killed: bool = False

    def of_a_saved_run(self) -> "Finding":
        """The same, of a run of which a training has a checkpoint: it can be gone on with."""
        return replace(self, cause=Cause.KILLED) if self.killed else self


_DISRUPTIONS = {
    "PreemptionByScheduler": Cause.PREEMPTED,
    "DeletionByTaintManager": Cause.NODE_LOST,
    "DeletionByPodGC": Cause.NODE_LOST,
    "EvictionByEvictionAPI": Cause.EVICTED,
    "TerminationByKubelet": Cause.EVICTED,
}
"""Reasons of the condition DisruptionTarget."""

_POD_REASONS = {
    "Evicted": Cause.EVICTED,
    "Terminated": Cause.EVICTED,
    "NodeShutdown": Cause.EVICTED,
    "UnexpectedAdmissionError": Cause.EVICTED,
    "OutOfcpu": Cause.EVICTED,
    "OutOfmemory": Cause.EVICTED,
    "OutOfpods": Cause.EVICTED,
    "NodeAffinity": Cause.EVICTED,
    "Preempting": Cause.PREEMPTED,
    "Preempted": Cause.PREEMPTED,
    "NodeLost": Cause.NODE_LOST,
    "DeadlineExceeded": Cause.DEADLINE,
}
"""Reasons of a pod that failed before, or without, its containers."""

_EVENTS = {
    "Preempted": Cause.PREEMPTED,
    "TaintManagerEviction": Cause.NODE_LOST,
    "NodeNotReady": Cause.NODE_LOST,
    "Evicted": Cause.EVICTED,
}
"""Reasons of events that outlive the pod that they are of."""

_NEVER = {
    "InvalidImageName": Cause.IMAGE,
    "ErrImageNeverPull": Cause.IMAGE,
}
"""Reasons of a container that waits for what does not come."""

_LATER = {
    "ErrImagePull": Cause.IMAGE,
    "ImagePullBackOff": Cause.IMAGE,
    "RegistryUnavailable": Cause.IMAGE,
    "CreateContainerConfigError": Cause.CONTAINER_CONFIG,
    "CreateContainerError": Cause.CONTAINER_CONFIG,
    "RunContainerError": Cause.CONTAINER_CONFIG,
    "CrashLoopBackOff": Cause.EXITED,
}
"""Reasons of a container that the kubelet tries again."""

_NO_START = ("StartError", "ContainerCannotRun")
_LOST = "ContainerStatusUnknown"


def find(
    job: Said | None, pods: Sequence[Said], events: Sequence[Said], now: datetime
) -> Finding | None:
    """What keeps a Job from its work; None where nothing does, or where it ended well.

    Args:
        job: None where the API server knows none of that name.
        pods: those of the Job that are still there.
        events: of the Job and of its pods, also of those that are gone.
        now: by the clock of who looks.
    """
    if job is None:
        return Finding(Cause.DELETED, "over", _gone(events))
    failed = _condition(job, "Failed")
    if failed and failed.get("reason") == "DeadlineExceeded":
        return Finding(Cause.DEADLINE, "over", _words(job, failed))
    ended = [found for pod in pods if (found := _ended(pod, now)) is not None]
    if ended:
        return ended[-1]
    if failed or (_count(job, "failed") and not _count(job, "active")):
        return _failed(job, failed, events)
    if _condition(job, "Complete") or _count(job, "succeeded"):
        return None
    for pod in pods:
        found = _waiting(pod)
        if found is not None:
            return found
    suspended = _condition(job, "Suspended")
    if suspended:
        return Finding(Cause.SUSPENDED, "waits", _words(job, suspended))
    return None if pods else _uncreated(job, events)


def unrecorded(job: Said | None, pods: Sequence[Said]) -> Finding | None:
    """A Job that ended well whose step nobody recorded the end of; None if it did not end well.

    dagster starts no step twice: a second pod of the same Job ends at once, and says nothing.
    """
    if job is None or not (_condition(job, "Complete") or _count(job, "succeeded")):
        return None
    started = _count(job, "succeeded") + _count(job, "failed")
    again = f", after {started} pods" if max(started, len(pods)) > 1 else ""
    return Finding(
        Cause.RESTARTED,
        "over",
        f"Job {_name(job)} is Complete{again}, but its step recorded no end: Kubernetes started a "
        "pod of it again, which must not repeat the step and left",
    )


def disruption(job: Said | None, pods: Sequence[Said], events: Sequence[Said]) -> Finding | None:
    """Who interrupted a step that says that it was; None where the cluster knows nothing of it."""
    if job is None:
        return Finding(Cause.DELETED, "over", _gone(events))
    for pod in pods:
        status = pod.get("status") or {}
        found = _disrupted(pod)
        if found is None and status.get("reason") in _POD_REASONS:
            found = Finding(_POD_REASONS[status["reason"]], "over", _words(pod, status))
        if found is not None:
            return found
    told = _of_events(events)
    if told is not None:
        return told
    failed = _condition(job, "Failed")
    if failed and failed.get("reason") == "DeadlineExceeded":
        return Finding(Cause.DEADLINE, "over", _words(job, failed))
    for thing in (job, *pods):
        if (thing.get("metadata") or {}).get("deletionTimestamp"):
            return Finding(
                Cause.DELETED,
                "over",
                f"{_name(thing)} is being deleted by somebody, with no reason given",
            )
    if not pods and _count(job, "failed"):
        # The Job controller keeps a pod that ended by itself; the condition went with this one.
        words = f"the pod of Job {_name(job)} was deleted while it ran, as a drain of its node does"
        return Finding(Cause.EVICTED, "over", f"{words}, and is gone: nothing says why any more")
    return None


def _ended(pod: Said, now: datetime) -> Finding | None:
    """Why a pod is over; None where it is not, or ended well."""
    found = _disrupted(pod)
    status = pod.get("status") or {}
    phase = status.get("phase")
    if phase not in ("Failed", "Unknown"):
        due = (pod.get("metadata") or {}).get("deletionTimestamp")
        if due is None or phase == "Succeeded" or now < parsed(due) + SLACK:
            return None
        words = f"pod {_name(pod)} was to be gone by {due} and is not: its node "
        words += f"{(pod.get('spec') or {}).get('nodeName')} does not answer"
        return Finding(Cause.NODE_LOST, "over", f"{found.words}; {words}" if found else words)
    if found is not None:
        return found
    reason = str(status.get("reason") or "")
    if reason in _POD_REASONS:
        return Finding(_POD_REASONS[reason], "over", _words(pod, status))
    if phase == "Unknown":
        return Finding(Cause.NODE_LOST, "over", _words(pod, {"reason": "phase Unknown", **status}))
    for container in _containers(status):
        terminated = (container.get("state") or {}).get("terminated") or {}
        if terminated.get("reason") == "OOMKilled":
            words = _memory(pod, container, terminated)
            return Finding(Cause.OUT_OF_MEMORY, "over", words, killed=True)
    for container in _containers(status):
        terminated = (container.get("state") or {}).get("terminated") or {}
        if terminated and terminated.get("exitCode"):
            cause, words = _exited(terminated), _terminated(pod, container, terminated)
            killed = cause is Cause.EXITED and terminated["exitCode"] == SIGKILLED
            return Finding(cause, "over", words, killed)
    return Finding(Cause.EXITED, "over", _words(pod, {"reason": "phase Failed", **status}))


def _exited(terminated: Said) -> Cause:
    reason = terminated.get("reason")
    if reason == _LOST:
        return Cause.NODE_LOST
    return Cause.CONTAINER_CONFIG if reason in _NO_START else Cause.EXITED


def _disrupted(pod: Said) -> Finding | None:
    condition = _condition(pod, "DisruptionTarget")
    if condition is None:
        return None
    cause = _DISRUPTIONS.get(str(condition.get("reason")), Cause.EVICTED)
    return Finding(cause, "over", f"{_words(pod, condition)} (DisruptionTarget)")


def _failed(job: Said, failed: Said | None, events: Sequence[Said]) -> Finding:
    """A Job that failed and whose pods are gone or say nothing."""
    told = _of_events(events)
    if told is not None:
        return told
    words = _words(job, failed or {"reason": "failed"})
    return Finding(Cause.EXITED, "over", f"{words}; its pods are gone, and no event says why")


def _of_events(events: Sequence[Said]) -> Finding | None:
    for event in reversed(events):
        cause = _EVENTS.get(str(event.get("reason")))
        if cause is not None and (event.get("involvedObject") or {}).get("kind") == "Pod":
            return Finding(cause, "over", _event_words(event))
    return None


def _waiting(pod: Said) -> Finding | None:
    """Why a pod that is there has not started."""
    status = pod.get("status") or {}
    for container in _containers(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason") or "")
        words = f"container {container.get('name')} of {_words(pod, waiting)}"
        if reason in _NEVER:
            return Finding(_NEVER[reason], "over", words)
        if reason in _LATER:
            return Finding(_LATER[reason], "waits", words)
    scheduled = _condition(pod, "PodScheduled", status="False")
    if scheduled and scheduled.get("reason") == "Unschedulable":
        return Finding(Cause.UNSCHEDULABLE, "waits", _words(pod, scheduled))
    return None


def _uncreated(job: Said, events: Sequence[Said]) -> Finding | None:
    """Why a Job has no pod."""
    for event in reversed(events):
        if event.get("reason") != "FailedCreate":
            continue
        text, words = str(event.get("message") or ""), _event_words(event)
        cause = refusal(text)
        # The Job controller tries again for ever; of these nothing comes before somebody acts.
        return Finding(cause, "waits" if cause is not Cause.PRIORITY_CLASS else "over", words)
    return None


def refusal(text: str) -> Cause:
    """Why the API server forbids to create something, by what it says: it has no code for it."""
    if "exceeded quota" in text:
        return Cause.QUOTA
    if "no PriorityClass with name" in text:
        return Cause.PRIORITY_CLASS
    if "failed calling webhook" in text or "context deadline exceeded" in text:
        return Cause.API
    return Cause.FORBIDDEN


def started_pods(events: Iterable[Said]) -> list[str]:
    """Names of the pods that the events of a Job tell of."""
    prefix = "Created pod: "
    texts = [str(e.get("message")) for e in events if e.get("reason") == "SuccessfulCreate"]
    return [text.removeprefix(prefix) for text in texts if text.startswith(prefix)]


def parsed(time: str | datetime) -> datetime:
    """A time of the API."""
    return time if isinstance(time, datetime) else datetime.fromisoformat(time)


def _condition(thing: Said, kind: str, status: str = "True") -> Said | None:
    for condition in (thing.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            return condition  # type: ignore[no-any-return]
    return None


def _containers(status: Said) -> list[Said]:
    names = ("initContainerStatuses", "containerStatuses")
    return [container for name in names for container in status.get(name) or ()]


def _count(job: Said, name: str) -> int:
    return int((job.get("status") or {}).get(name) or 0)


def _name(thing: Said) -> str:
    return str((thing.get("metadata") or {}).get("name") or "unnamed")


def _words(thing: Said, said: Said) -> str:
    message = str(said.get("message") or "").strip()
    kind = str(thing.get("kind") or ("Job" if "template" in (thing.get("spec") or {}) else "pod"))
    kind = "pod" if kind == "Pod" else kind
    told = f"{said.get('reason')}: {message}" if message else str(said.get("reason"))
    return f"{kind} {_name(thing)}: {told}"


def _event_words(event: Said) -> str:
    involved = event.get("involvedObject") or {}
    kind = "pod" if involved.get("kind") == "Pod" else str(involved.get("kind"))
    return f"{kind} {involved.get('name')}: {event.get('reason')}: {event.get('message')}"


def _terminated(pod: Said, container: Said, terminated: Said) -> str:
    code = terminated.get("exitCode")
    signal = f", signal {code - 128}" if isinstance(code, int) and 128 < code < 160 else ""
    told = f"container {container.get('name')} of pod {_name(pod)} ended with exit code {code}"
    message = str(terminated.get("message") or "").strip()
    reason = f" ({terminated.get('reason')}{signal})"
    return f"{told}{reason}" + (f": {message}" if message else "")


def _memory(pod: Said, container: Said, terminated: Said) -> str:
    spec = pod.get("spec") or {}
    wanted = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    for one in wanted:
        if one.get("name") == container.get("name"):
            limit = ((one.get("resources") or {}).get("limits") or {}).get("memory")
            said = f"its memory limit is {limit}" if limit else "it has no memory limit of its own"
            return f"{_terminated(pod, container, terminated)}; {said}"
    return _terminated(pod, container, terminated)


def _gone(events: Sequence[Said]) -> str:
    for event in reversed(events):
        involved = event.get("involvedObject") or {}
        if involved.get("kind") == "Job":
            return f"its Job {involved.get('name')} is not there any more: somebody deleted it"
    return "its Job is not there any more: somebody deleted it"
