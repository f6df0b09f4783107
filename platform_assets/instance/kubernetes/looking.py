"""A look at one Job of the cluster: Job, pods and, where they say too little, the events."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kubernetes.client
from kubernetes.client.exceptions import ApiException

from platform_assets.domain.cluster_budgets import ClusterError
from platform_assets.domain.cluster_causes import Said, started_pods

MOST_PODS = 5
"""Pods of one Job whose events are asked for: it should have had one."""

RUN_LABEL = "dagster/run-id"
"""Label that dagster-k8s gives to the Jobs of a run and of its steps."""

MAIN_CONTAINER = "dagster"
"""Name that dagster-k8s gives to the container that a step is in, unless config has another."""

Ran = Mapping[str, tuple[str, str]]
"""Image ID as the cluster reports it and image as it was sent, by pod and container."""


@dataclass(frozen=True)
class Seen:
    """What the API server says of a Job.

    Attributes:
        job: None where there is none of that name.
        pods: those that are there, the oldest first.
        events: of the Job and its pods; looked for only where Job and pods do not say enough.
    """

    name: str
    job: Said | None
    pods: list[Said]
    events: list[Said]

    @property
    def known(self) -> bool:
        """Whether anything says that there is, or was, a Job of that name."""
        return self.job is not None or bool(self.pods or self.events)

    @property
    def finished(self) -> bool:
        """Whether nothing of it can start any more."""
        return self.job is None or _over(self.job)


class Looking:
    """Reads Jobs as JSON, which is what is judged; models of the client would cost more.

    Args:
        batch, core: clients whose requests have an end.
    """

    def __init__(
        self, batch: kubernetes.client.BatchV1Api, core: kubernetes.client.CoreV1Api
    ) -> None:
        self._batch, self._core = batch, core

    def look(
        self, namespace: str, name: str, known: Iterable[str] = (), *, told: bool = False
    ) -> Seen:
        """Ask for a Job.

        Args:
            known: names of its pods that were seen before and may be gone.
            told: also look for the events where the Job seems to be well.

        Raises:
            ClusterError: the API server does not answer, or does not allow it.
        """
        try:
            job = _read(self._batch.read_namespaced_job(name, namespace, _preload_content=False))
        except ApiException:  # 404: all others were tried again, and are a ClusterError
            job = None
        listed = self._core.list_namespaced_pod(
            namespace, label_selector=f"job-name={name}", _preload_content=False
        )
        pods = sorted(_read(listed).get("items") or (), key=_created)
        seen = Seen(name, job, pods, [])
        silent = job is None or not pods or bool((job.get("status") or {}).get("failed"))
        if told or (silent and not (seen.finished and _well(job))):
            seen.events.extend(self._events(namespace, name, (*known, *map(_name, pods))))
        return seen

    def of_run(self, namespace: str, run_id: str) -> list[str]:
        """Names of the Jobs of a run and its steps that are not over.

        Raises:
            ClusterError: the API server does not answer, or does not allow it.
        """
        listed = self._batch.list_namespaced_job(
            namespace, label_selector=f"{RUN_LABEL}={run_id}", _preload_content=False
        )
        return [_name(job) for job in _read(listed).get("items") or () if not _over(job)]

    def _events(self, namespace: str, name: str, known: Iterable[str]) -> list[Said]:
        try:
            found = self._of(namespace, name)
            pods = [*dict.fromkeys((*known, *started_pods(found)))]
            for pod in pods[-MOST_PODS:]:
                found += self._of(namespace, pod)
        except ClusterError:
            return []  # a Role without events: what Job and pods say has to do
        return found

    def _of(self, namespace: str, name: str) -> list[Said]:
        selector = f"involvedObject.name={name}"
        listed = self._core.list_namespaced_event(
            namespace, field_selector=selector, _preload_content=False
        )
        return sorted(_read(listed).get("items") or (), key=_told_at)


def started(pods: Sequence[Said]) -> Ran:
    """What the containers of pods run, as far as the cluster reports it."""
    found = {}
    for pod in pods:
        spec, status = pod["spec"], pod.get("status") or {}
        wanted = (*spec["containers"], *(spec.get("initContainers") or ()))
        asked = {container["name"]: container["image"] for container in wanted}
        for name in ("containerStatuses", "initContainerStatuses"):
            for one in status.get(name) or ():
                if one.get("imageID"):
                    place = f"{pod['metadata']['name']}/{one['name']} on {spec.get('nodeName')}"
                    found[place] = (one["imageID"], asked.get(one["name"], ""))
    return found


def own_container(seen: Seen) -> str:
    """Name of the container that a step's code is in: the first one of its Job."""
    template = ((seen.job or {}).get("spec") or {}).get("template") or {}
    containers = (template.get("spec") or {}).get("containers") or ()
    return next((str(one["name"]) for one in containers), MAIN_CONTAINER)


def shown(seen: Seen, places: Iterable[str]) -> bool:
    """Whether the code's own container is among places of `started`, in a pod of this very Job.

    The next attempt's Job has the same name with a number behind it.
    """
    own = re.escape(own_container(seen))
    of_this = re.compile(rf"{re.escape(seen.name)}-[^-/]+/{own} on ")
    return any(of_this.match(place) for place in places)


def _read(response: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(response.data)
    return document


def _over(job: Said) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    kinds = ("Complete", "Failed")
    return any(c.get("type") in kinds and c.get("status") == "True" for c in conditions)


def _well(job: Said | None) -> bool:
    return bool(job and (job.get("status") or {}).get("succeeded"))


def _name(thing: Said) -> str:
    return str(thing["metadata"]["name"])


def _created(thing: Said) -> str:
    return str(thing["metadata"].get("creationTimestamp") or "")


def _told_at(event: Said) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or _created(event))
