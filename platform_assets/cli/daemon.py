"""`signalbox daemon`: Dagster's daemon with quick backfills, where it runs by itself."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from platform_assets.domain.errors import UsageError
from resources.catalog import catalog_environment
from resources.home import Home


def daemon(
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="A workspace.yaml; default: the project's.")
    ] = None,
) -> None:
    """Run Dagster's daemon on the home until Ctrl-C, for a webserver that runs by itself."""
    from platform_assets.demo.daemons import DAEMON, require_no_daemon, sole_daemon
    from platform_assets.demo.server import workspace_file
    from platform_assets.factory.instance import end_orphaned_runs

    home = Home.locate()
    home.require()
    file = Path(workspace) if workspace else workspace_file()
    if not file.is_file():
        raise UsageError(f"--workspace {file} is no file; name a workspace.yaml")
    require_no_daemon(home)
    with sole_daemon(home):
        end_orphaned_runs(home, servers=True)
    # In the environment from its first moment on: OpenMP reads it as it is loaded, and others see
    # by it which home this daemon works on.
    command = [sys.executable, "-m", DAEMON, str(file.resolve())]
    environment = {**os.environ, **home.environment(), **catalog_environment()}
    os.execve(sys.executable, command, environment)  # noqa: S606 - this very interpreter


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(daemon)
