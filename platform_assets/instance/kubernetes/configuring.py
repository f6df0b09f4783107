"""What the executor of steps may be told, by its own config and by the launcher's."""

from typing import Any

import dagster as dg
from dagster._core.execution.retries import get_retries_config
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster_k8s.job import USER_DEFINED_K8S_JOB_CONFIG_SCHEMA, DagsterK8sJobConfig

from platform_assets.domain.image_spec import DEFAULT_IMAGE
from platform_assets.instance.kubernetes.launcher import PinnedK8sRunLauncher

CONTEXT = (
    *("image_pull_policy", "image_pull_secrets", "service_account_name", "env_config_maps"),
    *("env_secrets", "env_vars", "volume_mounts", "volumes", "labels", "resources"),
    *("scheduler_name", "security_context"),
)
"""Fields of the config that are those of a container context, by the same name."""


def schema() -> dict[str, Any]:
    """The executor's config: that of dagster-k8s, with the image by its name in the lock."""
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
        "ranks_claim": dg.Field(
            dg.StringSource,
            is_required=False,
            description="PersistentVolumeClaim (ReadWriteMany) of the folder that a step shares "
            "with its ranks on other nodes.",
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
        "ranks_claim": "ranks_claim",
    }
    return {names[name]: value for name, value in said.items()}
