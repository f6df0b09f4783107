"""What always runs in the cluster: webserver, daemon and code location, and their configuration."""

import hashlib
from collections.abc import Mapping
from typing import Any

from platform_assets.domain.cluster_access import CODE_PORT, COMPONENT, UI_PORT
from platform_assets.domain.cluster_budgets import Budgets
from platform_assets.domain.cluster_settings import ClusterSettings
from platform_assets.domain.images import ImageLock
from platform_assets.domain.placing import (
    PLATFORM_CLASS,
    RUN_ACCOUNT,
    STEP_ACCOUNT,
    USER,
    secured,
    surrounded,
)

Manifest = dict[str, Any]

NAME = "app.kubernetes.io/name"
CONFIG_FOLDER = "/etc/signalbox"
INSTANCE_MAP, FILES_MAP, ENV_MAP = "signalbox-instance", "signalbox-files", "signalbox-env"
HOME_CLAIM = "signalbox-home"
SECURITY = {"runAsUser": USER, "runAsGroup": USER}
UNPINNED = f"unpinned.invalid/{{name}}@sha256:{'0' * 64}"
"""In place of an image that the lock does not have yet: no registry, and in no lock."""


def image_of(lock: ImageLock, settings: ClusterSettings) -> str:
    """The image of the platform by digest; one that cannot be pulled where the lock has none."""
    found = lock.images.get(settings.image)
    return str(found.ref) if found else UNPINNED.format(name=settings.image)


def environment(settings: ClusterSettings, quiet: Mapping[str, str]) -> dict[str, str]:
    """The variables of every container; none of them is a secret.

    Args:
        settings: of the cluster.
        quiet: what every process of Signalbox has (resources.home).
    """
    found = {
        **quiet,
        "SIGNALBOX_DEPLOYMENT": "k8s",
        "SIGNALBOX_HOME": settings.home,
        "DAGSTER_HOME": f"{settings.home}/dagster",
        "SIGNALBOX_IMAGES": f"{CONFIG_FOLDER}/images.lock.yaml",
        "SIGNALBOX_LANES": f"{CONFIG_FOLDER}/lanes.yaml",
        "SIGNALBOX_FAILURES": f"{CONFIG_FOLDER}/failures.yaml",
        "SIGNALBOX_CLUSTER": f"{CONFIG_FOLDER}/cluster.yaml",
        "SIGNALBOX_MLFLOW_URI": settings.mlflow.url,
        "SIGNALBOX_LAKE_URL": settings.s3.lake,
        "AWS_REGION": settings.s3.region,
        "HOME": "/tmp",  # noqa: S108 - all else is read-only
        "MPLCONFIGDIR": "/tmp",  # noqa: S108
    }
    if settings.gpu_inventory:
        found["SIGNALBOX_GPUS"] = "cluster"
    if settings.gpu_reserve:
        found["SIGNALBOX_GPU_RESERVE"] = settings.gpu_reserve
    if settings.s3.checkpoints:
        found["SIGNALBOX_CHECKPOINTS_URL"] = settings.s3.checkpoints
    if settings.s3.endpoint:
        found["AWS_ENDPOINT_URL"] = settings.s3.endpoint
        if settings.s3.endpoint.startswith("http://"):
            found["AWS_ALLOW_HTTP"] = "true"
    return dict(sorted(found.items()))


def volumes() -> list[Manifest]:
    """The volumes of every pod, but for /tmp."""
    return [
        {"name": "home", "persistentVolumeClaim": {"claimName": HOME_CLAIM}},
        {"name": "files", "configMap": {"name": FILES_MAP}},
        {"name": "instance", "configMap": {"name": INSTANCE_MAP}},
    ]


def mounts(settings: ClusterSettings) -> list[Manifest]:
    """Where they are; the instance's configuration lies over the one of the embedded home."""
    place = f"{settings.home}/dagster/dagster.yaml"
    return [
        {"name": "home", "mountPath": settings.home},
        {"name": "files", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "instance", "mountPath": place, "subPath": "dagster.yaml", "readOnly": True},
    ]


