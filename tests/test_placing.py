"""Runs and steps stand in the place of their lane, and in pods that may do little."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest

from platform_assets.domain.cluster_lanes import classes
from platform_assets.domain.environments import THREADS
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lanes import LANE_TAG, Lane
from platform_assets.domain.manifest_rules import Known, problems
from platform_assets.domain.placing import (
    NODE,
    RUN_ACCOUNT,
    STEP_ACCOUNT,
    Place,
    _unconfined,
    insecure,
    placed,
    secured,
)
from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor
from resources.cluster import load_settings
from resources.images import VARIABLE, change_lock
from tests import cluster as fake
from tests import podman
from tests.cluster_runs import STEPS
from tests.cluster_runs import execute as execute_steps
from tests.test_pinned_kubernetes import CONFIG, LOCK, RUN, job_with, launch, prepares, trains
from tests.test_pinned_kubernetes import client as client_of

VERSION = kubernetes_validate.latest_version()


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "images.lock.yaml"
    monkeypatch.setenv(VARIABLE, str(place))
    change_lock(lambda _: LOCK)
    return place


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[fake.Cluster]:
    with fake.running(tmp_path) as found:
        yield found


def job(**spec: Any) -> dict[str, Any]:
    containers = [{"name": "dagster", "image": RUN}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j"},
        "spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": containers, **spec}}
        },
    }


def restricted(spec: dict[str, Any]) -> list[str]:
    """Where a pod is less than the Pod Security Standard `restricted`, by its published list."""
    pod = spec.get("securityContext") or {}
    found = [f"volume {v['name']}" for v in spec.get("volumes") or () if "hostPath" in v]
    if pod.get("runAsNonRoot") is not True:
        found.append("runAsNonRoot")
    if (pod.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        found.append("seccompProfile")
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        own = container.get("securityContext") or {}
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{container['name']}: allowPrivilegeEscalation")
        if "ALL" not in ((own.get("capabilities") or {}).get("drop") or ()):
            found.append(f"{container['name']}: capabilities")
    return found


# --- one Job --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["run", "step"])
@pytest.mark.parametrize("lane", list(Lane))
def test_a_job_is_given_its_place(role: Any, lane: Lane) -> None:
    before = job()
    assert restricted(before["spec"]["template"]["spec"]) != []
    after = placed(before, Place(role, lane), "x")
    spec = after["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == f"signalbox-{role}-{lane}"
    assert restricted(spec) == []
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "tmp", "mountPath": "/tmp"} in spec["containers"][0]["volumeMounts"]
    assert after["metadata"] == {"name": "j"}
    assert before == job()
    kubernetes_validate.validate(after, VERSION, strict=True)
    assert problems(after, Known(LOCK, classes())) == []
    assert placed(after, Place(role, lane), "x") == after


def test_what_was_said_stays() -> None:
    own = {"runAsUser": 1000, "fsGroup": 5}
    spec = secured(
        {
            "securityContext": own,
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
            "containers": [
                {"name": "a", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp/"}]},
                {"name": "b", "securityContext": {"runAsUser": 7}},
            ],
        }
    )
    assert spec["securityContext"].items() >= own.items()
    assert spec["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}]
    assert len(spec["containers"][0]["volumeMounts"]) == 1
    assert spec["containers"][1]["securityContext"]["runAsUser"] == 7


def test_steps_without_rights_have_no_token() -> None:
    def mounts(role: Any, account: str) -> Any:
        spec = job(serviceAccountName=account, automountServiceAccountToken=True)
        found = placed(spec, Place(role, Lane.DAILY), "x")
        return found["spec"]["template"]["spec"]["automountServiceAccountToken"]

    assert mounts("run", RUN_ACCOUNT) is True
    assert mounts("step", STEP_ACCOUNT) is False
    assert mounts("step", "somebody's") is True  # a step that speaks to the API server


def test_only_steps_are_queued_by_kueue() -> None:
    def labels(role: Any, queued: bool) -> Any:
        found = placed(job(), Place(role, Lane.LATE, queued), "x")
        return found["metadata"].get("labels", {})

    assert labels("run", True) == labels("step", False) == {}
    assert labels("step", True) == {
        "kueue.x-k8s.io/queue-name": "signalbox-late",
        "kueue.x-k8s.io/priority-class": "signalbox-late",
    }


LESS: list[tuple[dict[str, Any], str]] = [
    ({"hostNetwork": True}, "hostNetwork is true"),
    ({"hostPID": True}, "hostPID is true"),
    ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v is a hostPath"),
    ({"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}, "volume v is a nfs"),
    (
        {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
        "sysctl kernel.msgmax",
    ),
    ({"securityContext": {"windowsOptions": {"hostProcess": True}}}, "hostProcess true"),
    (
        {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
        "appArmorProfile Unconfined",
    ),
    ({"securityContext": {"seLinuxOptions": {"user": "system_u"}}}, "seLinuxOptions.user system_u"),
    ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, "seLinuxOptions.type spc_t"),
    ({"serviceAccountName": RUN_ACCOUNT}, "ServiceAccount 'signalbox', which creates Jobs"),
    ({"serviceAccount": RUN_ACCOUNT}, "ServiceAccount 'signalbox', which creates Jobs"),
    ({"securityContext": {"runAsNonRoot": False}}, "runAsNonRoot false"),
    ({"securityContext": {"runAsUser": 0}}, "runAsUser 0"),
    ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "seccompProfile Unconfined"),
]
LESS_OF_CONTAINER: list[tuple[dict[str, Any], str]] = [
    ({"privileged": True}, "privileged true"),
    ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation true"),
    ({"readOnlyRootFilesystem": False}, "readOnlyRootFilesystem false"),
    ({"capabilities": {"add": ["SYS_ADMIN"], "drop": ["ALL"]}}, "adds capabilities SYS_ADMIN"),
    ({"capabilities": {"drop": ["KILL"]}}, "does not drop ALL"),
    ({"procMount": "Unmasked"}, "procMount Unmasked"),
    ({"windowsOptions": {"hostProcess": True}}, "hostProcess true"),
    ({"appArmorProfile": {"type": "Unconfined"}}, "appArmorProfile Unconfined"),
    ({"seLinuxOptions": {"role": "system_r"}}, "seLinuxOptions.role system_r"),
    ({"runAsUser": 0}, "runAsUser 0"),
]


OF_CONTAINER: list[tuple[dict[str, Any], str]] = [
    ({"ports": [{"containerPort": 1, "hostPort": 1}]}, "has hostPort 1"),
    (
        {"livenessProbe": {"httpGet": {"host": "10.0.0.1", "port": 1}}},
        "livenessProbe of container dagster asks host 10.0.0.1",
    ),
    (
        {"lifecycle": {"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 1}}}},
        "preStop of container dagster asks host 10.0.0.1",
    ),
]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        *LESS,
        *(
            (
                {kind: [{"name": "dagster", "image": RUN, "securityContext": context}]},
                f"{words}",
            )
            for context, words in LESS_OF_CONTAINER
            for kind in ("containers", "initContainers")
        ),
        *(
            ({"containers": [{"name": "dagster", "image": RUN, **more}]}, words)
            for more, words in OF_CONTAINER
        ),
        ({"priorityClassName": "signalbox-step-daily"}, "that of a step in lane backfill is"),
        ({"priorityClassName": "system-node-critical"}, "that of a step in lane backfill is"),
    ],
)
def test_who_asks_for_more_is_refused(spec: dict[str, Any], words: str) -> None:
    asked = job(**spec)
    kubernetes_validate.validate(asked, VERSION, strict=True)  # which has no objection
    with pytest.raises(RefusedError, match="step x is refused, nothing was created") as refused:
        placed(asked, Place("step", Lane.BACKFILL), "step x")
    assert words in str(refused.value)
    assert insecure(job()["spec"]["template"]["spec"]) == []


@pytest.mark.heavy
def test_a_tag_gives_a_step_nothing_that_it_may_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it at once: dagster-k8s sends each, and each is named."""
    monkeypatch.setenv(STEPS, str(tmp_path / "steps"))
    (tmp_path / "steps").mkdir()
    with fake.running(tmp_path, runs=True) as kubelet:
        assert execute_steps(kubelet, "stock_more").success
        (stock,) = kubelet.jobs.values()
        template = stock["spec"]["template"]
        wrong = [*insecure(template["spec"]), *_unconfined(template["metadata"]["annotations"])]
        kubelet.jobs.clear()
        found = execute_steps(kubelet, "pinned_more")
        assert not found.success
        assert kubelet.jobs == {}
    words = [words for _, words in (*LESS, *LESS_OF_CONTAINER, *OF_CONTAINER)]
    for one in (*words, "hostIPC is true", "annotation container.apparmor"):
        assert one in found.told
        assert one in "; ".join(wrong) or "ServiceAccount" in one
    assert template["spec"]["serviceAccountName"] == RUN_ACCOUNT
    assert template["spec"]["priorityClassName"] == "system-node-critical"
    assert "that of a step in lane adhoc is signalbox-step-adhoc" in found.told


