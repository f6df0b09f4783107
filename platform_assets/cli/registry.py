"""The commands on registered models: reproduce, audit."""

import math
from typing import Annotated, Any

import typer

from platform_assets.cli.app import AsJson, app
from platform_assets.domain.errors import UsageError
from platform_assets.domain.model_ref import ModelRef
from platform_assets.line.services import Services
from platform_assets.terminal import print_json
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
    as_json: AsJson = False,
) -> None:
    """Train a registered model again on the very rows it was trained on, and compare.

    Nothing is registered. Exit code 0: identical, equal, or within the tolerance.
    """
    from platform_assets.line.registered import model_record
    from platform_assets.line.reproduce import document
    from platform_assets.line.reproduce import reproduce as rebuild

    if not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance {tolerance} is no tolerance; allowed is a number from 0")
    services, ref = _meant(model)
    record = model_record(services, ref)
    found = rebuild(services, record, tolerance=tolerance, declared=declared)
    told = document(services, record, found)
    if as_json:
        print_json(told)
    else:
        _print_reproduction(told, [str(comparison) for comparison in found.comparisons])
    if not found.verdict.good:
        raise typer.Exit(1)


def _print_reproduction(told: dict[str, Any], compared: list[str]) -> None:
    print(f"{told['model']} version {told['version']} of {told['date']}: {told['verdict']}")
    print(f"  {told['reason']}")
    for line in compared:
        print(f"  {line}")