def launcher(settings: ClusterSettings) -> Manifest:
    """The section run_launcher of dagster.yaml."""
    pulls = [{"name": settings.pull_secret}] if settings.pull_secret else []
    return {
        "module": "platform_assets.instance.kubernetes.launcher",
        "class": "PinnedK8sRunLauncher",
        "config": {
            "image": settings.image,
            "job_namespace": settings.namespace,
            "load_incluster_config": True,
            "service_account_name": RUN_ACCOUNT,
            "instance_config_map": INSTANCE_MAP,
            "dagster_home": f"{settings.home}/dagster",
            "image_pull_policy": "IfNotPresent",
            **({"image_pull_secrets": pulls} if pulls else {}),
            "env_config_maps": [ENV_MAP],
            "env_secrets": [settings.postgres.secret, settings.s3.secret],
            # dagster-k8s wants these in the words of the Python client.
            "volumes": [
                {"name": "home", "persistent_volume_claim": {"claim_name": HOME_CLAIM}},
                {"name": "files", "config_map": {"name": FILES_MAP}},
            ],
            # What dagster.yaml says reaches runs and steps in the arguments of their command.
            "volume_mounts": [
                {
                    "name": mount["name"],
                    "mount_path": mount["mountPath"],
                    **({"read_only": True} if mount.get("readOnly") else {}),
                }
                for mount in mounts(settings)
                if mount["name"] != "instance"
            ],
            "resources": settings.containers.run.section(),
            "step_resources": settings.containers.step.section(),
            "step_service_account_name": STEP_ACCOUNT,
            "steps_at_once": settings.steps_at_once,
            "kueue": settings.kueue,
            # What is shared with the ranks of other nodes is a folder of the home's volume.
            **({"ranks_claim": HOME_CLAIM} if settings.jobset else {}),
        },
    }


def instance(project: Mapping[str, Any], settings: ClusterSettings, budgets: Budgets) -> Manifest:
    """The dagster.yaml of the cluster: the project's, with its own launcher and storage.

    Args:
        project: the embedded home's, with the lanes as its section `concurrency`.
        settings: of the cluster.
        budgets: of failures.yaml. A run worker has those of its causes, which the launcher counts;
            Dagster's own limit counts all of them. It also may wait for its place, and be pulled
            and started after that.
    """
    own = project.get("run_monitoring", {})
    monitoring = {
        "start_timeout_seconds": budgets.to_start + own.get("start_timeout_seconds", 0),
        "max_resume_run_attempts": budgets.in_all,
    }
    url = {"env": "SIGNALBOX_DAGSTER_URL"}
    return {
        **project,
        "run_launcher": launcher(settings),
        "run_monitoring": {**own, **monitoring},
        "storage": {"postgres": {"postgres_url": url}},
    }


def workspace() -> Manifest:
    """The workspace.yaml of webserver and daemon."""
    server = {"host": "code", "port": CODE_PORT, "location_name": "signalbox"}
    return {"load_from": [{"grpc_server": server}]}


def config_maps(
    files: Mapping[str, str], settings: ClusterSettings, variables: Mapping[str, str]
) -> list[Manifest]:
    """What containers read.

    Args:
        files: text by name; dagster.yaml among them has a map of its own.
        settings: of the cluster.
        variables: those of `environment`.
    """
    others = {name: text for name, text in sorted(files.items()) if name != "dagster.yaml"}
    maps = {
        INSTANCE_MAP: {"dagster.yaml": files["dagster.yaml"]},
        FILES_MAP: others,
        ENV_MAP: dict(variables),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": settings.namespace},
            "data": data,
        }
        for name, data in maps.items()
    ]


def home_claim(settings: ClusterSettings) -> Manifest:
    """The home's volume, which several nodes write to."""
    storage = (
        {"storageClassName": settings.volume.storage_class} if settings.volume.storage_class else {}
    )
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": HOME_CLAIM, "namespace": settings.namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            **storage,
            "resources": {"requests": {"storage": settings.volume.size}},
        },
    }


