"""`signalbox quarantine`: what was refused, why, and where it is kept."""

from typing import Annotated, Any

import typer

from platform_assets.line.services import Services
from platform_assets.terminal import print_json
from resources.catalog import load_catalog


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(quarantine)


def quarantine(
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="A pipeline of the catalog; default: all.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also what has healed, was replaced or has vanished.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """The refused files of the landing zone: why, since when, where kept, what to do."""
    from platform_assets.cli.app import pipeline_of
    from platform_assets.line.quarantine import misplaced_folders, refused_files

    specs = [pipeline_of(pipeline)] if pipeline else list(load_catalog().values())
    found = {spec.pipeline: refused_files(Services.open(spec), every=every) for spec in specs}
    places = {spec.pipeline: misplaced_folders(Services.open(spec)) for spec in specs}
    if as_json:
        print_json({"pipelines": found, "misplaced": places})
        return
    for name, files in found.items():
        _print(name, files)
        for place in places[name]:
            print(f"  not looked at: {name}/{place}")


def _print(pipeline: str, files: list[dict[str, Any]]) -> None:
    if not files:
        print(f"{pipeline}: no refused file")
        return
    print(f"{pipeline}: {len(files)} refused file{'s' if len(files) > 1 else ''}")
    for file in files:
        print(f"  {file['source']} {file['key']} {file['hour']}, local {file['hour_local']}")
        print(f"    found    {file['reason']}")
        print(f"    path     {file['path']}")
        print(f"    kept     {file['kept'] or 'not kept'}")
        print(f"    since    {file['since']}")
        if file["ended"]:
            print(f"    ended    {file['ended']}, {file['ended_by']}")
        print(f"    to do    {file['what_to_do']}")
