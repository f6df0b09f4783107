"""A trainer's function in the step's own process: one rank, alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resources.distributed import draws
from resources.distributed.launching import Checkpoints, contents, put_back
from resources.distributed.layout import Folder, Job
from resources.distributed.rank import InProcess, Rank, StoppedError, call


def run_alone(
    entry: str,
    arguments: Mapping[str, Any],
    root: Path,
    *,
    on_round: Callable[[int, Mapping[str, float]], None],
    checkpointer: Checkpoints | None = None,
) -> Path:
    """As `Processes.run`, with one rank and no other process.

    PyTorch's random numbers, threads and choice of algorithms are as before when it returns.
    """
    folder = Folder(root)
    folder.make(Job(entry, arguments))
    reached = [0]
    if checkpointer is not None:
        put_back(checkpointer, folder)

    def asked(step: int) -> tuple[bool, bool]:
        reached[0] = step
        if checkpointer is None:
            return False, False
        due, stop = checkpointer.due(step), checkpointer.interrupted
        return due or stop, stop

    def saved(step: int, path: Path, _seconds: float) -> None:
        assert checkpointer is not None
        # As bytes: it is written while the training goes on, and the folder keeps the last ones.
        checkpointer.save(step, {n: file.read_bytes() for n, file in contents(path).items()})

    def missed(step: int, why: str, _seconds: float) -> None:
        assert checkpointer is not None
        checkpointer.missed(step, why)

    alone = Rank(0, 1, arguments, folder, InProcess(on_round, asked, saved, missed))
    try:
        with _as_before():
            call(entry, alone)
    except StoppedError:
        assert checkpointer is not None
        checkpointer.stop_if_interrupted(reached[0])
        raise
    return folder.result / "result.pt"


@contextmanager
def _as_before() -> Iterator[None]:
    import torch

    threads, state = torch.get_num_threads(), draws.state()
    strict = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        draws.go_on(state)
        torch.use_deterministic_algorithms(strict)
