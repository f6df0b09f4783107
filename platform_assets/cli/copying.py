"""`signalbox copy` and `adopt`: another home like this one, and a home that was moved."""

from pathlib import Path
from typing import Annotated, Any

import typer

from platform_assets.domain.errors import RefusedError
from platform_assets.terminal import print_json
from resources.home import Home, locked

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(copy)
    app.command()(adopt)


def copy(
    folder: Annotated[str, typer.Argument(help="Where to; a folder that does not exist.")],
    as_json: AsJson = False,
) -> None:
    """Copy the home, also while Dagster works on it; the copy is a home of its own."""
    from resources.copying import copy_home

    home = Home.locate()
    home.require()
    found = take_over(copy_home(home, Path(folder)), idle=True)
    if as_json:
        print_json({"home": str(home.root), **found})
    else:
        print(f"{found['home']} is a copy of {home.root}, and a home of its own")


def adopt(
    was_idle: Annotated[
        bool,
        typer.Option("--was-idle", help="Nothing worked on the home while it was copied."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a home that was copied or moved a home of its own, if it is whole."""
    home = Home.locate()
    found = take_over(home, idle=was_idle)
    if as_json:
        print_json(found)
    elif found["from"] is None:
        print(f"{home.root} is a home of its own already, nothing was changed")
    else:
        print(
            f"{home.root} is a home of its own now; it was at {found['from']}, "
            f"{found['locations']} places of files were rewritten, {len(found['runs'])} runs of "
            "that home ended here"
        )


def take_over(home: Home, *, idle: bool) -> dict[str, Any]:
    """Look a copied or moved home over, and make it one of its own; again where it was killed.

    Args:
        idle: nobody wrote to its databases while they were copied.

    Returns:
        home; from, where it was made (none: here); how many locations; runs that were ended.

    Raises:
        RefusedError: it may be a mixture of two moments.
        HomeError: it is not whole, or no home.
    """
    from platform_assets.factory.instance import end_orphaned_runs
    from platform_assets.line.services import owner_of
    from resources.adopting import require_settled, require_sound, require_whole, rewrite_locations
    from resources.home import sqlite_ledger
    from resources.tracking.store import OWNER_TAG

    with locked(home):
        made_at = home.made_at()
        if made_at is None and home.root.joinpath("home.json").exists():
            raise RefusedError(
                f"nothing tells where {home.root} was made; run `signalbox init` if it was here"
            )
        if made_at is None or made_at == str(home.root):
            home.require()
            return {"home": str(home.root), "from": None, "locations": 0, "runs": []}
        if not idle:
            require_settled(home.root)
        require_sound(home.root)
        theirs = sqlite_ledger(Path(made_at))
        tag = (OWNER_TAG, owner_of(theirs), owner_of(home.ledger_url))
        count = rewrite_locations(home, made_at, tag)
        require_whole(home)
        ended = end_orphaned_runs(home, foreign=True)
        home.settle()
    return {"home": str(home.root), "from": made_at, "locations": count, "runs": ended}
