"""Dagster's launcher of runs as Kubernetes Jobs, with the image of the run from the lock.

In dagster.yaml:

    run_launcher:
      module: platform_assets.instance.kubernetes.launcher
      class: PinnedK8sRunLauncher
      config:
        image: run               # its name in images.lock.yaml
        service_account_name: dagster
        instance_config_map: dagster-instance
        dagster_home: /opt/dagster
"""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import dagster as dg
import kubernetes.client
from dagster._core.events import EngineEventData
from dagster._core.launcher import LaunchRunContext, ResumeRunContext, WorkerStatus
from dagster._core.launcher.base import CheckRunHealthResult
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._serdes import ConfigurableClassData
from dagster_k8s.client import DagsterK8sError
from dagster_k8s.job import get_job_name_from_run_id
from dagster_k8s.launcher import K8sRunLauncher
from dagster_k8s.utils import load_kubernetes_config

from platform_assets.domain.admission import Layer, other_image
from platform_assets.domain.cluster_budgets import ClusterError, decide
from platform_assets.domain.cluster_causes import Cause, Finding, find
from platform_assets.domain.lanes import lane_of
from platform_assets.domain.placing import Place
from platform_assets.instance.coordinator import parent_of
from platform_assets.instance.kubernetes.admitting import (
    AdmittingApiClient,
    credentials,
    making,
)
from platform_assets.instance.kubernetes.foreseeing import CONFIG_TAG, read_tag, require_steps
from platform_assets.instance.kubernetes.gangs import Gangs
from platform_assets.instance.kubernetes.looking import Looking, Seen, started
from platform_assets.instance.kubernetes.recovering import CAUSE, RETRIED, marked
from resources.failures import load_budgets
from resources.images import load_lock

_log = logging.getLogger(__name__)

OF_STEPS = {
    "step_resources": dg.Field(
        dg.Permissive(),
        is_required=False,
        description="Requests and limits of a step's container that says nothing of its own.",
    ),
    "step_service_account_name": dg.Field(
        dg.StringSource,
        is_required=False,
        description="ServiceAccount of steps, which create no Jobs as run workers do.",
    ),
    "steps_at_once": dg.Field(
        dg.IntSource, is_required=False, description="Steps of one run at once."
    ),
    "kueue": dg.Field(
        bool, is_required=False, description="Whether Kueue queues the steps, by lane."
    ),
    "ranks_claim": dg.Field(
        dg.StringSource,
        is_required=False,
        description="PersistentVolumeClaim (ReadWriteMany) of what steps share with their ranks "
        "on other nodes; the cluster has JobSet then.",
    ),
}
"""Fields of the launcher's config that are the steps'."""


