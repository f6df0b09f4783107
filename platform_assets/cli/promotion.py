"""`signalbox promote`, `rollback`, `promotions` and `release-hold`."""

import sys
from typing import Annotated

import typer

from platform_assets.domain.errors import UsageError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from platform_assets.terminal import print_json, print_table

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
By = Annotated[str, typer.Option("--by", help="Who answers for it.")]
Pipeline = Annotated[str, typer.Argument(help="A pipeline of the catalog, or its model's name.")]
Version = Annotated[int, typer.Argument(help="Of the registered model.", min=1)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(promote)
    app.command()(rollback)
    app.command()(promotions)
    app.command("release-hold")(release_hold)


def promote(
    pipeline: Pipeline,
    version: Version,
    by: By,
    reason: Annotated[str, typer.Option("--reason", help="Beside the verdict's own.")] = "",
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Have the gate judge it first, against the champion.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version champion, by a passed verdict of the gate against the one in force."""
    from platform_assets.line.projection import projected
    from platform_assets.line.promoting import promote_version, told

    services = _services(pipeline)
    change = promote_version(services, version, by=by, reason=reason, evaluate=evaluate)
    _warn(projected(services))
    if as_json:
        print_json(told(change))
        return
    print(f"{services.spec.model.name}: version {change.version} is champion now")
    print(f"  {change.reason}")


def rollback(
    pipeline: Pipeline,
    reason: Annotated[str, typer.Option("--reason", help="Why the present champion has to go.")],
    by: By,
    to: Annotated[
        int | None,
        typer.Option("--to", help="A version that was champion; default: the one before.", min=1),
    ] = None,
    hold_until: Annotated[
        str | None,
        typer.Option(
            "--hold-until",
            help="Local date, 2013-11-30, from whose start the present champion may be promoted "
            "again; default: when it is released.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the champion before champion again, and hold the present one."""
    from platform_assets.line.projection import projected
    from platform_assets.line.promoting import roll_back, told
    from platform_assets.line.waive import until_of

    services = _services(pipeline)
    until = until_of(services.spec, hold_until) if hold_until else None
    change = roll_back(services, to, by=by, reason=reason, hold_until=until)
    _warn(projected(services))
    if as_json:
        print_json(told(change))
        return
    print(f"{services.spec.model.name}: version {change.version} is champion again")
    print(f"  version {change.previous} is held, see `signalbox promotions {pipeline}`")


def promotions(pipeline: Pipeline, as_json: AsJson = False) -> None:
    """The champions of a pipeline, oldest first, with who, why and by which verdict; the holds."""
    from platform_assets.line.promoting import document

    found = document(_services(pipeline))
    if as_json:
        print_json(found)
        return
    columns = ("change", "version", "before", "action", "by", "at", "verdict", "reason")
    rows = [
        (
            *(str(change[k]) for k in ("change", "version")),
            str(change["previous"] or "none"),
            *(str(change[k]) for k in ("action", "by")),
            str(change["decided_at"])[:19],
            str(change["evaluation"] or "none"),
            str(change["reason"]),
        )
        for change in found["history"]
    ]
    print_table(f"champions of {found['model']}", columns, rows)
    for hold in found["holds"]:
        until = hold["until"] or "it is released"
        print(
            f"hold {hold['hold']}: version {hold['version']} until {until}, by {hold['by']}: "
            f"{hold['reason']}"
        )
    for canary in found["canaries"]:
        word = "passed" if canary["passed"] else "did not pass"
        print(
            f"canary {canary['canary']} of version {canary['champion']} in environment "
            f"{canary['now'][:12]} {word}: {canary['reason']}"
        )


def release_hold(
    pipeline: Pipeline,
    hold: Annotated[int, typer.Argument(help="As in `signalbox promotions`.", min=1)],
    as_json: AsJson = False,
) -> None:
    """End a hold: the version may be promoted again, by a person."""
    services = _services(pipeline)
    at = services.clock.as_of()
    model = services.spec.model.name
    if hold not in {found.id for found in services.ledger.holds(model, at)}:
        raise UsageError(
            f"{model} has no hold {hold} in force; see them with `signalbox promotions {pipeline}`"
        )
    ended = services.ledger.release_hold(hold, at)
    if as_json:
        print_json({"hold": ended.id, "version": ended.version, "ended_at": at.isoformat()})
        return
    print(f"{model}: version {ended.version} is free again")


def _services(name: str) -> Services:
    from platform_assets.cli.app import pipeline_of
    from resources.catalog import load_catalog

    catalog: dict[str, PipelineSpec] = {spec.model.name: spec for spec in load_catalog().values()}
    spec = catalog[name] if name in catalog else pipeline_of(name)
    return Services.open(spec, tell=_warn)


def _warn(text: str | None) -> None:
    if text:
        print(f"signalbox: {text}", file=sys.stderr)
