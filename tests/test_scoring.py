"""Scores of predictions, against the formulas by hand, and where they are not defined."""

import math
import random
from collections.abc import Sequence
from datetime import date
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import RefusedError
from resources.scoring import score
from tests.nyc import changed, flights_spec

SPEC = flights_spec()
AT_2 = changed(SPEC, evaluation={"ndcg_at": 2})
REGRESSION = changed(
    SPEC,
    model={"kind": "regression"},
    dataset={"target": {"name": "delay", "expression": "arr_delay"}, "relevance": None},
)
MONDAY, TUESDAY = date(2013, 1, 7), date(2013, 1, 8)


def judged(
    target: Sequence[float], gains: Sequence[float], days: Sequence[date] | None = None
) -> pa.Table:
    return pa.table(
        {
            "date": pa.array(days or [MONDAY] * len(target), pa.date32()),
            "delayed": pa.array(target, pa.int8()),
            "relevance": pa.array(gains, pa.float64()),
        }
    )


def dcg(gains: Sequence[float], k: int) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains[:k]))


def ndcg(gains: Sequence[float], predictions: Sequence[float], k: int) -> float:
    ranked = [g for _, g in sorted(zip(predictions, gains, strict=True), reverse=True)]
    return dcg(ranked, k) / dcg(sorted(gains, reverse=True), k)


def test_a_classification_has_three_metrics() -> None:
    target, predictions = [1, 0, 1, 0, 1], [0.9, 0.2, 0.4, 0.6, 0.7]
    result = score(AT_2, judged(target, [30, 0, 20, 0, 90]), np.array(predictions))
    assert set(result) == {"rows", "log_loss", "auc", "ndcg_at_2"}
    assert result["rows"] == 5
    losses = [-math.log(p if t else 1 - p) for t, p in zip(target, predictions, strict=True)]
    assert result["log_loss"] == pytest.approx(sum(losses) / 5)
    pairs = list(product([0.9, 0.4, 0.7], [0.2, 0.6]))
    assert result["auc"] == pytest.approx(sum(late > other for late, other in pairs) / len(pairs))
    assert result["ndcg_at_2"] == pytest.approx(ndcg([30, 0, 20, 0, 90], predictions, 2))


def test_the_ranking_is_that_of_each_day() -> None:
    gains, predictions = [10, 50, 0, 5], [0.9, 0.1, 0.3, 0.8]
    days = [MONDAY, MONDAY, TUESDAY, TUESDAY]
    result = score(AT_2, judged([1, 1, 0, 1], gains, days), np.array(predictions))
    by_day = [ndcg(gains[:2], predictions[:2], 2), ndcg(gains[2:], predictions[2:], 2)]
    assert result["ndcg_at_2"] == pytest.approx(sum(by_day) / 2)
    assert result["ndcg_at_2"] != pytest.approx(ndcg(gains, predictions, 2))


def test_only_the_first_places_count() -> None:
    gains = [float(i) for i in range(1, 101)]
    perfect, first_two = np.linspace(0.01, 0.99, 100), np.linspace(0.01, 0.5, 100)
    first_two[-2:] = [0.98, 0.99]
    first_two[:98] = first_two[:98][::-1]
    for predictions in (perfect, first_two):
        assert score(AT_2, judged([1] * 100, gains), predictions)["ndcg_at_2"] == 1
    fifty = score(SPEC, judged([1] * 100, gains), first_two)["ndcg_at_50"]
    assert fifty == pytest.approx(ndcg(gains, first_two.tolist(), 50))
    assert fifty < 0.8


def test_days_without_a_ranking_do_not_enter_the_mean() -> None:
    days = [MONDAY, MONDAY, TUESDAY, TUESDAY]
    both = score(AT_2, judged([1, 1, 0, 0], [1, 9, 0, 0], days), np.array([0.9, 0.1, 0.3, 0.8]))
    assert both["ndcg_at_2"] == pytest.approx(ndcg([1, 9], [0.9, 0.1], 2))
    single = judged([1, 1, 1], [1, 9, 5], [MONDAY, MONDAY, TUESDAY])
    assert score(AT_2, single, np.array([0.9, 0.1, 0.5]))["ndcg_at_2"] == both["ndcg_at_2"]


def test_what_is_not_defined_is_left_out() -> None:
    no_gain = score(SPEC, judged([1, 0], [0, 0]), np.array([0.5, 0.4]))
    assert set(no_gain) == {"rows", "log_loss", "auc"}
    one_class = score(SPEC, judged([0, 0], [0, 3]), np.array([0.5, 0.4]))
    assert set(one_class) == {"rows", "log_loss", "ndcg_at_50"}
    one_row = score(SPEC, judged([1], [3]), np.array([0.5]))
    assert one_row == {"rows": 1, "log_loss": pytest.approx(math.log(2))}
    assert score(SPEC, judged([], []), np.array([])) == {"rows": 0}
    assert score(REGRESSION, pa.table({"delay": pa.array([], pa.float64())}), np.array([])) == {
        "rows": 0
    }


def test_certainty_that_was_wrong_costs_much_but_is_finite() -> None:
    loss = score(SPEC, judged([1, 0], [3, 0]), np.array([0.0, 1.0]))["log_loss"]
    assert 20 < loss < 100


def test_a_regression_has_two_metrics() -> None:
    table = pa.table({"date": [MONDAY] * 2, "delay": [10.0, -5.0]})
    result = score(REGRESSION, table, np.array([13.0, -9.0]))
    assert result == {
        "rows": 2,
        "rmse": pytest.approx(math.sqrt((9 + 16) / 2)),
        "mae": pytest.approx(3.5),
    }


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([0.5], r"predictions of shape \(1,\) for 2 rows"),
        ([[0.5, 0.5], [0.1, 0.9]], r"predictions of shape \(2, 2\) for 2 rows"),
        ([0.5, math.nan], "gave 1 predictions that are no finite number"),
        ([0.5, 1.5], "from 0.5 to 1.5; a probability lies between 0 and 1"),
    ],
)
def test_predictions_that_cannot_be_judged(predictions: list[float], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        score(SPEC, judged([1, 0], [3, 0]), np.array(predictions))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from([0.0, 5.0, 60.0]),
            st.sampled_from([MONDAY, TUESDAY]),
            st.sampled_from([0.1, 0.5, 0.500001, 0.9]),
        ),
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_rows_does_not_matter(
    rows: list[tuple[int, float, date, float]], rng: random.Random
) -> None:
    """Also where predictions are tied: LightGBM gives rows of one leaf the same one."""

    def scored(rows: list[tuple[int, float, date, float]]) -> dict[str, float]:
        table = judged([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
        return score(AT_2, table, np.array([r[3] for r in rows]))

    mixed = list(rows)
    rng.shuffle(mixed)
    assert scored(mixed) == pytest.approx(scored(rows))
