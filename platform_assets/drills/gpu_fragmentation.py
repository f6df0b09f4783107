"""`signalbox drill gpu-fragmentation`: GPUs are idle, and no job that wants two of them starts."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import kubernetes.client

from platform_assets.domain.gpu_placing import POLICIES, Policy, Request
from platform_assets.domain.gpu_planning import plan, request_of
from platform_assets.domain.gpu_pool import GpuNode
from platform_assets.domain.gpu_shapes import GpusSpec, Shape
from platform_assets.domain.gpu_simulation import Outcome, simulate
from platform_assets.domain.gpu_trace import Trace, TraceJob
from platform_assets.domain.gpu_waiting import explain
from platform_assets.domain.images import ImageLock, LockedImage
from platform_assets.domain.lanes import Lane
from platform_assets.domain.placing import Place
from platform_assets.drills.gpu_cluster import GpuCluster, gpu_node, held_pod
from platform_assets.drills.harness import Scene
from platform_assets.drills.report import DrillReport, Figure, Step
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient, making
from platform_assets.instance.kubernetes.nodes import cluster_inventory

NAME = "gpu-fragmentation"
TITLE = "three GPUs are idle, each alone on its node, and jobs want two"
MODEL = "NVIDIA-A100-SXM4-80GB"
HOST = "registry.example"
MINUTE = 60.0


@dataclass(frozen=True)
class Case:
    """What is played.

    Attributes:
        gpus: of each node; one of them is free.
        ends: minutes after which the job ends that holds the others of a node, a node each.
        jobs: trainings that want two GPUs.
        lasts: minutes of one on two GPUs.
    """

    gpus: int = 8
    ends: tuple[float, ...] = (95.0, 40.0, 150.0)
    jobs: int = 3
    lasts: float = 30.0


SHAPES = GpusSpec(shapes=("1x2", "1x1"))


def play(scene: Scene) -> DrillReport:
    """The drill."""
    return play_case(scene, Case())


def play_case(scene: Scene, case: Case) -> DrillReport:
    """Play it: by the simulator under each policy, then on a stand-in of the API server."""
    with scene.part("the simulator, under each policy"):
        outcomes = {policy: simulate(trace_of(case), policy) for policy in POLICIES}
    with scene.part("the API server's stand-in"):
        asked, planned = _on_the_api(case)
    best = outcomes["fgd"]
    ours = outcomes["ours"]
    plain = [
        *(
            _replayed(case, outcomes[policy], waits=True)
            for policy in ("random", "first-fit", "best-fit", "fgd")
        ),
        *asked,
    ]
    signalbox = [
        _replayed(case, outcomes["fgd-any"], waits=False),
        _replayed(case, ours, waits=False),
        *planned,
    ]
    figures = (
        Figure(
            what="minutes until the last of the jobs has started",
            ideal=0.0,
            plain=_last(best, "at"),
            signalbox=_last(ours, "at"),
        ),
        Figure(
            what="minutes until the last of them is done",
            ideal=case.lasts,
            plain=_last(best, "ends"),
            signalbox=_last(ours, "ends"),
        ),
        Figure(
            what="GPUs allocated in the first half hour",
            unit="%",
            ideal=100.0,
            plain=round(100 * best.mean(30 * MINUTE), 1),
            signalbox=round(100 * ours.mean(30 * MINUTE), 1),
        ),
    )
    report = DrillReport(
        name=NAME,
        title=TITLE,
        question=f"{len(case.ends)} nodes with {case.gpus} GPUs, one of each is free; {case.jobs} "
        "jobs want two together. Does any of them start, and does anybody say why not?",
        plain=tuple(plain),
        signalbox=tuple(signalbox),
        figures=figures,
        notes=(
            "Which policy placed the others makes no difference any more: where no two GPUs are "
            "free together, a job that wants two waits under each of them. What helps is that the "
            "catalog names a second shape.",
            f"One GPU takes {_slower():.1f} times as long, by the estimate of the catalog. Where "
            "somebody ends sooner than that costs, waiting would have been done earlier; the "
            "sentence has both, and the tag signalbox/shape chooses.",
            "The API server is a stand-in with a scheduler of a few lines; what a real "
            "kube-scheduler does with the hints was not tried, there is no cluster here.",
        ),
        verdict="",
    )
    return report.concluded(
        f"Without shapes the jobs wait {_last(best, 'at'):.0f} minutes beside idle GPUs, under "
        "every policy; with a second shape they leave at once, and one that insists is told why "
        "it waits and until when."
    )


def trace_of(case: Case) -> Trace:
    """The case as a trace; the jobs come a minute apart."""
    nodes = tuple(
        GpuNode(f"node-{n + 1}", MODEL, case.gpus, case.gpus) for n in range(len(case.ends))
    )
    held = [
        TraceJob(Request(f"held-{n + 1}", (Shape(1, case.gpus - 1),)), 0.0, minutes * MINUTE)
        for n, minutes in enumerate(case.ends)
    ]
    wanted = [
        TraceJob(
            request_of(f"two-{n + 1}", SHAPES, SHAPES.ordered(), Lane.ADHOC),
            (n + 1) * MINUTE,
            case.lasts * MINUTE,
        )
        for n in range(case.jobs)
    ]
    return Trace(nodes, (*held, *wanted))


def _slower() -> float:
    return SHAPES.speed(Shape(1, 2)) / SHAPES.speed(Shape(1, 1))


def _last(outcome: Outcome, what: str) -> float:
    """Minutes from the start until the last of the jobs that want two has started, or ended."""
    times = [getattr(s, what) for s in outcome.started if s.job.name.startswith("two-")]
    return round(max(times) / MINUTE, 1) if times else float("inf")


def _replayed(case: Case, outcome: Outcome, *, waits: bool) -> Step:
    starts = [s for s in outcome.started if s.job.name.startswith("two-")]
    late = [s for s in starts if s.waited > 0]
    shapes = ", ".join(sorted({str(s.placed.shape) for s in starts}))
    found = f"{len(starts) - len(late)} of {case.jobs} leave at once, the last starts after "
    found += f"{_last(outcome, 'at'):.0f} min, in {shapes}"
    ok = len(starts) == case.jobs and (len(late) == case.jobs if waits else not late)
    return Step(did=f"replayed under {outcome.policy}", found=found, ok=ok)


def _on_the_api(case: Case) -> tuple[list[Step], list[Step]]:
    """The same with Jobs, sent by the client that launches steps."""
    nodes = [gpu_node(f"node-{n + 1}", case.gpus, MODEL) for n in range(len(case.ends))]
    pods = [
        held_pod(f"held-{n + 1}", f"node-{n + 1}", case.gpus - 1) for n in range(len(case.ends))
    ]
    with GpuCluster(nodes, pods).serving() as cluster:
        settings = kubernetes.client.Configuration(host=cluster.url)
        client = AdmittingApiClient(_lock, configuration=settings)
        batch, core = kubernetes.client.BatchV1Api(client), kubernetes.client.CoreV1Api(client)
        plain = _plain_job(cluster, batch)
        inventory = cluster_inventory(core)
        request = request_of("train", SHAPES, SHAPES.ordered(), Lane.ADHOC)
        now = datetime.now(UTC)
        ends = {f"node-{n + 1}": minutes for n, minutes in enumerate(case.ends)}
        known = {
            h.node: now + timedelta(minutes=ends[h.node])
            for h in inventory.holdings
            if h.node in ends
        }
        told = explain(inventory.ending_on(known), request, Policy("ours", [request]), now)
        explained = Step(
            did="signalbox gpu why, for the Job that asks for 2",
            found=told.sentence,
            ok=told.state == "waits" and bool(told.now) and told.later is not None,
        )
        planned = plan(request, inventory)
        with making("step train", (), Place("step", Lane.ADHOC, gpus=planned.ask)):
            batch.create_namespaced_job("signalbox", _job("planned"))
        pod = cluster.pods["planned-0"]
        node = pod["spec"].get("nodeName")
        sent = Step(
            did="a Job whose catalog names 1x2 and 1x1, planned and sent",
            found=f"{planned.words}; it is {pod['status']['phase']} on {node}",
            ok=node in planned.ask.hosts,
        )
        shortest = min(range(len(case.ends)), key=lambda n: case.ends[n])
        cluster.end(f"held-{shortest + 1}")
        after = cluster.pods["asked-0"]["spec"].get("nodeName")
        later = Step(
            did=f"held-{shortest + 1} ends, as the sentence said",
            found=f"the Job that asks for 2 starts on {after}",
            ok=after == f"node-{shortest + 1}",
        )
    return [plain], [explained, sent, later]


def _plain_job(cluster: GpuCluster, batch: kubernetes.client.BatchV1Api) -> Step:
    job = _job("asked")
    resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    for kind in ("requests", "limits"):
        resources[kind]["nvidia.com/gpu"] = "2"
    with making("step train", (), Place("step", Lane.ADHOC)):
        batch.create_namespaced_job("signalbox", job)
    pod = cluster.pods["asked-0"]
    (condition,) = pod["status"].get("conditions") or [{"message": "it runs"}]
    return Step(
        did="a Job that asks for 2 GPUs, sent to the API server",
        found=f"its pod is {pod['status']['phase']}: {condition['message']}",
        ok=pod["status"]["phase"] == "Pending",
    )


def _job(name: str) -> dict[str, Any]:
    amounts = {"cpu": "2", "memory": "4Gi"}
    container = {
        "name": "dagster",
        "image": str(_lock().named("train").ref),
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def _lock() -> ImageLock:
    image = LockedImage(
        repository=f"{HOST}/train",
        tag="drill",
        digest=f"sha256:{'1' * 64}",
        config=f"sha256:{'2' * 64}",
        platform="linux/amd64",
        resolved_at=datetime(2026, 11, 1, tzinfo=UTC),
        resolved_by=NAME,
    )
    return ImageLock(registries=(HOST,), images={"train": image})
