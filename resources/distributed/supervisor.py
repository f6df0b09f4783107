"""Keeps the rendezvous of one training and its places, and ends them all with itself."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from resources.distributed.agent import Child, begin, forked, spawned
from resources.distributed.layout import Folder, Job
from resources.distributed.lifeline import die_with

DONE, FAILED, RAN_OUT, ENDED = 0, 3, 4, 143
"""How it exits: trained; a rank's own error; too many died; told to end."""

TICK = 0.1
GRACE_SECONDS = 10.0
HEARTBEATS = 5
LAST_CALL_SECONDS = 2
"""How long a rendezvous with enough places waits for more."""


@dataclass
class Place:
    """One torchrun: a rank here, all ranks of a node on a cluster."""

    number: int
    process: Child


class Supervisor:
    """The places of one training."""

    def __init__(self, folder: Folder, job: Job) -> None:
        self.folder, self.job = folder, job
        self.places: dict[int, Place] = {}
        self.ending = False
        self._next = 0
        self._restarts = job.restarts
        self._store: Any = None

    def run(self) -> int:
        from torch.distributed import TCPStore

        # Forked before there is a thread, and told to begin together: none is late for the
        # first rendezvous.
        first = [self._start(forked) for _ in range(self.job.max)]
        # Here, and not in a place: the place that is lost shall not take the rendezvous along.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for waiting in first:
            self._begin(waiting)
        code: int | None = None
        while code is None and not self.ending:
            code = self._look()
            time.sleep(TICK)
        self.end()
        return ENDED if code is None else code

    def add(self) -> Place:
        """Start one more place."""
        self._begin(self._start(spawned))
        return self.places[self._next - 1]

    def _start(self, how: Callable[..., tuple[Child, IO[bytes]]]) -> IO[bytes]:
        number = self._next
        self._next += 1
        environment = {
            "SIGNALBOX_PLACE": str(number),
            "GLOO_SOCKET_IFNAME": "lo",
            # Shared, the first rank's store is known to those that have met before only: a place
            # that is added later waits for its address in vain (PyTorch 2.13).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        process, waiting = how(environment, self.folder.logs / f"place-{number}.log")
        self.places[number] = Place(number, process)
        return waiting

    def _begin(self, waiting: IO[bytes]) -> None:
        job = self.job
        settings = {
            "is_host": "false",
            "join_timeout": max(job.step_timeout_seconds, 60),
            "last_call_timeout": LAST_CALL_SECONDS,
            "keep_alive_interval": max(1, job.keep_alive_seconds // HEARTBEATS),
            "keep_alive_max_attempt": HEARTBEATS,
        }
        arguments = [
            f"--nnodes={job.min}:{job.max}",
            "--nproc-per-node=1",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{self._store.port}",
            f"--rdzv-id={self.folder.root.name}",
            "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in settings.items()),
            "--local-addr=127.0.0.1",
            f"--max-restarts={job.restarts}",
            "--monitor-interval=0.1",
            *("-m", "resources.distributed.rank", str(self.folder.root)),
        ]
        with contextlib.suppress(BrokenPipeError):  # it is gone; that is seen when it is looked at
            begin(waiting, arguments)

    def _look(self) -> int | None:
        """What has become of the places; an exit code if that is the end."""
        if any(self.folder.errors.iterdir()):
            return FAILED
        for asked in list(self.folder.replace.iterdir()):
            self._replace(int(asked.name))
            asked.unlink()
        for place in list(self.places.values()):
            code = place.process.poll()
            if code is None:
                continue
            del self.places[place.number]
            if code == 0:
                # The others end with it, they have passed the same last barrier.
                return DONE if self._all_end() else RAN_OUT
            if code > 0:
                return FAILED if any(self.folder.errors.iterdir()) else RAN_OUT
            self.folder.tell("lost", place=place.number, signal=-code, left=len(self.places))
            if len(self.places) < self.job.min:
                if self._restarts == 0:
                    return RAN_OUT
                self._restarts -= 1
                self.folder.tell("added", place=self.add().number)
        return None

    def _replace(self, number: int) -> None:
        """Put another place in the stead of one that is slow."""
        place = self.places.pop(number, None)
        if place is None:
            return
        place.process.kill()
        place.process.wait()
        self.folder.tell("added", place=self.add().number, instead_of=number)

    def _all_end(self) -> bool:
        until = time.monotonic() + GRACE_SECONDS
        while any(place.process.poll() is None for place in self.places.values()):
            if time.monotonic() > until or self.ending:
                break
            time.sleep(TICK)
        return (self.folder.result / "done").exists()

    def end(self) -> None:
        """End what still runs: torchrun passes SIGTERM on to its ranks."""
        running = [p.process for p in self.places.values() if p.process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + GRACE_SECONDS
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            time.sleep(TICK)
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def main(arguments: list[str]) -> int:
    """`python -m resources.distributed.supervisor PARENT FOLDER`."""
    parent, root = arguments
    die_with(int(parent))
    folder = Folder(Path(root))
    supervisor = Supervisor(folder, folder.job())

    def told(_number: int, _frame: FrameType | None) -> None:
        supervisor.ending = True

    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, told)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