def test_what_the_standard_allows_is_not_refused() -> None:
    volumes: list[dict[str, Any]] = [
        {"name": "a", "configMap": {"name": "a"}},
        {"name": "b", "csi": {"driver": "d"}},
        {"name": "c", "downwardAPI": {}},
        {"name": "d", "emptyDir": {}},
        {"name": "e", "ephemeral": {}},
        {"name": "f", "persistentVolumeClaim": {"claimName": "f"}},
        {"name": "g", "projected": {"sources": []}},
        {"name": "h", "secret": {"secretName": "h"}},
    ]
    context = {
        "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}],
        "appArmorProfile": {"type": "RuntimeDefault"},
        "seLinuxOptions": {"type": "container_t", "level": "s0:c1,c2", "user": ""},
        "windowsOptions": {"hostProcess": False},
    }
    container = {
        "name": "x",
        "ports": [{"containerPort": 80, "hostPort": 0}],
        "readinessProbe": {"httpGet": {"port": 80}},
        "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
    }
    spec = {"volumes": volumes, "securityContext": context, "containers": [container]}
    assert insecure(spec) == []
    assert placed(job(serviceAccountName=RUN_ACCOUNT), Place("run", Lane.DAILY), "x")


def test_an_annotation_takes_no_profile_away() -> None:
    asked = job()
    name = "container.apparmor.security.beta.kubernetes.io/dagster"
    for value, refused in (
        ("unconfined", True),
        ("runtime/default", False),
        ("localhost/x", False),
    ):
        asked["spec"]["template"]["metadata"] = {"annotations": {name: value}}
        if refused:
            with pytest.raises(RefusedError, match=r"annotation .*/dagster is unconfined"):
                placed(asked, Place("step", Lane.DAILY), "step x")
        else:
            placed(asked, Place("step", Lane.DAILY), "step x")


