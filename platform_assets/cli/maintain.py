"""`signalbox maintain`: look after the lake's tables."""

from typing import Annotated

import typer

from platform_assets.line.services import Services
from platform_assets.terminal import print_json
from resources.catalog import load_catalog


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(maintain)


def maintain(
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="A pipeline of the catalog; default: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compact the tables, write checkpoints, remove files that no version ever had."""
    from platform_assets.cli.app import pipeline_of
    from platform_assets.line.maintenance import maintain as look_after

    specs = [pipeline_of(pipeline)] if pipeline else load_catalog().values()
    found = {spec.pipeline: look_after(Services.open(spec), "maintenance") for spec in specs}
    if as_json:
        print_json({"pipelines": found})
        return
    for name, done in found.items():
        print(
            f"{name}: {done['files_compacted']} file(s) compacted, "
            f"{len(done['orphans_removed'])} of {done['orphans']} orphan(s) removed; the table is "
            f"at version {done['version']}"
        )
