"""`signalbox backfill`: plan, launch, watch and steer the rebuilding of history."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from platform_assets.cli.app import AsJson, app, parse_day, pipeline_of
from platform_assets.cli.backfill_common import (
    DEFAULT_URL,
    By,
    Runs,
    Url,
    dagster_of,
    forget_ended,
    login,
    watch_to_its_end,
)
from platform_assets.cli.backfill_screen import LOOK_SECONDS, print_plan
from platform_assets.domain.backfill import State
from platform_assets.domain.errors import RefusedError, TransientError
from platform_assets.line.services import Services
from platform_assets.terminal import print_json

if TYPE_CHECKING:
    import dagster as dg

    from platform_assets.line.backfill import BackfillPlan
    from resources.dagster_api import DagsterApi

    Planned = tuple[Services, BackfillPlan, dict[str, Any]]

HOME_SECONDS = 10.0
"""How long a launched backfill may take to show up in the home."""

ENDING_SECONDS = 120.0
"""How long a backfill that was cancelled may take to end, before another one is launched."""

backfill_app = typer.Typer(
    help="Plan, launch, watch and steer the rebuilding of history.", no_args_is_help=True
)
app.add_typer(backfill_app, name="backfill")

Pipeline = Annotated[str, typer.Argument(help="A pipeline of the catalog, flights.")]
First = Annotated[str | None, typer.Option("--from", help="First date, 2013-01-01.")]
Last = Annotated[str | None, typer.Option("--to", help="Last date, included.")]
Dates = Annotated[str | None, typer.Option("--dates", help="Single dates, 2013-01-05,2013-02-09.")]
Airports = Annotated[
    list[str] | None, typer.Option("--airport", help="Only this airport; may be repeated.")
]
Restate = Annotated[
    bool, typer.Option("--restate", help="Also recompute what is there, not only fill gaps.")
]


@backfill_app.command()
def plan(
    pipeline: Pipeline,
    first: First = None,
    last: Last = None,
    dates: Dates = None,
    airport: Airports = None,
    restate: Restate = False,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """What a backfill would build, what is held and why, and what it will take. Launches nothing.

    Default is to fill what is missing only.
    """
    with dagster_of() as instance:
        _, _, document = _plan(instance, pipeline, (first, last, dates), airport, restate, runs)
    if as_json:
        print_json(document)
    else:
        print_plan(document)


@backfill_app.command()
def launch(
    pipeline: Pipeline,
    first: First = None,
    last: Last = None,
    dates: Dates = None,
    airport: Airports = None,
    restate: Restate = False,
    runs: Runs = None,
    url: Url = DEFAULT_URL,
    by: By = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not watch it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Plan, and launch it as a native backfill of Dagster; watch it until it ends.

    Ctrl-C ends the watching, not the backfill.
    """
    from resources.dagster_api import DagsterApi

    api = DagsterApi(url)
    with dagster_of() as instance:
        asked = (first, last, dates)
        services, found, document = _plan_once_ended(
            instance, lambda: _plan(instance, pipeline, asked, airport, restate, runs)
        )
        if not document["runs"]:
            if as_json:
                print_json({"backfill": None, "url": None, "plan": document})
            else:
                print_plan(document)
            return
        if not as_json:
            print_plan(document)
        backfill_id = _launch(instance, services, found, api, runs, by or login())
        page = f"{api.url}/runs/b/{backfill_id}"
        if as_json:
            print_json({"backfill": backfill_id, "url": page, "plan": document})
            return
        print(f"backfill {backfill_id} is launched: {page}")
        if detach:
            print(f"watch it with `signalbox backfill watch {backfill_id}`")
            return
        watch_to_its_end(instance, services.home, backfill_id)


