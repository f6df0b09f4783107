"""`signalbox backfill` status, watch, pause, resume, resize, cancel."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from platform_assets.cli.app import AsJson
from platform_assets.cli.backfill import backfill_app
from platform_assets.cli.backfill_common import (
    DEFAULT_URL,
    By,
    Costs,
    Runs,
    Url,
    dagster_of,
    described,
    document_of,
    forget_ended,
    login,
    watch_to_its_end,
)
from platform_assets.cli.backfill_screen import print_view, state_of
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.lane_limits import size_of
from platform_assets.terminal import print_json, print_table
from resources.home import Home

if TYPE_CHECKING:
    from resources.ledger.backfills import Backfills
    from resources.ledger.records import BackfillRecord

Id = Annotated[
    str | None,
    typer.Argument(
        metavar="[ID]", help="As in `signalbox backfill status`; default: the only open one."
    ),
]


@backfill_app.command()
def status(
    backfill_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """The backfills of this home, newest first; with ID how far each stage of it is."""
    from platform_assets.factory.backfill_view import Watcher

    home = Home.locate()
    with dagster_of(home) as instance:
        if backfill_id is not None:
            document = document_of(instance, home, backfill_id)
            if as_json:
                print_json(document)
            else:
                print_view(document)
            return
        costs = Costs(home)
        found = [
            described(instance, home, Watcher(instance, known.backfill_id).look(), costs)
            for known in instance.get_backfills(limit=20)
        ]
    if as_json:
        print_json({"backfills": found})
    elif not found:
        print("no backfill was launched in this home")
    else:
        _print_list(found)


@backfill_app.command()
def watch(given: Id = None, as_json: AsJson = False) -> None:
    """Show the progress of a backfill until it ends; Ctrl-C ends the watching only.

    As JSON it prints how the backfill ended, once it has.
    """
    home, backfill_id = Home.locate(), _the_one(given)
    with dagster_of(home) as instance:
        watch_to_its_end(instance, home, backfill_id, as_json=as_json)


@backfill_app.command()
def pause(given: Id = None, by: By = None, as_json: AsJson = False) -> None:
    """Start none of its queued runs; those in progress go on to their end."""
    from resources.ledger.backfills import PAUSED

    backfill_id = _the_one(given)
    with _steering(backfill_id, by) as (store, name):
        store.set_state(backfill_id, PAUSED, name)
    _tell_steered(backfill_id, as_json)


@backfill_app.command()
def resume(given: Id = None, by: By = None, as_json: AsJson = False) -> None:
    """Let a paused backfill go on."""
    from resources.ledger.backfills import RUNNING

    backfill_id = _the_one(given)
    with _steering(backfill_id, by) as (store, name):
        store.set_state(backfill_id, RUNNING, name)
    _tell_steered(backfill_id, as_json)


@backfill_app.command()
def resize(
    given: Id = None,
    runs: Runs = None,
    no_limit: Annotated[
        bool, typer.Option("--no-limit", help="As many as its lane lets it have.")
    ] = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Say how many of its runs may be in progress at once."""
    if (runs is None) != no_limit:
        raise UsageError("give --runs N, or --no-limit, one of the two")
    backfill_id = _the_one(given)
    with _steering(backfill_id, by) as (store, name):
        store.set_size(backfill_id, runs, name)
    _tell_steered(backfill_id, as_json)


