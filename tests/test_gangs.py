"""A training on several nodes: the JobSet of its ranks, and what a node's pod does."""

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from platform_assets.domain.cluster_causes import Cause, Finding
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.gang import GROUP, PLURAL, VERSION, gang, wrong
from platform_assets.domain.gpu_pods import GPU, GpuAsk
from platform_assets.domain.lanes import Lane
from platform_assets.domain.placing import Place, placed
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.domain.ranks_folder import Ranks
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient, making
from platform_assets.instance.kubernetes.calling import Patience
from platform_assets.instance.kubernetes.gangs import Gangs
from platform_assets.instance.kubernetes.looking import Looking
from resources.distributed import launching, node
from resources.distributed.layout import Folder, Job
from tests import cluster as fake
from tests.test_admission import GOOD, LOCK

ASKED = ProcessesSpec(min=8, max=16, nodes=2)
RANKS = Ranks(ASKED, "ranks")
PLACE = Place("step", Lane.DAILY, queued=True, ranks=RANKS)
UID = "00000000-0000-4000-8000-000000000001"

JOB: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "dagster-step-0123", "labels": {"dagster/run-id": "r"}},
    "spec": {
        "backoffLimit": 0,
        "template": {
            "metadata": {"labels": {"dagster/run-id": "r"}},
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": "signalbox-step",
                "containers": [
                    {
                        "name": "dagster",
                        "image": GOOD,
                        "args": ["dagster", "api", "execute_step"],
                        "env": [{"name": "X", "value": "1"}],
                        "resources": {
                            "limits": {"cpu": "8", GPU: "8"},
                            "requests": {"cpu": "8", GPU: "8"},
                        },
                    }
                ],
            },
        },
    },
}

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
SHARED = [
    {"name": "X", "value": "1"},
    {"name": "SIGNALBOX_RANKS_FOLDER", "value": "/ranks/dagster-step-0123"},
    {"name": "SIGNALBOX_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    {"name": "OMP_NUM_THREADS", "value": "8"},
    {"name": "SIGNALBOX_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
]
VOLUME = {"name": "ranks", "persistentVolumeClaim": {"claimName": "ranks"}}
MOUNT = {"name": "ranks", "mountPath": "/ranks", "subPath": "ranks"}


def made(place: Place = PLACE) -> dict[str, Any]:
    return gang(JOB, UID, RANKS, place)


def part(manifest: dict[str, Any], name: str) -> Any:
    (found,) = [p for p in manifest["spec"]["replicatedJobs"] if p["name"] == name]
    return found["template"]["spec"]


def test_the_manifest_whole() -> None:
    found = made()
    ranks = part(found, "rank")
    template = ranks.pop("template")
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "dagster-step-0123", "uid": UID}
    assert found == {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": "dagster-step-0123",
            "labels": {
                "dagster/run-id": "r",
                "kueue.x-k8s.io/queue-name": "signalbox-daily",
                "kueue.x-k8s.io/priority-class": "signalbox-daily",
            },
            "ownerReferences": [owner],
        },
        "spec": {
            "suspend": True,
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": ["rank"]},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [
                {
                    "name": "rank",
                    "replicas": 1,
                    "template": {
                        "spec": {
                            "parallelism": 2,
                            "completions": 2,
                            "completionMode": "Indexed",
                            "backoffLimit": 4,
                        }
                    },
                },
            ],
        },
    }
    spec = template["spec"]
    assert template["metadata"] == {"labels": {"dagster/run-id": "r"}}
    assert spec["priorityClassName"] == "signalbox-step-daily"
    assert spec["serviceAccountName"] == "signalbox-step"
    assert spec["automountServiceAccountToken"] is False
    assert spec["restartPolicy"] == "Never"
    assert VOLUME in spec["volumes"]
    (apart,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart == {
        "labelSelector": {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": "dagster-step-0123"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    (container,) = spec["containers"]
    assert container["image"] == GOOD
    assert container["env"] == SHARED
    assert MOUNT in container["volumeMounts"]
    assert RESTRICTED.items() <= container["securityContext"].items()
    assert "args" not in container
    assert container["resources"]["limits"] == {"cpu": "8", GPU: "8"}
    assert container["command"] == [
        *("python", "-m", "resources.distributed.node", "--nodes", "1:2", "--processes", "8"),
        "/ranks/dagster-step-0123",
    ]


def test_the_step_shares_their_folder_and_has_no_gpus() -> None:
    spec = placed(JOB, PLACE, "step x")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["args"] == ["dagster", "api", "execute_step"]
    assert container["env"] == SHARED
    assert container["resources"] == {"limits": {"cpu": "8"}, "requests": {"cpu": "8"}}
    assert VOLUME in spec["volumes"]
    assert MOUNT in container["volumeMounts"]


def test_the_planner_gives_gpus_to_the_ranks_alone() -> None:
    job = copy.deepcopy(JOB)
    for amounts in job["spec"]["template"]["spec"]["containers"][0]["resources"].values():
        del amounts[GPU]
    place = Place("step", Lane.DAILY, gpus=GpuAsk(8, hosts=("a", "b")), ranks=RANKS)
    (step,) = placed(job, place, "step x")["spec"]["template"]["spec"]["containers"]
    assert step["resources"] == {"limits": {"cpu": "8"}, "requests": {"cpu": "8"}}
    spec = part(gang(job, UID, RANKS, place), "rank")["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"cpu": "8", GPU: "8"}
    assert set(spec["affinity"]) == {"nodeAffinity", "podAntiAffinity"}


def test_without_kueue_it_starts_at_once() -> None:
    found = made(Place("step", Lane.ADHOC, ranks=RANKS))
    assert found["spec"]["suspend"] is False
    assert found["metadata"]["labels"] == {"dagster/run-id": "r"}
    spec = part(found, "rank")["template"]["spec"]
    assert spec["priorityClassName"] == "signalbox-step-adhoc"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "x" * 60}, "allowed are 63 lower-case letters"),
        ({"priorityClassName": "system-node-critical"}, "asks for PriorityClass"),
        ({"serviceAccountName": "signalbox"}, "which creates Jobs"),
        ({"restartPolicy": "OnFailure"}, "restartPolicy is OnFailure, allowed is Never"),
        ({"hostNetwork": True}, "hostNetwork"),
        ({GPU: "4"}, "is requested as 8 and limited to 4; allowed is the same whole number"),
    ],
)
def test_what_breaks_a_rule_is_refused(change: dict[str, Any], why: str) -> None:
    job = copy.deepcopy(JOB)
    spec = job["spec"]["template"]["spec"]
    for key, value in change.items():
        if key == "name":
            job["metadata"]["name"] = value
        elif key == GPU:
            spec["containers"][0]["resources"]["limits"][GPU] = value
        else:
            spec[key] = value
    with pytest.raises(RefusedError) as refused:
        gang(job, UID, RANKS, PLACE)
    assert why in str(refused.value)


