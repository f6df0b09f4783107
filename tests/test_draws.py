"""Random numbers of a training in ranks: gone on with, or begun anew where the ranks are others."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="`make setup-torch` installs it")

import torch

from resources.distributed import draws, shards

pytestmark = pytest.mark.torch

SEED, STEP = 7, 5


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    before = draws.state()
    yield
    draws.go_on(before)


def seeded() -> shards.Kept:
    """As a trainer begins: the same on all ranks."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)
    model = torch.nn.Linear(3, 1)
    return shards.Kept(model, torch.optim.AdamW(model.parameters()), {})


def drawn() -> list[float]:
    """The next numbers of each generator."""
    return [torch.rand(1).item(), np.random.normal(), random.gauss(0, 1)]


def save(folder: Path, world: int = 1) -> None:
    shards.save(seeded_and_used(), folder, step=STEP, rank=0, world=world)


def seeded_and_used() -> shards.Kept:
    kept = seeded()
    drawn()  # half of a pair: the other half is in the state too
    return kept


def test_each_generator_goes_on(tmp_path: Path) -> None:
    save(tmp_path / "one")
    wanted = drawn()
    kept = seeded()
    assert shards.load(kept, tmp_path / "one", rank=0, world=1) == STEP
    found = drawn()
    assert found == wanted
    seeded()
    others = drawn()
    assert not set(others) & set(wanted), "without the states these would be repeated"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_another_number_of_ranks_repeats_no_numbers(tmp_path: Path) -> None:
    """All ranks begin with one seed: without more they would draw the same, those of step 0."""
    save(tmp_path / "one")
    seeded()
    first = drawn()
    found: dict[tuple[int, int], list[float]] = {}
    for world in (2, 3):
        for rank in range(world):
            assert shards.load(seeded(), tmp_path / "one", rank=rank, world=world) == STEP
            found[rank, world] = drawn()
            shards.load(seeded(), tmp_path / "one", rank=rank, world=world)
            assert drawn() == found[rank, world], "the same each time"
    all_of_them = [number for numbers in (first, *found.values()) for number in numbers]
    assert len(set(all_of_them)) == len(all_of_them)


def test_what_is_begun_follows_from_each_number() -> None:
    def of(*numbers: int) -> list[float]:
        draws.begin(*numbers)
        return drawn()

    all_of_them = [of(7, 5, 0, 2), of(8, 5, 0, 2), of(7, 6, 0, 2), of(7, 5, 1, 2), of(7, 5, 0, 3)]
    for generator in range(3):
        assert len({numbers[generator] for numbers in all_of_them}) == len(all_of_them)


def test_that_of_a_gpu_goes_on_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU was at hand: what torch is asked for, and given back."""
    given, state = [], torch.arange(16, dtype=torch.uint8)
    without = draws.state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    draws.go_on(without)
    assert given == []
    draws.go_on(draws.state())
    assert torch.equal(given[0], state)
    told = draws.state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    draws.go_on(told)
    assert len(given) == 1
