"""What `signalbox backfill` commands share: the home's Dagster, and a backfill to its end."""

import getpass
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from platform_assets.cli.backfill_screen import follow
from platform_assets.domain.backfill_cost import Measured, daily_effect
from platform_assets.domain.backfill_progress import seconds_left
from platform_assets.domain.errors import RefusedError
from platform_assets.line.services import Services
from platform_assets.terminal import print_json
from resources.home import Home

if TYPE_CHECKING:
    import dagster as dg

    from platform_assets.factory.backfill_view import BackfillView
    from resources.ledger.backfills import Backfills

DEFAULT_URL = "http://127.0.0.1:3000"
"""Where `signalbox dev` serves Dagster."""

COST_SECONDS = 60.0
"""For how long what partitions cost is not read again while a backfill is watched."""

Runs = Annotated[
    int | None, typer.Option("--runs", min=1, help="Runs of it in progress at once, at the most.")
]
Url = Annotated[str, typer.Option("--url", help="Of Dagster's webserver on this home.")]
By = Annotated[str | None, typer.Option("--by", help="Who asks; default: your login name.")]


def login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "somebody"


@contextmanager
def dagster_of(home: Home | None = None) -> Iterator["dg.DagsterInstance"]:
    """The home's Dagster instance: its storage, whether or not a webserver runs."""
    import dagster as dg

    found = home or Home.locate()
    found.require()
    with dg.DagsterInstance.from_config(str(found.dagster)) as instance:
        yield instance


def forget_ended(instance: "dg.DagsterInstance", store: "Backfills") -> None:
    """Take what has ended from the limits that the queue reads at every look."""
    from platform_assets.factory.backfills import ended_of

    over = ended_of(instance, [record.id for record in store.steered()])
    if over:
        store.note_ended(over)


def watch_to_its_end(
    instance: "dg.DagsterInstance", home: Home, backfill_id: str, *, as_json: bool = False
) -> None:
    """Follow a backfill to its end; as JSON only its last state is printed.

    Raises:
        RefusedError: it did not build everything.
    """
    from platform_assets.factory.backfill_view import Watcher

    watcher, costs = Watcher(instance, backfill_id), Costs(home)

    def look() -> dict[str, Any]:
        return described(instance, home, watcher.look(), costs)

    try:
        last = follow(look, quiet=as_json)
    except KeyboardInterrupt:
        print(
            f"\nbackfill {backfill_id} goes on; watch it with `signalbox backfill watch "
            f"{backfill_id}`, end it with `signalbox backfill cancel {backfill_id}`",
            file=sys.stderr if as_json else sys.stdout,
        )
        raise typer.Exit(130) from None
    if as_json:
        print_json(last)
    left = {asset: s for asset, s in last["assets"].items() if s["done"] < s["wanted"]}
    if last["status"] not in ("completed", "completed_success") or left:
        counts = "; ".join(
            f"{asset} {s['failed']} failed, {s['held']} held, {s['behind'] + s['left']} not tried"
            for asset, s in left.items()
        )
        raise RefusedError(
            f"backfill {backfill_id} ended as {last['status']}"
            + (f" ({counts})" if counts else "")
            + "; what was built stays, the same launch goes on with what is missing, why stands in "
            f"`signalbox backfill status {backfill_id}`"
        )


def document_of(instance: "dg.DagsterInstance", home: Home, backfill_id: str) -> dict[str, Any]:
    from platform_assets.factory.backfill_view import Watcher

    return described(instance, home, Watcher(instance, backfill_id).look(), Costs(home))


class Costs:
    """What partitions cost, by pipeline; read again only from time to time."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._read: dict[str, tuple[float, Measured]] = {}

    def of(self, pipeline: str | None) -> Measured | None:
        from platform_assets.line.backfill import read_measured
        from resources.catalog import load_catalog

        spec = load_catalog().get(pipeline or "")
        if spec is None:
            return None
        at, measured = self._read.get(spec.pipeline, (0.0, Measured()))
        if time.monotonic() - at > COST_SECONDS or not measured.stages:
            measured = read_measured(Services.open(spec, self._home))
            self._read[spec.pipeline] = time.monotonic(), measured
        return measured


def described(
    instance: "dg.DagsterInstance", home: Home, view: "BackfillView", costs: Costs
) -> dict[str, Any]:
    """A backfill as a document: Dagster's state of it, and the ledger's."""
    from platform_assets.factory.backfills import read_queue
    from resources.ledger.backfills import PAUSED, Backfills

    record = Backfills(home.ledger_url).find(view.id)
    paused = record is not None and record.state == PAUSED
    max_runs = record.max_runs if record else None
    left = None
    queue = read_queue(instance)
    parallel = daily_effect(queue, max_runs)["backfill"]
    measured = None if view.ended or paused else costs.of(view.pipeline)
    if measured is not None:
        stages = {asset.split("/")[-1]: found for asset, found in view.stages.items()}
        left = seconds_left(stages, measured, parallel, queue.per_key)
    return {
        "backfill": view.id,
        "pipeline": view.pipeline,
        "title": view.title,
        "status": view.status,
        "ended": view.ended,
        "paused": paused,
        "max_runs": max_runs,
        "runs_at_once": parallel,
        "launched_at": view.launched_at.isoformat(),
        "launched_by": record.launched_by if record else None,
        "changed_by": record.changed_by if record else None,
        "error": view.error,
        "runs": dict(view.runs),
        "seconds_left": left,
        "assets": {
            asset: {
                "wanted": found.wanted,
                "done": found.done,
                "failed": found.failed,
                "held": found.held,
                "behind": found.behind,
                "in_progress": found.in_progress,
                "waiting": found.waiting,
                "left": found.left,
                "reasons": dict(found.reasons),
            }
            for asset, found in view.stages.items()
        },
    }
