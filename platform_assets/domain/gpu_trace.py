"""Traces of GPU jobs: nodes and jobs, from CSV or made up from a seed.

The format, one file with a header; columns may come in any order, further ones are refused:

    kind      node or job
    name      of a node or job; empty for one of its own
    count     of a node: so many of the same (default 1), named name-1, name-2, …
    gpus      of a node: its GPUs; of a job: those that it wants
    model     of a node: its GPUs' model; of a job: the one that it must have; empty for any
    arrival   of a job: seconds from the start
    duration  of a job: seconds in its first shape; empty: it never ends
    shapes    of a job: as in 1x8 2x4, the preferred one first, which has its `gpus`;
              empty: all on one node
    lane      of a job: daily, late, adhoc (default) or backfill
"""

import csv
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

from platform_assets.domain.errors import UsageError
from platform_assets.domain.gpu_placing import Request
from platform_assets.domain.gpu_pool import GpuNode
from platform_assets.domain.gpu_shapes import Shape, shape_of
from platform_assets.domain.lanes import Lane

COLUMNS = ("kind", "name", "count", "gpus", "model", "arrival", "duration", "shapes", "lane")
MOST_TOLD = 10
MOST_NODES = 100_000
MOST_GPUS = 1024


@dataclass(frozen=True)
class TraceJob:
    """One job.

    Attributes:
        arrival: seconds from the start.
        duration: seconds in its preferred shape; None: it never ends.
    """

    request: Request
    arrival: float
    duration: float | None

    @property
    def name(self) -> str:
        """Of the job."""
        return self.request.name


@dataclass(frozen=True)
class Trace:
    """Nodes, and the jobs that come, in the order of their arrival."""

    nodes: tuple[GpuNode, ...]
    jobs: tuple[TraceJob, ...]

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return sum(node.total for node in self.nodes)


class _BadError(ValueError):
    pass


def parse_trace(text: str, origin: str) -> Trace:
    """A trace from CSV.

    Raises:
        UsageError: the lines that are wrong, by number; nothing of the file is used.
    """
    try:
        rows = csv.DictReader(io.StringIO(text), strict=True)
        header = [name.strip() for name in rows.fieldnames or ()]
        wrong = [name for name in header if name not in COLUMNS]
        if wrong or "kind" not in header or "gpus" not in header or len(set(header)) < len(header):
            found = ",".join(header) or "nothing"
            raise UsageError(
                f"{origin} is refused: its first line is {found[:200]!r}; allowed are the columns "
                f"{','.join(COLUMNS)}, each once, of which kind and gpus are needed"
            )
        rows.fieldnames = header
        nodes: list[GpuNode] = []
        jobs: list[TraceJob] = []
        problems: list[str] = []
        names: set[tuple[str, str]] = set()
        for row in rows:
            try:
                _row(row, nodes, jobs, names)
            except _BadError as error:
                problems.append(f"line {rows.line_num}: {error}")
    except csv.Error as error:
        raise UsageError(f"{origin} is refused: it is no CSV ({error})") from error
    if not nodes and not problems:
        problems.append("there is no line of kind node; without nodes no job can be placed")
    if problems:
        more = len(problems) - MOST_TOLD
        told = "; ".join(problems[:MOST_TOLD]) + (f"; and {more} lines more" if more > 0 else "")
        raise UsageError(f"{origin} is refused, nothing of it is replayed: {told}")
    return Trace(tuple(nodes), tuple(sorted(jobs, key=lambda job: job.arrival)))


def _row(
    row: Mapping[str, str | None],
    nodes: list[GpuNode],
    jobs: list[TraceJob],
    names: set[tuple[str, str]],
) -> None:
    if None in row:
        raise _BadError("it has more fields than the header")
    if any(value is None for value in row.values()):
        raise _BadError("it has fewer fields than the header")
    fields = {name: (row.get(name) or "").strip() for name in COLUMNS}
    kind = fields["kind"]
    own = ("count",) if kind == "job" else ("arrival", "duration", "shapes", "lane")
    stray = [name for name in own if fields[name]]
    if kind not in ("node", "job"):
        raise _BadError(f"kind is {kind!r}; allowed are node and job")
    if stray:
        raise _BadError(f"a {kind} has no {', '.join(stray)}; leave it empty")
    gpus = _whole(fields, "gpus", 0 if kind == "node" else 1, MOST_GPUS)
    made = (
        _nodes(fields, gpus, len(nodes))
        if kind == "node"
        else [_job(fields, gpus, f"job-{len(jobs) + 1}")]
    )
    for one in made:
        if (kind, one.name) in names:
            raise _BadError(f"there is a {kind} {one.name!r} already; names must differ")
        names.add((kind, one.name))
    if kind == "node":
        nodes += [one for one in made if isinstance(one, GpuNode)]
    else:
        jobs += [one for one in made if isinstance(one, TraceJob)]


def _nodes(fields: Mapping[str, str], gpus: int, before: int) -> list[GpuNode]:
    count = _whole(fields, "count", 1, MOST_NODES, default=1)
    name = fields["name"]
    if count == 1 and name:
        return [GpuNode(name, fields["model"], gpus, gpus)]
    first = 1 if name else before + 1
    numbers = range(first, first + count)
    return [GpuNode(f"{name or 'node'}-{n}", fields["model"], gpus, gpus) for n in numbers]


