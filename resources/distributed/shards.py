"""A training's state on disk, by PyTorch's distributed checkpoint (DCP).

Each rank writes what is its own, tensors that all have are written once. A checkpoint can be read
by another number of ranks than has written it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODEL, _OPTIMIZER, _TENSORS, _WHERE = "model", "optimizer", "tensors", "where"


@dataclass(frozen=True)
class Kept:
    """What a training goes on from, beside the random states: the same on all ranks."""

    model: Any
    optimizer: Any
    tensors: dict[str, Any]


def save(kept: Kept, folder: Path, *, step: int, rank: int, world: int) -> None:
    """Write a checkpoint into an empty folder; all ranks call it together."""
    import torch
    import torch.distributed.checkpoint as dcp

    state = _state(kept) | {
        _WHERE: torch.tensor([step, world]),
        _random(rank, world): torch.get_rng_state(),
    }
    dcp.save(state, checkpoint_id=str(folder), no_dist=world == 1)


def load(kept: Kept, folder: Path, *, rank: int, world: int) -> int:
    """Bring what is kept to where a checkpoint left it; the number of steps that were done.

    The random state is that of the same rank where as many have written it; of another number of
    ranks none of them has a state to go on from, and each keeps the one that it has begun with.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict

    alone = world == 1
    where = torch.zeros(2, dtype=torch.int64)
    dcp.load({_WHERE: where}, checkpoint_id=str(folder), no_dist=alone)
    step, wrote = int(where[0]), int(where[1])
    state = _state(kept)
    if wrote == world:
        state[_random(rank, world)] = torch.get_rng_state()
    dcp.load(state, checkpoint_id=str(folder), no_dist=alone)
    set_state_dict(
        kept.model,
        kept.optimizer,
        model_state_dict=state[_MODEL],
        optim_state_dict=state[_OPTIMIZER],
    )
    if wrote == world:
        torch.set_rng_state(state[_random(rank, world)])
    return step


def _state(kept: Kept) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(kept.model, kept.optimizer)
    return {_MODEL: model, _OPTIMIZER: optimizer, _TENSORS: kept.tensors}


def _random(rank: int, world: int) -> str:
    return f"random_{rank}_of_{world}"
