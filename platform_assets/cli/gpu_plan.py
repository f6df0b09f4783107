"""`signalbox gpu plan` and `signalbox gpu why`: by the GPUs as they are now."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from platform_assets.cli.gpu import ReserveShape, commands
from platform_assets.domain.errors import UsageError
from platform_assets.domain.gpu_inventory import Inventory
from platform_assets.domain.gpu_placing import Placement, Policy, Request, never_fits
from platform_assets.domain.gpu_planning import (
    PLANNED_TAG,
    SHAPE_TAG,
    Plan,
    plan,
    pods_of,
    request_of,
    shapes_of,
)
from platform_assets.domain.gpu_shapes import GpusSpec
from platform_assets.domain.gpu_waiting import Waiting, explain, speeds
from platform_assets.domain.lanes import LANE_TAG, PIPELINE_TAG, Lane
from platform_assets.terminal import print_json, print_table
from resources.catalog import load_catalog
from resources.gpus import CLUSTER, VARIABLE, chosen_inventory, expected, read_inventory, reserve
from resources.home import Home

if TYPE_CHECKING:
    import dagster as dg

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
From = Annotated[
    str | None,
    typer.Option("--inventory", help=f"`cluster` or a YAML file; default: {VARIABLE}."),
]
Shapes = Annotated[
    str | None,
    typer.Option("--shapes", help="Ask for these instead, the preferred first: '1x2 1x1'."),
]
InLane = Annotated[str, typer.Option("--lane", help="daily, late, adhoc or backfill.")]
Model = Annotated[str | None, typer.Option("--model", help="GPU model that they must have.")]

BEFORE = ("QUEUED", "NOT_STARTED")


def inventory_of(option: str | None) -> Inventory:
    """The GPUs as they are now.

    Raises:
        UsageError: nobody says where they stand, or what stands there is wrong.
        RefusedError: the cluster cannot be asked.
    """
    source = chosen_inventory(option)
    if not source:
        raise UsageError(
            "no inventory of GPUs is named; allowed are --inventory cluster and --inventory FILE, "
            f"or {VARIABLE} in the environment (docs/gpus.md has the format)"
        )
    if source != CLUSTER:
        return read_inventory(source)
    from platform_assets.instance.kubernetes.nodes import cluster_inventory, own_client

    return cluster_inventory(own_client())


def lane_of_option(text: str) -> Lane:
    """A lane of the command line.

    Raises:
        UsageError: there is none of that name.
    """
    if text not in list(Lane):
        raise UsageError(f"--lane: {text!r} is no lane; allowed are {', '.join(Lane)}")
    return Lane(text)


def typed_gpus(shapes: str, model: str | None) -> GpusSpec:
    """Shapes of the command line, as the catalog would have them.

    Raises:
        UsageError: one is none.
    """
    from pydantic import ValidationError

    named = tuple(shapes.replace(",", " ").split())
    if not named:
        raise UsageError("--shapes is empty; name some, the preferred first, as in '1x2 1x1'")
    try:
        return GpusSpec(shapes=named, model=model or "", only_model=bool(model))
    except ValidationError as error:
        told = "; ".join(p["msg"].removeprefix("Value error, ") for p in error.errors())
        raise UsageError(f"--shapes {shapes!r}: {told}") from None


def models() -> dict[str, GpusSpec]:
    """What the catalog's models can use, by pipeline; those without GPUs are left out."""
    found = {name: spec.model.gpus for name, spec in load_catalog().items()}
    return {name: gpus for name, gpus in found.items() if gpus is not None}


def wanted(pipeline: str | None, shapes: str | None, model: str | None) -> dict[str, GpusSpec]:
    """Whose GPUs are planned.

    Raises:
        UsageError: there is nothing to plan.
    """
    if shapes is not None:
        return {"(typed)": typed_gpus(shapes, model)}
    found = models()
    if pipeline is not None:
        if pipeline not in found:
            has = ", ".join(found) or "none"
            raise UsageError(
                f"{pipeline!r} names no GPU shapes in the catalog; those that do are {has}"
            )
        return {pipeline: found[pipeline]}
    if not found:
        raise UsageError(
            "no model of the catalog names GPU shapes (model.gpus); name some with --shapes, as in "
            "--shapes '1x2 1x1'"
        )
    return found


@commands.command(name="plan")
def plan_now(
    pipeline: Annotated[str | None, typer.Option("--pipeline", help="Only this one.")] = None,
    shapes: Shapes = None,
    model: Model = None,
    lane: InLane = "adhoc",
    inventory: From = None,
    kept: ReserveShape = None,
    as_json: AsJson = False,
) -> None:
    """Where trainings would go now, in which shape, and what their pods would ask for."""
    found, chosen = wanted(pipeline, shapes, model), lane_of_option(lane)
    held = reserve(kept)
    there = inventory_of(inventory)
    plans: dict[str, tuple[Request, Plan]] = {}
    for name, gpus in found.items():
        request = request_of(name, gpus, gpus.ordered(), chosen)
        plans[name] = (request, plan(request, there, expected(), held))
    if as_json:
        print_json(_document(there, plans))
        return
    nodes = [(n.name, n.model or "-", n.total, n.free, n.out) for n in there.nodes]
    print_table(there.source, ("node", "model", "GPUs", "free", "left out, for"), nodes)
    for name, (request, planned) in plans.items():
        never = never_fits(there.pool(), request)
        print(f"{name}: {planned.words}" + (f"; {never}" if never else ""))


