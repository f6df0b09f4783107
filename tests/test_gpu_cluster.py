"""GPUs of a cluster: the inventory by the real client, and steps of the pinned executor."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes_validate
import pytest

from platform_assets.cli.app import main
from platform_assets.domain.cluster_access import accounts
from platform_assets.domain.cluster_apps import environment
from platform_assets.domain.cluster_settings import parse_settings
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.gpu_inventory import Inventory, of_cluster, of_document, requested
from platform_assets.domain.gpu_placing import Policy, Request, Reserve
from platform_assets.domain.gpu_planning import gpu_tags, gpus_of_tag, plan, request_of, shapes_of
from platform_assets.domain.gpu_pods import GPU, GpuAsk, with_gpus
from platform_assets.domain.gpu_shapes import GpusSpec, Shape, shape_of
from platform_assets.domain.gpu_waiting import about, explain, speeds
from platform_assets.domain.lanes import Lane
from platform_assets.domain.manifest_rules import Known, problems
from platform_assets.domain.placing import Place, placed
from platform_assets.drills.gpu_cluster import gpu_node, held_pod, schedule
from platform_assets.instance.kubernetes.nodes import cluster_inventory
from resources.cluster import load_settings
from resources.gpus import VARIABLE as GPUS
from tests import cluster as fake
from tests.cluster_runs import LOCK, TRAIN, execute
from tests.test_cluster_failures import kubelet as kubelet

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[1]
A100 = "NVIDIA-A100-SXM4-80GB"


def asks(*shapes: str, **more: Any) -> Request:
    return Request("job", tuple(map(shape_of, shapes)), **more)


def inventory(*jobs: dict[str, Any], nodes: int = 3, gpus: int = 8) -> Inventory:
    file = {"nodes": [{"name": "n", "gpus": gpus, "count": nodes}], "jobs": list(jobs)}
    return of_document(file, "inventory.yaml", NOW)


def spread(*minutes: float | None) -> Inventory:
    """Each job holds 7 of the 8 GPUs of a node."""
    jobs = []
    for n, left in enumerate(minutes, 1):
        ends = {} if left is None else {"minutes_left": left}
        jobs.append({"name": f"job-{n}", "node": f"n-{n}", "gpus": 7, **ends})
    return inventory(*jobs, nodes=len(minutes))


def sentence(there: Inventory, request: Request, reserve: Reserve | None = None) -> str:
    return explain(there, request, Policy("ours", [request], reserve=reserve), NOW).sentence


# --- why ------------------------------------------------------------------------------------


def test_the_sentence_of_a_job_that_waits() -> None:
    """8 GPUs, each alone. 2 ** 0.85 = 1.80: that much longer takes half of the GPUs."""
    there = spread(95, 14, None, None, None, 180, 240, 40)
    assert sentence(there, asks("1x2", "1x1")) == (
        "8 GPUs idle, at most 1 on any node; asked for 2 together; 1x1 leaves now, ~1.8 x longer; "
        "1x2 in about 14 min, when job-2 ends"
    )


def test_what_else_is_said() -> None:
    assert sentence(spread(None, None), asks("1x2")) == (
        "2 GPUs idle, at most 1 on any node; asked for 2 together; 1x2 when enough of job-1, job-2 "
        "end, nobody knows when"
    )
    assert sentence(spread(5), asks("1x8", "1x4")) == (
        "1 GPU idle, at most 1 on any node; asked for 8 together; none of 1x4 fits now either; "
        "1x8 in about 5 min, when job-1 ends"
    )
    # Two nodes have to come free: the later of the two ends.
    assert sentence(spread(5, 50, 500), asks("2x8")).endswith(
        "1 on any node; asked for 8 together on each of 2 nodes; "
        "2x8 in about 50 min, when job-2 ends"
    )
    assert "it never starts in 1x16: there is no room" in sentence(spread(5), asks("1x16"))
    assert sentence(spread(5), asks("1x16", "1x1")).endswith("1x1 leaves now, ~10.6 x longer")
    assert sentence(inventory(), asks("1x8")) == (
        "24 GPUs idle, at most 8 on any node; 1x8 fits now on n-1"
    )
    assert sentence(inventory(nodes=1, gpus=0), asks("1x1")).startswith("no GPU is idle; asked for")
    model = asks("1x1", model="A", only_model=True)
    assert "no node has GPUs of model A" in sentence(inventory(), model)


def test_the_reserve_is_named() -> None:
    there = inventory({"name": "a", "node": "n-1", "gpus": 1, "minutes_left": 30}, nodes=2)
    wanted = asks("1x8", lane=Lane.BACKFILL)
    said = sentence(there, wanted, Reserve(Shape(1, 8)))
    assert said == (
        "15 GPUs idle, at most 8 on any node; what would fit is kept for the daily lane (1x8); "
        "1x8 in about 30 min, when a ends"
    )
    assert "fits now on n-2" in sentence(there, wanted)


def test_durations_come_from_runs_where_there_are_enough() -> None:
    gpus = GpusSpec(shapes=("1x4", "1x2", "1x1"))
    shapes = gpus.ordered()
    estimate = speeds(gpus, shapes, {})
    assert estimate[0] / estimate[1] == pytest.approx(2**0.85)
    assert speeds(gpus, shapes, {Shape(1, 1): [5.0, 6.0]}) == estimate  # too few
    shown = speeds(gpus, shapes, {Shape(1, 4): [100.0] * 3, Shape(1, 2): [150.0, 150.0, 150.0]})
    assert shown[0] / shown[1] == pytest.approx(1.5)
    assert shown[1] / shown[2] == pytest.approx(2**0.85)  # nobody saw it: from the nearest


def test_minutes_as_a_person_says_them() -> None:
    said = [about(minutes) for minutes in (0.4, 1, 14.4, 120, 4000)]
    assert said == [
        *("in less than a minute", "in about 1 min", "in about 14 min", "in about 2 h"),
        "in about 3 days",
    ]


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "found list, a mapping with nodes and jobs is needed"),
        ({}, "nodes: Field required"),
        ({"nodes": [{"name": "a"}]}, "nodes.0.gpus: Field required"),
        ({"nodes": [{"name": "a", "gpus": "8x"}]}, "nodes.0.gpus: "),
        ({"nodes": [{"name": "a", "gpus": -1}]}, "found -1"),
        ({"nodes": [{"name": "a", "gpu": 8}]}, "nodes.0.gpu: Extra inputs"),
        ({"nodes": [{"name": "a", "gpus": 8}] * 2}, "two nodes have one name"),
        (
            {"nodes": [], "jobs": [{"name": "j", "node": "b", "gpus": 1}]},
            "jobs.0.node: 'b' is none of the nodes",
        ),
        (
            {"nodes": [{"name": "a", "gpus": 8}], "jobs": [{"name": "j", "node": "a", "gpus": 9}]},
            "jobs.0.gpus: a has 1 GPUs too few",
        ),
        (
            {
                "nodes": [{"name": "a", "gpus": 8}],
                "jobs": [
                    {
                        "name": "j",
                        "node": "a",
                        "gpus": 1,
                        "minutes_left": 1,
                        "ends": "2026-11-23T14:00:00Z",
                    }
                ],
            },
            "one is allowed",
        ),
        (
            {
                "nodes": [{"name": "a", "gpus": 8}],
                "jobs": [{"name": "j", "node": "a", "gpus": 1, "ends": "2026-11-23T14:00:00"}],
            },
            "timezone",
        ),
    ],
)
def test_a_wrong_file_is_refused(document: Any, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        of_document(document, "inventory.yaml", NOW)
    assert words in str(refused.value)


# --- the cluster ----------------------------------------------------------------------------


def test_nodes_that_take_nothing_are_left_out_with_the_reason() -> None:
    nodes = [
        gpu_node("a", 8, A100),
        gpu_node("b", 8, unschedulable=True),
        gpu_node("c", 8),
        gpu_node("d", 8, taints=[{"key": "maintenance", "effect": "NoSchedule"}]),
        gpu_node("e", 8, taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]),
        gpu_node("f", 0),
        gpu_node("g", 8),
    ]
    nodes[2]["status"]["conditions"][0].update(status="Unknown", reason="NodeStatusUnknown")
    del nodes[6]["status"]["conditions"]
    found = of_cluster(nodes, [held_pod("x", "a", 3)], "here")
    assert [(n.name, n.free, n.out) for n in found.nodes] == [
        ("a", 5, ""),
        ("b", 8, "it is cordoned"),
        ("c", 8, "it is not ready (NodeStatusUnknown)"),
        ("d", 8, "it has the taint maintenance:NoSchedule"),
        ("e", 8, ""),
        ("g", 8, "it is not ready (no condition Ready)"),
    ]
    assert found.pool().total == 16


def test_pods_are_counted_as_the_scheduler_does() -> None:
    def container(gpus: int, **more: Any) -> dict[str, Any]:
        return {"name": "c", "resources": {"limits": {GPU: str(gpus)}}, **more}

    assert requested({"containers": [container(1), container(2)]}) == 3
    assert requested({"containers": [container(1)], "initContainers": [container(4)]}) == 4
    stays = container(2, restartPolicy="Always")
    assert requested({"containers": [container(1)], "initContainers": [stays]}) == 3
    assert requested({"containers": [{"name": "c"}]}) == 0
    with pytest.raises(UsageError, match="no quantity"):
        requested({"containers": [{"resources": {"limits": {GPU: "many"}}}]})
    over, pending = held_pod("over", "a", 8), held_pod("pending", "a", 8)
    over["status"]["phase"] = "Succeeded"
    del pending["spec"]["nodeName"]
    ours = held_pod("ours", "a", 2, "signalbox")
    ours["metadata"]["labels"]["dagster/run-id"] = "r-1"
    ours["spec"]["priorityClassName"] = "signalbox-step-daily"
    found = of_cluster([gpu_node("a", 8)], [over, pending, ours, held_pod("x", "gone", 8)], "here")
    assert found.nodes[0].free == 6
    assert found.daily_holds == 2
    (one,) = found.holdings
    assert (one.who, one.run_id) == ("pod signalbox/ours", "r-1")
    assert found.ending({"r-1": NOW}).holdings[0].ends == NOW
    more = of_cluster([gpu_node("a", 1)], [held_pod("x", "a", 4)], "here")
    assert more.nodes[0].free == 0  # the device plugin has lost some


@pytest.fixture
def core(tmp_path: Path) -> Iterator[tuple[fake.Cluster, kubernetes.client.CoreV1Api]]:
    with fake.running(tmp_path) as cluster:
        own = kubernetes.client.Configuration()
        kubernetes.config.load_kube_config(cluster.kubeconfig, client_configuration=own)
        own.retries = False
        yield cluster, kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(own))


def test_the_inventory_by_the_real_client(
    core: tuple[fake.Cluster, kubernetes.client.CoreV1Api],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster, client = core
    cluster.nodes = {f"n{n}": gpu_node(f"n{n}", 8, A100) for n in range(3)}
    cluster.pods = {f"p{n}": held_pod(f"p{n}", f"n{n}", 7) for n in range(3)}
    found = cluster_inventory(client)
    assert [(n.model, n.free) for n in found.nodes] == [(A100, 1)] * 3
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for arguments, words in (
        (["why", "--shapes", "1x2 1x1"], "3 GPUs idle, at most 1 on any node; asked for 2"),
        (["plan", "--shapes", "1x2 1x1", "--json"], '"shape": "1x1"'),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["gpu", *arguments, "--inventory", "cluster"])
        assert ended.value.code == 0
        assert words in capsys.readouterr().out
    cluster.faults.append(fake.Fault("GET", "/nodes", 403, reason="Forbidden", message="no"))
    with pytest.raises(RefusedError, match=r"cannot be listed \(403 Forbidden: no\)"):
        cluster_inventory(client)
    cluster.faults.append(fake.Fault("GET", "/nodes", "drop"))
    with pytest.raises(RefusedError, match="cannot be listed"):
        cluster_inventory(client)


# --- pods -----------------------------------------------------------------------------------


def a_job(**spec: Any) -> dict[str, Any]:
    container = {"name": "dagster", "image": TRAIN, "resources": {"limits": {"cpu": "2"}}}
    pod = {"restartPolicy": "Never", "containers": [container], **spec}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "step"},
        "spec": {"backoffLimit": 0, "template": {"metadata": {}, "spec": pod}},
    }


def test_a_placement_is_plain_kubernetes() -> None:
    ask = GpuAsk(2, A100, hosts=("n1",))
    job = placed(a_job(), Place("step", Lane.DAILY, gpus=ask), "step model")
    kubernetes_validate.validate(job, "1.36", strict=True)
    assert problems(job, Known(LOCK, {"signalbox-step-daily"})) == []
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {
        "limits": {"cpu": "2", GPU: "2"},
        "requests": {GPU: "2"},
    }
    affinity = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    assert [
        (one["weight"], one["preference"]["matchExpressions"][0]["key"])
        for one in affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    ] == [(100, "kubernetes.io/hostname"), (50, "nvidia.com/gpu.product")]
    # Without the planner the Job is as it was.
    plain = placed(a_job(), Place("step", Lane.DAILY), "step model")
    assert GPU not in json.dumps(plain)


def test_what_is_there_already_stays() -> None:
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    hard = "requiredDuringSchedulingIgnoredDuringExecution"
    soft = "preferredDuringSchedulingIgnoredDuringExecution"
    terms = {"nodeSelectorTerms": [{"matchExpressions": [zone]}, {"matchFields": []}]}
    preference = {"weight": 1, "preference": {"matchExpressions": [zone]}}
    there = {"nodeAffinity": {hard: terms, soft: [preference]}, "podAffinity": {"a": 1}}
    spec = a_job(affinity=there)["spec"]["template"]["spec"]
    ask = GpuAsk(1, A100, only_model=True, hosts=("n1",))
    found = with_gpus(spec, ask, "step")["affinity"]
    model = {"key": "nvidia.com/gpu.product", "operator": "In", "values": [A100]}
    assert found["podAffinity"] == {"a": 1}
    assert found["nodeAffinity"][hard]["nodeSelectorTerms"] == [
        {"matchExpressions": [zone, model]},
        {"matchFields": [], "matchExpressions": [model]},
    ]
    assert found["nodeAffinity"][soft][0] == preference
    assert spec["affinity"]["nodeAffinity"][soft] == [preference]  # what was given is as it was


def test_two_who_ask_for_gpus_are_refused() -> None:
    job = a_job()
    job["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {GPU: 4}}
    with pytest.raises(RefusedError, match=r"container dagster asks for 4 of nvidia\.com/gpu"):
        placed(job, Place("step", Lane.DAILY, gpus=GpuAsk(2)), "step model")


def test_a_plan_without_an_inventory_asks_for_the_preferred_shape() -> None:
    gpus = GpusSpec(shapes=("1x4", "2x2"), model=A100, only_model=True)
    found = plan(request_of("m", gpus, gpus.ordered(), Lane.DAILY), None, unknown="it is away")
    assert found.words == "asks for 1x4; where it fits is not known: it is away"
    assert found.ask == GpuAsk(4, A100, True)
    assert gpus_of_tag(gpu_tags(gpus)) == gpus
    assert gpus_of_tag(gpu_tags(None)) is None
    with pytest.raises(UsageError, match="the tag signalbox/gpus is"):
        gpus_of_tag({"signalbox/gpus": "{}"})
    assert shapes_of(gpus, None, one_pod=True) == (Shape(1, 4),)
    with pytest.raises(UsageError, match="all of several nodes, and a step is one pod"):
        shapes_of(GpusSpec(shapes=("2x2",)), None, one_pod=True)
    with pytest.raises(UsageError, match="signalbox/shape is '1x8'; allowed are 1x4, 2x2"):
        shapes_of(gpus, "1x8")


# --- steps of the pinned executor -----------------------------------------------------------


def three_spread(kubelet: fake.Cluster, free: int = 1) -> None:
    kubelet.nodes = {f"n{n}": gpu_node(f"n{n}", 8) for n in range(3)}
    for n in range(3):
        kubelet.pods[f"p{n}"] = held_pod(f"p{n}", f"n{n}", 8 - free)


@pytest.mark.heavy
def test_a_step_takes_the_shape_that_leaves_now(
    kubelet: fake.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GPUS, "cluster")
    three_spread(kubelet)
    ended = execute(kubelet, "pinned_with_gpus")
    assert ended.success, ended.told
    assert "step with_gpus asks for 1x1, best on n0" in ended.told
    assert ended.tags["signalbox/shape_planned"] == "1x1"
    assert "signalbox/waits" not in ended.tags
    (job,) = kubelet.jobs.values()
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"][GPU] == "1"
    assert "n0" in json.dumps(pod["affinity"])


@pytest.mark.heavy
def test_a_step_that_waits_says_why_on_the_page_of_its_run(
    kubelet: fake.Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tag of the run asks for 2 together. Somebody leaves once the run says why it waits."""
    monkeypatch.setenv(GPUS, "cluster")
    (tmp_path / "failures.yaml").write_text("failures: {unschedulable: {patience: 60}}")
    three_spread(kubelet)

    def listed_twice() -> bool:
        return sum(path.partition("?")[0] == "/api/v1/pods" for _, path in kubelet.asked) > 1

    kubelet.when(listed_twice, lambda: kubelet.pods.pop("p1"))
    ended = execute(kubelet, "pinned_with_gpus", tags={"signalbox/shape": "1x2"})
    assert ended.success, ended.told
    assert (
        "step with_gpus waits for GPUs: 3 GPUs idle, at most 1 on any node; asked for 2 together; "
        "1x1 leaves now, ~1.8 x longer; 1x2 when enough of pod others/p0" in ended.told
    )
    assert ended.tags["signalbox/waits"] == "no more: step with_gpus started"
    (node,) = {p["spec"]["nodeName"] for n, p in kubelet.pods.items() if n.startswith("dagster-")}
    assert node == "n1"


