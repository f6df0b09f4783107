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

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

import dagster as dg
import kubernetes.client
from dagster._core.launcher import LaunchRunContext, ResumeRunContext
from dagster._serdes import ConfigurableClassData
from dagster_k8s.launcher import K8sRunLauncher
from dagster_k8s.utils import load_kubernetes_config

from platform_assets.domain.admission import Layer
from platform_assets.domain.lanes import lane_of
from platform_assets.domain.placing import Place
from platform_assets.instance.coordinator import parent_lane
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient, making
from resources.images import load_lock

CONFIG_TAG = "dagster-k8s/config"

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
}
"""Fields of the launcher's config that are the steps'."""


class PinnedK8sRunLauncher(K8sRunLauncher):
    """A K8sRunLauncher that creates no Job with an image that is not in the lock.

    Attributes:
        steps: what it says of the steps of its runs, by the names of OF_STEPS; the executor reads
            it, for nothing else that is the cluster's reaches a run worker.
    """

    steps: Mapping[str, Any] = {}

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
        load_kubernetes_config(
            load_incluster_config=config.get("load_incluster_config", True),
            kubeconfig_file=config.get("kubeconfig_file"),
            k8s_api_ssl_ca_cert_file=config.get("k8s_api_ssl_ca_cert_file"),
        )
        client = AdmittingApiClient(load_lock)
        launcher = cls(
            inst_data=inst_data,
            k8s_client_batch_api=kubernetes.client.BatchV1Api(client),
            k8s_client_core_api=kubernetes.client.CoreV1Api(client),
            **config,
        )
        launcher.steps = steps
        return launcher

    def launch_run(self, context: LaunchRunContext) -> None:
        """Create the run's Job.

        Raises:
            RefusedError: a container of it is not pinned; names it, and where its image is from.
        """
        with self._making(context.dagster_run):
            super().launch_run(context)

    def resume_run(self, context: ResumeRunContext) -> None:
        """Create a Job that goes on with the run; raises as `launch_run` does."""
        with self._making(context.dagster_run):
            super().resume_run(context)

    def _making(self, run: dg.DagsterRun) -> AbstractContextManager[None]:
        place = Place("run", lane_of(run.tags, parent_lane(self._instance, run)))
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
            Layer(
                "the code location's image (DAGSTER_CURRENT_IMAGE)",
                repository.container_image if repository else None,
            ),
            Layer("the run launcher's job_image", self.job_image),
        ]


def read_tag(tags: Mapping[str, str]) -> Any:
    """What a tag `dagster-k8s/config` says, as Dagster reads it."""
    text = tags.get(CONFIG_TAG)
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
