"""What a step asks for: the shape that the planner chose, as its pod says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from platform_assets.domain.errors import UsageError
from platform_assets.domain.gpu_inventory import Inventory
from platform_assets.domain.gpu_placing import (
    Decision,
    Placement,
    Policy,
    Request,
    Reserve,
    reserved_nodes,
)
from platform_assets.domain.gpu_pods import GpuAsk
from platform_assets.domain.gpu_shapes import GpusSpec, Shape, shape_of
from platform_assets.domain.lanes import Lane
from platform_assets.domain.processes import ProcessesSpec

GPUS_TAG = "signalbox/gpus"
"""Tag of an op: the shapes of the catalog, as JSON."""

SHAPE_TAG = "signalbox/shape"
"""Tag of a run: the one shape that it is to be trained in, by whoever launches it."""

PLANNED_TAG = "signalbox/shape_planned"
"""Tag of a run: the shape that the planner chose. A run that is executed again inherits it, and is
planned anew."""

WAITS_TAG = "signalbox/waits"
"""Tag of a run: why it waits for GPUs, in a sentence."""


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        decision: where it fits now; or why it waits, and then `shape` is the preferred one.
        words: for a person.
    """

    shape: Shape
    ask: GpuAsk
    decision: Decision | None
    words: str


def gpu_tags(gpus: GpusSpec | None) -> dict[str, str]:
    """The tag of an op that trains with these; none where there are none."""
    return {GPUS_TAG: gpus.model_dump_json()} if gpus is not None else {}


def gpus_of_tag(tags: Mapping[str, str]) -> GpusSpec | None:
    """The shapes that an op's tags name; None where they name none.

    Raises:
        UsageError: the tag is not what the catalog writes.
    """
    text = tags.get(GPUS_TAG)
    if not text:
        return None
    try:
        return GpusSpec.model_validate_json(text)
    except ValidationError as error:
        told = "; ".join(str(p["msg"]) for p in error.errors(include_url=False))
        raise UsageError(f"the tag {GPUS_TAG} is {text[:200]!r}: {told}") from None


def shapes_of(
    gpus: GpusSpec,
    chosen: str | None,
    *,
    one_pod: bool = False,
    ranks: ProcessesSpec | None = None,
) -> tuple[Shape, ...]:
    """The shapes that come into question, the one to ask for first.

    Args:
        chosen: by the run's tag; None or empty for any.
        one_pod: leave out those of several nodes, for a step is one pod.
        ranks: those that a step has in pods of their own, a GPU each: leave out all shapes but
            theirs.

    Raises:
        UsageError: the tag names none of them, or none is left.
    """
    nodes, each = (ranks.nodes, ranks.each) if ranks is not None else (1, 0)
    shapes = [
        s
        for s in gpus.ordered()
        if (s.nodes == nodes or not (one_pod or ranks)) and each in (0, s.gpus)
    ]
    listed = ", ".join(map(str, shapes))
    if not shapes and ranks is not None:
        raise UsageError(
            f"model.gpus has the shapes {', '.join(gpus.shapes)}, and model.processes asks for "
            f"{ranks.max} ranks on {nodes} nodes, a GPU each; allowed is {Shape(nodes, each)}"
        )
    if not shapes:
        raise UsageError(
            f"model.gpus has the shapes {', '.join(gpus.shapes)}, all of several nodes, and a step "
            "is one pod; name one of one node, as in 1x4, beside them"
        )
    if not chosen:
        return tuple(shapes)
    try:
        shape = shape_of(chosen)
    except ValueError as error:
        raise UsageError(f"the tag {SHAPE_TAG}: {error}; allowed are {listed}") from None
    if shape not in shapes:
        raise UsageError(f"the tag {SHAPE_TAG} is {chosen!r}; allowed are {listed}")
    return (shape,)


def request_of(
    name: str, gpus: GpusSpec, shapes: Sequence[Shape], lane: Lane, speeds: Sequence[float] = ()
) -> Request:
    """What a training asks for, in these shapes."""
    own = tuple(speeds) or tuple(map(gpus.speed, shapes))
    return Request(name, tuple(shapes), lane, gpus.model, gpus.only_model, own)


def plan(
    request: Request,
    inventory: Inventory | None,
    expected: Sequence[Request] = (),
    reserve: Reserve | None = None,
    *,
    unknown: str = "",
) -> Plan:
    """Shape and node of a training.

    Args:
        inventory: None where nobody knows the nodes: then the preferred shape is asked for.
        expected: what else is trained, for the fragmentation; the request is among it.
        unknown: why there is no inventory.
    """

    avoid: tuple[str, ...] = ()

    def ask(shape: Shape, hosts: tuple[str, ...] = ()) -> GpuAsk:
        return GpuAsk(shape.gpus, request.model, request.only_model, hosts, avoid)

    first = request.shapes[0]
    if inventory is None:
        words = f"asks for {first}; where it fits is not known: {unknown or 'no inventory'}"
        return Plan(first, ask(first), None, words)
    policy = Policy("ours", (*expected, request), reserve=reserve)
    pool = inventory.pool()
    decision = policy.place(pool, request, inventory.daily_holds)
    kept = policy.kept(request, inventory.daily_holds)
    if kept is not None:
        # A hint does not keep the scheduler, which knows of no reserve, from taking it.
        avoid = reserved_nodes(pool, kept, decision if isinstance(decision, Placement) else None)
    if isinstance(decision, Placement):
        where = ", ".join(decision.nodes)
        words = f"asks for {decision.shape}, best on {where}: {decision.reason}"
        return Plan(decision.shape, ask(decision.shape, decision.nodes), decision, words)
    return Plan(first, ask(first), decision, f"asks for {first} and waits: {decision.reason}")


def pods_of(planned: Plan) -> dict[str, Any]:
    """What its pods carry, as JSON: how many there are, and what each asks for."""
    from_node: dict[str, Any] = {"resources": {}}
    amount = {"nvidia.com/gpu": str(planned.ask.gpus)}
    from_node["resources"] = {"requests": dict(amount), "limits": dict(amount)}
    affinity = planned.ask.affinity()
    if affinity:
        from_node["affinity"] = {"nodeAffinity": affinity}
    return {"pods": planned.shape.nodes, "each": from_node}