@pytest.mark.heavy
def test_an_inventory_that_is_away_holds_up_no_step(
    kubelet: fake.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GPUS, "cluster")
    kubelet.nodes = {"n0": gpu_node("n0", 8)}
    kubelet.faults.append(fake.Fault("GET", "/api/v1/nodes", 403, times=99, reason="Forbidden"))
    ended = execute(kubelet, "pinned_with_gpus")
    assert ended.success, ended.told
    assert "asks for 1x2; where it fits is not known: the cluster's nodes and pods" in ended.told


def test_the_fake_schedules_as_is_written_down() -> None:
    """6 and 6 of 8 and 8: a third 6 stays Pending though 4 are idle. LeastAllocated takes turns."""
    nodes = {name: gpu_node(name, 8) for name in ("a", "b")}

    def run(sizes: list[int]) -> list[str]:
        pods: list[dict[str, Any]] = []
        for size in sizes:
            pod = held_pod("p", "", size)
            node, _ = schedule(nodes, pods, pod)
            pod["spec"]["nodeName"] = node
            pods.append(pod)
        return [pod["spec"]["nodeName"] for pod in pods]

    assert run([6, 6, 6]) == ["a", "b", ""]
    assert run([2, 2, 2, 2]) == ["a", "b", "a", "b"]