def test_parts_have_names_of_their_own() -> None:
    found = made()
    found["spec"]["replicatedJobs"] *= 2
    assert any("of different names" in why for why in wrong(found))


# --- on the wire --------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[fake.Cluster]:
    with fake.running(tmp_path) as found:
        yield found


def configuration(cluster: fake.Cluster) -> kubernetes.client.Configuration:
    kubeconfig = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    host = kubeconfig["clusters"][0]["cluster"]["server"]
    return kubernetes.client.Configuration(host=host, api_key={"authorization": "Bearer fake"})


def clients(cluster: fake.Cluster) -> tuple[Gangs, AdmittingApiClient]:
    patience = Patience(pause=lambda _: None)
    client = AdmittingApiClient(
        lambda: LOCK, configuration=configuration(cluster), patience=patience
    )
    batch, core = kubernetes.client.BatchV1Api(client), kubernetes.client.CoreV1Api(client)
    return Gangs(client, fake.NAMESPACE, Looking(batch, core)), client


def gangs(cluster: fake.Cluster) -> Gangs:
    return clients(cluster)[0]


def test_it_is_created_beside_its_step_looked_at_and_deleted(cluster: fake.Cluster) -> None:
    found, client = clients(cluster)
    with making("step x", (), PLACE) as now:
        kubernetes.client.BatchV1Api(client).create_namespaced_job(fake.NAMESPACE, JOB)
        found.start(now.came[-1], PLACE)
    sent = cluster.jobsets["dagster-step-0123"]
    (owner,) = sent["metadata"]["ownerReferences"]
    assert owner["uid"] == cluster.jobs["dagster-step-0123"]["metadata"]["uid"]
    assert sent["spec"]["suspend"] is True
    (container,) = part(sent, "rank")["template"]["spec"]["containers"]
    assert {"name": "SIGNALBOX_IMAGE", "value": GOOD} in container["env"]
    (step,) = cluster.jobs["dagster-step-0123"]["spec"]["template"]["spec"]["containers"]
    assert MOUNT in step["volumeMounts"]
    assert found.of_run("r") == ["dagster-step-0123"]
    assert found.of_run("another") == []

    cluster.work()
    moment = datetime.now(UTC)
    waits = found.look("dagster-step-0123", ASKED).finding(moment)
    assert waits is not None
    assert (waits.cause, waits.state) == (Cause.SUSPENDED, "waits")
    sent["spec"]["suspend"] = False  # as Kueue admits it
    cluster.work()
    seen = found.look("dagster-step-0123", ASKED)
    assert len(seen.pods) == 2
    assert seen.finding(moment) is None

    found.delete("dagster-step-0123")
    found.delete("dagster-step-0123")
    gone = found.look("dagster-step-0123", ASKED).finding(moment)
    assert gone == Finding(
        Cause.RESTARTED,
        "over",
        "JobSet dagster-step-0123 is not there, and so the step has no ranks",
    )


