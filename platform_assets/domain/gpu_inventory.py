"""Which GPUs there are, and who holds them: by the cluster's nodes and pods, or by a file."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from platform_assets.domain.cluster_settings import quantity
from platform_assets.domain.errors import UsageError
from platform_assets.domain.gpu_pods import GPU, MODEL_LABEL
from platform_assets.domain.gpu_pool import GpuNode, Pool
from platform_assets.domain.lanes import Lane
from platform_assets.domain.placing import class_of
from platform_assets.domain.source_spec import Frozen

RUN_LABEL = "dagster/run-id"
OF_LANE = {class_of("step", lane): lane for lane in Lane}

Said = Mapping[str, Any]
"""An object of the API, as it is sent."""


@dataclass(frozen=True)
class Holding:
    """GPUs of one node that somebody has.

    Attributes:
        who: pod or job, for a person.
        run_id: of the Dagster run; empty where it is none.
        lane: of a step of ours; None where nobody says.
        ends: when it is expected to end; None where nobody knows.
    """

    who: str
    node: str
    gpus: int
    run_id: str = ""
    lane: Lane | None = None
    ends: datetime | None = None


@dataclass(frozen=True)
class Inventory:
    """The GPUs at one moment.

    Attributes:
        source: where it is from, for a person.
    """

    nodes: tuple[GpuNode, ...]
    holdings: tuple[Holding, ...]
    source: str

    def pool(self) -> Pool:
        """For placing."""
        return Pool(self.nodes)

    @property
    def daily_holds(self) -> int:
        """GPUs that the daily lane has."""
        return sum(h.gpus for h in self.holdings if h.lane is Lane.DAILY)

    def ending(self, ends: Mapping[str, datetime]) -> "Inventory":
        """With the ends of runs that somebody knows, by run ID."""
        found = tuple(
            replace(h, ends=ends[h.run_id]) if h.ends is None and h.run_id in ends else h
            for h in self.holdings
        )
        return replace(self, holdings=found)

    def ending_on(self, ends: Mapping[str, datetime]) -> "Inventory":
        """With the ends of whoever holds GPUs of a node, by node."""
        found = tuple(replace(h, ends=ends.get(h.node, h.ends)) for h in self.holdings)
        return replace(self, holdings=found)

    def after(self, ended: Iterable[Holding]) -> "Inventory":
        """As it is once these have ended."""
        gone = list(ended)
        back: Counter[str] = Counter()
        for one in gone:
            back[one.node] += one.gpus
        nodes = tuple(
            replace(n, free=min(n.total, n.free + back[n.name])) if back[n.name] else n
            for n in self.nodes
        )
        return replace(self, nodes=nodes, holdings=tuple(h for h in self.holdings if h not in gone))


def of_cluster(nodes: Sequence[Said], pods: Sequence[Said], source: str) -> Inventory:
    """The GPUs of a cluster.

    Args:
        nodes, pods: as the API server lists them; pods of all namespaces.

    Raises:
        UsageError: a quantity of GPUs is none.
    """
    names = {str(node["metadata"]["name"]) for node in nodes}
    holdings = [h for pod in pods if (h := _held(pod)) is not None and h.node in names]
    used: Counter[str] = Counter()
    for one in holdings:
        used[one.node] += one.gpus
    found = []
    for node in sorted(nodes, key=lambda n: str(n["metadata"]["name"])):
        name = str(node["metadata"]["name"])
        total = _whole(((node.get("status") or {}).get("allocatable") or {}).get(GPU), name)
        if total:
            model = str((node["metadata"].get("labels") or {}).get(MODEL_LABEL) or "")
            free = max(0, total - used[name])
            found.append(GpuNode(name, model, total, free, _out(node)))
    there = {node.name for node in found}
    return Inventory(tuple(found), tuple(h for h in holdings if h.node in there), source)


def _out(node: Said) -> str:
    """Why nothing may be placed on a node."""
    spec = node.get("spec") or {}
    if spec.get("unschedulable"):
        return "it is cordoned"
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready: Said = next((c for c in conditions if c.get("type") == "Ready"), {})
    if ready.get("status") != "True":
        return f"it is not ready ({ready.get('reason') or 'no condition Ready'})"
    for taint in spec.get("taints") or ():
        key = str(taint.get("key"))
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not key.startswith("nvidia.com/"):
            return f"it has the taint {key}:{taint.get('effect')}"
    return ""


def _held(pod: Said) -> Holding | None:
    spec, metadata = pod.get("spec") or {}, pod["metadata"]
    node = spec.get("nodeName")
    if not node or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    who = f"{metadata.get('namespace') or 'default'}/{metadata['name']}"
    gpus = requested(spec, who)
    if not gpus:
        return None
    run_id = str((metadata.get("labels") or {}).get(RUN_LABEL) or "")
    lane = OF_LANE.get(str(spec.get("priorityClassName")))
    return Holding(f"pod {who}", str(node), gpus, run_id, lane)


def requested(spec: Said, who: str = "a pod") -> int:
    """GPUs of a pod as the scheduler counts them: the greater of what its containers have
    together, and of what any init container has; init containers that stay are among the first.

    Raises:
        UsageError: a quantity is none.
    """

    def of(container: Said) -> int:
        resources = container.get("resources") or {}
        for kind in ("requests", "limits"):
            if GPU in (resources.get(kind) or {}):
                return _whole(resources[kind][GPU], who)
        return 0

    before = spec.get("initContainers") or ()
    staying = sum(of(c) for c in before if c.get("restartPolicy") == "Always")
    together = sum(map(of, spec.get("containers") or ())) + staying
    return max([together, *(of(c) for c in before)])


def _whole(amount: Any, who: str) -> int:
    try:
        return int(quantity(str(amount or 0)))
    except ValueError as error:
        raise UsageError(f"{who}: {GPU} is {amount!r}, no quantity ({error})") from error


class _FileNode(Frozen):
    name: Annotated[str, Field(min_length=1)]
    gpus: int = Field(ge=0, le=1024)
    count: int | None = Field(default=None, ge=1, le=100_000)
    model: str = ""
    out: str = ""


class _FileJob(Frozen):
    name: Annotated[str, Field(min_length=1)]
    node: str
    gpus: int = Field(ge=1, le=1024)
    lane: Lane | None = None
    run: str = ""
    minutes_left: float | None = Field(default=None, ge=0, allow_inf_nan=False, le=1e6)
    ends: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_end(self) -> "_FileJob":
        if self.ends is not None and self.minutes_left is not None:
            raise ValueError("ends and minutes_left are both there; one is allowed")
        return self


class _File(Frozen):
    nodes: tuple[_FileNode, ...]
    jobs: tuple[_FileJob, ...] = ()


def of_document(document: Any, origin: str, now: datetime) -> Inventory:
    """An inventory from a document, as in

        nodes:
          - {name: gpu-a, gpus: 8, model: NVIDIA-A100-SXM4-80GB}
          - {name: gpu-b, gpus: 8, count: 3}          # gpu-b-1, gpu-b-2, gpu-b-3
          - {name: gpu-c, gpus: 8, out: it is being repaired}
        jobs:
          - {name: train-17, node: gpu-a, gpus: 7, minutes_left: 14, lane: daily}

    `ends`, a time with its zone, stands for `minutes_left` where one knows it; `run` is the ID of
    a Dagster run.

    Raises:
        UsageError: names each wrong field.
    """
    refused = f"{origin} is refused: "
    if not isinstance(document, Mapping):
        raise UsageError(
            f"{refused}found {type(document).__name__}, a mapping with nodes and jobs is needed"
        )
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}"
            + (f", found {p['input']!r}" if not isinstance(p["input"], Mapping | list) else "")
            for p in error.errors(include_url=False)
        ]
        raise UsageError(refused + "; ".join(problems)) from None
    nodes = [
        GpuNode(name, one.model, one.gpus, one.gpus, one.out)
        for one in file.nodes
        for name in (
            [one.name] if one.count is None else [f"{one.name}-{n + 1}" for n in range(one.count)]
        )
    ]
    free = {node.name: node.total for node in nodes}
    if len(free) != len(nodes):
        raise UsageError(f"{refused}two nodes have one name; names of nodes must differ")
    problems = []
    for number, job in enumerate(file.jobs):
        if job.node not in free:
            problems.append(f"jobs.{number}.node: {job.node!r} is none of the nodes")
            continue
        free[job.node] -= job.gpus
        if free[job.node] < 0:
            problems.append(f"jobs.{number}.gpus: {job.node} has {-free[job.node]} GPUs too few")
    if problems:
        raise UsageError(refused + "; ".join(problems))
    holdings = tuple(
        Holding(job.name, job.node, job.gpus, job.run, job.lane, _end(job, now))
        for job in file.jobs
    )
    return Inventory(tuple(replace(n, free=free[n.name]) for n in nodes), holdings, origin)


def _end(job: _FileJob, now: datetime) -> datetime | None:
    if job.minutes_left is not None:
        return now + timedelta(minutes=job.minutes_left)
    return job.ends
