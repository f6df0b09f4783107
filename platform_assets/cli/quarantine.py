"""`signalbox quarantine`: what was refused, why, and where it is kept."""

from typing import Annotated, Any

import typer

from platform_assets.line.services import Services
from platform_assets.terminal import print_json, print_table
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
    from platform_assets.line.quarantine import refused_files

    specs = [pipeline_of(pipeline)] if pipeline else load_catalog().values()
    found = {spec.pipeline: refused_files(Services.open(spec), every=every) for spec in specs}
    if as_json:
        print_json({"pipelines": found})
        return
    for name, files in found.items():
        _print(name, files)


def _print(pipeline: str, files: list[dict[str, Any]]) -> None:
    if not files:
        print(f"{pipeline}: no refused file is open")
        return
    print_table(
        f"{pipeline}: refused files",
        ("hour", "local", "what was found", "kept", "since", "what to do"),
        [
            (
                f"{f['source']} {f['key']} {f['hour']}",
                f["hour_local"],
                f"{f['path']}: {f['reason']}",
                f["kept"] or "not kept",
                f["since"],
                f["what_to_do"],
            )
            for f in files
        ],
    )
