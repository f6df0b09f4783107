"""The bootstrap interval: what must hold for any differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.intervals import paired_bootstrap

NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 6))
MANY = st.lists(NUMBERS, min_size=2, max_size=30)


@given(MANY, st.integers(0, 1000))
def test_it_lies_within_the_differences_and_is_the_same_again(
    differences: list[float], seed: int
) -> None:
    found = paired_bootstrap(differences, seed=seed, resamples=300)
    assert found == paired_bootstrap(differences, seed=seed, resamples=300)
    assert min(differences) - 1e-9 <= found.low <= found.high <= max(differences) + 1e-9
    assert found.mean == pytest.approx(np.mean(differences), abs=1e-9)
    assert found.n == len(differences)


@given(MANY, NUMBERS)
def test_it_moves_with_the_differences_and_turns_with_their_sign(
    differences: list[float], shift: float
) -> None:
    found = paired_bootstrap(differences, seed=1, resamples=300)
    moved = paired_bootstrap([d + shift for d in differences], seed=1, resamples=300)
    turned = paired_bootstrap([-d for d in differences], seed=1, resamples=300)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-6)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-6)
    assert turned.low == pytest.approx(-found.high, abs=1e-6)


def test_it_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    trials = [rng.normal(0.3, 1.0, 40) for _ in range(300)]
    intervals = [paired_bootstrap(list(t), seed=1, resamples=500) for t in trials]
    covered = np.mean([found.low <= 0.3 <= found.high for found in intervals])
    assert 0.88 <= covered <= 0.98


def test_a_difference_is_told_from_chance_only_if_zero_is_outside() -> None:
    assert paired_bootstrap([1.0, 1.1, 0.9, 1.0], seed=1).tells
    assert paired_bootstrap([-1.0, -1.1, -0.9], seed=1).tells
    assert not paired_bootstrap([1.0, -1.1, 0.9, -1.0], seed=1).tells


@pytest.mark.parametrize(
    ("differences", "level", "words"),
    [
        ([1.0], 0.95, "two differences or more, got 1"),
        ([], 0.95, "two differences or more"),
        ([1.0, float("nan")], 0.95, "leave the undefined pairs out"),
        ([1.0, 2.0], 1.0, "between 0 and 1"),
    ],
)
def test_what_has_no_interval_is_refused(
    differences: list[float], level: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        paired_bootstrap(differences, seed=1, level=level)
