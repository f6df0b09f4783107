"""The daemon as a process: `python -m platform_assets.demo.daemon_process WORKSPACE`."""

import signal
import sys
from types import FrameType

import dagster as dg

from platform_assets.demo.daemons import end_without, sole_daemon
from platform_assets.domain.errors import RefusedError
from platform_assets.instance.daemon import run_daemon
from resources.home import Home


def serve(workspace: str) -> None:
    """Run Signalbox's daemon on the instance of DAGSTER_HOME until Ctrl-C or SIGTERM.

    Raises:
        RefusedError: another process works as its daemon, on this machine or another.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Whoever started this may have had SIGINT ignored.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    home = Home.locate()
    try:
        with dg.DagsterInstance.get() as instance, sole_daemon(home) as lease:
            end_without(home, lease)
            run_daemon(instance, workspace)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    try:
        serve(sys.argv[1])
    except RefusedError as error:
        sys.exit(f"signalbox: {error}")
