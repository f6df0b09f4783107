"""What is off between ledger and projection, and when a champion is rolled back from: decisions."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.errors import SpecError
from platform_assets.domain.live_metric import LiveScore, decide
from platform_assets.domain.reconcile import (
    ALIASES,
    SLOT,
    Act,
    Projection,
    Seen,
    compare,
    drift_alerts,
)
from platform_assets.domain.serving import RollbackTerms, Served
from tests.nyc import changed, flights_spec

ONE, TWO = (Served(version=v, digest=f"{v}" * 64) for v in (1, 2))
LEDGER = Projection(counter=2, aliases={"champion": 2, "challenger": None, "previous": 1}, slot=TWO)
GOOD = Seen(aliases={"champion": 2, "previous": 1}, versions=frozenset({1, 2}), slot=TWO)


def acts(seen: Seen, left: Projection | None = LEDGER, policy: str = "mend") -> dict[str, Act]:
    found = compare(LEDGER, seen, left, policy, known=(1, 2))  # type: ignore[arg-type]
    assert all(drift.reason for drift in found)
    return {drift.what: drift.act for drift in found}


@pytest.mark.parametrize(("policy", "act"), [("mend", Act.MEND), ("hold", Act.HOLD)])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"aliases": {"champion": 1, "previous": 1}}, "alias champion"),
        ({"aliases": {"previous": 1}}, "alias champion"),
        ({"aliases": {"champion": 2, "previous": 1, "challenger": 1}}, "alias challenger"),
        ({"slot": ONE}, SLOT),
        ({"slot": None}, SLOT),
        ({"slot": Served(version=2, digest="ab" * 32)}, SLOT),
        ({"slot": Served(version=None, digest=TWO.digest)}, SLOT),
    ],
)
def test_what_another_hand_changed_is_mended_or_held(
    policy: str, act: Act, change: dict[str, object], what: str
) -> None:
    assert acts(GOOD) == {}
    assert acts(GOOD.model_copy(update=change), policy=policy) == {what: act}


def test_what_lags_behind_the_ledger_follows_and_alerts_nobody() -> None:
    left = Projection(counter=1, aliases={"champion": 1}, slot=ONE)
    seen = Seen(aliases={"champion": 1}, versions=frozenset({1, 2}), slot=ONE)
    found = compare(LEDGER, seen, left, "hold")
    assert {d.what: d.act for d in found} == {
        "alias champion": Act.FOLLOW,
        "alias previous": Act.FOLLOW,
        SLOT: Act.FOLLOW,
    }
    assert drift_alerts("flights", "m", found) == ()
    # Without the note of how it was left, the same state is somebody else's.
    assert Act.HOLD in {d.act for d in compare(LEDGER, seen, None, "hold")}


def test_what_the_ledger_had_since_it_was_left_is_nobody_elses() -> None:
    """Left at 7, 8 was set by one that died before its note, the ledger is at 9."""
    seven, eight, nine = (Served(version=v, digest=f"{v}" * 64) for v in (7, 8, 9))
    left = Projection(counter=1, aliases={"champion": 7}, slot=seven)
    step = Projection(counter=2, aliases={"champion": 8, "previous": 7}, slot=eight)
    should = Projection(counter=3, aliases={"champion": 9, "previous": 8}, slot=nine)
    seen = Seen(aliases={"champion": 8, "previous": 7}, versions=frozenset({7, 8, 9}), slot=eight)
    assert {d.act for d in compare(should, seen, left, "hold")} == {Act.HOLD}
    found = compare(should, seen, left, "hold", since=[step, should])
    assert {d.act for d in found} == {Act.FOLLOW}
    assert len(found) == 3
    elsewhere = seen.model_copy(update={"aliases": {"champion": 6, "previous": 7}})
    acts = {d.what: d.act for d in compare(should, elsewhere, left, "hold", since=[step, should])}
    assert acts["alias champion"] is Act.HOLD


def test_a_champion_without_a_digest_is_told() -> None:
    """Nothing can be compared with it, so nothing is right; and nothing is touched."""
    unknown = LEDGER.model_copy(update={"slot": None})
    for seen in (GOOD, GOOD.model_copy(update={"slot": None, "endpoint": ONE})):
        (drift,) = compare(unknown, seen, LEDGER, "mend")
        assert (drift.what, drift.act) == (SLOT, Act.TELL)
        assert "version 2 is champion and the ledger has no digest" in drift.reason
        (alert,) = drift_alerts("flights", "m", [drift])
        assert "roll back to one" in alert.advice
    # Where there is no champion there is nothing to tell.
    assert compare(Projection(), Seen(slot=TWO), None, "mend") == ()


def test_a_deleted_version_and_an_endpoint_are_told_and_not_touched() -> None:
    seen = GOOD.model_copy(update={"aliases": {"previous": 1}, "versions": frozenset({1})})
    assert acts(seen) == {"alias champion": Act.TELL, "version 2": Act.TELL}
    assert acts(GOOD.model_copy(update={"endpoint": ONE})) == {"endpoint": Act.TELL}
    assert acts(GOOD.model_copy(update={"endpoint_error": "it is down"})) == {"endpoint": Act.TELL}
    assert acts(GOOD.model_copy(update={"endpoint": TWO})) == {}


versions = st.none() | st.integers(1, 4)
served = st.none() | st.builds(Served, version=versions, digest=st.sampled_from(["a", "b", ""]))
projections = st.builds(
    Projection,
    counter=st.integers(0, 3),
    aliases=st.fixed_dictionaries(dict.fromkeys(ALIASES, versions)),
    slot=served,
)


@given(
    projections, projections, st.frozensets(st.integers(1, 4)), st.sampled_from(["mend", "hold"])
)
def test_what_is_applied_leaves_nothing_of_ours_off(
    should: Projection, now: Projection, known: frozenset[int], policy: str
) -> None:
    aliases = {alias: v for alias, v in now.aliases.items() if v is not None}
    seen = Seen(aliases=aliases, versions=known, slot=now.slot)
    ours = {Act.FOLLOW, Act.MEND, Act.HOLD}
    drifts = compare(should, seen, None, policy)  # type: ignore[arg-type]
    for drift in drifts:
        assert policy == "mend" or drift.act is not Act.MEND
        if drift.act in ours and drift.what != SLOT:
            alias = drift.what.removeprefix("alias ")
            version = should.aliases[alias]
            if version is None:
                aliases.pop(alias)
            else:
                aliases[alias] = version
    slot = should.slot if any(d.what == SLOT for d in drifts) else now.slot
    again = compare(
        should,
        Seen(aliases=aliases, versions=known, slot=slot),
        None,
        policy,  # type: ignore[arg-type]
    )
    assert not [d for d in again if d.act in ours]


# --- the live metric

DAY = date(2013, 2, 9)
TERMS = RollbackTerms(bound=0.7, days=2)


def live(n: int, champion: float | None, previous: float | None) -> LiveScore:
    return LiveScore(date=DAY + timedelta(days=n), rows=900, champion=champion, previous=previous)


@pytest.mark.parametrize(
    ("scores", "previous", "roll_back", "why"),
    [
        ([(0.9, 0.5), (0.8, 0.5)], 1, True, "did better each time"),
        ([(0.9, 0.5), (0.8, 0.5)], None, False, "no version that was champion before"),
        ([(0.9, 0.5), (0.8, 0.9)], 1, False, "did no better"),
        ([(0.9, 0.5), (0.7, 0.5)], 1, False, "within its bound"),
        ([(0.9, 0.5), (None, 0.5)], 1, False, "within its bound"),
        ([(0.9, 0.5)], 1, False, "2 are needed"),
        ([(0.1, 0.5), (0.9, 0.5), (0.8, 0.5)], 1, True, "did better each time"),
        ([(0.9, 0.5), (0.8, None)], 1, False, "did no better"),
    ],
)
def test_a_champion_is_rolled_back_from_only_for_a_better_one(
    scores: list[tuple[float | None, float | None]],
    previous: int | None,
    roll_back: bool,
    why: str,
) -> None:
    found = decide(TERMS, "log_loss", 2, previous, [live(n, *s) for n, s in enumerate(scores)])
    assert found.roll_back is roll_back
    assert why in found.reason


@given(st.permutations([live(0, 0.9, 0.5), live(1, 0.8, 0.4), live(2, 0.75, 0.3)]))
def test_the_order_of_the_scores_does_not_matter(scores: list[LiveScore]) -> None:
    assert decide(TERMS, "log_loss", 2, 1, scores).roll_back


def test_of_some_metrics_more_is_better() -> None:
    terms = RollbackTerms(metric="auc", bound=0.6)
    assert decide(terms, "auc", 2, 1, [live(0, 0.5, 0.7)]).roll_back
    assert not decide(terms, "auc", 2, 1, [live(0, 0.7, 0.8)]).past


def test_a_metric_that_the_model_does_not_have_is_refused() -> None:
    good = changed(flights_spec(), serving={"rollback": {"metric": "auc", "bound": 0.6}})
    assert good.serving.rollback is not None
    with pytest.raises(SpecError, match=r"serving\.rollback\.metric.*'rmse'.*log_loss"):
        changed(flights_spec(), serving={"rollback": {"metric": "rmse", "bound": 0.6}})
