"""The ranks of one node of a cluster: waits for the step's word, runs torchrun, and says its end.

What a rank's own code did wrong, and that the ranks can go on no more, is the step's to tell: the
pod ends well then. It fails where another pod in its place can help: an agent that was killed, or a
straggler that is to be replaced.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from platform_assets.domain.ranks_folder import POD_IP
from resources.distributed.layout import JOB, Folder, Job, put
from resources.distributed.lifeline import die_with

WAIT_SECONDS = 3600.0
"""For the step to say what is to be done: it is pulled, started, and reads its rows first."""

SILENT_SECONDS = 120.0
"""A step that has not shown itself for so long is gone, whatever has become of its pod."""

TICK = 0.2
GRACE_SECONDS = 20.0
AGAIN = 75
"""Exit code of a pod in whose place there is to be another one."""


def arguments(job: Job, told: argparse.Namespace) -> list[str]:
    """torchrun's, of what the step asks for and what the manifest says."""
    settings = {
        # The step keeps the rendezvous: it outlives every node that is lost.
        "is_host": "false",
        "join_timeout": max(job.step_timeout_seconds, 60),
        "last_call_timeout": 30,
        "keep_alive_interval": max(1, job.keep_alive_seconds // 5),
        "keep_alive_max_attempt": 5,
    }
    address = os.environ.get(POD_IP)
    return [
        f"--nnodes={told.nodes}",
        f"--nproc-per-node={told.processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={job.rendezvous}",
        f"--rdzv-id={Path(told.folder).name}",
        "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in settings.items()),
        *([f"--local-addr={address}"] if address else []),
        f"--max-restarts={job.restarts}",
        "--monitor-interval=0.5",
        *("-m", "resources.distributed.rank", str(told.folder)),
    ]


class Node:
    """One torchrun, from the step's word to the end of the training.

    Args:
        folder: that the step and all ranks share.
        number: of this node, from 0.
    """

    def __init__(self, folder: Folder, number: int) -> None:
        self.folder, self.number = folder, number
        self.ending = False
        self._heard: tuple[bytes, float] = (b"", time.monotonic())

    def alone(self) -> bool:
        """Whether the step has ended, or is silent; by the clock of this machine."""
        if self.folder.over.exists():
            return True
        with suppress(OSError):
            said = self.folder.alive.read_bytes()
            if said != self._heard[0]:
                self._heard = said, time.monotonic()
        return time.monotonic() - self._heard[1] > SILENT_SECONDS

    def wait(self, seconds: float) -> bool:
        """Whether the step has said what is to be done, and has not ended before."""
        until = time.monotonic() + seconds
        while not (self.folder.root / JOB).exists():
            if time.monotonic() > until or self.ending or self.folder.over.exists():
                return False
            time.sleep(TICK)
        return not self.folder.over.exists()

    def run(self, command: list[str]) -> int:
        """Run torchrun; the exit code of the pod."""
        settings = {
            # See the supervisor of one machine: a node that joins later would wait in vain.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "SIGNALBOX_PLACE": str(self.number),
        }
        place = f"import resources.distributed.node as n; n.torchrun({os.getpid()})"
        process = subprocess.Popen(
            [sys.executable, "-c", place, *command], env={**os.environ, **settings}
        )
        replace = self.folder.replace / str(self.number)
        alone = False
        while process.poll() is None:
            alone = self.alone()
            if self.ending or alone or replace.exists():
                _end(process, gently=not replace.exists())
                break
            time.sleep(TICK)
        code = process.wait()
        if replace.exists():
            replace.unlink()
            print("this node was slow against the others, and goes", file=sys.stderr)
            return AGAIN
        if self.ending:
            return 128 + signal.SIGTERM
        if code < 0 and not alone:
            print(f"torchrun was ended by signal {-code}", file=sys.stderr)
            return AGAIN
        put(self.folder.out / str(self.number), str(code).encode())
        return 0


def torchrun(parent: int) -> None:
    """torchrun in a process that ends with the pod's."""
    die_with(parent)
    from torch.distributed.run import main as run

    run(sys.argv[1:])


def main(given: list[str], wait: float = WAIT_SECONDS) -> int:
    """`python -m resources.distributed.node --nodes 1:2 --processes 8 FOLDER`.

    Args:
        given: those arguments.
        wait: seconds for the step.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", required=True)
    parser.add_argument("--processes", required=True, type=int)
    parser.add_argument("folder")
    told = parser.parse_args(given)
    folder = Folder(Path(told.folder))
    node = Node(folder, int(os.environ.get("JOB_COMPLETION_INDEX", "0")))

    def ends(_number: int, _frame: FrameType | None) -> None:
        node.ending = True

    signal.signal(signal.SIGTERM, ends)
    if not node.wait(wait):
        if node.ending:
            return 128 + signal.SIGTERM
        if folder.over.exists():
            return 0
        print(f"no {JOB} came to {folder.root} within {wait:.0f} s", file=sys.stderr)
        return 1
    return node.run(arguments(folder.job(), told))


def _end(process: "subprocess.Popen[bytes]", *, gently: bool) -> None:
    """torchrun passes SIGTERM on to its ranks."""
    if gently:
        process.terminate()
        until = time.monotonic() + GRACE_SECONDS
        while process.poll() is None and time.monotonic() < until:
            time.sleep(TICK)
    if process.poll() is None:
        process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
