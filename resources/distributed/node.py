"""The ranks of one node of a cluster: waits for the step's folder, and runs torchrun."""

import argparse
import os
import sys
import time
from pathlib import Path

from resources.distributed.layout import JOB, Folder, Job

WAIT_SECONDS = 600.0
"""For the step to say what is to be done; the pods of a gang start together."""


def arguments(job: Job, told: argparse.Namespace) -> list[str]:
    """torchrun's, of what the step asks for and what the manifest says."""
    settings = {
        "is_host": "true" if os.environ.get("JOB_COMPLETION_INDEX", "0") == "0" else "false",
        "join_timeout": max(job.step_timeout_seconds, 60),
        "last_call_timeout": 30,
        "keep_alive_interval": max(1, job.keep_alive_seconds // 5),
        "keep_alive_max_attempt": 5,
    }
    return [
        f"--nnodes={told.nodes}",
        f"--nproc-per-node={told.processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={told.rendezvous}",
        f"--rdzv-id={Path(told.folder).name}",
        "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in settings.items()),
        f"--max-restarts={job.restarts}",
        *("-m", "resources.distributed.rank", str(told.folder)),
    ]


def main(given: list[str], wait: float = WAIT_SECONDS) -> int:
    """`python -m resources.distributed.node --nodes 1:2 --processes 8 --rendezvous H:P FOLDER`.

    Args:
        given: those arguments.
        wait: seconds for the step.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", required=True)
    parser.add_argument("--processes", required=True, type=int)
    parser.add_argument("--rendezvous", required=True)
    parser.add_argument("folder")
    told = parser.parse_args(given)
    folder = Folder(Path(told.folder))
    until = time.monotonic() + wait
    while not (folder.root / JOB).exists():
        if time.monotonic() > until:
            print(f"no {JOB} came to {folder.root} within {wait:.0f} s", file=sys.stderr)
            return 1
        time.sleep(0.5)
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    from torch.distributed.run import main as torchrun

    torchrun(arguments(folder.job(), told))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
