"""Which of two models is champion: the better one, and on a tie the one that is."""

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.promotion import PRIMARY_METRIC, Contender, Kind, compare

unhurried = settings(deadline=None)  # a busy machine is no failure
kinds = st.sampled_from(sorted(PRIMARY_METRIC))
losses = st.floats(0, 10, allow_nan=False)


def contender(version: int, loss: float, kind: str) -> Contender:
    metrics = {PRIMARY_METRIC[kind]: loss, "auc": 1.0 - loss / 20, "rows": 800.0}
    return Contender(version=version, date=date(2013, 1, 28), metrics=metrics)


@unhurried
@given(kind=kinds, mine=losses, theirs=losses)
def test_the_smaller_loss_wins(kind: Kind, mine: float, theirs: float) -> None:
    decision = compare(contender(7, mine, kind), contender(4, theirs, kind), kind)
    assert decision.promoted == (mine < theirs)
    assert (decision.candidate, decision.incumbent) == (7, 4)


@unhurried
@given(kind=kinds, loss=losses)
def test_a_tie_keeps_the_incumbent(kind: Kind, loss: float) -> None:
    decision = compare(contender(7, loss, kind), contender(4, loss, kind), kind)
    assert not decision.promoted
    assert "the incumbent stays" in decision.reason


@unhurried
@given(kind=kinds, mine=losses, theirs=losses)
def test_of_two_models_at_most_one_displaces_the_other(
    kind: Kind, mine: float, theirs: float
) -> None:
    a, b = contender(1, mine, kind), contender(2, theirs, kind)
    assert not (compare(a, b, kind).promoted and compare(b, a, kind).promoted)


@unhurried
@given(kind=kinds, loss=losses)
def test_the_first_to_be_judged_is_champion(kind: Kind, loss: float) -> None:
    decision = compare(contender(1, loss, kind), None, kind)
    assert decision.promoted
    assert decision.incumbent is None


def test_other_metrics_do_not_decide() -> None:
    better_auc = Contender(version=2, date=date(2013, 2, 1), metrics={"log_loss": 0.5, "auc": 0.9})
    champion = Contender(version=1, date=date(2013, 1, 28), metrics={"log_loss": 0.4, "auc": 0.6})
    decision = compare(better_auc, champion, "binary_classification")
    assert not decision.promoted
    assert decision.reason == (
        "version 2 has log_loss 0.5000 on the days after 2013-02-01, version 1 has 0.4000: "
        "the incumbent stays"
    )


@pytest.mark.parametrize("metrics", [{"rows": 0.0}, {"rows": 3.0, "log_loss": float("nan")}])
def test_without_the_deciding_metric_nobody_is_promoted(metrics: dict[str, float]) -> None:
    judged = Contender(version=1, date=date(2013, 1, 28), metrics={"log_loss": 0.5})
    empty = Contender(version=2, date=date(2013, 1, 29), metrics=metrics)
    alone = compare(empty, None, "binary_classification")
    assert not alone.promoted
    assert "has no log_loss" in alone.reason
    assert not compare(empty, judged, "binary_classification").promoted
    # An incumbent that was never measured cannot hold its place against one that was.
    assert compare(judged, empty, "binary_classification").promoted
