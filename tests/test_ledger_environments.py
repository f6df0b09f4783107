"""Environments and canaries in the ledger, on SQLite and on Postgres."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from platform_assets.domain.errors import RefusedError
from resources.ledger import Ledger, environments, open_ledger, upgrade
from resources.ledger.environments import CanaryNeeded, CanaryRecord, Environments
from tests.postgres import create_database, drop_database
from tests.promoting import MODEL, NOON, crowned, promoted

RECORD = CanaryRecord(
    pipeline="flights",
    model=MODEL,
    champion=1,
    digest="d" * 64,
    then="a" * 64,
    now="b" * 64,
    passed=True,
    report={"measures": []},
    by="ann",
    run_id="run",
    recorded_at=NOON,
)
NEEDED = CanaryNeeded(1, "d" * 64, "a" * 64, "b" * 64, None)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path}/ledger.db"
        upgrade(found)
        yield found
        return
    found = create_database(request.getfixturevalue("postgres"))
    upgrade(found)
    yield found
    drop_database(found)


@pytest.fixture
def kept(url: str) -> Environments:
    return Environments(url)


@pytest.fixture
def ledger(url: str) -> Ledger:
    return open_ledger(url)


def test_an_environment_is_kept_once(kept: Environments) -> None:
    document = {"python": "3.11", "debian": {"libc6:amd64": "2.36"}}
    assert kept.find("a" * 64) is None
    assert kept.note("a" * 64, document)
    assert not kept.note("a" * 64, {"other": 1})
    environments._noted.clear()  # as another process would
    assert not kept.note("a" * 64, {"other": 1})
    assert kept.find("a" * 64) == document


def test_the_newest_canary_of_exactly_the_pair_is_found(kept: Environments) -> None:
    first = kept.record_canary(RECORD)
    second = kept.record_canary(replace(RECORD, passed=False))
    other = kept.record_canary(replace(RECORD, now="c" * 64))
    assert kept.canaries(MODEL) == [first, second, other]
    pair = (1, "d" * 64, "a" * 64)
    assert kept.canary(MODEL, *pair, "b" * 64) == second
    assert kept.canary(MODEL, *pair, "c" * 64) == other
    assert kept.canary(MODEL, *pair, "e" * 64) is None
    assert kept.canary("other", *pair, "b" * 64) is None


def test_the_transaction_that_promotes_asks_for_the_canary_of_the_decision(
    kept: Environments, ledger: Ledger
) -> None:
    crowned(ledger, 1)
    state = ledger.alias_state(MODEL)
    with pytest.raises(RefusedError, match="there is none"):
        promoted(ledger, 2, state, canary=NEEDED)
    first = kept.record_canary(RECORD)
    with pytest.raises(RefusedError, match=f"the newest is canary {first.id}"):
        promoted(ledger, 2, state, canary=NEEDED)
    later = kept.record_canary(RECORD)
    with pytest.raises(RefusedError, match=f"the newest is canary {later.id}"):
        promoted(ledger, 2, state, canary=replace(NEEDED, canary=first.id))
    assert ledger.alias_state(MODEL) == state, "nothing was changed"
    assert promoted(ledger, 2, state, canary=replace(NEEDED, canary=later.id)).version == 2


def test_without_being_asked_for_nothing_holds_it(kept: Environments, ledger: Ledger) -> None:
    """What the ledger does not know of it cannot ask for: whoever promotes has to say so."""
    crowned(ledger, 1)
    assert promoted(ledger, 2, ledger.alias_state(MODEL)).version == 2
