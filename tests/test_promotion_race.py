"""Promoters at once: what MLflow's aliases make of it, and what the ledger does.

Model-checked: any sequence of looks, verdicts, promotions, roll backs and holds, against a model
of a few lines; and real processes, of which some are killed with SIGKILL.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from platform_assets.domain.errors import PromotionConflictError, RefusedError
from platform_assets.domain.reconcile import Act
from platform_assets.domain.serving import Served
from platform_assets.line import projection
from platform_assets.line.crowning import CHAMPION_ALIAS
from platform_assets.line.projection import project
from platform_assets.line.services import Services
from resources.ledger import Ledger, engine, open_ledger, upgrade
from resources.ledger.promotions import AliasState
from resources.ledger.records import VersionRecord
from resources.ledger.tables import tables
from resources.tracking import model_digest
from tests.postgres import create_database, drop_database
from tests.promoters import POINTS, AliasFile, Ended, follow, model_folder, race, train
from tests.promoters import services as few_services
from tests.promoting import MODEL, NOON, promoted, verdict

# --- the accident -------------------------------------------------------------------------------


@pytest.fixture
def registry(services: Services) -> Services:
    """Three registered versions; the first is champion, in MLflow and in the ledger."""
    client = services.tracking._client()
    client.create_registered_model(MODEL)
    source = str(services.home.mlflow_artifacts)
    for _ in range(3):
        client.create_model_version(MODEL, source)
    promoted(services.ledger, 1, None)
    project(services)
    return services


def test_on_plain_aliases_two_promoters_both_win(registry: Services) -> None:
    """Each judged its candidate against version 1, and is told that it succeeded."""
    tracking = registry.tracking
    seen = {candidate: tracking.alias(MODEL, CHAMPION_ALIAS) for candidate in (2, 3)}
    assert set(seen.values()) == {1}
    believed = []
    for candidate, champion in seen.items():
        assert champion == 1, "what it was judged against"
        tracking.set_alias(MODEL, CHAMPION_ALIAS, candidate)  # nothing is raised
        believed.append(candidate)
    assert believed == [2, 3]
    # And the last one replaced a version that it never was compared with.
    assert tracking.alias(MODEL, CHAMPION_ALIAS) == 3


def test_by_the_ledger_one_of_two_wins_and_the_alias_is_its(registry: Services) -> None:
    ledger = registry.ledger
    seen = {candidate: ledger.alias_state(MODEL) for candidate in (2, 3)}
    verdicts = {candidate: verdict(ledger, candidate, 1) for candidate in seen}
    believed, lost = [], []
    for candidate, state in seen.items():
        try:
            promoted(ledger, candidate, state, evaluation_id=verdicts[candidate].id)
        except PromotionConflictError as error:
            lost.append((candidate, error.found))
        else:
            believed.append(candidate)
        project(registry)
    assert believed == [2]
    assert lost == [(3, 2)], "told who won"
    assert registry.tracking.alias(MODEL, CHAMPION_ALIAS) == 2


# --- any sequence of calls ----------------------------------------------------------------------

HOUR = timedelta(hours=1)
VERSIONS = st.integers(1, 4)


class LedgerMachine(RuleBasedStateMachine):
    """The ledger beside what it should be."""

    fresh: Callable[[], str]
    """The URL of a ledger in which there is nothing."""
    seen = Bundle("seen")

    @initialize(target=seen)
    def begin(self) -> AliasState | None:
        self.ledger: Ledger = open_ledger(type(self).fresh())
        self.history: list[tuple[str, int, int | None]] = []
        self.verdicts: dict[int, tuple[int, int | None, bool]] = {}
        self.held: dict[int, list[tuple[int, int | None]]] = {}
        self.now = 0
        return None

    @property
    def champion(self) -> int | None:
        return self.history[-1][1] if self.history else None

    def is_held(self, version: int) -> bool:
        return any(until is None or self.now < until for _, until in self.held.get(version, ()))

    @rule(target=seen)
    def look(self) -> AliasState | None:
        return self.ledger.alias_state(MODEL)

    @rule(hours=st.integers(-3, 5))
    def the_clock_jumps(self, hours: int) -> None:
        self.now += hours

    @rule(candidate=VERSIONS, champion=st.none() | VERSIONS, passed=st.booleans())
    def judge_any(self, candidate: int, champion: int | None, passed: bool) -> None:
        found = verdict(self.ledger, candidate, champion, passed=passed)
        self.verdicts[found.id] = (candidate, champion, passed)

    @rule(version=VERSIONS, state=seen, passed=st.booleans())
    def judge_and_promote(self, version: int, state: AliasState | None, passed: bool) -> None:
        champion = state.version if state else None
        found = verdict(self.ledger, version, champion, passed=passed)
        self.verdicts[found.id] = (version, champion, passed)
        self.promote(version, state, found.id)

    @rule(version=VERSIONS, state=seen, number=st.integers(1, 30))
    def promote(self, version: int, state: AliasState | None, number: int) -> None:
        counter = state.counter if state else 0
        mine = self.verdicts.get(number)
        won = (
            counter == len(self.history)
            and version != self.champion
            and mine == (version, self.champion, True)
            and not self.is_held(version)
        )
        error: Exception | None = None
        try:
            promoted(self.ledger, version, state, evaluation_id=number, at=NOON + self.now * HOUR)
        except Exception as raised:
            error = raised
        assert (error is None) == won, error
        if won:
            self.history.append(("promote", version, self.champion))
        elif counter != len(self.history):
            assert isinstance(error, PromotionConflictError)
            assert error.found == self.champion

    @rule(version=VERSIONS, state=seen, hours=st.none() | st.integers(1, 4))
    def roll_back(self, version: int, state: AliasState | None, hours: int | None) -> None:
        if state is None:
            return
        was = version in {entry[1] for entry in self.history}
        fits = was and version != self.champion and not self.is_held(version)
        won = state.counter == len(self.history) and fits
        until = None if hours is None else self.now + hours
        try:
            self.ledger.roll_back(
                "flights",
                MODEL,
                version,
                expected=state,
                reason="off",
                by="bob",
                run_id="run",
                at=NOON + self.now * HOUR,
                hold_until=None if until is None else NOON + until * HOUR,
            )
        except RefusedError:
            assert not won
        else:
            assert won
            number = max(hold.id for hold in self.ledger.holds(MODEL, NOON - 1000 * HOUR))
            self.held.setdefault(state.version, []).append((number, until))
            self.history.append(("rollback", version, state.version))

    @rule(version=VERSIONS)
    def release(self, version: int) -> None:
        for number, _ in self.held.pop(version, ()):
            self.ledger.release_hold(number, NOON)

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "ledger"):
            return
        found = self.ledger.promotions(MODEL)
        assert [(c.action, c.version, c.previous) for c in found] == self.history
        assert [c.counter for c in found] == list(range(1, len(found) + 1))
        state = self.ledger.alias_state(MODEL)
        assert (state.version if state else None) == self.champion
        assert (state.counter if state else 0) == len(self.history)
        known = self.ledger.champion("flights")
        assert (known.version if known else None) == self.champion
        held = {hold.version for hold in self.ledger.holds(MODEL, NOON + self.now * HOUR)}
        assert held == {version for version in self.held if self.is_held(version)}


def check_any_sequence(examples: int, fresh: Callable[[], str]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("LedgerMachine", (LedgerMachine,), {"fresh": staticmethod(fresh)})
    run_state_machine_as_test(
        machine,
        settings=settings(deadline=None, max_examples=examples, stateful_step_count=30),
    )


def test_any_sequence_of_calls_leaves_what_a_model_says(tmp_path: Path) -> None:
    template, numbers = tmp_path / "template.db", count()
    upgrade(f"sqlite:///{template}")
    for left in tmp_path.glob("template.db-*"):
        left.unlink()

    def copied() -> str:
        path = tmp_path / f"{next(numbers)}.db"
        shutil.copyfile(template, path)
        return f"sqlite:///{path}"

    check_any_sequence(25, copied)


@pytest.mark.heavy
def test_any_sequence_of_calls_does_on_postgres(postgres_url: str) -> None:
    names = ", ".join(table.name for table in tables().metadata.sorted_tables)

    def emptied() -> str:
        with engine.writing(postgres_url) as connection:
            connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY"))
        return postgres_url

    check_any_sequence(10, emptied)


# --- real processes -----------------------------------------------------------------------------


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    return url


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    url = create_database(request.getfixturevalue("postgres"))
    upgrade(url)
    yield url
    drop_database(url)


def check(url: str, folder: Path, ended: list[Ended], unsaid: set[int]) -> None:
    """One winner an expected version, a linear history, no lost update; then the alias follows.

    Args:
        unsaid: versions that won, but whose promoter was killed before it could say so.
    """
    ledger = open_ledger(url)
    history = ledger.promotions(MODEL)
    assert [c.counter for c in history] == list(range(1, len(history) + 1))
    assert [c.previous for c in history] == [None, *(c.version for c in history[:-1])]
    state = ledger.alias_state(MODEL)
    assert state is not None
    assert (state.version, state.counter) == (history[-1].version, len(history))
    # Who says that it won did, once, from where it says; nobody else did.
    said = {one.version: one.wins for one in ended if not one.killed}
    assert all(len(wins) == 1 for wins in said.values())
    winners = {c.version: [c.counter - 1] for c in history}
    assert winners == said | {v: winners[v] for v in unsaid}
    # Of all that expected the same, one won.
    expected = Counter(counter for one in ended for counter in one.wins)
    assert set(expected.values()) <= {1}
    # Each change stands on a verdict on its pair.
    verdicts = {v.id: (v.candidate, v.champion) for v in ledger.evaluations(MODEL)}
    assert all(verdicts[c.evaluation_id or 0] == (c.version, c.previous) for c in history)
    mine = few_services(url, folder)
    assert follow(mine) == state.version
    assert AliasFile(folder / "alias").read() == state.version
    # What is served are the files of the ledger's champion, whole.
    files = model_digest(model_folder(folder, state.version))
    assert mine.slot.serves() == Served(version=state.version, digest=files)


def killed_at(number: int) -> str | None:
    """A third of the promoters is killed, at each of the points."""
    return POINTS[number % 15] if number % 15 < len(POINTS) else None


def unsaid(count: int) -> set[int]:
    return {100 + n for n in range(count) if killed_at(n) in POINTS[1:]}


@pytest.mark.heavy
def test_sixteen_promoters_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    ended = race(sqlite_url, tmp_path, 16)
    check(sqlite_url, tmp_path, ended, set())
    assert AliasFile(tmp_path / "alias").read() is not None


@pytest.mark.heavy
def test_sixteen_promoters_on_sqlite_of_whom_some_are_killed(
    sqlite_url: str, tmp_path: Path
) -> None:
    ended = race(sqlite_url, tmp_path, 16, killed_at)
    assert sum(one.killed for one in ended) == 6
    check(sqlite_url, tmp_path, ended, unsaid(16))


@pytest.mark.heavy
@pytest.mark.parametrize("deadly", [False, True])
def test_sixty_four_promoters_on_postgres(postgres_url: str, tmp_path: Path, deadly: bool) -> None:
    ended = race(postgres_url, tmp_path, 64, killed_at if deadly else lambda _: None)
    check(postgres_url, tmp_path, ended, unsaid(64) if deadly else set())


@pytest.mark.parametrize("before", [1, None])
@pytest.mark.parametrize(
    ("point", "alias", "slot"),
    [
        ("before the alias", False, False),
        ("after the alias", True, False),
        ("in the deployment", True, False),
        ("after the deployment", True, True),
    ],
)
def test_a_promoter_that_dies_half_way_leaves_the_rest_behind(
    sqlite_url: str, tmp_path: Path, before: int | None, point: str, alias: bool, slot: bool
) -> None:
    """The failure that a projection mends: without one alias and slot stay where they were."""
    mine = few_services(sqlite_url, tmp_path)
    served: dict[int | None, Served | None] = {None: None}
    if before is not None:
        train(mine.ledger, tmp_path, before)
        promoted(mine.ledger, before, None)
        assert follow(mine) == before
        served[before] = Served(version=before, digest=model_digest(model_folder(tmp_path, before)))
    race(sqlite_url, tmp_path, 1, lambda _: point)
    # Another promotes meanwhile, and dies before it has projected anything.
    train(mine.ledger, tmp_path, 200)
    promoted(mine.ledger, 200, mine.ledger.alias_state(MODEL))
    for new in (100, 200):
        served[new] = Served(version=new, digest=model_digest(model_folder(tmp_path, new)))
    assert mine.tracking.read() == (100 if alias else before)
    assert mine.slot.serves() == served[100 if slot else before]
    with patch.object(projection, "look", mine.tracking.look):
        _, off = projection.differences(mine)
        assert {drift.act for drift in off} == {Act.FOLLOW}, "nothing of it is another hand's"
        assert follow(mine) == 200
        assert mine.slot.serves() == served[200]
        assert projection.differences(mine)[1] == ()


def test_a_challenger_of_who_died_before_the_note_is_nobody_elses(
    sqlite_url: str, tmp_path: Path
) -> None:
    """Twice in succession, and judged anew each time: no change of the champion tells of it."""
    mine = few_services(sqlite_url, tmp_path)
    train(mine.ledger, tmp_path, 1)
    promoted(mine.ledger, 1, None)
    assert follow(mine) == 1
    for candidate in (2, 3):
        judged(mine.ledger, candidate)
        with (
            patch.object(projection, "_note", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            follow(mine)
        assert mine.tracking.read("challenger") == candidate
    mine.tracking.set_alias(MODEL, "challenger", 2)  # as if the second had died before it
    judged(mine.ledger, 4)
    with patch.object(projection, "look", mine.tracking.look):
        (off,) = projection.differences(mine)[1]
        assert (off.what, off.act) == ("alias challenger", Act.FOLLOW)
        assert follow(mine) == 1
        assert mine.tracking.read("challenger") == 4
        # Once it is noted, who sets it back is another hand.
        mine.tracking.set_alias(MODEL, "challenger", 2)
        (off,) = projection.differences(mine)[1]
        assert (off.what, off.act) == ("alias challenger", Act.MEND)


def test_with_a_full_disk_the_decision_stands_and_it_is_said(
    sqlite_url: str, tmp_path: Path
) -> None:
    mine = few_services(sqlite_url, tmp_path)
    train(mine.ledger, tmp_path, 1)
    promoted(mine.ledger, 1, None)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "projecting.json")
    with (
        patch.object(projection, "look", mine.tracking.look),
        patch.object(Path, "write_text", side_effect=full),
    ):
        said = projection.projected(mine)
    assert said is not None
    assert "the ledger has the change, aliases and slot lag behind it" in said
    assert "no space left to write projecting.json" in said
    assert (mine.tracking.read(), mine.slot.serves()) == (None, None)
    assert follow(mine) == 1


def judged(ledger: Ledger, candidate: int) -> None:
    detail = {"model_version": candidate}
    ledger.record_version(
        VersionRecord("flights/evaluation", "2013-01-04", "", None, 1, detail, "run", NOON)
    )


# --- turns --------------------------------------------------------------------------------------


def test_promoters_take_turns_on_postgres_and_nobody_waits_for_ever(postgres_url: str) -> None:
    mine, other = Ledger(postgres_url), Ledger(postgres_url)
    with mine.turn(MODEL) as first:
        assert first
        with other.turn(MODEL, wait=0.05) as second:
            assert not second, "it goes on all the same: the turn guards nothing"
            promoted(other, 2, None)
        with other.turn("grid-forecast", wait=0.05) as another:
            assert another
    with other.turn(MODEL, wait=0.05) as then:
        assert then
    with pytest.raises(PromotionConflictError), other.turn(MODEL):
        promoted(other, 3, None)
    with mine.turn(MODEL, wait=0.05) as left:
        assert left, "an error gives the turn back"


def query(url: str, text: str, **values: object) -> list[tuple[object, ...]]:
    with engine.reading(url) as connection:
        return [tuple(row) for row in connection.execute(sa.text(text), values)]


def test_a_long_turn_is_no_idle_transaction(postgres_url: str) -> None:
    """A server's idle_in_transaction_session_timeout would end it, and the promotion with it."""
    ledger = Ledger(postgres_url)
    with ledger.turn(MODEL) as mine:
        assert mine
        idle = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert query(postgres_url, f"{idle} AND datname = current_database()") == []


def test_who_loses_the_turn_in_between_has_promoted_all_the_same(postgres_url: str) -> None:
    ledger, holders = Ledger(postgres_url), "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
    mine_only = " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    with ledger.turn(MODEL):
        ((pid,),) = query(postgres_url, holders + mine_only)
        query(postgres_url, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        promoted(ledger, 2, None)
        with Ledger(postgres_url).turn(MODEL, wait=0.05) as other:
            assert other, "it was given back"
    assert [c.version for c in ledger.promotions(MODEL)] == [2]
    assert query(postgres_url, holders + mine_only) == []
    assert query(postgres_url, "SHOW lock_timeout") == [("0",)]


def test_on_sqlite_nobody_queues(sqlite_url: str) -> None:
    ledger = open_ledger(sqlite_url)
    with ledger.turn(MODEL) as first, ledger.turn(MODEL) as second:
        assert (first, second) == (False, False)
        promoted(ledger, 2, None)
