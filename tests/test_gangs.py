"""A training on several nodes: the JobSet that is made of a step's Job, compared whole."""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.gang import GPU, GROUP, PLURAL, VERSION, gang, wrong
from platform_assets.domain.lanes import Lane
from platform_assets.domain.placing import Place
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient
from platform_assets.instance.kubernetes.calling import Patience
from platform_assets.instance.kubernetes.gangs import Gangs
from resources.distributed import node
from resources.distributed.layout import Folder, Job
from tests import cluster as fake
from tests.test_admission import GOOD, LOCK

PLACE = Place("step", Lane.DAILY, queued=True)
ASKED = ProcessesSpec(min=8, max=16, nodes=2)

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
NODE = {"name": "SIGNALBOX_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
SHARED = [
    {"name": "X", "value": "1"},
    {"name": "SIGNALBOX_RANKS_FOLDER", "value": "/ranks/dagster-step-0123"},
    {"name": "OMP_NUM_THREADS", "value": "8"},
    NODE,
]


def made(**changes: Any) -> dict[str, Any]:
    return gang(JOB, ASKED, PLACE, claim="ranks", **changes)


def part(manifest: dict[str, Any], name: str) -> Any:
    (found,) = [p for p in manifest["spec"]["replicatedJobs"] if p["name"] == name]
    return found["template"]["spec"]


def test_the_manifest_whole() -> None:
    found = made()
    step, ranks = part(found, "step"), part(found, "ranks")
    templates = step.pop("template"), ranks.pop("template")
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
        },
        "spec": {
            "suspend": True,
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": ["step"]},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [
                {
                    "name": "step",
                    "replicas": 1,
                    "template": {"spec": {"parallelism": 1, "completions": 1, "backoffLimit": 0}},
                },
                {
                    "name": "ranks",
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
    for template in templates:
        spec = template["spec"]
        assert template["metadata"] == {"labels": {"dagster/run-id": "r"}}
        assert spec["priorityClassName"] == "signalbox-step-daily"
        assert spec["serviceAccountName"] == "signalbox-step"
        assert spec["automountServiceAccountToken"] is False
        assert spec["restartPolicy"] == "Never"
        assert {"name": "ranks", "persistentVolumeClaim": {"claimName": "ranks"}} in spec["volumes"]
        (container,) = spec["containers"]
        assert container["image"] == GOOD
        assert container["env"] == SHARED
        assert {"name": "ranks", "mountPath": "/ranks"} in container["volumeMounts"]
        assert RESTRICTED.items() <= container["securityContext"].items()
    (own,), (other,) = (template["spec"]["containers"] for template in templates)
    assert own["args"] == ["dagster", "api", "execute_step"]
    assert own["resources"] == {"limits": {"cpu": "8"}, "requests": {"cpu": "8"}}
    assert "args" not in other
    assert other["resources"]["limits"] == {"cpu": "8", GPU: "8"}
    assert other["command"] == [
        *("python", "-m", "resources.distributed.node", "--nodes", "1:2", "--processes", "8"),
        *("--rendezvous", "dagster-step-0123-ranks-0-0.dagster-step-0123:29400"),
        "/ranks/dagster-step-0123",
    ]


def test_without_kueue_it_starts_at_once() -> None:
    found = gang(JOB, ASKED, Place("step", Lane.ADHOC), claim="ranks")
    assert found["spec"]["suspend"] is False
    assert found["metadata"]["labels"] == {"dagster/run-id": "r"}
    spec = part(found, "ranks")["template"]["spec"]
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
        gang(job, ASKED, PLACE, claim="ranks")
    assert why in str(refused.value)


def test_parts_have_names_of_their_own() -> None:
    found = made()
    found["spec"]["replicatedJobs"][1]["name"] = "step"
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


def gangs(cluster: fake.Cluster) -> Gangs:
    patience = Patience(pause=lambda _: None)
    client = AdmittingApiClient(
        lambda: LOCK, configuration=configuration(cluster), patience=patience
    )
    return Gangs(client, fake.NAMESPACE)


def test_it_is_created_looked_at_and_deleted(cluster: fake.Cluster) -> None:
    found = gangs(cluster)
    found.create(made())
    sent = cluster.jobsets["dagster-step-0123"]
    assert sent["spec"]["suspend"] is True
    for name in ("step", "ranks"):
        (container,) = part(sent, name)["template"]["spec"]["containers"]
        assert {"name": "SIGNALBOX_IMAGE", "value": GOOD} in container["env"]
    assert found.ended("dagster-step-0123") is None
    over = {"type": "Failed", "status": "True", "message": "jobset failed"}
    cluster.jobsets["dagster-step-0123"]["status"] = {"conditions": [over]}
    assert found.ended("dagster-step-0123") == (False, "jobset failed")
    cluster.jobsets["dagster-step-0123"]["status"]["conditions"][0]["type"] = "Completed"
    assert found.ended("dagster-step-0123") == (True, "jobset failed")
    found.delete("dagster-step-0123")
    found.delete("dagster-step-0123")
    assert found.ended("dagster-step-0123") == (
        False,
        "JobSet dagster-step-0123 is not there any more",
    )


@pytest.mark.parametrize("name", ["step", "ranks"])
def test_an_image_of_any_part_that_is_not_pinned_is_not_sent(
    cluster: fake.Cluster, name: str
) -> None:
    manifest = made()
    container = part(manifest, name)["template"]["spec"]["containers"][0]
    container["image"] = "registry.example:5000/train:latest"
    with pytest.raises(RefusedError, match=r"JobSet dagster-step-0123 is refused, nothing was"):
        gangs(cluster).create(manifest)
    assert cluster.jobsets == {}
    assert cluster.requests == []
    # The client of whoever makes one by other means sends it: its pods are the cluster's to refuse.
    plain = kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(configuration(cluster)))
    where = (GROUP, VERSION, fake.NAMESPACE, PLURAL)
    plain.create_namespaced_custom_object(*where, manifest)
    sent = part(cluster.jobsets["dagster-step-0123"], name)["template"]["spec"]["containers"]
    assert [one["image"] for one in sent] == ["registry.example:5000/train:latest"]


def test_a_jobset_without_containers_is_none(cluster: fake.Cluster) -> None:
    manifest = {**made(), "spec": {"replicatedJobs": [], "image": GOOD}}
    with pytest.raises(RefusedError, match="no container is found in it"):
        gangs(cluster).create(manifest)


# --- in a node's pod ----------------------------------------------------------------------------


def test_torchrun_is_told_what_step_and_manifest_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.make(Job("m:f", {}, restarts=2, keep_alive_seconds=30))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    told = argparse.Namespace(
        nodes="1:2", processes=8, rendezvous="set-ranks-0-0.set:29400", folder=str(tmp_path)
    )
    assert node.arguments(folder.job(), told) == [
        "--nnodes=1:2",
        "--nproc-per-node=8",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=set-ranks-0-0.set:29400",
        f"--rdzv-id={tmp_path.name}",
        "--rdzv-conf=is_host=false,join_timeout=600,last_call_timeout=30,"
        "keep_alive_interval=6,keep_alive_max_attempt=5",
        "--max-restarts=2",
        *("-m", "resources.distributed.rank", str(tmp_path)),
    ]
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert "--rdzv-conf=is_host=true" in " ".join(node.arguments(folder.job(), told))


def test_a_node_does_not_wait_for_its_step_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--nodes", "1:2", "--processes", "1", "--rendezvous", "h:1", str(tmp_path)]
    assert node.main(told, wait=0.1) == 1
    assert "no job.json came" in capsys.readouterr().err
