"""`signalbox alerts`: what is open, and whether it was delivered."""

from typing import Annotated, Any

import typer

from platform_assets.line.services import Services
from platform_assets.terminal import print_json, print_table
from resources.catalog import load_catalog

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
PipelineName = Annotated[
    str | None, typer.Option("--pipeline", help="A pipeline of the catalog; default: all of them.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(alerts)


def alerts(
    pipeline: PipelineName = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is open, since when, what to do about it, and whether the receiver has it."""
    from platform_assets.cli.app import pipeline_of
    from platform_assets.line.alerting import list_alerts

    specs = [pipeline_of(pipeline)] if pipeline else list(load_catalog().values())
    found = {spec.pipeline: list_alerts(Services.open(spec), every=every) for spec in specs}
    if as_json:
        print_json({"pipelines": found})
        return
    for name, documents in found.items():
        if not documents:
            print(f"{name}: no alert {'was ever raised' if every else 'is open'}")
            continue
        columns = ("kind", "subject", "since", "what was found", "what to do", "delivery")
        title = f"alerts of {name}" if every else f"open alerts of {name}"
        print_table(title, columns, [_row(document) for document in documents])


def _row(document: dict[str, Any]) -> tuple[str, ...]:
    since = document["raised_at"][:16].replace("T", " ") + "Z"
    if document["closed_at"]:
        since += f" to {document['closed_at'][:16].replace('T', ' ')}Z"
    return (
        document["kind"],
        document["subject"],
        since,
        document["text"],
        document["advice"],
        document["delivery"],
    )
