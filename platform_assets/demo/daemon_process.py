"""The daemon as a process: `python -m platform_assets.demo.daemon_process WORKSPACE`."""

import signal
import sys
from types import FrameType

import dagster as dg

from platform_assets.instance.daemon import run_daemon


def serve(workspace: str) -> None:
    """Run Signalbox's daemon on the instance of DAGSTER_HOME until Ctrl-C or SIGTERM."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Whoever started this may have had SIGINT ignored.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with dg.DagsterInstance.get() as instance:
            run_daemon(instance, workspace)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    serve(sys.argv[1])