@backfill_app.command()
def cancel(given: Id = None, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """End its queued runs and those in progress; what is built stays built."""
    from platform_assets.factory.backfill_view import require_backfill
    from resources.dagster_api import DagsterApi

    home, backfill_id = Home.locate(), _the_one(given)
    with dagster_of(home) as instance:
        _require_open(instance, require_backfill(instance, backfill_id))
        DagsterApi(url).cancel_backfill(backfill_id)
        asked = document_of(instance, home, backfill_id)
    if as_json:
        print_json(asked)
        return
    print(
        f"backfill {backfill_id} is being cancelled: its runs end within a minute, what they have "
        "committed stays; the same launch goes on where it ended"
    )


def _the_one(given: str | None) -> str:
    """The backfill that is meant: as given, or the only one that goes on.

    Raises:
        RefusedError: none was given and none goes on.
        UsageError: none was given and several go on.
    """
    from platform_assets.factory.backfills import open_of

    if given is not None:
        return given
    with dagster_of() as instance:
        known = instance.get_backfills(limit=100)
        names = [one.backfill_id for one in open_of(instance, known)]
    if not names:
        raise RefusedError(
            "no backfill goes on in this home; `signalbox backfill status` lists those that were"
        )
    if len(names) > 1:
        raise UsageError(f"{len(names)} backfills go on, {', '.join(names)}; name one of them")
    return names[0]


def _print_list(found: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            one["backfill"],
            state_of(one).removesuffix("_success"),  # a narrow terminal would break it
            one["title"] or one["pipeline"],
            sum(stage["done"] for stage in one["assets"].values()),
            sum(stage["wanted"] for stage in one["assets"].values()),
            sum(stage["failed"] + stage["held"] for stage in one["assets"].values()),
            one["runs"]["in_progress"],
            one["runs"]["queued"],
            one["launched_by"] or "Dagster",
            one["launched_at"][:16].replace("T", " "),
        )
        for one in found
    ]
    columns = ("id", "state", "what", "done", "of", "failed, held")
    print_table("backfills", (*columns, "running", "queued", "by", "launched (UTC)"), rows)


@contextmanager
def _steering(backfill_id: str, by: str | None) -> Iterator[tuple["Backfills", str]]:
    """The store, once it knows the backfill: one of the Dagster UI is adopted.

    Raises:
        UsageError: there is none of that id.
        RefusedError: it has ended.
    """
    from platform_assets.factory.backfill_view import require_backfill
    from resources.ledger.backfills import ENDED, RUNNING, Backfills

    home, name = Home.locate(), by or login()
    with dagster_of(home) as instance:
        backfill = require_backfill(instance, backfill_id)
        _require_open(instance, backfill)
        store = Backfills(home.ledger_url)
        record = store.find(backfill_id)
        if record is None:  # of two who find that, the second changes nothing
            store.put(_adopted(backfill, name))
        elif record.state == ENDED:  # somebody has launched a run of it again
            store.set_state(backfill_id, RUNNING, name)
        forget_ended(instance, store)
        yield store, name


def _adopted(backfill: Any, by: str) -> "BackfillRecord":
    from platform_assets.factory.backfills import pipeline_of_backfill, targets_of
    from resources.ledger.backfills import RUNNING
    from resources.ledger.records import BackfillRecord

    launched = datetime.fromtimestamp(backfill.backfill_timestamp, UTC)
    return BackfillRecord(
        id=backfill.backfill_id,
        pipeline=pipeline_of_backfill(backfill) or "",
        state=RUNNING,
        max_runs=size_of(backfill.tags),
        selection=targets_of(backfill),
        launched_by=backfill.tags.get("dagster/user", "Dagster"),
        launched_at=launched,
        changed_at=datetime.now(UTC),
        changed_by=by,
    )


def _require_open(instance: Any, backfill: Any) -> None:
    from platform_assets.factory.backfills import open_of

    if not open_of(instance, [backfill]):
        raise RefusedError(
            f"backfill {backfill.backfill_id} has ended ({backfill.status.value.lower()}); only "
            "one that goes on can be steered; `signalbox backfill launch` launches what is missing"
        )


def _tell_steered(backfill_id: str, as_json: bool) -> None:
    home = Home.locate()
    with dagster_of(home) as instance:
        found = document_of(instance, home, backfill_id)
    if as_json:
        print_json(found)
        return
    runs, size = found["runs"], found["max_runs"]
    state = "paused" if found["paused"] else "running"
    most = found["runs_at_once"]
    limit = f"at most {size} run(s) at once" if size else "as many runs at once as its lane allows"
    if size and size > most:
        limit = f"{limit} (its lane allows {most})"
    print(
        f"backfill {backfill_id} is {state}, {limit}; {runs['in_progress']} run(s) in progress "
        f"go on to their end, {runs['queued']} are queued; the queue follows within seconds"
    )
