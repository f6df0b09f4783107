"""A training on two nodes by the pinned executor: ranks in pods of their own, real torchrun.

The cluster is the fake; its pods are processes of this machine, and the volume that they share is a
folder of it. DNS and the network between nodes are the loopback's.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster_k8s.client
import numpy as np
import pytest

pytest.importorskip("torch", reason="`make setup-torch` installs it")

from platform_assets.domain.gang import JOBSET_LABEL
from platform_assets.instance.kubernetes import admitting
from platform_assets.instance.kubernetes.calling import Patience
from resources.failures import VARIABLE as FAILURES
from resources.images import VARIABLE, change_lock
from tests import cluster as fake
from tests.cluster_runs import LOCK, STEPS, execute
from tests.test_torch_ranks import fit, processes
from tests.test_torch_trainer import weights
from tests.torch_ranks import Trainer

pytestmark = [pytest.mark.torch, pytest.mark.heavy, pytest.mark.timeout(600)]

BUDGETS = """
failures:
  evicted: {retries: 1, wait: 1}
  preempted: {retries: 1, wait: 1}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Cluster]:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    (tmp_path / "failures.yaml").write_text(BUDGETS)
    monkeypatch.setenv(FAILURES, str(tmp_path / "failures.yaml"))
    (tmp_path / "steps").mkdir()
    monkeypatch.setenv(STEPS, str(tmp_path / "steps"))
    short = SimpleNamespace(sleep=lambda _: time.sleep(0.05), time=time.time)
    monkeypatch.setattr(dagster_k8s.client, "time", short)
    monkeypatch.setattr(admitting, "Patience", partial(Patience, first=0.02))
    with fake.running(tmp_path, runs=True) as found:
        found.grace = 30.0
        found.volumes["home"] = tmp_path / "volume"
        yield found


@pytest.fixture(scope="module")
def on_one_machine() -> Mapping[str, bytes]:
    """The model of two ranks on one machine."""
    return weights(fit(Trainer("by_environment"), processes()))


class Watch:
    """The pods of ranks that there ever were."""

    def __init__(self, cluster: fake.Cluster) -> None:
        self.seen: set[str] = set()
        self._over = threading.Event()

        def look() -> None:
            while not self._over.wait(0.1):
                with cluster.lock:
                    for name, pod in cluster.pods.items():
                        if JOBSET_LABEL in pod["metadata"]["labels"]:
                            self.seen.add(name)

        threading.Thread(target=look, daemon=True).start()

    def close(self) -> set[str]:
        self._over.set()
        return self.seen


def run(cluster: fake.Cluster, happens: Callable[[], object] | None = None) -> tuple[Any, set[str]]:
    watch = Watch(cluster)
    ended = execute(cluster, "pinned_two_nodes", happens, ranks_claim="home")
    return ended, watch.close()


def told(tmp_path: Path, name: str) -> Any:
    return json.loads((tmp_path / "steps" / f"{name}.json").read_text())


def model(tmp_path: Path) -> dict[str, bytes]:
    return {name: bytes.fromhex(text) for name, text in told(tmp_path, "model").items()}


def step_pod(cluster: fake.Cluster) -> Any:
    (found,) = [
        pod
        for pod in cluster.pods.values()
        if JOBSET_LABEL not in pod["metadata"]["labels"] and pod["status"]["phase"] == "Running"
    ]
    return found


def test_two_nodes_train_the_model_of_one_machine(
    cluster: fake.Cluster, tmp_path: Path, on_one_machine: Mapping[str, bytes]
) -> None:
    ended, pods = run(cluster)
    assert ended.success, ended.told
    assert told(tmp_path, "teams") == [[2, 0]]
    assert told(tmp_path, "lost") == []
    assert len(pods) == 2
    assert model(tmp_path) == on_one_machine
    (jobset,) = cluster.jobsets.values()
    until = time.monotonic() + 30
    while not jobset["status"]["conditions"] and time.monotonic() < until:
        time.sleep(0.2)
    assert jobset["status"]["conditions"][0]["type"] == "Completed"
    assert [p.name for p in (tmp_path / "volume" / "ranks").iterdir()] == [], "nothing is left"
    assert "rank-0" in ended.told, "what the ranks ran is on the run, as it was asked for"


def test_a_node_that_is_lost_is_made_up_for(
    cluster: fake.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_one_machine: Mapping[str, bytes],
) -> None:
    monkeypatch.setenv("TEST_ACT", "place_lost")
    ended, pods = run(cluster)
    assert ended.success, ended.told
    assert ended.attempts == 1, "the step went on"
    assert len(pods) >= 3, "another pod came in its place"
    teams = told(tmp_path, "teams")
    assert teams[0] == [2, 0]
    assert len(teams) > 1
    assert all(step == 2 for _, step in teams[1:]), "from the checkpoint of the second step on"
    found = model(tmp_path)
    for name, content in on_one_machine.items():
        one, other = np.frombuffer(found[name], "f4"), np.frombuffer(content, "f4")
        assert np.allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", ["preempted", "evicted"])
def test_a_step_that_the_cluster_ends_goes_on_with_other_ranks(
    cluster: fake.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    on_one_machine: Mapping[str, bytes],
) -> None:
    """SIGTERM: the ranks save where they are. SIGKILL: they go on from what was durable."""
    monkeypatch.setenv("TEST_ACT", "stands")

    def end() -> None:
        pod = step_pod(cluster)
        condition = {"type": "DisruptionTarget", "status": "True", "message": "it has to go"}
        if how == "preempted":
            disruption = {"reason": "PreemptionByScheduler", "message": "it has to go"}
            cluster.delete_pod(pod["metadata"]["name"], disruption)
        else:
            pod["status"]["conditions"].append({**condition, "reason": "TerminationByKubelet"})
            cluster.kubelet.kill(pod, phase_reason="Evicted", message="it has to go")

    standing = tmp_path / "steps" / "standing"
    cluster.when(standing.exists, end)
    ended, pods = run(cluster)
    assert ended.success, ended.told
    assert "It is no error of the code" in ended.told
    assert ended.attempts == 2
    assert len(pods) == 4
    assert told(tmp_path, "teams") == [[2, 4 if how == "preempted" else 2]]
    assert model(tmp_path) == on_one_machine
    first = [j for name, j in cluster.jobsets.items() if not name.endswith("-1")]
    # Those that were told to stop have ended by themselves; the others are deleted.
    assert [j["status"]["conditions"][0]["type"] for j in first] == (
        ["Completed"] if how == "preempted" else []
    )
    rank_processes = [p for name, p in cluster.kubelet.processes.items() if "-rank-" in name]
    until = time.monotonic() + 60
    while any(p.poll() is None for p in rank_processes) and time.monotonic() < until:
        time.sleep(0.2)
    assert all(p.poll() is not None for p in rank_processes)


def test_without_a_volume_nothing_is_created(cluster: fake.Cluster) -> None:
    ended = execute(cluster, "pinned_two_nodes")
    assert not ended.success
    assert "trains on 2 nodes" in ended.told
    assert "set ranks_claim to a PersistentVolumeClaim" in ended.told
    assert cluster.jobs == {}
    assert cluster.jobsets == {}