def test_ranks_that_wait_are_told_until_enough_of_them_run(cluster: fake.Cluster) -> None:
    found, name = gangs(cluster), "dagster-step-0123"
    cluster.full = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    found.create(made(Place("step", Lane.ADHOC, ranks=RANKS)))
    cluster.work()
    waits = found.look(name, ASKED).finding(datetime.now(UTC))
    assert waits is not None
    assert waits.cause is Cause.UNSCHEDULABLE
    assert "Insufficient nvidia.com/gpu" in waits.words
    first = next(iter(cluster.pods.values()))
    first["status"] = {"phase": "Running"}
    assert found.look(name, ASKED).finding(datetime.now(UTC)) is None, "one of two is enough"


def test_ranks_that_are_lost_too_often_have_the_cause_of_their_pods(cluster: fake.Cluster) -> None:
    found, name = gangs(cluster), "dagster-step-0123"
    found.create(made(Place("step", Lane.ADHOC, ranks=RANKS)))
    cluster.work()
    jobs = cluster.jobs[f"{name}-rank-0"]
    jobs["spec"]["backoffLimit"] = 0
    for pod in list(cluster.pods.values()):
        cluster.kubelet.kill(pod, container_reason="OOMKilled")
    for _ in range(3):
        cluster.work()
    ended = found.look(name, ASKED).finding(datetime.now(UTC))
    assert ended is not None
    assert cluster.jobsets[name]["status"]["conditions"][0]["type"] == "Failed"
    assert (ended.cause, ended.state) == (Cause.OUT_OF_MEMORY, "over"), ended


def test_an_image_that_is_not_pinned_is_not_sent(cluster: fake.Cluster) -> None:
    manifest = made()
    container = part(manifest, "rank")["template"]["spec"]["containers"][0]
    container["image"] = "registry.example:5000/train:latest"
    with pytest.raises(RefusedError, match=r"JobSet dagster-step-0123 is refused, nothing was"):
        gangs(cluster).create(manifest)
    assert cluster.jobsets == {}
    assert cluster.requests == []
    # The client of whoever makes one by other means sends it: its pods are the cluster's to refuse.
    plain = kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(configuration(cluster)))
    where = (GROUP, VERSION, fake.NAMESPACE, PLURAL)
    plain.create_namespaced_custom_object(*where, manifest)
    sent = part(cluster.jobsets["dagster-step-0123"], "rank")["template"]["spec"]["containers"]
    assert [one["image"] for one in sent] == ["registry.example:5000/train:latest"]


