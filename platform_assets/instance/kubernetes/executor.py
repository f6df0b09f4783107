"""Steps as Kubernetes Jobs, each in an image of the lock.

As dagster-k8s's `k8s_job_executor`, with one field more: `image`, the logical name of the image
that steps run in. An op, or an asset by its `op_tags`, chooses another by its tag
`signalbox/image`. What any layer puts in the place of it is sent only if it is pinned as well.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import kubernetes.client
from dagster._core.definitions.executor_definition import multiple_process_executor_requirements
from dagster._core.events import EngineEventData
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.executor import K8sStepHandler
from dagster_k8s.job import (
    USER_DEFINED_K8S_JOB_CONFIG_SCHEMA,
    DagsterK8sJobConfig,
    UserDefinedDagsterK8sConfig,
)
from dagster_k8s.launcher import K8sRunLauncher
from dagster_k8s.utils import load_kubernetes_config, sanitize_k8s_label

from platform_assets.domain.admission import Layer, other_image
from platform_assets.domain.image_spec import DEFAULT_IMAGE, IMAGE_TAG
from platform_assets.domain.lanes import lane_of
from platform_assets.domain.placing import Place
from platform_assets.instance.coordinator import parent_lane
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient, making
from platform_assets.instance.kubernetes.launcher import (
    CONFIG_TAG,
    PinnedK8sRunLauncher,
    read_tag,
)
from resources.images import load_lock

CONTEXT = (
    *("image_pull_policy", "image_pull_secrets", "service_account_name", "env_config_maps"),
    *("env_secrets", "env_vars", "volume_mounts", "volumes", "labels", "resources"),
    *("scheduler_name", "security_context"),
)
"""Fields of the config that are those of a container context, by the same name."""


HEALTH_SECONDS = 5
"""Between looks at what runs: a step that is shorter may have ended unseen."""


class PinnedStepHandler(StepHandler):
    """Hands each step to dagster-k8s's own handler, with the image of its name in the lock."""

    def __init__(self, image: str, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        super().__init__()
        self._image, self._settings, self._config = image, settings, config
        self._handlers: dict[str, K8sStepHandler] = {}
        self._recorded: set[str] = set()

    @property
    def name(self) -> str:
        """See StepHandler."""
        return "PinnedStepHandler"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Create the step's Job.

        Raises:
            RefusedError: a container of it is not pinned; names it, and where its image is from.
            UsageError: the lock has no image of the name.
        """
        (key,) = step_handler_context.execute_step_args.step_keys_to_execute or [""]
        handler = self._handler(step_handler_context)
        layers, place = self.layers(step_handler_context, key), self._place(step_handler_context)
        with making(f"step {key}", layers, place):
            yield from handler.launch_step(step_handler_context)

    def _place(self, context: StepHandlerContext) -> Place:
        run = context.dagster_run
        lane = lane_of(run.tags, parent_lane(context.instance, run))
        return Place("step", lane, bool(self._config.get("kueue")))

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Whether the step's Job is well, and its containers run what was asked for.

        Where they do not, the Job is deleted: what somebody else put there trains nothing.
        """
        handler = self._handler(step_handler_context)
        found = handler.check_step_health(step_handler_context)
        if not found.is_healthy:
            return found
        (key,) = step_handler_context.execute_step_args.step_keys_to_execute or [""]
        started = self._started(step_handler_context, key)
        reasons = list(filter(None, (other_image(*one, load_lock()) for one in started.values())))
        if reasons:
            list(handler.terminate_step(step_handler_context))
            reason = f"step {key} was ended: {'; '.join(reasons)}"
            return CheckStepHealthResult.unhealthy(reason)
        self._record(step_handler_context, key, started)
        return found

    def _started(self, context: StepHandlerContext, key: str) -> dict[str, tuple[str, str]]:
        """Image ID as the cluster reports it and image as it was sent, by pod and container."""
        run_id = context.execute_step_args.run_id
        pods = self._settings["k8s_client_core_api"].list_namespaced_pod(
            namespace=self._namespace(context),
            label_selector=f"dagster/run-id={run_id},dagster/op={sanitize_k8s_label(key)}",
        )
        found = {}
        for pod in pods.items:
            asked = {
                c.name: c.image for c in (*pod.spec.containers, *(pod.spec.init_containers or ()))
            }
            said = (
                *(pod.status.container_statuses or ()),
                *(pod.status.init_container_statuses or ()),
            )
            for status in said:
                if status.image_id:
                    place = f"{pod.metadata.name}/{status.name} on {pod.spec.node_name}"
                    found[place] = (status.image_id, asked[status.name])
        return found

    def _namespace(self, context: StepHandlerContext) -> str:
        launcher = context.instance.run_launcher
        own = launcher.job_namespace if isinstance(launcher, K8sRunLauncher) else "default"
        return str(self._config.get("job_namespace") or own)

    def _record(
        self, context: StepHandlerContext, key: str, started: Mapping[str, tuple[str, str]]
    ) -> None:
        new = {place: ids for place, ids in started.items() if place not in self._recorded}
        self._recorded |= new.keys()
        for place, (image_id, image) in new.items():
            context.instance.report_engine_event(
                f"{place} runs {image}, as it was asked for",
                context.dagster_run,
                EngineEventData({"image": image, "imageID": image_id}),
                step_key=key,
            )

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """See StepHandler."""
        yield from self._handler(step_handler_context).terminate_step(step_handler_context)

    def layers(self, context: StepHandlerContext, key: str) -> list[Layer]:
        """What the step's Job is made of, the strongest first."""
        origin = context.execute_step_args.job_origin.repository_origin
        launcher = context.instance.run_launcher
        own = launcher.run_k8s_config if isinstance(launcher, K8sRunLauncher) else None
        return [
            Layer("the executor's per_step_k8s_config", self._config.get("per_step_k8s_config")),
            Layer(f"the op's tag {CONFIG_TAG}", read_tag(context.step_tags[key])),
            Layer("the executor's step_k8s_config", self._config.get("step_k8s_config")),
            Layer("the executor's config", {name: self._config.get(name) for name in CONTEXT}),
            Layer("the code location's container context", origin.container_context),
            Layer("the run launcher's run_k8s_config", own),
        ]

    def _handler(self, context: StepHandlerContext) -> K8sStepHandler:
        (key,) = context.execute_step_args.step_keys_to_execute or [""]
        name = context.step_tags[key].get(IMAGE_TAG, self._image)
        if name not in self._handlers:
            image = str(load_lock().named(name).ref)
            self._handlers[name] = K8sStepHandler(image=image, **self._settings)
        return self._handlers[name]


def _schema() -> dict[str, Any]:
    config = {**DagsterK8sJobConfig.config_type_job()}
    # By its name in the lock, and by nothing else.
    config.pop("job_image", None)
    kubernetes_config = dg.Field(USER_DEFINED_K8S_JOB_CONFIG_SCHEMA, is_required=False)
    return {
        **config,
        "image": dg.Field(
            dg.StringSource,
            default_value=DEFAULT_IMAGE,
            description="Name in images.lock.yaml of the image that steps run in.",
        ),
        "load_incluster_config": dg.Field(bool, is_required=False),
        "kubeconfig_file": dg.Field(dg.Noneable(str), is_required=False),
        "job_namespace": dg.Field(dg.StringSource, is_required=False),
        "retries": get_retries_config(),
        "max_concurrent": dg.Field(dg.IntSource, is_required=False),
        "tag_concurrency_limits": get_tag_concurrency_limits_config(),
        "step_k8s_config": kubernetes_config,
        "per_step_k8s_config": dg.Field(
            dg.Map(str, USER_DEFINED_K8S_JOB_CONFIG_SCHEMA, key_label_name="step_name"),
            is_required=False,
            default_value={},
        ),
        "enable_owner_references": dg.Field(bool, is_required=False, default_value=False),
    }


def of_steps(launcher: Any) -> dict[str, Any]:
    """What the launcher's config says of steps, as the executor's own config would say it."""
    said = launcher.steps if isinstance(launcher, PinnedK8sRunLauncher) else {}
    names = {
        "step_resources": "resources",
        "step_service_account_name": "service_account_name",
        "steps_at_once": "max_concurrent",
        "kueue": "kueue",
    }
    return {names[name]: value for name, value in said.items()}


@dg.executor(
    name="pinned_k8s",
    config_schema=_schema(),
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
    client = AdmittingApiClient(load_lock)
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
    return StepDelegatingExecutor(
        PinnedStepHandler(config["image"], settings, config),
        retries=RetryMode.from_config(config["retries"]) or RetryMode.ENABLED,
        max_concurrent=config.get("max_concurrent"),
        tag_concurrency_limits=config.get("tag_concurrency_limits"),
        should_verify_step=True,
        check_step_health_interval_seconds=HEALTH_SECONDS,
    )