class PinnedK8sRunLauncher(K8sRunLauncher):
    """A K8sRunLauncher that creates no Job with an image that is not in the lock.

    Attributes:
        steps: what it says of the steps of its runs, by the names of OF_STEPS; the executor reads
            it, for nothing else that is the cluster's reaches a run worker.

    Credentials of the cluster are read when something is asked of it. Opening an instance makes its
    launcher as soon as `max_resume_run_attempts` is more than 0, and steps and the code location,
    which open it too, have no token.
    """

    steps: Mapping[str, Any] = {}

    def __init__(self, client: Callable[[], AdmittingApiClient], **settings: Any) -> None:
        super(K8sRunLauncher, self).__init__()  # its own reads the credentials: later
        self._client, self._settings, self._lock = client, settings, threading.Lock()
        self._inst_data = settings.get("inst_data")
        self._others: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        """What K8sRunLauncher has, which is made whole when something of it is first looked at."""
        own = vars(self)
        if "_lock" not in own:
            raise AttributeError(name)
        with self._lock:
            if "_api_client" not in own:
                client = self._client()
                made = K8sRunLauncher(
                    k8s_client_batch_api=kubernetes.client.BatchV1Api(client),
                    k8s_client_core_api=kubernetes.client.CoreV1Api(client),
                    **self._settings,
                )
                own.update({n: value for n, value in vars(made).items() if n not in own})
        if name not in own:
            raise AttributeError(name)
        return own[name]

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """That of K8sRunLauncher, with the image by its name in the lock."""
        own = dg.Field(
            dg.StringSource,
            is_required=False,
            description="Name in images.lock.yaml of the image that runs run in, where the code "
            "location does not come from an image.",
        )
        return {**super().config_type(), "image": own, **OF_STEPS}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Make it of the config of dagster.yaml.

        Raises:
            UsageError: the lock has no image of that name, or is none.
        """
        config = dict(config_value)
        steps = {field: config.pop(field) for field in OF_STEPS if field in config}
        name = config.pop("image", None)
        if name is not None:
            config["job_image"] = str(load_lock().named(name).ref)
        inside, file = config.get("load_incluster_config", True), config.get("kubeconfig_file")

        def client() -> AdmittingApiClient:
            load_kubernetes_config(
                load_incluster_config=inside,
                kubeconfig_file=file,
                k8s_api_ssl_ca_cert_file=config.get("k8s_api_ssl_ca_cert_file"),
            )
            return AdmittingApiClient(load_lock, credentials(inside, file))

        launcher = cls(client, inst_data=inst_data, **config)
        launcher.steps = steps
        return launcher

    def launch_run(self, context: LaunchRunContext) -> None:
        """Create the run's Job.

        Raises:
            RefusedError: a container of it, or of a step that it plans, is not pinned; names it,
                and where its image is from.
        """
        require_steps(self._instance, context.dagster_run, load_lock())
        with self._making(context.dagster_run):
            super().launch_run(context)

    def resume_run(self, context: ResumeRunContext) -> None:
        """Create a Job that goes on with the run, if what ended the one before has a budget.

        Raises:
            ClusterError: it has none, or it is spent; Dagster fails the run with these words.
            RefusedError: a container of the Job is not pinned; of its steps each is judged then.
        """
        run = context.dagster_run
        name = get_job_name_from_run_id(
            run.run_id, resume_attempt_number=(context.resume_attempt_number or 1) - 1 or None
        )
        try:
            if run.run_id in self._others:
                raise ClusterError(Cause.IMAGE, self._others[run.run_id])
            self._allow(run, self._seen(run, name))
        except ClusterError:
            self._end_jobs(run)
            raise
        with self._making(run):
            super().resume_run(context)

    def terminate(self, run_id: str) -> bool:
        """End a run, by its worker's Job and those of its steps.

        Where runs are resumed, a worker that is ended leaves its steps to the next one, and there
        is none.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        ended = bool(super().terminate(run_id))
        self._end_jobs(run)
        return ended

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the run's worker is there; if not, why, in the cluster's words.

        One that runs something else than was asked for is ended, as a step is, and not resumed; its
        steps are ended with it, and so are those of any that no other one comes after.

        dagster-k8s takes a run whose cluster cannot be asked for lost: Dagster fails it, or starts
        a second worker beside the first. Nothing is known of it then, so it counts as running.
        """
        try:
            seen = self._seen(run, self._present(run))
        except ClusterError as error:
            _log.warning("run %s is left alone, it is not known how it is: %s", run.run_id, error)
            return CheckRunHealthResult(WorkerStatus.RUNNING, str(error), transient=True)
        others = _others(seen)
        if others:
            self._others[run.run_id] = others
            self._end_jobs(run)
            return CheckRunHealthResult(WorkerStatus.FAILED, f"the worker was ended: {others}")
        finding = self._finding(seen)
        if finding is not None and finding.state == "over":
            budgets = load_budgets()
            words = decide(finding, budgets, 0, timedelta(0)).words.partition(". It is asked")[0]
            return self._failed(run, words)
        if seen.finished and run.status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING):
            return self._failed(run, _unsaid(seen))
        return CheckRunHealthResult(
            WorkerStatus.SUCCESS if seen.finished else WorkerStatus.RUNNING,
            finding.words if finding else None,
        )

    def get_run_worker_debug_info(
        self, run: dg.DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """What dagster-k8s says of the run's worker, and above it what keeps it, in one line."""
        if run.run_id in self._others:
            return None  # its Job is gone, for we ended it, and that was said
        try:
            finding = self._finding(self._seen(run, self._present(run)))
            told = super().get_run_worker_debug_info(run, include_container_logs)
        except ClusterError as error:
            return str(error)
        return f"{finding.words}\n\n{told}" if finding else told

    def _present(self, run: dg.DagsterRun) -> str:
        number = self._get_resume_attempt_number(run)
        return str(get_job_name_from_run_id(run.run_id, resume_attempt_number=number))

    def _seen(self, run: dg.DagsterRun, name: str) -> Seen:
        looking = Looking(self._api_client.batch_api, self._api_client.core_api)
        return looking.look(str(self.get_container_context_for_run(run).namespace), name)

    def _finding(self, seen: Seen) -> Finding | None:
        return find(seen.job, seen.pods, seen.events, datetime.now(UTC))

    def _allow(self, run: dg.DagsterRun, seen: Seen) -> None:
        """Count a further worker of the run against the budget of what ended the one before."""
        finding = self._finding(seen)
        if finding is None and seen.finished:
            finding = Finding(Cause.RESTARTED, "over", _unsaid(seen))
        if finding is None:
            return
        before = marked(self._instance, run.run_id, None).count(finding.cause)
        verdict = decide(finding, load_budgets(), before, timedelta(0))
        if verdict.step == "fail":
            raise ClusterError(finding.cause, finding.words)
        if verdict.step == "retry":
            # Dagster waits a look of its monitor before each; its own limit counts all causes.
            metadata = {CAUSE: finding.cause.value, RETRIED: True}
            words = f"the run's worker was lost: {finding.words}"
            self._instance.report_engine_event(words, run, EngineEventData(metadata))
        if not seen.finished:
            self._api_client.delete_job(
                job_name=seen.name,
                namespace=self.get_container_context_for_run(run).namespace,
            )

    def _failed(self, run: dg.DagsterRun, words: str) -> CheckRunHealthResult:
        if not self._instance.run_will_resume(run.run_id):
            self._end_jobs(run)
        return CheckRunHealthResult(WorkerStatus.FAILED, words)

    def _end_jobs(self, run: dg.DagsterRun) -> None:
        """Delete what is left of a run: nobody would take up what its steps say."""
        namespace = str(self.get_container_context_for_run(run).namespace)
        looking = Looking(self._api_client.batch_api, self._api_client.core_api)
        gangs = Gangs(self._api_client.batch_api.api_client, namespace)
        try:
            for name in gangs.of_run(run.run_id) if self.steps.get("ranks_claim") else ():
                gangs.delete(name)
            names = looking.of_run(namespace, run.run_id)
            for name in names:
                self._api_client.delete_job(job_name=name, namespace=namespace)
        except (ClusterError, DagsterK8sError) as error:
            words = f"Jobs of the run were not deleted, they may go on: {error}"
            _log.warning("run %s: %s", run.run_id, words)
            self._instance.report_engine_event(words, run)
            return
        if names:
            words = f"what was left of the run was deleted: Job {', '.join(sorted(names))}"
            self._instance.report_engine_event(words, run)

    def _making(self, run: dg.DagsterRun) -> AbstractContextManager[object]:
        place = Place("run", lane_of(run.tags, parent_of(self._instance, run)))
        return making(f"run {run.run_id}", self.layers(run), place)

    def layers(self, run: dg.DagsterRun) -> list[Layer]:
        """What the run's Job is made of, the strongest first."""
        origin = run.job_code_origin
        repository = origin.repository_origin if origin else None
        return [
            Layer(f"the run's tag {CONFIG_TAG}", read_tag(run.tags)),
            Layer(
                "the code location's container context",
                repository.container_context if repository else None,
            ),
            Layer("the run launcher's run_k8s_config", self.run_k8s_config),
            Layer("the run launcher's volumes", self.volumes),
            Layer(
                "the code location's image (DAGSTER_CURRENT_IMAGE)",
                repository.container_image if repository else None,
            ),
            Layer("the run launcher's job_image", self.job_image),
        ]


def _unsaid(seen: Seen) -> str:
    return f"Job {seen.name} is Complete, but the run did not say that it ended"


def _others(seen: Seen) -> str:
    """Why what the pods of a run's Job run is not what was asked for; empty if it is.

    A run goes on in the image that it was launched in after that has left the lock, and nobody
    knows its further digests then.
    """
    lock = load_lock()
    locked = {str(image.ref) for image in lock.images.values()}
    template = ((seen.job or {}).get("spec") or {}).get("template") or {}
    pod, kinds = template.get("spec") or {}, ("initContainers", "containers")
    sent = {container.get("image") for kind in kinds for container in pod.get(kind) or ()}
    left = {image for image in sent - locked if "@sha256:" in str(image)}
    reasons = [other_image(*one, lock) for one in started(seen.pods).values() if one[1] not in left]
    return "; ".join(filter(None, reasons))
