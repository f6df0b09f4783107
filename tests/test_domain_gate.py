"""The gate's decision, and the numbers that it is made of."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import SpecError
from platform_assets.domain.gate import (
    Calibration,
    Evidence,
    GateReport,
    GateTerms,
    Interval,
    Scored,
    judge,
)
from resources.evidence import calibration_of, losses, paired_interval
from tests.nyc import changed, flights_spec

unhurried = settings(deadline=None)
numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


def scores(version: int, metric: float, **changes: Any) -> Scored:
    fields: dict[str, Any] = {"calibration": Calibration(bias=0.02, ece=0.03)}
    return Scored(version=version, metric=metric, **(fields | changes))


def evidence(**changes: Any) -> Evidence:
    """A candidate that is proven better, unless something is changed."""
    fields: dict[str, Any] = {
        "metric": "log_loss",
        "rows": 2500,
        "blocks": 9,
        "against": 4,
        "candidate": scores(7, 0.40, slices={"carrier=UA": 0.40, "carrier=OO": 0.9}),
        "champion": scores(4, 0.42, slices={"carrier=UA": 0.41, "carrier=OO": 0.4}),
        "interval": Interval(difference=0.02, low=0.01, high=0.03),
        "slice_rows": {"carrier=UA": 400, "carrier=OO": 3},
    }
    return Evidence(**(fields | changes))


def report(terms: GateTerms | None = None, **changes: Any) -> GateReport:
    return judge(evidence(**changes), terms or GateTerms())


# --- the decision -------------------------------------------------------------------------------


def test_a_candidate_that_is_proven_better_passes() -> None:
    found = report()
    assert (found.passed, found.failed) == (True, ())
    assert (found.candidate, found.champion) == (7, 4)
    assert found.reason == (
        "version 7 has log_loss 0.4000 on 2500 rows, version 4 has 0.4200: better by 0.0200 "
        "(0.0100 to 0.0300)"
    )


def test_as_good_is_not_better() -> None:
    found = report(
        candidate=scores(7, 0.42),
        champion=scores(4, 0.42),
        slice_rows={},
        interval=Interval(difference=0, low=0, high=0),
    )
    assert found.failed == ("improvement",)
    assert "version 7 is refused, version 4 stays champion" in found.reason
    assert "it is not proven better than version 4" in found.reason


@pytest.mark.parametrize(
    ("changes", "failed", "said"),
    [
        ({"rows": 29}, "sample", "29 rows in 9 blocks are too few to tell"),
        ({"blocks": 5}, "sample", "2500 rows in 5 blocks are too few"),
        (
            {"interval": Interval(difference=0.02, low=-0.01, high=0.05)},
            "improvement",
            "lies between -0.0100 and 0.0500 at 95%, it has to lie above 0",
        ),
        (
            {"interval": Interval(difference=-0.2, low=-0.3, high=-0.1)},
            "improvement",
            "it is worse than version 4 by 0.2000 (0.1000 to 0.3000) at 95%",
        ),
        ({"interval": None}, "improvement", "cannot be told"),
        (
            {"interval": Interval(difference=math.nan, low=math.nan, high=math.nan)},
            "improvement",
            "cannot be told",
        ),
        (
            {"slice_rows": {"carrier=UA": 400, "carrier=OO": 100}},
            "slices",
            "carrier=OO has 0.9000, version 4 has 0.4000",
        ),
        (
            {"candidate": scores(7, 0.40, calibration=Calibration(bias=-0.3)), "slice_rows": {}},
            "calibration",
            "bias is 0.300, allowed is 0.25",
        ),
        (
            {
                "candidate": scores(7, 0.4, calibration=Calibration(bias=0, ece=math.nan)),
                "slice_rows": {},
            },
            "calibration",
            "ECE is nan",
        ),
        ({"unexplained": ("waiver W-0001 was revoked",)}, "data", "W-0001 was revoked"),
        ({"held": ("it is held",)}, "hold", "it is held"),
    ],
)
def test_each_condition_refuses_alone(changes: dict[str, Any], failed: str, said: str) -> None:
    found = report(**changes)
    assert not found.passed
    assert found.failed == (failed,)
    assert said in found.reason


def test_a_slice_that_nobody_scored_is_worse() -> None:
    assert report(slice_rows={"carrier=AA": 500}).failed == ("slices",)


def test_a_bad_day_for_both_is_no_fault_of_the_candidate() -> None:
    off = Calibration(bias=0.3)
    mine = scores(7, 0.4, calibration=off)
    assert report(candidate=mine, slice_rows={}).failed == ("calibration",)
    theirs = scores(4, 0.42, calibration=Calibration(bias=-0.31))
    assert report(candidate=mine, champion=theirs, slice_rows={}).passed


def test_the_first_is_compared_with_none_and_has_to_be_sound() -> None:
    first: dict[str, Any] = {"champion": None, "against": None, "interval": None, "blocks": 1}
    found = report(**first)
    assert found.passed
    assert "compared with none: there is no champion" in found.reason
    assert report(**first, candidate=scores(7, math.nan)).failed == ("improvement",)
    assert report(**first, rows=2).failed == ("sample",)
    assert "refused (sample" in report(**first, rows=2).reason
    assert "it was revoked" in report(**first | {"against": 4}, absent="it was revoked").reason


@unhurried
@given(numbers, numbers, numbers, numbers, st.integers(0, 60), st.integers(0, 12))
def test_what_passes_against_a_champion_is_better_whatever_the_numbers(
    mine: float, low: float, bias: float, ece: float, rows: int, blocks: int
) -> None:
    found = report(
        candidate=scores(7, mine, calibration=Calibration(bias=bias, ece=ece)),
        slice_rows={},
        interval=Interval(difference=low, low=low, high=low),
        rows=rows,
        blocks=blocks,
    )
    if found.passed:
        assert all(map(math.isfinite, (mine, low, bias, ece)))
        assert low > 0
        assert rows >= 30
        assert blocks >= 6
        assert abs(bias) <= 0.25
    else:
        assert found.failed
        assert found.reason
    # What is kept is JSON, and reads back as what it was.
    again = GateReport.model_validate_json(found.model_dump_json())
    assert again.model_dump_json() == found.model_dump_json()


@pytest.mark.parametrize(
    ("gate", "field"),
    [
        ({"slices": ["tailnum"]}, "evaluation.gate.slices.0"),
        ({"confidence": 1.0}, "evaluation.gate.confidence"),
        ({"min_rows": 0}, "evaluation.gate.min_rows"),
        ({"margin": 1}, "evaluation.gate.margin"),
    ],
)
def test_wrong_terms_are_refused_by_the_name_of_their_field(
    gate: dict[str, object], field: str
) -> None:
    with pytest.raises(SpecError) as error:
        changed(flights_spec(), evaluation={"gate": gate})
    assert list(error.value.problems) == [field]


# --- the numbers --------------------------------------------------------------------------------

TERMS = GateTerms(resamples=500)


def days(count: int, rows: int, seed: int, spread: float) -> tuple[Any, Any, Any]:
    """Losses of two equally good models: each block is easier for one of them, by chance."""
    random = np.random.default_rng(seed)
    blocks = np.repeat(np.arange(count), rows)
    base = random.gamma(2.0, 0.2, count * rows)
    return base + random.normal(0, spread, count)[blocks], base, blocks


@unhurried
@given(st.integers(0, 10_000))
def test_a_model_against_itself_differs_by_nothing(seed: int) -> None:
    mine, _, blocks = days(6, 20, seed, 0.1)
    found = paired_interval("binary_classification", mine, mine, blocks, TERMS)
    assert (found.difference, found.low, found.high) == (0, 0, 0)


@unhurried
@given(st.integers(0, 10_000), st.sampled_from(["binary_classification", "regression"]))
def test_the_interval_is_paired_seeded_and_turns_with_its_sides(seed: int, kind: Any) -> None:
    mine, theirs, blocks = days(6, 20, seed, 0.01)
    mine, theirs = np.abs(mine), np.abs(theirs)
    found = paired_interval(kind, mine, theirs, blocks, TERMS)
    assert found == paired_interval(kind, mine, theirs, blocks, TERMS)
    turned = paired_interval(kind, theirs, mine, blocks, TERMS)
    assert turned.low == pytest.approx(-found.high)
    assert turned.difference == pytest.approx(-found.difference)
    better = paired_interval("binary_classification", theirs - 0.05, theirs, blocks, TERMS)
    # Paired: what is hard for both does not blur that one is better everywhere.
    assert better.low == pytest.approx(0.05)
    assert better.high == pytest.approx(0.05)


def test_rows_of_one_day_taken_for_independent_prove_what_is_chance() -> None:
    """Two equally good models; blocks are nine days: how often is one called proven better?"""
    by_rows = by_blocks = 0
    for seed in range(100):
        mine, theirs, blocks = days(9, 200, seed, 0.05)
        terms = GateTerms(resamples=200)
        apart = np.arange(len(blocks))
        by_rows += paired_interval("binary_classification", mine, theirs, apart, terms).low > 0
        by_blocks += paired_interval("binary_classification", mine, theirs, blocks, terms).low > 0
    assert by_rows > 30
    assert by_blocks <= 12


def test_losses_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    random = np.random.default_rng(1)
    target = random.integers(0, 2, 500).astype(float)
    predictions = np.concatenate([random.random(498), [0.0, 1.0]])
    mine = losses("binary_classification", target, predictions).mean()
    assert mine == pytest.approx(metrics.log_loss(target, predictions), rel=1e-6)
    squared = losses("regression", target, predictions).mean()
    assert math.sqrt(squared) == pytest.approx(metrics.root_mean_squared_error(target, predictions))


def test_calibration_tells_how_far_predictions_lie_off() -> None:
    target = np.asarray([0.0, 1.0] * 50)
    fair = calibration_of("binary_classification", target, np.full(100, 0.5))
    assert (fair.bias, fair.ece) == (0, 0)
    sure = calibration_of("binary_classification", target, np.asarray([1.0, 0.0] * 50))
    assert sure.bias == 0
    assert sure.ece == 1
    off = calibration_of("regression", target, target + 1)
    assert off.ece is None
    assert off.bias == pytest.approx(2)
