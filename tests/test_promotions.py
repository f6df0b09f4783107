"""The promotion ledger: one winner an expected version, a linear history, nothing unproven."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from platform_assets.domain.errors import PromotionConflictError, RefusedError, UsageError
from platform_assets.domain.lease import Lease, LeaseLostError, Taken
from resources import processes
from resources.ledger import Ledger, engine, open_ledger, upgrade
from resources.ledger.leases import Leases
from resources.ledger.promotions import AliasState, PromotionRecord
from resources.ledger.tables import tables
from tests.postgres import create_database, drop_database
from tests.promoting import MODEL, NOON, crowned, promoted, verdict
from tests.test_ledger import alembic_config

HOUR = timedelta(hours=1)


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a schema, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    made = create_database(request.getfixturevalue("postgres"))
    yield made
    drop_database(made)


@pytest.fixture
def ledger(empty: str) -> Ledger:
    upgrade(empty)
    return open_ledger(empty)


def in_force(ledger: Ledger) -> AliasState:
    found = ledger.alias_state(MODEL)
    assert found is not None
    return found


def steps(history: list[PromotionRecord]) -> list[tuple[int | None, int, int]]:
    return [(p.previous, p.version, p.counter) for p in history]


def everything(ledger: Ledger) -> list[list[tuple[object, ...]]]:
    """All rows that a promotion may touch."""
    t = tables()
    with engine.reading(ledger.url) as connection:
        return [
            [tuple(row) for row in connection.execute(table.select())]
            for table in (t.alias_states, t.promotions, t.evaluations, t.holds)
        ]


@pytest.fixture
def refused(ledger: Ledger) -> Callable[..., str]:
    """Call something that is refused, leaving the ledger as it was; what it says."""

    def call(kind: type[Exception], work: Callable[[], object]) -> str:
        before = everything(ledger)
        with pytest.raises(kind) as error:
            work()
        assert everything(ledger) == before
        assert "\n" not in str(error.value)
        return str(error.value)

    return call


# --- compare and swap ---------------------------------------------------------------------------


def test_each_change_is_one_line_of_history(ledger: Ledger) -> None:
    assert ledger.alias_state(MODEL) is None
    assert ledger.champion("flights") is None
    assert ledger.promotions(MODEL) == []
    made = [crowned(ledger, version) for version in (4, 7, 5)]
    assert ledger.promotions(MODEL) == made
    assert [(p.previous, p.version, p.counter) for p in made] == [
        (None, 4, 1),
        (4, 7, 2),
        (7, 5, 3),
    ]
    state = in_force(ledger)
    assert (state.version, state.counter, state.changed_at) == (5, 3, made[-1].decided_at)
    assert [c.version for c in ledger.champions("flights")] == [4, 7, 5]
    found = ledger.champion("flights")
    assert found is not None
    assert (found.version, found.model, found.reason) == (5, MODEL, "it was better")
    assert ledger.champions("trains") == []
    assert ledger.alias_state(MODEL, "challenger") is None


def test_who_comes_second_is_told_who_won_and_what_to_do(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    crowned(ledger, 4)
    seen = in_force(ledger)
    mine = verdict(ledger, 7, 4)
    promoted(ledger, 5, seen, by="bob")
    with pytest.raises(PromotionConflictError) as error:
        promoted(ledger, 7, seen, evaluation_id=mine.id)
    assert (error.value.expected, error.value.found, error.value.version) == (4, 5, 7)
    assert not error.value.retryable
    said = refused(PromotionConflictError, lambda: promoted(ledger, 7, seen, evaluation_id=mine.id))
    assert "version 7 was to replace version 4, but version 5 is in force" in said
    assert "change 2: version 5, promote by bob at " in said
    assert "Evaluate version 7 against it" in said
    # What it is told to do works.
    assert promoted(ledger, 7, in_force(ledger)).previous == 5


def test_of_two_first_champions_one_wins(ledger: Ledger, refused: Callable[..., str]) -> None:
    crowned(ledger, 4)
    verdict_of_none = verdict(ledger, 5, None)
    said = refused(
        PromotionConflictError,
        lambda: promoted(ledger, 5, None, evaluation_id=verdict_of_none.id),
    )
    assert "was to replace no version, but version 4 is in force" in said


def test_a_version_that_came_back_is_not_taken_for_one_that_stayed(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    """3, 5, 3: who compares versions alone would win, with a verdict from before the roll back."""
    crowned(ledger, 3)
    seen = in_force(ledger)
    mine = verdict(ledger, 7, 3)
    crowned(ledger, 5)
    back(ledger, 3)
    assert in_force(ledger).version == seen.version
    refused(PromotionConflictError, lambda: promoted(ledger, 7, seen, evaluation_id=mine.id))
    # Without the counter it is not noticed.
    careless = replace(seen, counter=in_force(ledger).counter)
    assert promoted(ledger, 7, careless, evaluation_id=mine.id).version == 7


def test_the_database_itself_keeps_the_history_linear(ledger: Ledger) -> None:
    crowned(ledger, 4)
    t = tables().promotions
    with engine.reading(ledger.url) as connection:
        row = dict(connection.execute(t.select()).one()._mapping)
    row.pop("id")
    with pytest.raises(sa.exc.IntegrityError), engine.writing(ledger.url) as connection:
        connection.execute(t.insert(), row | {"version": 9})


def test_another_models_alias_is_another_matter(ledger: Ledger) -> None:
    crowned(ledger, 4)
    other = verdict(ledger, 1, None, model="grid-forecast", pipeline="grid_load")
    ledger.promote(
        *("grid_load", "grid-forecast", 1),
        model_date=date(2013, 1, 4),
        expected=None,
        evaluation_id=other.id,
        reason="first",
        by="ann",
        run_id="run",
        at=NOON,
    )
    assert in_force(ledger).version == 4
    assert [c.version for c in ledger.champions("grid_load")] == [1]
    with pytest.raises(ValueError, match="is not the state of"):
        promoted(ledger, 5, replace(in_force(ledger), model="grid-forecast"))


# --- what may not be promoted -------------------------------------------------------------------


def test_a_promotion_without_a_verdict_is_refused(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    said = refused(UsageError, lambda: promoted(ledger, 4, None, evaluation_id=99))
    assert "has no evaluation 99" in said
    assert ledger.alias_state(MODEL) is None


def test_a_verdict_on_another_pair_promotes_nothing(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    crowned(ledger, 4)
    state = in_force(ledger)
    for candidate, champion in ((5, 4), (7, None), (7, 3), (4, 7)):
        others = verdict(ledger, candidate, champion)
        said = refused(
            RefusedError, lambda others=others: promoted(ledger, 7, state, evaluation_id=others.id)
        )
        assert f"is of version {candidate} against" in said
        assert "says nothing of version 7 against champion 4" in said
    foreign = verdict(ledger, 7, 4, model="grid-forecast")
    refused(UsageError, lambda: promoted(ledger, 7, state, evaluation_id=foreign.id))


def test_a_verdict_that_did_not_pass_promotes_nothing(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    worse = verdict(ledger, 4, None, passed=False)
    said = refused(RefusedError, lambda: promoted(ledger, 4, None, evaluation_id=worse.id))
    assert "did not pass its evaluation against no champion (it is worse)" in said


@pytest.mark.parametrize(
    ("judged", "now"), [("ab" * 32, "cd" * 32), ("ab" * 32, None), (None, "cd" * 32)]
)
def test_a_verdict_on_other_files_of_the_same_number_promotes_nothing(
    ledger: Ledger, refused: Callable[..., str], judged: str | None, now: str | None
) -> None:
    asked = {"asked": {"digests": {"candidate": judged, "champion": None}}} if judged else {}
    found = verdict(ledger, 4, None, report={"reason": "it is better", **asked})
    said = refused(
        RefusedError, lambda: promoted(ledger, 4, None, evaluation_id=found.id, digest=now)
    )
    assert "each needs a verdict of its own" in said
    assert f"has {now or 'none'} by now" in said
    # The pair is the right one, and the verdict passed: by the numbers alone it would be promoted.
    assert promoted(ledger, 4, None, evaluation_id=found.id, digest=judged).version == 4


def test_what_is_champion_is_not_promoted_again(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    crowned(ledger, 4)
    itself = verdict(ledger, 4, 4)
    said = refused(
        RefusedError, lambda: promoted(ledger, 4, in_force(ledger), evaluation_id=itself.id)
    )
    assert "version 4 is champion already" in said


def test_the_newest_verdict_on_a_pair_is_found(ledger: Ledger) -> None:
    first, second = verdict(ledger, 7, 4), verdict(ledger, 7, 4, passed=False)
    none = verdict(ledger, 7, None)
    assert ledger.evaluation(MODEL, 7, 4) == second
    assert ledger.evaluation(MODEL, 7, None) == none
    assert ledger.evaluation(MODEL, 7, 5) is None
    assert ledger.evaluation(MODEL, 4, 7) is None
    assert ledger.evaluations(MODEL, 7) == [first, second, none]
    assert ledger.evaluations(MODEL) == [first, second, none]
    assert ledger.evaluations("grid-forecast") == []


# --- roll back and holds ------------------------------------------------------------------------


def back(ledger: Ledger, version: int, **changes: object) -> PromotionRecord:
    fields: dict[str, object] = {
        "expected": in_force(ledger),
        "reason": "off by a quarter",
        "by": "bob",
        "run_id": "run",
        "at": NOON,
    }
    return ledger.roll_back("flights", MODEL, version, **(fields | changes))  # type: ignore[arg-type]


def test_a_roll_back_holds_what_it_left(ledger: Ledger, refused: Callable[..., str]) -> None:
    crowned(ledger, 4, model_date=date(2013, 1, 2))
    crowned(ledger, 7)
    record = back(ledger, 4)
    assert (record.action, record.version, record.previous) == ("rollback", 4, 7)
    assert (record.model_date, record.evaluation_id) == (date(2013, 1, 2), None)
    (hold,) = ledger.holds(MODEL, NOON)
    assert (hold.version, hold.until, hold.by) == (7, None, "bob")
    said = refused(RefusedError, lambda: promoted(ledger, 7, in_force(ledger), evaluation_id=2))
    assert "version 7 is held until it is released by bob: off by a quarter" in said
    assert f"release-hold PIPELINE {hold.id}" in said
    ledger.release_hold(hold.id, NOON)
    assert ledger.holds(MODEL, NOON) == []
    refused(UsageError, lambda: ledger.release_hold(hold.id, NOON))
    assert promoted(ledger, 7, in_force(ledger)).version == 7


def test_a_hold_ends_on_the_pipelines_clock(ledger: Ledger) -> None:
    crowned(ledger, 4)
    crowned(ledger, 7)
    back(ledger, 4, hold_until=NOON + HOUR)
    for at in (NOON - 10 * HOUR, NOON, NOON + timedelta(minutes=59)):
        with pytest.raises(RefusedError, match="held until 2013-01-05 13:00Z"):
            crowned(ledger, 7, at=at)
    assert crowned(ledger, 7, at=NOON + HOUR).version == 7


def test_a_roll_back_goes_to_what_was_champion_and_is_free(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    crowned(ledger, 4)
    crowned(ledger, 7)
    said = refused(RefusedError, lambda: back(ledger, 5))
    assert "version 5 was never champion" in said
    assert "is champion already" in refused(RefusedError, lambda: back(ledger, 7))
    stale = replace(in_force(ledger), version=4, counter=1)
    refused(PromotionConflictError, lambda: back(ledger, 4, expected=stale))
    ledger.hold(MODEL, 4, reason="it leaks", by="ann", since=NOON)
    assert "it leaks" in refused(RefusedError, lambda: back(ledger, 4))


# --- fencing ------------------------------------------------------------------------------------


def test_a_promoter_that_slept_through_its_lease_cannot_win(
    ledger: Ledger, refused: Callable[..., str]
) -> None:
    leases = Leases(ledger.url)
    me = processes.holder("sleeper")
    mine = leases.claim("flights/champion", me)
    assert isinstance(mine, Lease)
    seen = leases.claim("flights/champion", replace(me, run_id="other", machine="elsewhere"))
    assert isinstance(seen, Taken)
    later = leases.claim("flights/champion", replace(me, run_id="other"), over=seen)
    assert isinstance(later, Lease)
    passed = verdict(ledger, 4, None)
    refused(
        LeaseLostError,
        lambda: promoted(ledger, 4, None, evaluation_id=passed.id, lease=mine),
    )
    assert promoted(ledger, 4, None, evaluation_id=passed.id, lease=later).version == 4
    crowned(ledger, 5)
    refused(LeaseLostError, lambda: back(ledger, 4, lease=mine))


# --- from before --------------------------------------------------------------------------------


def test_the_champions_of_before_are_the_beginning_of_the_history(empty: str) -> None:
    plain = sa.create_engine(empty)
    with plain.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        for number, (pipeline, version) in enumerate([("a", 4), ("b", 1), ("a", 7), ("a", 4)]):
            connection.execute(
                sa.text(
                    "INSERT INTO champions (pipeline, model, version, model_date, reason, "
                    "decided_at, run_id) VALUES (:pipeline, :model, :version, '2013-01-28', 'why', "
                    ":at, 'run')"
                ),
                {
                    "pipeline": pipeline,
                    "model": f"model-{pipeline}",
                    "version": version,
                    "at": f"2013-02-0{number + 1}T12:00:00.000000Z",
                },
            )
    plain.dispose()
    upgrade(empty)
    ledger = open_ledger(empty)
    assert [c.version for c in ledger.champions("a")] == [4, 7, 4]
    found = ledger.promotions("model-a")
    assert [(p.previous, p.version, p.counter) for p in found] == [
        (None, 4, 1),
        (4, 7, 2),
        (7, 4, 3),
    ]
    assert {p.action for p in found} == {"promote"}
    state = ledger.alias_state("model-a")
    assert state is not None
    assert (state.version, state.counter) == (4, 3)
    assert state.changed_at == datetime.fromisoformat("2013-02-04T12:00:00+00:00")
    other = ledger.alias_state("model-b")
    assert other is not None
    assert (other.version, other.counter) == (1, 1)
    passed = verdict(ledger, 9, 4, model="model-a")
    ledger.promote(
        *("a", "model-a", 9),
        model_date=date(2013, 1, 4),
        expected=state,
        evaluation_id=passed.id,
        reason="on it goes",
        by="ann",
        run_id="run",
        at=NOON,
    )
    assert ledger.promotions("model-a")[-1].counter == 4
