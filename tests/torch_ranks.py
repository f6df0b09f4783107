"""What ranks do in tests: the trainer's own work, and something that goes wrong with it."""

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from platform_assets.trainers.torch_tabular import TorchTabularTrainer, train_ranks
from resources.distributed.rank import Rank


class Trainer(TorchTabularTrainer):
    """The trainer, with another function in its ranks."""

    def __init__(self, entry: str) -> None:
        self.entry = f"{__name__}:{entry}"


def _before_each(rank: Rank, act: Callable[[int], None]) -> None:
    """Train, with `act` called after each step, before it counts."""
    done = rank.done

    def first_act(step: int) -> None:
        act(step)
        done(step)

    rank.done = first_act  # type: ignore[method-assign]
    train_ranks(rank)


def _once(rank: Rank, name: str) -> bool:
    """Whether this is the first time, over all ranks and restarts of a training."""
    try:
        os.close(os.open(rank.folder.root / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def stopped(rank: Rank) -> None:
    """Asked to stop after the step that a variable names, as by a checkpointer that is told to."""
    at = int(os.environ["TEST_STOP_AT"])

    def act(step: int) -> None:
        if step == at and rank.rank == 0:
            rank.folder.stop.touch()

    _before_each(rank, act)


def rank_killed(rank: Rank) -> None:
    """The second rank is killed once after its fourth step; a checkpoint of the second is there."""

    def act(step: int) -> None:
        if step == 2 and rank.rank == 0 and _once(rank, "asked-once"):
            rank.folder.asked.touch()
        if step == 4 and rank.rank == 1 and _once(rank, "killed-once"):
            os.kill(os.getpid(), signal.SIGKILL)

    _before_each(rank, act)


def disk_full(rank: Rank) -> None:
    """After the second step no rank can write a checkpoint, after the fourth they can again."""

    def act(step: int) -> None:
        if step in (2, 4):
            few(4096 if step == 2 else None)
            if rank.rank == 0:
                rank.folder.asked.touch()

    _before_each(rank, act)


def few(bytes_a_file: int | None) -> None:
    """Let this process write no file beyond a size: a real error of its writes (EFBIG)."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (hard if bytes_a_file is None else bytes_a_file, hard)
    )


def place_lost(rank: Rank) -> None:
    """As before, but its torchrun is killed, and so it dies with it, as when a machine goes."""

    def act(step: int) -> None:
        if step == 2 and rank.rank == 0 and _once(rank, "asked-once"):
            rank.folder.asked.touch()
        if step == 4 and rank.rank == 1 and _once(rank, "killed-once"):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)

    _before_each(rank, act)


def hanging(rank: Rank) -> None:
    """The second rank stops for good after its second step, once."""

    def act(step: int) -> None:
        if step == 2 and rank.rank == 1 and _once(rank, "stopped-once"):
            os.kill(os.getpid(), signal.SIGSTOP)

    _before_each(rank, act)


def slowed(rank: Rank) -> None:
    """Whichever process is the second rank first is slow as long as it lives."""
    mine = rank.rank == 1 and _once(rank, "slow-once")

    def act(_step: int) -> None:
        with rank.timed():
            time.sleep(0.2 if mine else 0.02)

    _before_each(rank, act)


def wrong(rank: Rank) -> None:
    """A rank has an error of its own."""
    if rank.rank == 1:
        raise ValueError("this rank cannot count")
    train_ranks(rank)


def endless(rank: Rank) -> None:
    """Tells where it is, and does not end."""
    Path(os.environ["TEST_PIDS"], str(os.getpid())).write_text(str(os.getppid()))
    while True:
        time.sleep(0.1)


def killed_for_good(rank: Rank) -> None:
    """Any rank that comes is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


class ByEnvironment(TorchTabularTrainer):
    """The trainer, with something going wrong as the variable TEST_ACT says."""

    entry = f"{__name__}:by_environment"


def by_environment(rank: Rank) -> None:
    """`place_lost`, `step_killed`, `stands`, or nothing."""
    match os.environ.get("TEST_ACT", ""):
        case "place_lost":
            place_lost(rank)
        case "step_killed":
            step_killed(rank)
        case "stands":
            stands(rank)
        case _:
            train_ranks(rank)


def step_killed(rank: Rank) -> None:
    """The step's own process is killed as soon as a checkpoint of the second step is durable."""
    manifests = Path(os.environ["SIGNALBOX_HOME"], "checkpoints")

    def act(step: int) -> None:
        if step == 2 and rank.rank == 0:
            rank.folder.asked.touch()
        if step == 4 and rank.rank == 0:
            while not list(manifests.rglob("*-000000000002-*.json")):
                time.sleep(0.05)
            _agent, _supervisor, step_process, *_ = psutil.Process().parents()
            step_process.kill()
            time.sleep(60)

    _before_each(rank, act)


def stands(rank: Rank) -> None:
    """The first attempt saves the second step, and stands after the fourth until it is ended."""
    place = Path(os.environ["FAKE_STEPS"])

    def act(step: int) -> None:
        if (place / "stood").exists():
            return
        if step == 2 and rank.rank == 0:
            rank.folder.asked.touch()
        if step == 4 and rank.rank == 0:
            while not list((place / "checkpoints").rglob("*-000000000002-*.json")):
                time.sleep(0.05)
            (place / "standing").touch()
            for _ in range(600):
                if rank.folder.stop.exists():
                    break
                time.sleep(0.1)
            (place / "stood").touch()

    _before_each(rank, act)