def test_the_right_to_look_is_rendered_only_where_it_is_asked_for() -> None:
    settings = load_settings()
    assert "ClusterRole" not in {one["kind"] for one in accounts(settings)}
    assert GPUS not in environment(settings, {})
    wanted = settings.model_copy(update={"gpu_inventory": True, "gpu_reserve": "1x8"})
    (role,) = [one for one in accounts(wanted) if one["kind"] == "ClusterRole"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list"]}]
    variables = environment(wanted, {})
    assert (variables[GPUS], variables["SIGNALBOX_GPU_RESERVE"]) == ("cluster", "1x8")
    for one in accounts(wanted):
        kubernetes_validate.validate(one, "1.36", strict=True)
    document = {**settings.model_dump(mode="json"), "gpu_reserve": "8"}
    with pytest.raises(UsageError, match="gpu_reserve: '8' is no shape"):
        parse_settings(document, "cluster.yaml")


def test_the_scheduler_does_not_eat_the_reserve() -> None:
    """Two nodes, one with 3 of 8 free. A backfill of 2, and 1x8 is kept for the daily lane.

    LeastAllocated prefers the node that is kept: by a hint alone a backfill that fits nowhere else
    would be put there.
    """
    nodes = {name: gpu_node(name, 8) for name in ("a", "b")}
    backfill, daily = (asks("1x2", lane=lane) for lane in (Lane.BACKFILL, Lane.DAILY))

    def sent(request: Request, reserve: Reserve | None, held: int) -> tuple[str, str]:
        pods = [held_pod("p", "a", held)]
        planned = plan(request, of_cluster(list(nodes.values()), pods, "here"), reserve=reserve)
        job = placed(a_job(), Place("step", request.lane, gpus=planned.ask), "step")
        kubernetes_validate.validate(job, "1.36", strict=True)
        pod = {"spec": job["spec"]["template"]["spec"]}
        return schedule(nodes, pods, pod)[0], planned.words

    reserve = Reserve(Shape(1, 8))
    assert sent(backfill, None, 7)[0] == "b"
    where, words = sent(backfill, reserve, 7)
    assert where == ""
    assert "what would fit is kept for the daily lane (1x8)" in words
    assert sent(backfill, reserve, 5)[0] == "a"
    assert sent(daily, reserve, 7)[0] == "b"


@pytest.mark.heavy
def test_gpus_that_are_idle_and_out_of_reach_are_told_with_the_clusters_words(
    kubelet: fake.Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quota: no pod is made, whatever is idle."""
    monkeypatch.setenv(GPUS, "cluster")
    three_spread(kubelet, free=4)
    kubelet.quota = 3

    def listed_twice() -> bool:
        return sum(path.partition("?")[0] == "/api/v1/pods" for _, path in kubelet.asked) > 1

    kubelet.when(listed_twice, lambda: setattr(kubelet, "quota", None))
    ended = execute(kubelet, "pinned_with_gpus")
    assert ended.success, ended.told
    assert (
        "12 GPUs idle, at most 4 on any node; 1x2 fits now on n0; the cluster has not put it"
        in (ended.told)
    )
    assert "exceeded quota: lane" in ended.told