def test_a_jobset_without_containers_is_none(cluster: fake.Cluster) -> None:
    manifest = {**made(), "spec": {"replicatedJobs": [], "image": GOOD}}
    with pytest.raises(RefusedError, match="no container is found in it"):
        gangs(cluster).create(manifest)


# --- in a node's pod ----------------------------------------------------------------------------


def told(folder: Path, nodes: str = "1:2", each: int = 8) -> argparse.Namespace:
    return argparse.Namespace(nodes=nodes, processes=each, folder=str(folder))


def test_torchrun_is_told_what_step_and_manifest_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.make(Job("m:f", {}, restarts=2, keep_alive_seconds=30, rendezvous="10.0.0.7:4711"))
    monkeypatch.setenv("SIGNALBOX_POD_IP", "10.0.0.8")
    assert node.arguments(folder.job(), told(tmp_path)) == [
        "--nnodes=1:2",
        "--nproc-per-node=8",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=10.0.0.7:4711",
        f"--rdzv-id={tmp_path.name}",
        "--rdzv-conf=is_host=false,join_timeout=600,last_call_timeout=30,"
        "keep_alive_interval=6,keep_alive_max_attempt=5",
        "--local-addr=10.0.0.8",
        "--max-restarts=2",
        "--monitor-interval=0.5",
        *("-m", "resources.distributed.rank", str(tmp_path)),
    ]


BEGIN = subprocess.Popen
ARGUMENTS = ("--nodes", "1:2", "--processes", "1")


def test_a_node_does_not_wait_for_its_step_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.main([*ARGUMENTS, str(tmp_path)], wait=0.1) == 1
    assert "no job.json came" in capsys.readouterr().err


def test_a_node_whose_step_ended_before_it_began_ends(tmp_path: Path) -> None:
    Folder(tmp_path).over.touch()
    assert node.main([*ARGUMENTS, str(tmp_path)], wait=60) == 0


def sleeping(monkeypatch: pytest.MonkeyPatch, words: str = "import time; time.sleep(60)") -> None:
    """In the place of torchrun, a process that does not end by itself."""
    monkeypatch.setattr(
        node.subprocess, "Popen", lambda _, **how: BEGIN([sys.executable, "-c", words], **how)
    )


def test_ranks_whose_step_is_silent_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.make(Job("m:f", {}))
    sleeping(monkeypatch)
    monkeypatch.setattr(node, "SILENT_SECONDS", 0.5)
    (folder.alive).write_bytes(b"1")
    assert node.Node(folder, 1).run([]) == 0
    assert (folder.out / "1").exists()


def test_a_node_that_is_to_be_replaced_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.make(Job("m:f", {}))
    sleeping(monkeypatch)
    (folder.replace / "1").touch()
    assert node.Node(folder, 1).run([]) == node.AGAIN
    assert list(folder.replace.iterdir()) == []
    assert list(folder.out.iterdir()) == []


def test_an_agent_that_is_killed_has_another_pod_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.make(Job("m:f", {}))
    sleeping(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    assert node.Node(folder, 0).run([]) == node.AGAIN
    sleeping(monkeypatch, "raise SystemExit(1)")
    assert node.Node(folder, 0).run([]) == 0, "what the ranks could not do is the step's to tell"
    assert (folder.out / "0").read_text() == "1"


def test_what_was_left_behind_is_removed_in_the_end(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / launching.OWNER).write_text("{}")
    (tmp_path / "unknown").mkdir()
    long_ago = time.time() - launching.LONGEST_SECONDS - 1
    os.utime(tmp_path / "old" / launching.OWNER, (long_ago, long_ago))
    launching.forget(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "unknown"]
