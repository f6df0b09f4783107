"""`signalbox waive`, `waivers` and `revoke-waiver`."""

import sys
from typing import Annotated, Any

import typer

from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from platform_assets.terminal import print_json, print_table

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
By = Annotated[str, typer.Option("--by", help="Who answers for it.")]
PipelineName = Annotated[
    str | None, typer.Option("--pipeline", help="A pipeline of the catalog; default: its only one.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(waive)
    app.command()(waivers)
    app.command()(revoke_waiver)


def waive(
    partition: Annotated[str, typer.Argument(help="Of the features, JFK|2013-10-25.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it may leave all the same.")],
    by: By,
    until: Annotated[
        str, typer.Option("--until", help="Local date, 2013-11-30, from whose start it is over.")
    ],
    pipeline: PipelineName = None,
    as_json: AsJson = False,
) -> None:
    """Let a partition leave although it is short of something: of what it lacks now, no more."""
    from platform_assets.line.waive import document, give_waiver, next_step, until_of

    services = _services(pipeline)
    waiver = give_waiver(services, partition, reason, by, until_of(services.spec, until))
    advice = next_step(services, waiver)
    _tell(services, waiver)
    if as_json:
        print_json(document(waiver, services.clock.as_of()) | {"next": advice})
        return
    print(f"{waiver.partition} is waived: {waiver.describe()}")
    for source, short in waiver.covers.items():
        number = " and its number of rows" if short.rows else ""
        print(f"  {source}: {', '.join(short.hours) or 'no hour'}{number}")
    print(f"  {advice}")


def waivers(
    every: Annotated[
        bool, typer.Option("--all", help="Also those that have expired or were revoked.")
    ] = False,
    pipeline: PipelineName = None,
    as_json: AsJson = False,
) -> None:
    """The waivers in force, and the models that rest on each."""
    from platform_assets.cli.app import pipeline_of
    from platform_assets.line.waive import list_waivers
    from resources.catalog import load_catalog

    specs: list[PipelineSpec] = [pipeline_of(pipeline)] if pipeline else [*load_catalog().values()]
    found = [w for spec in specs for w in list_waivers(Services.open(spec), every=every)]
    if as_json:
        print_json({"waivers": found})
        return
    columns = ("waiver", "partition", "state", "by", "until", "reason", "models")
    rows = [
        (
            waiver["name"],
            f"{waiver['pipeline']} {waiver['partition']}",
            waiver["state"],
            waiver["by"],
            waiver["until"],
            waiver["reason"],
            ", ".join(f"{m['date']} v{m['version']}" for m in waiver["models"]) or "none",
        )
        for waiver in found
    ]
    print_table("waivers" if every else "waivers in force", columns, rows)


def revoke_waiver(
    name: Annotated[str, typer.Argument(help="As in `signalbox waivers`, W-0001.")],
    by: By,
    reason: Annotated[str, typer.Option("--reason", help="Why it is not to count any more.")],
    pipeline: PipelineName = None,
    as_json: AsJson = False,
) -> None:
    """End a waiver before its time; names the models that were trained on what it let go."""
    from platform_assets.line.waive import list_waivers
    from platform_assets.line.waive import revoke_waiver as revoke

    services = _services(pipeline)
    waiver = revoke(services, name, by, reason)
    _tell(services, waiver)
    (found,) = [w for w in list_waivers(services) if w["name"] == waiver.name]
    if as_json:
        print_json(found)
        return
    print(f"{waiver.name} is revoked: what it covered holds {waiver.partition} again")
    models = [f"{m['model']} version {m['version']} of {m['date']}" for m in found["models"]]
    print(f"  trained on what it let go: {', '.join(models) or 'no model'}")


def _services(pipeline: str | None) -> Services:
    from platform_assets.cli.app import pipeline_of

    return Services.open(pipeline_of(pipeline))


def _tell(services: Services, waiver: Any) -> None:
    from platform_assets.factory.waiving import report_waiver

    report_waiver(
        services.home,
        services.spec,
        waiver,
        lambda text: print(f"signalbox: {text}", file=sys.stderr),
    )
