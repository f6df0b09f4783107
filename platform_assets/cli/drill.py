"""`signalbox drill`: what goes wrong without the guard, and what the guard does."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from platform_assets.domain.errors import RefusedError
from platform_assets.terminal import print_drill, print_json, print_table


def drill(
    name: Annotated[str | None, typer.Argument(help="A drill; without it they are listed.")] = None,
    days: Annotated[
        int, typer.Option("--days", min=2, max=60, help="Days that a drill measures over.")
    ] = 25,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    html: Annotated[
        str | None, typer.Option("--html", help="Write one self-contained page to this file.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the drill's home, and say where it is.")
    ] = False,
) -> None:
    """Play a drill in a home of its own: the same on plain Dagster and on Signalbox."""
    from platform_assets.drills.harness import find_drill, run_drill
    from platform_assets.drills.registry import DRILLS
    from resources.pages import check_page, render, write_page

    if name is None:
        if as_json:
            print_json({"drills": {drill.name: drill.title for drill in DRILLS.values()}})
        else:
            rows = [(found.name, found.title) for found in DRILLS.values()]
            print_table("signalbox drill NAME", ("name", "what it plays"), rows)
        return
    found = find_drill(DRILLS, name)
    if html is not None:
        check_page(Path(html))
    report = run_drill(found, days=days, keep=keep, say=lambda text: print(text, file=sys.stderr))
    if html is not None:
        write_page(Path(html), render("drill.html", title=f"Drill {name}", report=report))
    if as_json:
        print_json(report.document())
    else:
        print_drill(report.document())
    if not report.ok:
        raise RefusedError(f"drill {name}: {report.verdict}")