def apps(lock: ImageLock, settings: ClusterSettings, maps: list[Manifest]) -> dict[str, Any]:
    """Deployments and Services by the name of their file.

    Args:
        lock: the images.
        settings: of the cluster.
        maps: what containers read: a change of it starts them anew.
    """
    told = hashlib.sha256(repr(maps).encode()).hexdigest()
    image = image_of(lock, settings)
    place = f"{CONFIG_FOLDER}/workspace.yaml"
    ui: Manifest = {"httpGet": {"path": "/server_info", "port": UI_PORT}, "timeoutSeconds": 5}
    health = ["dagster", "api", "grpc-health-check", "--port", str(CODE_PORT)]
    code: Manifest = {"exec": {"command": health}, "timeoutSeconds": 10}
    anywhere = "0.0.0.0"  # noqa: S104 - a pod's own address
    listen = ["--host", anywhere, "--port", str(CODE_PORT)]
    module = ["--module-name", "platform_assets.definitions", "--location-name", "signalbox"]
    return {
        "webserver.yaml": [
            _deployment(
                "webserver",
                ["dagster-webserver", "--host", anywhere, "--port", str(UI_PORT), "-w", place],
                image,
                settings,
                told,
                {"ports": [{"containerPort": UI_PORT, "name": "http"}], **_probes(ui)},
                account=RUN_ACCOUNT,
            ),
            _service("webserver", 80, UI_PORT, settings),
        ],
        "daemon.yaml": [
            _deployment(
                "daemon",
                ["signalbox", "daemon", "--workspace", place],
                image,
                settings,
                told,
                {},
                account=RUN_ACCOUNT,
            )
        ],
        "code.yaml": [
            _deployment(
                "code",
                ["dagster", "api", "grpc", *listen, *module],
                image,
                settings,
                told,
                {"ports": [{"containerPort": CODE_PORT, "name": "grpc"}], **_probes(code)},
                account=STEP_ACCOUNT,
            ),
            _service("code", CODE_PORT, CODE_PORT, settings),
        ],
    }


def _probes(probe: Manifest) -> Manifest:
    return {
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": 30},
        "readinessProbe": {**probe, "periodSeconds": 10},
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 5},
    }


def _deployment(
    name: str,
    command: list[str],
    image: str,
    settings: ClusterSettings,
    told: str,
    more: Manifest,
    *,
    account: str,
) -> Manifest:
    labels = {NAME: "signalbox", COMPONENT: name}
    secrets = (settings.postgres.secret, settings.s3.secret)
    own = {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "envFrom": [
            {"configMapRef": {"name": ENV_MAP}},
            *({"secretRef": {"name": secret}} for secret in secrets),
        ],
        "env": [{"name": "SIGNALBOX_IMAGE", "value": image}],
        "resources": settings.containers.platform.section(),
    }
    own = surrounded(own)
    # Any number of processes may make the home at once; it is there before anybody needs it. What
    # it writes as dagster.yaml lies under the one that is mounted.
    home = [mount for mount in mounts(settings) if mount["name"] != "instance"]
    spec = {
        "serviceAccountName": account,
        "automountServiceAccountToken": account == RUN_ACCOUNT,
        "enableServiceLinks": False,
        "priorityClassName": PLATFORM_CLASS,
        "securityContext": dict(SECURITY),
        "initContainers": [
            {"name": "home", "args": ["signalbox", "init"], **own, "volumeMounts": home}
        ],
        "containers": [
            {"name": name, "args": command, **own, "volumeMounts": mounts(settings), **more}
        ],
        "volumes": volumes(),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": labels},
        "spec": {
            "replicas": 1,
            # Two daemons would launch everything twice.
            "strategy": {"type": "Recreate" if name == "daemon" else "RollingUpdate"},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": dict(labels), "annotations": {"signalbox/files": told}},
                "spec": secured(spec),
            },
        },
    }


def _service(name: str, port: int, target: int, settings: ClusterSettings) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": settings.namespace},
        "spec": {
            "type": "ClusterIP",
            "selector": {NAME: "signalbox", COMPONENT: name},
            "ports": [{"name": name, "port": port, "targetPort": target, "protocol": "TCP"}],
        },
    }
