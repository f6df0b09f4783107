"""deploy/ as data: lanes, image lock and settings as Kubernetes' manifests, file by file.

The layout is kustomize's: `base/` has the lanes, the rules and the code location, `plain/` the
webserver and the daemon beside it; `helm/` is for who has the official Dagster Helm chart run these
two, and `components/kueue/` is an option of both.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from platform_assets.domain.cluster_access import (
    CODE_PORT,
    COMPONENT,
    UI_PORT,
    accounts,
    namespace,
    network,
)
from platform_assets.domain.cluster_apps import (
    ENV_MAP,
    SECURITY,
    apps,
    config_maps,
    environment,
    home_claim,
    image_of,
    instance,
    mounts,
    volumes,
    workspace,
)
from platform_assets.domain.cluster_budgets import Budgets
from platform_assets.domain.cluster_lanes import kueue, limit_range, priority_classes, quotas
from platform_assets.domain.cluster_policy import policy
from platform_assets.domain.cluster_settings import ClusterSettings
from platform_assets.domain.images import ImageLock
from platform_assets.domain.lanes import Lanes
from platform_assets.domain.placing import PLATFORM_CLASS, RUN_ACCOUNT, secured

Documents = list[dict[str, Any]]

KUSTOMIZE = "kustomize.config.k8s.io"
PLAIN = ("webserver.yaml", "daemon.yaml")
"""What the Helm chart has of its own."""

CHART = "chart.yaml"
"""What `helm template` made of the chart: not rendered here, and not committed."""

OF_THE_CHART = (
    *("run_launcher", "run_coordinator", "run_monitoring", "run_retries", "storage", "sensors"),
    "telemetry",
)
"""Sections of dagster.yaml that the chart writes by values of its own."""

CHARTED = "app.kubernetes.io/name=dagster"


@dataclass(frozen=True)
class Sources:
    """What deploy/ follows from.

    Attributes:
        lanes: the declaration.
        lock: the images.
        settings: of the cluster.
        project: the project's dagster.yaml, with the lanes as its limits.
        quiet: variables that every process of Signalbox has.
        budgets: of what the cluster breaks.
    """

    lanes: Lanes
    lock: ImageLock
    settings: ClusterSettings
    project: Mapping[str, Any]
    quiet: Mapping[str, str]
    budgets: Budgets


def files_inside(sources: Sources) -> dict[str, dict[str, Any]]:
    """What containers read as files and what is made here, by name; as documents."""
    return {
        "dagster.yaml": instance(sources.project, sources.settings, sources.budgets),
        "workspace.yaml": workspace(),
    }


def manifests(sources: Sources, files: Mapping[str, str]) -> dict[str, Documents]:
    """Every file of deploy/ by its path, as documents.

    Args:
        sources: what it follows from.
        files: texts of what containers read: those of `files_inside`, and lanes.yaml,
            failures.yaml, cluster.yaml and images.lock.yaml as they are.
    """
    settings, lock = sources.settings, sources.lock
    maps = config_maps(files, settings, environment(settings, sources.quiet))
    rendered = apps(lock, settings, maps)
    base: dict[str, Documents] = {
        "namespace.yaml": [namespace(settings)],
        "priority-classes.yaml": priority_classes(),
        "quotas.yaml": [*quotas(sources.lanes, settings), limit_range(settings)],
        "access.yaml": accounts(settings),
        "network.yaml": network(settings),
        "admission.yaml": policy(lock, settings),
        "config.yaml": maps,
        "home.yaml": [home_claim(settings)],
        "code.yaml": rendered["code.yaml"],
    }
    plain = {name: rendered[name] for name in PLAIN}
    kueued = {"components": ["../components/kueue"]} if settings.kueue else {}
    # Also the token that it launches with: the ServiceAccount has none mounted unasked.
    pod = {"priorityClassName": PLATFORM_CLASS, "automountServiceAccountToken": True}
    place = "/spec/template/spec"
    adds = [{"op": "add", "path": f"{place}/{name}", "value": value} for name, value in pod.items()]
    change = json.dumps(adds)
    patch = {"target": {"labelSelector": CHARTED, "kind": "Deployment"}, "patch": change}
    return {
        **_folder("base", base, {}),
        **_folder("plain", plain, {"resources": ["../base", *plain], **kueued}),
        **_folder(
            "components/kueue",
            {"queues.yaml": kueue(sources.lanes, settings)},
            {"apiVersion": f"{KUSTOMIZE}/v1alpha1", "kind": "Component"},
        ),
        **_folder("helm", {}, {"resources": ["../base", "chart"], "patches": [patch], **kueued}),
        # Templates of the chart name no namespace. Only theirs is set: what is the whole cluster's
        # in base/ has none.
        **_folder("helm/chart", {}, {"namespace": settings.namespace, "resources": [CHART]}),
        "helm/values.yaml": [helm_values(sources)],
    }


def _folder(
    name: str, files: Mapping[str, Documents], more: Mapping[str, Any]
) -> dict[str, Documents]:
    kustomization = {
        "apiVersion": f"{KUSTOMIZE}/v1beta1",
        "kind": "Kustomization",
        "resources": list(files),
        **more,
    }
    own = {f"{name}/{file}": documents for file, documents in files.items()}
    return {f"{name}/kustomization.yaml": [kustomization], **own}


def helm_values(sources: Sources) -> dict[str, Any]:
    """Values of the official chart, for the same instance; the code location is not the chart's."""
    settings = sources.settings
    config = instance(sources.project, settings, sources.budgets)
    repository, _, digest = image_of(sources.lock, settings).partition("@")
    secrets = [{"name": name} for name in (settings.postgres.secret, settings.s3.secret)]
    pod = secured({"securityContext": SECURITY, "containers": [{"name": "x"}]})
    server = {
        "image": {"repository": repository, "digest": digest, "pullPolicy": "IfNotPresent"},
        "checkDbReadyInitContainer": False,
        "envConfigMaps": [{"name": ENV_MAP}],
        "envSecrets": secrets,
        "resources": settings.containers.platform.section(),
        "podSecurityContext": pod["securityContext"],
        "securityContext": pod["containers"][0]["securityContext"],
        # The chart mounts a dagster.yaml of its own in the place of ours.
        "volumes": [v for v in [*volumes(), *pod["volumes"]] if v["name"] != "instance"],
        "volumeMounts": [
            m
            for m in [*mounts(settings), *pod["containers"][0]["volumeMounts"]]
            if m["name"] != "instance"
        ],
    }
    monitoring, sensors = config["run_monitoring"], config["sensors"]
    launcher = config["run_launcher"]
    # The instance of the chart has the password apart, and runs and steps open that instance.
    apart = {**launcher["config"], "postgres_password_secret": settings.postgres.secret}
    code = {"host": "code", "port": CODE_PORT, "name": "signalbox"}
    return {
        "global": {
            "dagsterHome": f"{settings.home}/dagster",
            "serviceAccountName": RUN_ACCOUNT,
            "postgresqlSecretName": settings.postgres.secret,
        },
        "generatePostgresqlPasswordSecret": False,
        "imagePullSecrets": [{"name": settings.pull_secret}] if settings.pull_secret else [],
        "rbacEnabled": False,
        "serviceAccount": {"create": False, "name": RUN_ACCOUNT},
        "telemetry": config["telemetry"],
        "postgresql": {
            "enabled": False,
            "postgresqlHost": settings.postgres.host,
            "postgresqlUsername": settings.postgres.user,
            "postgresqlDatabase": settings.postgres.dagster_database,
            "service": {"port": settings.postgres.port},
        },
        "dagsterWebserver": {
            **server,
            "service": {"port": UI_PORT, "type": "ClusterIP"},
            "workspace": {"enabled": True, "servers": [code]},
            "labels": {COMPONENT: "webserver"},
        },
        "dagsterDaemon": {
            **server,
            "labels": {COMPONENT: "daemon"},
            "runCoordinator": {
                "enabled": True,
                "type": "CustomRunCoordinator",
                "config": {"customRunCoordinator": config["run_coordinator"]},
            },
            "runMonitoring": {
                "enabled": True,
                "pollIntervalSeconds": monitoring["poll_interval_seconds"],
                "startTimeoutSeconds": monitoring["start_timeout_seconds"],
                "maxResumeRunAttempts": monitoring["max_resume_run_attempts"],
            },
            "runRetries": {"enabled": True},
            "sensors": {"useThreads": True, "numWorkers": sensors["num_workers"]},
        },
        "dagster-user-deployments": {"enabled": True, "enableSubchart": False},
        "runLauncher": {
            "type": "CustomRunLauncher",
            "config": {"customRunLauncher": {**launcher, "config": apart}},
        },
        "additionalInstanceConfig": {n: v for n, v in config.items() if n not in OF_THE_CHART},
    }
