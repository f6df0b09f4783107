"""What runs the ranks of a training: a supervisor on this machine, or the nodes of a cluster."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from platform_assets.domain.ranks_folder import POD_IP
from resources.distributed import supervisor
from resources.distributed.layout import Folder, Job, put

GRACE_SECONDS = 25.0
"""How long the ranks may take to save where they are, and to end."""

ALIVE_EVERY_SECONDS = 5.0


class Engine(Protocol):
    """What runs the ranks."""

    def poll(self) -> int | None:
        """How it ended (`supervisor`); None as long as it runs."""
        ...

    def end(self) -> None:
        """End it with all that it has started; nothing if that is done."""
        ...


class Local:
    """A supervisor and its places, on this machine."""

    def __init__(self, folder: Folder, job: Job) -> None:
        folder.make(job)
        command = [sys.executable, "-m", supervisor.__name__, str(os.getpid()), str(folder.root)]
        with (folder.logs / "supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
            )

    def poll(self) -> int | None:
        """See Engine."""
        return self._process.poll()

    def end(self) -> None:
        """See Engine."""
        _end(self._process)


class Nodes:
    """The nodes of a cluster, whose pods the executor has started.

    The rendezvous is kept here: it outlives every node that is lost.
    """

    def __init__(self, folder: Folder, job: Job, nodes: int) -> None:
        from torch.distributed import TCPStore

        self._folder, self._nodes = folder, nodes
        # It listens on all addresses; the one named here is where this process asks it.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        address = os.environ.get(POD_IP) or socket.gethostname()
        self._told = self._until = 0.0
        folder.alive.parent.mkdir(parents=True, exist_ok=True)
        self._live(time.monotonic())
        folder.make(replace(job, rendezvous=f"{address}:{self._store.port}"))

    def _live(self, now: float) -> None:
        """Ranks whose step is silent for long end: whoever comes after it starts others."""
        if now - self._told >= ALIVE_EVERY_SECONDS or not self._told:
            self._told = now
            put(self._folder.alive, str(now).encode())

    def poll(self) -> int | None:
        """See Engine; the nodes have written how their part ended."""
        now = time.monotonic()
        self._live(now)
        if any(self._folder.errors.glob("*.json")):
            return supervisor.FAILED
        codes = [int(path.read_text()) for path in self._folder.out.glob("[0-9]*")]
        if not codes:
            return None
        self._until = self._until or now + GRACE_SECONDS
        if len(codes) < self._nodes and now < self._until:
            return None  # they end together
        ended = (self._folder.result / "done").exists()
        return supervisor.DONE if ended and 0 in codes else supervisor.RAN_OUT

    def end(self) -> None:
        """See Engine; the nodes see it, and their pods end."""
        with suppress(OSError):
            self._folder.over.touch()


def _environment() -> dict[str, str]:
    """This process's, its import path with it: what can be imported here can be there."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the supervisor, and with it all that it has started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    if process.poll() is None:
        process.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
