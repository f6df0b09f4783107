"""`signalbox serve` and `reconcile`: what is served, and whether it is what the ledger says."""

from dataclasses import asdict
from typing import Annotated

import typer

from platform_assets.line.services import Services
from platform_assets.terminal import print_json, print_table

Pipeline = Annotated[str, typer.Argument(help="A pipeline of the catalog.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(serve)
    app.command()(reconcile)


def serve(
    pipeline: Pipeline,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="On 127.0.0.1.")] = 5001,
) -> None:
    """Serve what the slot holds by MLflow's scoring server; /signalbox says which digest.

    It is verified before it is loaded, and served until the process ends: after a promotion,
    restart it.
    """
    from platform_assets.cli.app import pipeline_of
    from platform_assets.line.serving import verified_slot
    from resources.scoring_app import scoring_app

    services = Services.open(pipeline_of(pipeline))
    with verified_slot(services) as (folder, served):
        import uvicorn

        application = scoring_app(folder, services.spec.model.name, served)
        print(f"{services.spec.model.name} {served} on http://127.0.0.1:{port}", flush=True)
        uvicorn.run(application, host="127.0.0.1", port=port, log_level="warning")


def reconcile(
    pipeline: Pipeline,
    mend: Annotated[
        bool, typer.Option("--mend", help="Set right whatever is off, though the catalog holds it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare the ledger with MLflow's aliases, the slot and the endpoint; as the sensor does.

    Exit code 1: something is off still.
    """
    from platform_assets.cli.app import pipeline_of
    from platform_assets.line.projection import reconcile as look

    found = look(Services.open(pipeline_of(pipeline)), mend=mend)
    off = {drift.what for drift in found.remaining}
    if as_json:
        drifts = [d.model_dump(mode="json") | {"off": d.what in off} for d in found.drifts]
        print_json({"pipeline": pipeline, **asdict(found), "drifts": drifts})
    elif not found.drifts:
        print(f"{pipeline}: aliases, slot and endpoint are as the ledger says")
    else:
        rows = [
            (d.what, d.act, "off" if d.what in off else "set right", d.reason)
            for d in (*(d for d in found.drifts if d.what not in off), *found.remaining)
        ]
        print_table(f"{pipeline}: ledger and projection", ("what", "act", "now", "why"), rows)
    if off:
        raise typer.Exit(1)
