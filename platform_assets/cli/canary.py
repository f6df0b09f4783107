"""`signalbox canary`: the champion's own snapshot, trained again in this environment."""

from typing import Annotated

import typer

from platform_assets.cli.app import AsJson, app
from platform_assets.cli.registry import services_of
from platform_assets.terminal import print_json


@app.command()
def canary(
    model: Annotated[str, typer.Argument(help="A pipeline of the catalog, or its model's name.")],
    by: Annotated[str, typer.Option("--by", help="Who asks for it.")] = "signalbox",
    as_json: AsJson = False,
) -> None:
    """Train the champion's own snapshot again in this environment, and compare its metrics.

    Nothing is registered. Exit code 0: the metrics are the recorded ones.
    """
    from platform_assets.line.canary import opened, run_canary
    from platform_assets.line.environments import told

    services = services_of(model)
    tolerance = services.spec.environment.tolerance
    record = run_canary(services, by=by)
    document = {**told(record, tolerance), "then_what": opened(services, record)}
    if as_json:
        print_json(document)
    else:
        passed = "passed" if record.passed else "did not pass"
        print(
            f"canary {record.id} of {services.spec.model.name} version {record.champion} {passed}"
        )
        print(f"  {document['reason']}")
        for change in document["changes"]:
            print(f"  {change}")
        print(f"  {document['then_what']}")
    if not record.passed:
        raise typer.Exit(1)
