"""Ends Dagster when its owner ends: `python -m platform_assets.demo.guard MARK COMMAND …`.

The guard starts the command and holds the read end of a pipe, its standard input. When that ends,
because its owner closed it or was killed in whatever way, or when the command itself ends, the
guard ends every process that descends from the command, and then itself.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

MARK = "SIGNALBOX_GUARD"
"""Each descendant inherits this variable; by its value they are found, orphans included."""

INTERRUPT_SECONDS = 20.0
TERMINATE_SECONDS = 5.0
LOOK_SECONDS = 0.5


def marked(mark: str) -> list[psutil.Process]:
    """The living processes with this mark, but the calling one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or somebody else's
    return found


def end_marked(mark: str) -> None:
    """End the processes with this mark: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        processes = marked(mark)
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=TERMINATE_SECONDS)


def watch(command: Sequence[str], mark: str) -> int:
    """Run the command until it ends or standard input does; the command's exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, MARK: mark})
    owned = True
    while owned and child.poll() is None:
        ready, _, _ = select.select([0], [], [], LOOK_SECONDS)
        owned = not ready or bool(os.read(0, 1))
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        deadline = time.monotonic() + INTERRUPT_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    end_marked(mark)
    return child.wait()


def main() -> int:
    # The guard outlives a Ctrl-C. Handlers, for ignored signals would be ignored by its child too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    mark, *command = sys.argv[1:]
    return watch(command, mark)


if __name__ == "__main__":
    sys.exit(main())