def _document(there: Inventory, plans: dict[str, tuple[Request, Plan]]) -> dict[str, Any]:
    nodes = [
        {"name": n.name, "model": n.model, "gpus": n.total, "free": n.free, "out": n.out}
        for n in there.nodes
    ]
    found = {}
    for name, (request, planned) in plans.items():
        placed = isinstance(planned.decision, Placement)
        found[name] = {
            "shape": str(planned.shape),
            "fits": placed,
            "nodes": list(planned.ask.hosts),
            "words": planned.words,
            "never": never_fits(there.pool(), request) or None,
            "manifest": pods_of(planned),
        }
    return {"source": there.source, "nodes": nodes, "plans": found}


@dataclass(frozen=True)
class _Asked:
    """A run, or shapes that were typed, and what is known of its durations."""

    name: str
    gpus: GpusSpec
    first: str | None
    lane: Lane
    seconds: Any


@commands.command()
def why(
    run: Annotated[
        str | None, typer.Argument(help="A run's ID, or how it begins; or name --shapes.")
    ] = None,
    shapes: Shapes = None,
    model: Model = None,
    lane: InLane = "adhoc",
    inventory: From = None,
    kept: ReserveShape = None,
    as_json: AsJson = False,
) -> None:
    """Why a run waits for GPUs, what would leave now, and when it is its turn: in a sentence."""
    held = reserve(kept)
    now = datetime.now(UTC)
    if (run is None) == (shapes is None):
        raise UsageError("name one of RUN and --shapes: `signalbox gpu why 1a2b3c4d`")
    if run is None:
        gpus = typed_gpus(str(shapes), model)
        there = inventory_of(inventory)
        asked = _Asked("", gpus, None, lane_of_option(lane), {})
        _print(_explained(asked, there, held, now), {"run": None}, there, as_json=as_json)
        return
    with _dagster() as instance:
        found = _find(instance, run)
        document: dict[str, Any] = {"run": found.run_id, "status": found.status.value}
        if found.is_finished:
            sentence = f"run {found.run_id} has ended ({found.status.value}), it waits for nothing"
            _print(Waiting("fits", sentence), {**document, "state": "ended"}, None, as_json=as_json)
            return
        asked = _asked(instance, found)
        there = inventory_of(inventory)
        own = [h for h in there.holdings if h.run_id == found.run_id]
        if own:
            places = ", ".join(f"{h.gpus} on {h.node}" for h in own)
            sentence = f"run {found.run_id} has its GPUs ({places}), it waits for none"
            _print(Waiting("fits", sentence), {**document, "state": "has"}, there, as_json=as_json)
            return
        from platform_assets.instance.gpu_history import ends_of_runs

        ends = ends_of_runs(instance, [h.run_id for h in there.holdings], now)
        waiting = _explained(asked, there.ending(ends), held, now)
    if found.status.value in BEFORE:
        sentence = (
            f"the run is {found.status.value.lower().replace('_', ' ')} and has asked for no GPU "
            f"yet, `signalbox lanes` tells what it waits for; once it asks: {waiting.sentence}"
        )
        waiting = Waiting(waiting.state, sentence, waiting.now, waiting.later)
    _print(waiting, document, there, as_json=as_json)


def _explained(asked: _Asked, there: Inventory, held: Any, now: datetime) -> Waiting:
    gpus = asked.gpus
    first = shapes_of(gpus, asked.first)[0]
    ordered = (first, *(s for s in gpus.ordered() if s != first))
    request = request_of(
        asked.name, gpus, ordered, asked.lane, speeds(gpus, ordered, asked.seconds)
    )
    policy = Policy("ours", (*expected(), request), reserve=held)
    return explain(there, request, policy, now)


def _print(
    waiting: Waiting, document: dict[str, Any], there: Inventory | None, *, as_json: bool
) -> None:
    if as_json:
        source = there.source if there else None
        print_json({**waiting.document(), **document, "inventory": source})
    else:
        print(waiting.sentence)


@contextmanager
def _dagster() -> Iterator["dg.DagsterInstance"]:
    from platform_assets.cli.backfill_common import dagster_of

    Home.locate().require()
    with dagster_of() as instance:
        yield instance


def _find(instance: "dg.DagsterInstance", text: str) -> "dg.DagsterRun":
    """A run by its ID or how that begins.

    Raises:
        UsageError: there is none, or several.
    """
    exact = instance.get_run_by_id(text)
    if exact is not None:
        return exact
    if len(text) < 4:
        raise UsageError(f"{text!r} is too short; give at least 4 characters of the run's ID")
    found: Sequence[dg.DagsterRun] = [
        run for run in instance.get_runs(limit=1000) if run.run_id.startswith(text)
    ]
    if len(found) != 1:
        told = ", ".join(run.run_id for run in found[:5]) or "none of the newest 1,000 runs"
        raise UsageError(f"{text!r} is the beginning of {told}; give the ID of one run")
    return found[0]


def _asked(instance: "dg.DagsterInstance", run: "dg.DagsterRun") -> _Asked:
    """What a run asks for.

    Raises:
        UsageError: its pipeline names no shapes.
    """
    from platform_assets.instance.gpu_history import seconds_by_shape

    found = models()
    pipeline = run.tags.get(PIPELINE_TAG, "")
    if pipeline not in found:
        has = ", ".join(found) or "none"
        raise UsageError(
            f"run {run.run_id} is of pipeline {pipeline or '(none)'}, whose model names no GPU "
            f"shapes in the catalog; those that do are {has}"
        )
    lane = run.tags.get(LANE_TAG, "")
    seconds = seconds_by_shape(instance, run.job_name, f"{pipeline}__model")
    first = run.tags.get(PLANNED_TAG) or run.tags.get(SHAPE_TAG)
    chosen = Lane(lane) if lane in list(Lane) else Lane.ADHOC
    try:
        shapes_of(found[pipeline], first)
    except UsageError as error:
        raise UsageError(f"run {run.run_id}: {error}") from None
    return _Asked(run.run_id, found[pipeline], first, chosen, seconds)
