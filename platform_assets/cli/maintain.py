"""`signalbox maintain` and `vacuum`: look after the lake's tables."""

from datetime import timedelta
from typing import Annotated

import typer

from platform_assets.line.services import Services
from platform_assets.terminal import print_json
from resources.catalog import load_catalog


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(maintain)
    app.command()(vacuum)


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
            f"{len(done['orphans_removed'])} of {done['orphans']} orphan(s) removed, "
            f"{len(done['tables'])} table(s)"
        )


def vacuum(
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="A pipeline of the catalog; default: all.")
    ] = None,
    keep_days: Annotated[
        int, typer.Option("--keep-days", min=1, help="What was replaced since then stays.")
    ] = 7,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be removed, remove nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Remove old versions of partitions, but none that a registered model is rebuilt from."""
    from platform_assets.cli.app import pipeline_of
    from platform_assets.line.maintenance import vacuum as remove

    specs = [pipeline_of(pipeline)] if pipeline else load_catalog().values()
    keep = timedelta(days=keep_days)
    found = {
        spec.pipeline: remove(Services.open(spec), "vacuum", keep=keep, dry_run=dry_run)
        for spec in specs
    }
    if as_json:
        print_json({"pipelines": found})
        return
    for name, done in found.items():
        count = done["expired_files"] if dry_run else len(done["removed"])
        size = done["expired_bytes"] if dry_run else done["removed_bytes"]
        print(
            f"{name}: {count} file(s), {size / 1e6:.1f} MB, {'would be ' if dry_run else ''}removed"
            f"; of what was replaced, {done['pinned_files']} file(s) stay for "
            f"{done['models']} model(s), {done['recent_files']} since they are not "
            f"{keep_days} days old"
        )
