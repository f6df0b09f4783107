"""The commands on registered models: reproduce, audit."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from platform_assets.cli.app import AsJson, HtmlFile, app
from platform_assets.domain.errors import UsageError
from platform_assets.domain.model_ref import ModelRef
from platform_assets.domain.rebuilding import Place
from platform_assets.domain.reproduction import Comparison
from platform_assets.line.services import Services
from platform_assets.terminal import print_json, print_table
from resources.catalog import load_catalog

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@VERSION|@ALIAS]",
        help="flight-delay, flight-delay@12, flights@champion; without @ the champion.",
    ),
]


def _meant(text: str) -> tuple[Services, ModelRef]:
    from platform_assets.line.registered import pipeline_of_model

    ref = ModelRef.parse(text)
    return Services.open(pipeline_of_model(ref, load_catalog().values())), ref


def services_of(text: str) -> Services:
    """The services of the pipeline that is meant, by its own name or by its model's."""
    return _meant(text)[0]


@app.command()
def reproduce(
    model: Model,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", help="Let differences of predictions pass up to this one."),
    ] = 1e-6,
    declared: Annotated[
        bool,
        typer.Option(
            "--declared", help="Train as the catalog says now, not as it was recorded then."
        ),
    ] = False,
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="Train in this process, also if it was trained in an image; compare."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a registered model again on the very rows it was trained on, and compare.

    In the image that was recorded with it, by podman or docker, where there is one; else the
    environments are compared. Nothing is registered. Exit code 0: identical, equal, or within the
    tolerance.
    """
    from platform_assets.line.registered import model_record
    from platform_assets.line.reproduce import document
    from platform_assets.line.reproduce import reproduce as rebuild
    from platform_assets.line.reproduce_in_image import place, reproduce_in

    if not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance {tolerance} is no tolerance; allowed is a number from 0")
    services, ref = _meant(model)
    record = model_record(services, ref)
    where = Place(reason="--here was asked for") if here else place(services, record)
    if where.image:
        told = reproduce_in(services, record, where.image, tolerance=tolerance, declared=declared)
    else:
        found = rebuild(services, record, tolerance=tolerance, declared=declared)
        told = document(services, record, found)
    told["rebuilt_where"] = where.reason
    if as_json:
        print_json(told)
    else:
        compared = [str(Comparison.model_validate(part)) for part in told["comparisons"]]
        _print_reproduction(told, [*compared, f"where: {where.reason}"])
    if not told["good"]:
        raise typer.Exit(1)


def _print_reproduction(told: dict[str, Any], compared: list[str]) -> None:
    print(f"{told['model']} version {told['version']} of {told['date']}: {told['verdict']}")
    print(f"  {told['reason']}")
    for line in compared:
        print(f"  {line}")


@app.command()
def audit(
    model: Model,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """From a model back through verdict, run and snapshot to each partition that it rests on.

    What can be looked at is: rows and files are compared with their digests. Exit code 1 if
    something could not be shown.
    """
    from platform_assets.line.audit import audit as examine
    from platform_assets.line.audit_page import audit_page
    from platform_assets.line.registered import model_record
    from resources.pages import check_page, write_page

    if html is not None:
        check_page(Path(html))
    services, ref = _meant(model)
    record = model_record(services, ref)
    document = examine(services, record)
    if html is not None:
        write_page(Path(html), audit_page(services, record, document))
    if as_json:
        print_json(document | ({"html": html} if html else {}))
    else:
        _print_audit(document)
        if html is not None:
            print(f"wrote {html}")
    if not document["ok"]:
        raise typer.Exit(1)


def _print_audit(document: dict[str, Any]) -> None:
    snapshot = document["snapshot"]
    print(
        f"{document['model']} version {document['version']} of {document['date']}, "
        f"{document['role']}: {document['training']['rows']} rows of "
        f"{len(snapshot['partitions'])} partition versions, {len(snapshot['held'])} day(s) left "
        f"out, {len(document['waivers'])} waiver(s)"
    )
    rows = [
        ("shown" if check["ok"] else "NOT", check["what"], check["found"])
        for check in document["checks"]
    ]
    print_table("what was looked at", ("", "claim", "found"), rows)