def variables(**container: Any) -> dict[str, Any]:
    asked = job(containers=[{"name": "dagster", "image": RUN, **container}])
    found = placed(asked, Place("step", Lane.DAILY), "step x")
    kubernetes_validate.validate(found, VERSION, strict=True)
    (one,) = found["spec"]["template"]["spec"]["containers"]
    told = [e["name"] for e in one["env"]]
    assert len(told) == len(set(told))
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in one["env"]}


NODE_NAME = {"fieldRef": {"fieldPath": "spec.nodeName"}}


@pytest.mark.parametrize(
    ("resources", "threads"),
    [
        ({"limits": {"cpu": "2"}}, "2"),
        ({"limits": {"cpu": "2500m"}, "requests": {"cpu": "1"}}, "2"),
        ({"requests": {"cpu": "500m"}}, "1"),
        ({"limits": {"cpu": 4}}, "4"),
        ({"limits": {"memory": "1Gi"}}, None),
        (None, None),
    ],
)
def test_a_pod_knows_its_node_and_computes_with_its_own_cpu(
    resources: dict[str, Any] | None, threads: str | None
) -> None:
    told = variables(**({"resources": resources} if resources else {}))
    assert told[NODE] == NODE_NAME
    assert told.get(THREADS) == threads


def test_who_sets_the_threads_keeps_them_but_nobody_names_another_node() -> None:
    own = [{"name": THREADS, "value": "7"}, {"name": NODE, "value": "elsewhere"}]
    told = variables(env=own, resources={"limits": {"cpu": "2"}})
    assert told == {THREADS: "7", NODE: NODE_NAME}


def test_podman_is_told_the_name_of_the_node_and_nothing_else_is_changed() -> None:
    template = placed(job(), Place("step", Lane.DAILY), "x")["spec"]["template"]
    changed = podman.on_node(template, "n1")
    assert changed["spec"]["containers"][0]["env"] == [{"name": NODE, "value": "n1"}]
    changed["spec"]["containers"][0]["env"] = template["spec"]["containers"][0]["env"]
    assert changed == template


# --- what the launcher and the executor send ------------------------------------------------------


SETTINGS = {
    "resources": load_settings().containers.run.section(),
    "service_account_name": RUN_ACCOUNT,
}
BACKFILL = {"dagster/backfill": "abc"}


def sent(cluster: fake.Cluster) -> dict[str, Any]:
    (found,) = cluster.jobs.values()
    return {name: value for name, value in found.items() if name != "status"}


