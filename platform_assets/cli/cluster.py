"""`signalbox cluster render`: deploy/ from the lanes, the image lock and the cluster's settings."""

import os
from pathlib import Path
from typing import Annotated

import typer

from platform_assets.terminal import print_json
from resources.cluster import differences, load_settings, render, write
from resources.images import load_lock, lock_file

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

SOURCES = ("SIGNALBOX_LANES", "SIGNALBOX_FAILURES", "SIGNALBOX_IMAGES", "SIGNALBOX_CLUSTER")
"""Variables that name other files than the project's deploy/ is rendered from."""

commands = typer.Typer(
    name="cluster", help="The manifests of a Kubernetes cluster.", no_args_is_help=True
)


@commands.callback()
def cluster() -> None:
    """The manifests of a Kubernetes cluster."""


@commands.command(name="render")
def render_files(
    out: Annotated[
        str, typer.Option("--out", help="The folder; default: deploy/ here.")
    ] = "deploy",
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if files differ.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the manifests that follow from lanes, failures, images.lock and cluster.yaml."""
    from platform_assets.factory.instance import dagster_yaml

    folder = Path(out)
    wanted = render(dagster_yaml().read_text(encoding="utf-8"))
    changed = differences(folder, wanted) if check else write(folder, wanted)
    unpinned = unpinned_image()
    if as_json:
        told = {"folder": str(folder), "files": list(wanted), "changed": changed}
        print_json({**told, "checked": check, "unpinned": unpinned})
    else:
        for line in changed:
            print(f"{folder}/{line}" + ("" if check else "; written"))
        if not changed:
            print(f"{folder} is as rendered")
        if unpinned:
            print(
                f"{lock_file()} has no image {unpinned!r}, that of webserver, daemon and code "
                "location: what was rendered starts nothing until `signalbox images pin "
                f"{unpinned} REGISTRY/REPOSITORY:TAG`, and rendered anew"
            )
    if check and changed:
        raise typer.Exit(1)


def deploy_finding() -> tuple[bool, str, str]:
    """Whether the project's deploy/ is as rendered: good or not, what was found, what to do."""
    from platform_assets.factory.instance import dagster_yaml

    folder = dagster_yaml().parent / "deploy"
    named = [name for name in SOURCES if name in os.environ]
    if not folder.is_dir():
        return True, "none here", ""
    if named:
        return True, f"{folder} is not compared: {', '.join(named)} names another file", ""
    changed = differences(folder, render(dagster_yaml().read_text(encoding="utf-8")))
    if changed:
        advice = f"run `signalbox cluster render --out {folder}`"
        return False, f"in {folder} {'; '.join(changed)}", advice
    return True, f"{folder} is as rendered", ""


def unpinned_image() -> str | None:
    """The name of the platform's image where the lock does not have it."""
    name = load_settings().image
    return None if name in load_lock().images else name