def _plan_once_ended(instance: "dg.DagsterInstance", plan_it: "Callable[[], Planned]") -> "Planned":
    """Plan, once what is asked for is not in work of a backfill that is being ended.

    Its partitions would be left out, as in work elsewhere, and nobody would build them.

    Raises:
        TransientError: it has not ended in ENDING_SECONDS.
    """
    from platform_assets.factory.backfills import ending

    deadline, told = time.monotonic() + ENDING_SECONDS, False
    while True:
        # Also what ends while it is planned: the plan may have seen it before.
        ends = ending(instance)
        planned = plan_it()
        busy = {
            item.why
            for items in planned[1].items.values()
            for item in items
            if item.state is State.ELSEWHERE
        }
        ends += [known for known in ending(instance) if known not in ends]
        waited_for = [known for known in ends if any(known in why for why in busy)]
        if not waited_for:
            return planned
        named = f"backfill {', '.join(waited_for)}"
        if time.monotonic() > deadline:
            raise TransientError(
                f"{named} is being ended, and has partitions in work that were asked for; it has "
                f"not ended in {ENDING_SECONDS:.0f} seconds: its runs are ended by the daemon, "
                "start `signalbox dev` if it does not run"
            )
        if not told:
            print(
                f"waiting for the end of {named}, whose partitions are asked for", file=sys.stderr
            )
            told = True
        time.sleep(LOOK_SECONDS)


def _plan(
    instance: "dg.DagsterInstance",
    pipeline: str,
    asked: tuple[str | None, str | None, str | None],
    airports: Sequence[str] | None,
    restate: bool,
    runs: int | None,
) -> "Planned":
    from platform_assets.factory.backfills import in_work, read_queue
    from platform_assets.line.backfill import document, make_plan, select

    spec = pipeline_of(pipeline)
    services = Services.open(spec)
    first, last, dates = asked
    selection = select(
        spec,
        first=parse_day(first) if first else None,
        last=parse_day(last) if last else None,
        dates=_days(dates),
        airports=airports or (),
        restate=restate,
    )
    found = make_plan(services, selection, in_work(instance, spec))
    return services, found, document(spec, found, read_queue(instance), runs)


def _days(text: str | None) -> list[date]:
    return [parse_day(part.strip()) for part in text.split(",") if part.strip()] if text else []


def _launch(
    instance: "dg.DagsterInstance",
    services: Services,
    found: "BackfillPlan",
    api: "DagsterApi",
    runs: int | None,
    by: str,
) -> str:
    """Launch what a plan builds, and record it.

    Raises:
        RefusedError: the webserver works on another home; what was launched there is cancelled.
        TransientError: it does not answer.
    """
    from platform_assets.domain.lanes import SIZE_TAG
    from platform_assets.factory.backfills import ranges_of
    from platform_assets.factory.events import RESTATE_TAG
    from platform_assets.factory.lanes import LANE_TAG, PIPELINE_TAG
    from resources.ledger.backfills import RUNNING, Backfills
    from resources.ledger.records import BackfillRecord

    spec, build = services.spec, found.build
    partitions: dict[str, Sequence[tuple[str, str]] | None] = dict(ranges_of(spec, build))
    if "evaluation" in build:
        partitions[spec.asset("champion")] = None
    days = found.selection.dates
    tags = {LANE_TAG: "backfill", PIPELINE_TAG: spec.pipeline, "dagster/user": by}
    if found.selection.restate:
        tags[RESTATE_TAG] = "true"
    if runs is not None:
        # The queue has it from there, whether or not this process lives to record it.
        tags[SIZE_TAG] = str(runs)
    title = f"{spec.pipeline} {days[0]} to {days[-1]}"
    backfill_id = api.launch_backfill(partitions, title=title, tags=tags)
    deadline = time.monotonic() + HOME_SECONDS
    while instance.get_backfill(backfill_id) is None:
        if time.monotonic() > deadline:
            api.cancel_backfill(backfill_id)
            raise RefusedError(
                f"the webserver at {api.url} works on another home than {services.home.root}: "
                f"backfill {backfill_id} was launched there and is cancelled; name the webserver "
                "of this home with --url"
            )
        time.sleep(0.2)
    now = datetime.now(UTC)
    ledger = Backfills(services.home.ledger_url)
    ledger.put(
        BackfillRecord(
            id=backfill_id,
            pipeline=spec.pipeline,
            state=RUNNING,
            max_runs=runs,
            selection={spec.asset(stage): list(names) for stage, names in build.items()},
            launched_by=by,
            launched_at=now,
            changed_at=now,
            changed_by=by,
        )
    )
    forget_ended(instance, ledger)
    return backfill_id


# Registers its commands on `backfill_app`.
from platform_assets.cli import backfill_steering as _steering  # noqa: E402, F401
