"""JobSets in the cluster: the ranks of steps, created through the client that admits.

A JobSet belongs to the Job of its step, and goes when that one is old enough to go. Whoever deletes
the Job before deletes the JobSet first; ranks without a step end by themselves.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import kubernetes.client
from kubernetes.client.exceptions import ApiException

from platform_assets.domain.cluster_causes import Cause, Finding, Said, find
from platform_assets.domain.gang import GROUP, PLURAL, VERSION, gang, ranks_job
from platform_assets.domain.placing import Place
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.instance.kubernetes.looking import RUN_LABEL, Looking

_ENDS = ("Completed", "Failed")


@dataclass(frozen=True)
class SeenRanks:
    """What the API server says of the ranks of a step.

    Attributes:
        asked: for how many.
        jobset: None where there is none of that name.
        pods: of the ranks, that are there.
        events: of their Job and pods, where those say too little.
    """

    name: str
    asked: ProcessesSpec
    jobset: Said | None
    pods: Sequence[Said] = ()
    events: Sequence[Said] = ()

    def finding(self, now: datetime) -> Finding | None:
        """What keeps the ranks from training; None where nothing does, or where they ended well."""
        if self.jobset is None:
            # The run worker ended between the two, or somebody deleted it; ranks that were there
            # are gone with it, and the step waits for nobody.
            words = f"JobSet {self.name} is not there, and so the step has no ranks"
            return Finding(Cause.RESTARTED, "over", words)
        ended = self._ended()
        if ended is not None and ended["type"] == "Completed":
            return None
        metadata = {"name": self.name}
        if ended is not None:
            said = f"{ended.get('reason') or 'Failed'}: {ended.get('message', '')}".strip(": ")
            stands_for: Said = {
                "kind": "JobSet",
                "metadata": metadata,
                "status": {"conditions": [{**ended, "reason": said, "message": ""}]},
            }
            return find(stands_for, self.pods, self.events, now)
        running = [p for p in self.pods if (p.get("status") or {}).get("phase") == "Running"]
        if len(running) >= self.asked.least_nodes:
            return None
        conditions = (self.jobset.get("status") or {}).get("conditions") or ()
        stands_for = {"kind": "JobSet", "metadata": metadata, "status": {"conditions": conditions}}
        waiting = [p for p in self.pods if (p.get("status") or {}).get("phase") == "Pending"]
        return find(stands_for, waiting, self.events, now)

    def _ended(self) -> dict[str, Any] | None:
        for condition in ((self.jobset or {}).get("status") or {}).get("conditions") or ():
            if condition.get("status") == "True" and condition["type"] in _ENDS:
                return dict(condition)
        return None


class Gangs:
    """The JobSets of a namespace.

    Args:
        client: judges what is created; every image of every part is admitted, or nothing is sent.
        namespace: of the steps.
        looking: reads Jobs and pods.
    """

    def __init__(self, client: Any, namespace: str, looking: Looking | None = None) -> None:
        self._api = kubernetes.client.CustomObjectsApi(client)
        self._looking = looking
        self._where = {
            "group": GROUP,
            "version": VERSION,
            "namespace": namespace,
            "plural": PLURAL,
        }

    def start(self, job: Mapping[str, Any], place: Place) -> None:
        """Create the ranks of a step whose Job was created just now.

        Args:
            job: as it came to be placed.
            place: of the step, with its ranks.

        Raises:
            RefusedError: an image in it may not run; nothing was sent.
            ClusterError: the server refuses it; or the step's Job is gone already.
        """
        assert self._looking is not None
        assert place.ranks is not None
        name = str(job["metadata"]["name"])
        step = self._looking.look(self._where["namespace"], name).job
        uid = str(((step or {}).get("metadata") or {}).get("uid") or "")
        self.create(gang(job, uid, place.ranks, place))

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Create one.

        Raises:
            RefusedError: an image in it may not run; nothing was sent.
            ClusterError: the server refuses it.
        """
        self._api.create_namespaced_custom_object(**self._where, body=dict(manifest))

    def look(self, name: str, asked: ProcessesSpec) -> SeenRanks:
        """Ask for the ranks of a step's Job.

        Raises:
            ClusterError: the API server does not answer, or does not allow it.
        """
        assert self._looking is not None
        try:
            answer = self._api.get_namespaced_custom_object(
                **self._where, name=name, _preload_content=False
            )
            jobset: Said | None = json.loads(answer.data)
        except ApiException:  # 404: all others were tried again, and are a ClusterError
            return SeenRanks(name, asked, None)
        seen = self._looking.look(self._where["namespace"], ranks_job(name))
        return SeenRanks(name, asked, jobset, seen.pods, seen.events)

    def of_run(self, run_id: str) -> list[str]:
        """Names of the JobSets of a run's steps.

        Raises:
            ClusterError: the API server does not answer, or does not allow it.
        """
        try:
            found = self._api.list_namespaced_custom_object(
                **self._where, label_selector=f"{RUN_LABEL}={run_id}"
            )
        except ApiException:  # 404: the cluster knows no JobSets
            return []
        return [str(item["metadata"]["name"]) for item in found.get("items") or ()]

    def delete(self, name: str) -> None:
        """Delete it, and with it its pods; one that is not there is no error."""
        try:
            self._api.delete_namespaced_custom_object(
                **self._where, name=name, propagation_policy="Background"
            )
        except ApiException as error:
            if error.status != 404:
                raise
