"""A training's state on disk, by PyTorch's distributed checkpoint (DCP).

Each rank writes what is its own, tensors that all have are written once. A checkpoint can be read
by another number of ranks than has written it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.distributed import draws

_MODEL, _OPTIMIZER, _TENSORS, _WHERE = "model", "optimizer", "tensors", "where"


class NotSavedError(Exception):
    """The disk did not take a checkpoint; the training can go on without."""


class UnreadableError(Exception):
    """A checkpoint that was found whole is not what the training goes on from."""


@dataclass(frozen=True)
class Kept:
    """What a training goes on from, beside the random states: the same on all ranks."""

    model: Any
    optimizer: Any
    tensors: dict[str, Any]


def save(kept: Kept, folder: Path, *, step: int, rank: int, world: int) -> None:
    """Write a checkpoint into an empty folder; all ranks call it together.

    Raises:
        NotSavedError: a disk did not take it. All ranks hear of it, and none of them is lost.
    """
    import torch
    import torch.distributed.checkpoint as dcp

    state = _state(kept) | {
        _WHERE: torch.tensor([step, world]),
        _random(rank, world): draws.state(),
    }
    try:
        dcp.save(state, checkpoint_id=str(folder), no_dist=world == 1)
    except dcp.CheckpointException as error:
        raise _told(error) from error


def load(kept: Kept, folder: Path, *, rank: int, world: int) -> int:
    """Bring what is kept to where a checkpoint left it; the number of steps that were done.

    The random states are those of the same rank where as many have written them. Of another number
    of ranks none has a state to go on from: each begins one of its own, which follows from the seed
    that it has begun with, the step, its number and how many they are.
    """
    import torch
    from torch.distributed.checkpoint.state_dict import set_state_dict

    alone = world == 1
    where = torch.zeros(2, dtype=torch.int64)
    _load({_WHERE: where}, folder, alone)
    step, wrote = int(where[0]), int(where[1])
    state = _state(kept)
    if wrote == world:
        state[_random(rank, world)] = ""
    _load(state, folder, alone)
    set_state_dict(
        kept.model,
        kept.optimizer,
        model_state_dict=state[_MODEL],
        optim_state_dict=state[_OPTIMIZER],
    )
    if wrote == world:
        draws.go_on(state[_random(rank, world)])
    else:
        draws.begin(torch.initial_seed(), step, rank, world)
    return step


def _load(state: dict[str, Any], folder: Path, alone: bool) -> None:
    import torch.distributed.checkpoint as dcp

    try:
        dcp.load(state, checkpoint_id=str(folder), no_dist=alone)
    except dcp.CheckpointException as error:
        # It is no Exception: who catches those would not see it.
        raise UnreadableError(_words(error)) from error


def _told(error: Any) -> BaseException:
    """What a failed save is: the disk's, or an error of what is to be saved, as it was raised."""
    for cause in _causes(error):
        # torch's own writer says RuntimeError where the disk is full.
        if not isinstance(cause, OSError | RuntimeError):
            return cause
    return NotSavedError(_words(error))


def _causes(error: Any) -> list[BaseException]:
    return [failure[0] for _, failure in sorted(error.failures.items())]


def _words(error: Any) -> str:
    told = (f"{type(cause).__name__}: {cause}".splitlines()[0] for cause in _causes(error))
    return "; ".join(dict.fromkeys(told))


def _state(kept: Kept) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(kept.model, kept.optimizer)
    return {_MODEL: model, _OPTIMIZER: optimizer, _TENSORS: kept.tensors}


def _random(rank: int, world: int) -> str:
    return f"random_{rank}_of_{world}"