@pytest.mark.parametrize("tags", [{}, {LANE_TAG: "backfill"}])
def test_a_run_worker_stands_in_its_lane(cluster: fake.Cluster, tags: dict[str, str]) -> None:
    launch(cluster, pinned=False)
    stock = sent(cluster)["spec"]["template"]["spec"]
    assert "priorityClassName" not in stock  # in no lane: the cluster may give it any place
    assert restricted(stock) != []
    cluster.jobs.clear()
    launch(cluster, pinned=True, tags=tags, plain_tags=True, **SETTINGS)
    found = sent(cluster)
    spec = found["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == f"signalbox-run-{tags.get(LANE_TAG, 'adhoc')}"
    assert restricted(spec) == []
    assert spec["containers"][0]["resources"] == SETTINGS["resources"]
    kubernetes_validate.validate(found, VERSION, strict=True)
    assert problems(found, Known(LOCK, classes())) == []


def test_a_tag_does_not_give_a_run_a_better_place(cluster: fake.Cluster) -> None:
    better = {CONFIG: {"pod_spec_config": {"priority_class_name": "signalbox-run-daily"}}}
    launch(cluster, pinned=False, tags=better)
    assert sent(cluster)["spec"]["template"]["spec"]["priorityClassName"] == "signalbox-run-daily"
    cluster.jobs.clear()
    cluster.requests.clear()
    with pytest.raises(RefusedError, match="that of a run in lane adhoc is signalbox-run-adhoc"):
        launch(cluster, pinned=True, tags=better)
    # Nor does a lane that it may not have.
    launch(cluster, pinned=True, tags={LANE_TAG: "daily"}, plain_tags=True)
    assert sent(cluster)["spec"]["template"]["spec"]["priorityClassName"] == "signalbox-run-adhoc"


def test_what_is_made_beside_runs_is_left_as_it_is(cluster: fake.Cluster) -> None:
    import kubernetes.client

    batch = kubernetes.client.BatchV1Api(client_of(cluster))
    batch.create_namespaced_job("ns", job_with())
    assert "securityContext" not in sent(cluster)["spec"]["template"]["spec"]


@dg.job(executor_def=pinned_k8s_job_executor)
def placed_job() -> None:
    trains(prepares())


@pytest.mark.heavy
def test_a_step_stands_in_the_lane_of_its_run(tmp_path: Path) -> None:
    steps = {
        "step_resources": load_settings().containers.step.section(),
        "step_service_account_name": STEP_ACCOUNT,
        "steps_at_once": 2,
        "kueue": True,
    }
    with fake.running(tmp_path, runs=True) as kubelet:
        success, told = run_placed(kubelet, {**SETTINGS, **steps}, BACKFILL)
        assert success, told
        assert len(kubelet.jobs) == 2
        for document in kubelet.jobs.values():
            found = {name: value for name, value in document.items() if name != "status"}
            spec = found["spec"]["template"]["spec"]
            assert spec["priorityClassName"] == "signalbox-step-backfill"
            assert spec["serviceAccountName"] == STEP_ACCOUNT
            assert spec["automountServiceAccountToken"] is False
            assert restricted(spec) == []
            assert spec["containers"][0]["resources"] == steps["step_resources"]
            queue = found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
            assert queue == "signalbox-backfill"
            kubernetes_validate.validate(found, VERSION, strict=True)
            assert problems(found, Known(LOCK, classes())) == []


def run_placed(
    cluster: fake.Cluster, launcher: dict[str, Any], tags: dict[str, str]
) -> tuple[bool, str]:
    """Run a job as a run worker of PinnedK8sRunLauncher would."""
    from dagster._core.test_utils import instance_for_test

    config = {
        "image": "run",
        "instance_config_map": "dagster-instance",
        "job_namespace": fake.NAMESPACE,
        "load_incluster_config": False,
        "kubeconfig_file": cluster.kubeconfig,
        "dagster_home": str(cluster.folder / "dagster"),
        **launcher,
    }
    module = "platform_assets.instance.kubernetes.launcher"
    (cluster.folder / "dagster").mkdir()
    overrides = {
        "run_launcher": {"module": module, "class": "PinnedK8sRunLauncher", "config": config}
    }
    with instance_for_test(
        overrides=overrides, temp_dir=str(cluster.folder / "dagster"), set_dagster_home=True
    ) as instance:
        result = dg.execute_job(dg.reconstructable(placed_job), instance, tags=tags)
        told = [entry.message for entry in instance.all_logs(result.run_id)]
        return result.success, json.dumps(told)
