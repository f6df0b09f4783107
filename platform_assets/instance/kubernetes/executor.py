"""Steps as Kubernetes Jobs, each in an image of the lock.

As dagster-k8s's `k8s_job_executor`, with one field more: `image`, the logical name of the image
that steps run in. An op, or an asset by its `op_tags`, chooses another by its tag
`signalbox/image`. What any layer puts in the place of it is sent only if it is pinned as well.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import kubernetes.client
from dagster._core.definitions.executor_definition import multiple_process_executor_requirements
from dagster._core.events import EngineEventData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig
from dagster_k8s.launcher import K8sRunLauncher
from dagster_k8s.utils import load_kubernetes_config

from platform_assets.domain.admission import Layer, other_image
from platform_assets.domain.cluster_budgets import ClusterError, Verdict
from platform_assets.domain.cluster_causes import Cause, Finding, disruption, find, unrecorded
from platform_assets.domain.errors import UsageError
from platform_assets.domain.image_spec import IMAGE_TAG
from platform_assets.domain.images import ImageLock
from platform_assets.domain.lanes import Lane, lane_of
from platform_assets.domain.placing import Place
from platform_assets.domain.processes import processes_of_tag
from platform_assets.domain.ranks_folder import Ranks
from platform_assets.instance.coordinator import parent_of
from platform_assets.instance.kubernetes.admitting import (
    AdmittingApiClient,
    credentials,
    making,
)
from platform_assets.instance.kubernetes.configuring import CONTEXT, of_steps, schema
from platform_assets.instance.kubernetes.delegating import RecoveringExecutor
from platform_assets.instance.kubernetes.foreseeing import CONFIG_TAG, read_tag
from platform_assets.instance.kubernetes.gangs import Gangs, SeenRanks
from platform_assets.instance.kubernetes.gpus import GpuPlanner
from platform_assets.instance.kubernetes.looking import (
    Looking,
    Ran,
    Seen,
    own_container,
    shown,
    started,
)
from platform_assets.instance.kubernetes.named import Named
from platform_assets.instance.kubernetes.recovering import (
    PLACE,
    Recovery,
    begun,
    compared,
    end_recorded,
)
from platform_assets.instance.kubernetes.step_pod import NAME
from resources.failures import load_budgets
from resources.images import load_lock

_log = logging.getLogger(__name__)

HEALTH_SECONDS = 5
"""Between looks at what runs, after the one at its beginning; there is another at its end."""

SHOWN_SECONDS, AGAIN_SECONDS = 10.0, 0.5
"""How long the cluster has to say what a step ran that ended, and between two looks."""


class PinnedStepHandler(StepHandler):
    """Hands each step to dagster-k8s's own handler, with the image of its name in the lock."""

    def __init__(
        self,
        image: str,
        settings: Mapping[str, Any],
        config: Mapping[str, Any],
        recovery: Recovery,
        lock: ImageLock,
    ) -> None:
        super().__init__()
        self._image, self._settings, self._config = image, settings, config
        # As it was when the run worker started: one run, one lock. A bump while it goes on would
        # otherwise end its steps, and start what comes after them in other images.
        self._lock = lock
        self.recovery = recovery
        self._looking = Looking(settings["k8s_client_batch_api"], settings["k8s_client_core_api"])
        self._gpus = GpuPlanner(settings["k8s_client_core_api"])
        self._handlers: dict[str, Named] = {}
        self._recorded: set[str] = set()
        self._contexts: dict[str, StepHandlerContext] = {}
        self._found: dict[str, tuple[Finding, Verdict]] = {}
        self._perhaps: dict[str, ClusterError] = {}
        # Jobs that nothing more is to be said of: never made, or said already.
        self._settled: set[str] = set()

    @property
    def name(self) -> str:
        """See StepHandler."""
        return "PinnedStepHandler"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Create the step's Job.

        Where the cluster does not take it, the step is asked for again, or over; what else runs in
        the run goes on. Where it may have taken it and does not say so, the step counts as running
        until the cluster can be asked: under another name it would run twice.

        Raises:
            RefusedError: a container of it is not pinned; names it, and where its image is from.
            UsageError: the lock has no image of the name, or the model not the shape of the tag.
        """
        (key,) = step_handler_context.execute_step_args.step_keys_to_execute or [""]
        self._contexts[key] = step_handler_context
        self._found.pop(key, None)  # of a look after which Dagster starts it, and does not ask
        handler = self._handler(step_handler_context)
        attempt = self.recovery.attempt(step_handler_context, key)
        layers = self.layers(step_handler_context, key)
        place = self._place(step_handler_context, key)
        with making(f"step {key}", layers, place) as made:
            try:
                yield from handler.launch_step(attempt)
                if place.ranks is not None:
                    self._gangs(handler, step_handler_context).start(made.came[-1], place)
            except ClusterError as error:
                if error.perhaps:
                    self._perhaps[key] = error
                    self.recovery.away(step_handler_context, key, error)
                    return
                self._settled.add(handler.job_name(step_handler_context))
                if made.came and place.ranks is not None:  # its ranks were refused, not the step
                    self._end(handler, step_handler_context)
                yield from self.recovery.unlaunched(step_handler_context, key, error)

    def _place(self, context: StepHandlerContext, key: str) -> Place:
        lane, asked = _lane(context), processes_of_tag(context.step_tags[key])
        claim = str(self._config.get("ranks_claim") or "")
        if asked is not None and not claim:
            raise UsageError(
                f"step {key} trains on {asked.nodes} nodes (model.processes), and the executor is "
                "told of no volume for its ranks: set ranks_claim to a PersistentVolumeClaim that "
                "many nodes may write (docs/distributed.md)"
            )
        gpus = self._gpus.ask(context, key, lane)
        ranks = Ranks(asked, claim) if asked is not None else None
        return Place("step", lane, bool(self._config.get("kueue")), gpus, ranks)

    def _gangs(self, handler: Named, context: StepHandlerContext) -> Gangs:
        client = self._settings["k8s_client_core_api"].api_client
        return Gangs(client, handler.namespace(context), self._looking)

    def _ranks(self, context: StepHandlerContext, handler: Named) -> SeenRanks | None:
        """The ranks that a step has in pods of their own; None where it trains by itself.

        Raises:
            ClusterError: the API server does not answer, or does not allow it.
        """
        (key,) = context.execute_step_args.step_keys_to_execute or [""]
        asked = processes_of_tag(context.step_tags[key])
        if asked is None:
            return None
        return self._gangs(handler, context).look(handler.job_name(context), asked)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Whether the step's Job is well, and its containers run what was asked for.

        Where they do not, the Job is deleted: what somebody else put there trains nothing. An API
        server that cannot be asked says nothing about a step that runs: it is left alone.
        """
        context = step_handler_context
        (key,) = context.execute_step_args.step_keys_to_execute or [""]
        resumed = key not in self._contexts
        self._contexts[key] = context
        handler = self._handler(context)
        if resumed:
            self._recorded |= compared(context, key)
        try:
            seen = self._look(context, key)
            ranks = self._ranks(context, handler)
        except ClusterError as error:
            self.recovery.away(context, key, error)
            if resumed:
                # Perhaps it was never created; nobody has deleted it then.
                self._perhaps.setdefault(key, error)
            return CheckStepHealthResult.healthy()
        if resumed and (seen.known or begun(context, key)):
            # Dagster would start at once, under the name that is taken, what is not well at the
            # first look of a run worker that goes on with a run. It is judged at the next one.
            return CheckStepHealthResult.healthy()
        perhaps = self._perhaps.pop(key, None)
        if perhaps is not None and not (seen.known or begun(context, key)):
            found: Finding | None = Finding(perhaps.cause, "over", perhaps.words)
        else:
            found = find(seen.job, seen.pods, seen.events, self.recovery.clock())
            found = found or unrecorded(seen.job, seen.pods)
        if found is None and ranks is not None:
            found = ranks.finding(self.recovery.clock())
        if found is None:
            self.recovery.well(context, key)
            self._gpus.well(context, key)
            ran = started([*seen.pods, *(ranks.pods if ranks is not None else ())])
            return self._images(context, key, handler, ran)
        if found.state == "over" and end_recorded(context, key):
            return CheckStepHealthResult.healthy()  # its own word for it is on its way
        verdict = self.recovery.judge(context, key, found)
        if verdict.step == "wait":
            if found.cause in (Cause.UNSCHEDULABLE, Cause.QUOTA, Cause.SUSPENDED):
                self._gpus.tell(context, key, _lane(context), found.words)
            return CheckStepHealthResult.healthy()
        if not seen.finished or ranks is not None:
            self._end(handler, context)
        self._found[key] = found, verdict
        return CheckStepHealthResult.unhealthy(verdict.words)

    def context_of(self, key: str) -> StepHandlerContext | None:
        """The newest context of a step; None where this process has not handled it."""
        return self._contexts.get(key)

    def taken(self, key: str) -> tuple[Finding, Verdict] | None:
        """What the last look at a step came to, once."""
        return self._found.pop(key, None)

    def interruption(self, key: str) -> Finding | None:
        """Who interrupted a step, by the cluster; None where it knows nothing, or is away."""
        try:
            seen = self._look(self._contexts[key], key, told=True)
        except ClusterError:
            return None
        return disruption(seen.job, seen.pods, seen.events)

    def _look(self, context: StepHandlerContext, key: str, *, told: bool = False) -> Seen:
        handler, known = self._handler(context), self.recovery.pods(key)
        seen = self._looking.look(
            handler.namespace(context), handler.job_name(context), known, told=told
        )
        known.update(pod["metadata"]["name"] for pod in seen.pods)
        return seen

    def _end(self, handler: Named, context: StepHandlerContext) -> None:
        """Delete the step's Job, so that it does not start when nobody expects it any more."""
        try:
            list(self._terminate(handler, context))
        except ClusterError:
            # Its name is never used again, and dagster starts no step that has ended.
            _log.warning("the Job of step %s was not deleted", context, exc_info=True)

    def _images(
        self, context: StepHandlerContext, key: str, handler: Named, ran: Ran
    ) -> CheckStepHealthResult:
        reasons = self._compared(context, key, ran)
        if reasons:
            self._settled.add(handler.job_name(context))
            self._end(handler, context)
            return CheckStepHealthResult.unhealthy(f"step {key} was ended: {reasons}")
        return CheckStepHealthResult.healthy()

    def _compared(self, context: StepHandlerContext, key: str, ran: Ran) -> str:
        """Why what the pods run is not what was asked for; where it is, it is recorded."""
        reasons = list(filter(None, (other_image(*one, self._lock) for one in ran.values())))
        if not reasons:
            self._record(context, key, ran)
        return "; ".join(reasons)

    def begun(self, key: str) -> str:
        """Why a step that has just begun was ended: it runs something else than asked for.

        A cluster that cannot be asked is asked again at the next look.
        """
        context = self._contexts[key]
        handler = self._handler(context)
        try:
            ran = started(self._look(context, key).pods)
        except ClusterError:
            return ""
        reasons = self._compared(context, key, ran)
        if reasons:
            self._settled.add(handler.job_name(context))
            self._end(handler, context)
        return reasons

    def ended(self, key: str, *, succeeded: bool) -> str:
        """Why what a step ran that says that it ended does not count; empty if it does.

        Most steps were looked at before; one that wrote nothing may be seen only here. Of a success
        something must have shown what its own container ran: a pod that is gone, or whose imageID
        nobody reports in time, may have been of another image. A cluster that cannot be asked is
        told of, and ends nothing.
        """
        context = self._contexts[key]
        name = self._handler(context).job_name(context)
        if name in self._settled:
            return ""
        end = time.monotonic() + SHOWN_SECONDS
        while True:
            try:
                seen = self._look(context, key)
            except ClusterError as error:
                words = f"what it ran was not compared at its end: {error}"
                self.recovery.tell(context, key, words, Finding(error.cause, "over", ""))
                return ""
            # What a run worker has compared with its lock was what was asked for.
            ran = {p: ids for p, ids in started(seen.pods).items() if p not in self._recorded}
            reasons = self._compared(context, key, ran)
            if not (reasons or not succeeded or shown(seen, self._recorded)):
                if seen.pods and time.monotonic() < end:
                    time.sleep(AGAIN_SECONDS)
                    continue
                reasons = _never_shown(seen)
            if reasons:
                self._settled.add(name)
            return reasons

    def _record(self, context: StepHandlerContext, key: str, ran: Ran) -> None:
        new = {place: ids for place, ids in ran.items() if place not in self._recorded}
        self._recorded |= new.keys()
        for place, (image_id, image) in new.items():
            context.instance.report_engine_event(
                f"{place} runs {image}, as it was asked for",
                context.dagster_run,
                EngineEventData({"image": image, "imageID": image_id, PLACE: place}),
                step_key=key,
            )

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """See StepHandler."""
        yield from self._terminate(self._handler(step_handler_context), step_handler_context)

    def _terminate(self, handler: Named, context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        (key,) = context.execute_step_args.step_keys_to_execute or [""]
        if processes_of_tag(context.step_tags[key]) is not None:
            # Jobs are deleted without what belongs to them, unless that is asked for.
            self._gangs(handler, context).delete(handler.job_name(context))
        yield from handler.terminate_step(context)

    def layers(self, context: StepHandlerContext, key: str) -> list[Layer]:
        """What the step's Job is made of, the strongest first."""
        origin = context.execute_step_args.job_origin.repository_origin
        launcher = context.instance.run_launcher
        mine = launcher if isinstance(launcher, K8sRunLauncher) else None
        return [
            Layer("the executor's per_step_k8s_config", self._config.get("per_step_k8s_config")),
            Layer(f"the op's tag {CONFIG_TAG}", read_tag(context.step_tags[key])),
            Layer("the executor's step_k8s_config", self._config.get("step_k8s_config")),
            Layer("the executor's config", {name: self._config.get(name) for name in CONTEXT}),
            Layer("the code location's container context", origin.container_context),
            Layer("the run launcher's run_k8s_config", mine and mine.run_k8s_config),
            Layer("the run launcher's volumes", mine and mine.volumes),
        ]

    def _handler(self, context: StepHandlerContext) -> Named:
        (key,) = context.execute_step_args.step_keys_to_execute or [""]
        name = context.step_tags[key].get(IMAGE_TAG, self._image)
        if name not in self._handlers:
            image = str(self._lock.named(name).ref)
            self._handlers[name] = Named(image=image, **self._settings)
        return self._handlers[name]


def _never_shown(seen: Seen) -> str:
    why = (
        f"the cluster reports no imageID of it within {SHOWN_SECONDS:g} s"
        if seen.pods
        else "its pod is not there any more"
    )
    return (
        f"nothing has shown what its container {own_container(seen)!r} ran, for {why}. It may have "
        "been another image than was asked for, so its success does not count; run it again"
    )


def _lane(context: StepHandlerContext) -> Lane:
    run = context.dagster_run
    return lane_of(run.tags, parent_of(context.instance, run))


@dg.executor(
    name=NAME,
    config_schema=schema(),
    requirements=multiple_process_executor_requirements(),
)
def pinned_k8s_job_executor(init_context: InitExecutorContext) -> Executor:
    """Executor that starts each step as a Kubernetes Job, in an image of the lock by digest."""
    config: dict[str, Any] = dict(init_context.executor_config)
    launcher = init_context.instance.run_launcher
    mine = launcher if isinstance(launcher, K8sRunLauncher) else None
    config = {**of_steps(launcher), **config}
    inside = config.get("load_incluster_config", mine.load_incluster_config if mine else True)
    file = config.get("kubeconfig_file", mine.kubeconfig_file if mine else None)
    load_kubernetes_config(load_incluster_config=inside, kubeconfig_file=file)
    lock = load_lock()
    client = AdmittingApiClient(lambda: lock, credentials(inside, file))
    settings = {
        "container_context": K8sContainerContext(
            namespace=config.get("job_namespace"),
            run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(config.get("step_k8s_config", {})),
            **{name: config.get(name) for name in CONTEXT},
        ),
        "load_incluster_config": inside,
        "kubeconfig_file": file,
        "k8s_client_batch_api": kubernetes.client.BatchV1Api(client),
        "k8s_client_core_api": kubernetes.client.CoreV1Api(client),
        "per_step_k8s_config": config.get("per_step_k8s_config", {}),
        "enable_owner_references": config.get("enable_owner_references", False),
    }
    retries = RetryMode.from_config(config["retries"]) or RetryMode.ENABLED
    recovery = Recovery(load_budgets(), retries=not retries.disabled)
    handler = PinnedStepHandler(config["image"], settings, config, recovery, lock)
    return RecoveringExecutor(
        handler,
        handler,
        retries,
        max_concurrent=config.get("max_concurrent"),
        tag_concurrency_limits=config.get("tag_concurrency_limits"),
        should_verify_step=True,
        check_step_health_interval_seconds=HEALTH_SECONDS,
    )