def _job(fields: Mapping[str, str], gpus: int, name: str) -> TraceJob:
    try:
        shapes = tuple(map(shape_of, fields["shapes"].split())) or (Shape(1, gpus),)
    except ValueError as error:
        raise _BadError(str(error)) from error
    if shapes[0].total != gpus:
        raise _BadError(
            f"gpus is {gpus} and the first shape {shapes[0]} has {shapes[0].total}; both are one"
        )
    if len(set(shapes)) != len(shapes):
        raise _BadError("shapes must differ from each other")
    lanes = ", ".join(Lane)
    if fields["lane"] and fields["lane"] not in list(Lane):
        raise _BadError(f"lane is {fields['lane']!r}; allowed are {lanes}")
    lane = Lane(fields["lane"] or "adhoc")
    arrival = _seconds(fields, "arrival")
    duration = _seconds(fields, "duration") if fields["duration"] else None
    model = fields["model"]
    request = Request(fields["name"] or name, shapes, lane, model, only_model=bool(model))
    return TraceJob(request, arrival, duration)


_Number = TypeVar("_Number", int, float)


def _number(fields: Mapping[str, str], name: str, read: Callable[[str], _Number]) -> _Number:
    try:
        return read(fields[name])
    except ValueError:
        what = "whole number" if read is int else "number of seconds"
        raise _BadError(f"{name} is {fields[name][:40]!r}; allowed is a {what}") from None


def _whole(
    fields: Mapping[str, str], name: str, least: int, most: int, default: int | None = None
) -> int:
    if not fields[name] and default is not None:
        return default
    value = _number(fields, name, int)
    if not least <= value <= most:
        raise _BadError(f"{name} is {value}; allowed are {least} to {most}")
    return value


def _seconds(fields: Mapping[str, str], name: str) -> float:
    value = _number(fields, name, float) if fields[name] else 0.0
    if not isfinite(value) or value < 0:
        raise _BadError(f"{name} is {fields[name]!r}; allowed is a number of seconds from 0 on")
    return value


def written(trace: Trace) -> str:
    """A trace as CSV, each node on a line of its own; what `parse_trace` reads."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for node in trace.nodes:
        writer.writerow(("node", node.name, "", node.total, node.model, "", "", "", ""))
    for job in trace.jobs:
        shapes = job.request.shapes
        lasts = "" if job.duration is None else f"{job.duration:.0f}"
        row = ("job", job.name, "", shapes[0].total, job.request.model, f"{job.arrival:.0f}", lasts)
        writer.writerow((*row, " ".join(map(str, shapes)), job.request.lane.value))
    return out.getvalue()


SIZES = {2: 0.25, 3: 0.15, 4: 0.25, 5: 0.05, 6: 0.15, 8: 0.15}
"""GPUs of made-up jobs, by how often they come: each wants several, as trainings do."""

BIG, SMALL = "NVIDIA-A100-SXM4-80GB", "NVIDIA-L40S"
NODES = {(8, BIG): 0.5, (8, SMALL): 0.25, (4, SMALL): 0.25}
"""GPUs and model of made-up nodes, by how many there are of them."""

WANTED = {"": 0.7, BIG: 0.2, SMALL: 0.1}
"""Models that made-up jobs must have; most take any."""

FLEXIBLE: Mapping[int, tuple[str, ...]] = {
    4: ("1x4", "2x2"),
    6: ("1x6", "2x3", "3x2"),
    8: ("1x8", "2x4", "4x2"),
}
"""The shapes of made-up jobs that can use several: with as many GPUs, on more nodes."""


def generated(
    seed: int,
    *,
    nodes: int = 150,
    demand: float | None = 1.3,
    jobs: int | None = None,
    flexible: bool = False,
    ends: bool = False,
    load: float = 1.1,
) -> Trace:
    """A trace made up from a seed.

    Args:
        demand: jobs come until their GPUs are so many times those of the nodes.
        jobs: so many of them instead.
        flexible: jobs name several shapes with as many GPUs; else each is on one node.
        ends: jobs end after a while (on average about an hour); else they stay for good.
        load: of jobs that end, how many GPUs arrive by the time that the nodes could work off 1.
    """
    chance = random.Random(f"gpus {seed}")  # noqa: S311 - a draw, no secret
    sizes = chance.choices(list(NODES), list(NODES.values()), k=nodes)
    made = tuple(
        GpuNode(f"node-{n + 1}", model, size, size) for n, (size, model) in enumerate(sizes)
    )
    whole = sum(node.total for node in made)
    mean_gpus = sum(size * share for size, share in SIZES.items())
    mean_seconds = 3600.0
    apart = mean_gpus * mean_seconds / (whole * load) if ends else 60.0

    def wanted() -> Iterator[int]:
        given, so_far = 0, 0
        while so_far < jobs if jobs is not None else given < (demand or 0.0) * whole:
            (size,) = chance.choices(list(SIZES), list(SIZES.values()))
            so_far, given = so_far + 1, given + size
            yield size

    found: list[TraceJob] = []
    at = 0.0
    for size in wanted():
        at += chance.expovariate(1 / apart)
        several = FLEXIBLE.get(size, ()) if flexible else ()
        shapes = tuple(map(shape_of, several)) or (Shape(1, size),)
        (model,) = chance.choices(list(WANTED), list(WANTED.values()))
        (lane,) = chance.choices((Lane.ADHOC, Lane.BACKFILL, Lane.DAILY), (0.5, 0.4, 0.1))
        lasts = round(60 + chance.expovariate(1 / (mean_seconds - 60))) if ends else None
        request = Request(f"job-{len(found) + 1}", shapes, lane, model, only_model=bool(model))
        found.append(TraceJob(request, float(round(at)), lasts))
    return Trace(made, tuple(found))


def requests_of(jobs: Sequence[TraceJob]) -> tuple[Request, ...]:
    """What the jobs of a trace ask for."""
    return tuple(job.request for job in jobs)
