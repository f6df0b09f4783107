"""Leases: one holder at a time, the dead are replaced, and who slept through it is refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.lease import (
    TIMEOUT_SECONDS,
    Decision,
    Lease,
    LeaseLostError,
    LeaseTakenError,
    Step,
    Taken,
    decide,
)
from resources import leasing, processes
from resources.leasing import Keeper, Waiter, acquire
from resources.ledger import Ledger, upgrade
from resources.ledger.leases import Leases
from resources.ledger.records import VersionRecord
from tests.postgres import create_database, drop_database

RESOURCE = "flights/features JFK|2013-01-05"
ME = processes.holder("me")
OTHER = replace(ME, run_id="other", pid=os.getppid(), started="", machine="elsewhere")


@pytest.fixture(params=["sqlite", "postgres"])
def leases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Leases]:
    """The leases of an empty ledger, on each of the two databases."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        upgrade(url)
        yield Leases(url)
        return
    url = create_database(request.getfixturevalue("postgres"))
    upgrade(url)
    yield Leases(url)
    drop_database(url)


def held(leases: Leases, holder: processes.Holder = ME) -> Lease:
    lease = leases.claim(RESOURCE, holder)
    assert isinstance(lease, Lease)
    return lease


class Hands:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def version(run_id: str) -> VersionRecord:
    return VersionRecord(
        asset="flights/features",
        partition="JFK|2013-01-05",
        data_version="a" * 64,
        table_version=1,
        rows=1,
        detail={},
        run_id=run_id,
        committed_at=datetime.now(UTC),
    )


# --- one at a time ------------------------------------------------------------------------------


def test_a_lease_is_held_by_one_and_each_holder_has_a_higher_token(leases: Leases) -> None:
    first = held(leases)
    taken = leases.claim(RESOURCE, OTHER)
    assert isinstance(taken, Taken)
    assert (taken.holder, taken.token) == (ME, 1)
    assert leases.release(first)
    second = held(leases, OTHER)
    assert (second.token, second.after_crash) == (2, False)
    assert [record.holder for record in leases.held()] == [OTHER]


def test_other_resources_are_free(leases: Leases) -> None:
    held(leases)
    assert isinstance(leases.claim("flights/features LGA|2013-01-05", OTHER), Lease)
    assert [r.resource for r in leases.held("flights/features JFK")] == [RESOURCE]
    assert leases.held("flights/features %") == []


def test_a_lease_is_taken_over_only_if_it_was_not_renewed_since_it_was_seen(
    leases: Leases,
) -> None:
    first = held(leases)
    seen = leases.claim(RESOURCE, OTHER)
    assert isinstance(seen, Taken)
    assert leases.renew([first]) == []
    assert isinstance(leases.claim(RESOURCE, OTHER, over=seen), Taken)
    again = leases.claim(RESOURCE, OTHER)
    assert isinstance(again, Taken)
    lease = leases.claim(RESOURCE, OTHER, over=again)
    assert isinstance(lease, Lease)
    assert (lease.token, lease.after_crash) == (2, True)
    assert leases.renew([first]) == [first]
    assert not leases.release(first)
    assert [r.holder for r in leases.held()] == [OTHER]


# --- the fencing token --------------------------------------------------------------------------


def test_who_slept_through_its_lease_cannot_record(leases: Leases) -> None:
    ledger = Ledger(leases.url)
    first = held(leases, OTHER)
    seen = leases.claim(RESOURCE, ME)
    assert isinstance(seen, Taken)
    second = leases.claim(RESOURCE, ME, over=seen)
    assert isinstance(second, Lease)
    ledger.record_version(version("me"), second)
    # Without the token the sleeper's version becomes the current one.
    with pytest.raises(LeaseLostError, match=r"held token 1 of it, but run me has token 2 since"):
        ledger.record_version(version("other"), first)
    assert [v.run_id for v in ledger.history("flights/features", "JFK|2013-01-05")] == ["me"]
    ledger.record_version(version("other"))
    current = ledger.current_version("flights/features", "JFK|2013-01-05")
    assert current is not None
    assert current.run_id == "other"


def test_a_lease_that_nobody_took_meanwhile_is_still_good(leases: Leases) -> None:
    lease = held(leases)
    leases.release(lease)
    leases.require(lease)


def test_a_lease_of_another_ledger_is_refused(leases: Leases) -> None:
    with pytest.raises(LeaseLostError, match="the ledger does not know of it"):
        leases.require(Lease(RESOURCE, 1, ME))


# --- waiting ------------------------------------------------------------------------------------


def test_who_waits_takes_over_after_the_timeout_without_a_renewal(leases: Leases) -> None:
    first = held(leases, OTHER)
    clock = Hands()
    waiter = Waiter(leases, RESOURCE, ME, limit=600, monotonic=clock)
    for _ in range(3):
        found = waiter.attempt()
        assert isinstance(found, Decision)
        assert found.step is Step.WAIT
        clock.now += TIMEOUT_SECONDS - 1
        leases.renew([first])
    assert isinstance(waiter.attempt(), Decision)
    clock.now += TIMEOUT_SECONDS
    lease = waiter.attempt()
    assert isinstance(lease, Lease)
    assert (lease.token, lease.after_crash) == (2, True)
    assert waiter.why == f"run other (process {OTHER.pid}) has not renewed it for 30 seconds"


def test_who_waits_gives_up_while_the_holder_lives(leases: Leases) -> None:
    first = held(leases, OTHER)
    clock = Hands()
    waiter = Waiter(leases, RESOURCE, ME, limit=20, monotonic=clock)
    waiter.attempt()
    clock.now += 21
    leases.renew([first])
    found = waiter.attempt()
    assert isinstance(found, Decision)
    assert found.step is Step.GIVE_UP
    with pytest.raises(LeaseTakenError, match=r"flights/features JFK\|2013-01-05 is being worked"):
        acquire(leases, RESOURCE, ME, limit=0)


def test_a_clock_that_is_set_back_keeps_no_dead_lease(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(leases, OTHER)

    class LastYear(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2012, 1, 1, tzinfo=UTC)

    monkeypatch.setattr("resources.ledger.leases.datetime", LastYear)
    clock = Hands()
    waiter = Waiter(leases, RESOURCE, ME, limit=600, monotonic=clock)
    waiter.attempt()
    clock.now += TIMEOUT_SECONDS
    lease = waiter.attempt()
    assert isinstance(lease, Lease)
    record = leases.find(RESOURCE)
    assert record is not None
    assert record.taken_at.year == 2012


def test_the_lease_of_a_dead_process_is_taken_over_at_once(leases: Leases) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = processes._started(process.pid)
        assert started is not None
        holder = replace(ME, run_id="killed", pid=process.pid, started=started)
        held(leases, holder)
        assert not processes.is_dead(holder)
        assert isinstance(Waiter(leases, RESOURCE, ME, limit=600).attempt(), Decision)
        process.kill()
        process.wait()
    told: list[str] = []
    lease = acquire(leases, RESOURCE, ME, limit=600, tell=told.append)
    assert lease.after_crash
    assert told == [
        f"{RESOURCE} was taken over: run killed (process {holder.pid}) has ended without giving "
        "it back"
    ]


def test_nobody_can_tell_of_a_process_elsewhere_or_of_a_pid_used_again() -> None:
    assert not processes.is_dead(OTHER)
    assert processes.is_dead(replace(ME, started="1"))
    assert not processes.is_dead(ME)


@given(
    unchanged=st.floats(0, 1000),
    waited=st.floats(0, 1000),
    limit=st.floats(0, 1000),
    dead=st.booleans(),
)
def test_no_living_lease_is_taken_and_no_waiter_waits_for_ever(
    unchanged: float, waited: float, limit: float, dead: bool
) -> None:
    taken = Taken(RESOURCE, 1, OTHER, 0)
    step = decide(
        taken, unchanged_seconds=unchanged, waited_seconds=waited, limit=limit, dead=dead
    ).step
    assert (step is Step.TAKE_OVER) == (dead or unchanged >= TIMEOUT_SECONDS)
    assert step is not Step.WAIT or waited < limit


# --- keeping ------------------------------------------------------------------------------------


def test_a_lease_is_renewed_as_long_as_it_is_kept(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "RENEW_SECONDS", 0.05)
    with Keeper(leases).keep(held(leases)):
        deadline = time.monotonic() + 20
        while (found := leases.find(RESOURCE)) and found.renewals < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    after = leases.find(RESOURCE)
    assert after is not None
    assert after.released_at is not None
    time.sleep(0.2)
    assert leases.find(RESOURCE) == after


def test_a_lease_is_given_back_when_the_work_fails(leases: Leases) -> None:
    def work() -> Iterator[None]:
        with Keeper(leases).keep(held(leases)):
            raise ValueError("the disk is full")
        yield

    with pytest.raises(ValueError, match="full"):
        next(work())
    assert leases.held() == []


RACER = """
import sys, time
from resources import processes
from resources.leasing import acquire, keeper
from resources.ledger.leases import Leases
url, name, path = sys.argv[1:]
leases = Leases(url)
for number in range(5):
    lease = acquire(leases, "one", processes.holder(name), limit=120)
    with keeper(url).keep(lease):
        with open(path, "a") as file:
            file.write(f"in {lease.token}\\n")
            file.flush()
            time.sleep(0.01)
            file.write(f"out {lease.token}\\n")
"""


def test_eight_processes_take_turns_and_none_starves(leases: Leases, tmp_path: Path) -> None:
    path = tmp_path / "turns"
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, leases.url, f"r{n}", str(path)])
        for n in range(8)
    ]
    assert [racer.wait(timeout=200) for racer in racers] == [0] * 8
    lines = path.read_text().splitlines()
    assert len(lines) == 80
    turns = [(lines[i], lines[i + 1]) for i in range(0, 80, 2)]
    assert turns == [(f"in {token}", f"out {token}") for token in range(1, 41)]


def test_a_stopped_process_loses_its_lease_and_finds_out(
    leases: Leases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = """
import sys
from resources import processes
from resources.leasing import acquire, keeper
from resources.ledger.leases import Leases
leases = Leases(sys.argv[1])
lease = acquire(leases, sys.argv[2], processes.holder("sleeper"), limit=5)
with keeper(sys.argv[1]).keep(lease):
    print("held", flush=True)
    input()
    try:
        leases.require(lease)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""
    monkeypatch.setattr("platform_assets.domain.lease.TIMEOUT_SECONDS", 1.0)
    process = subprocess.Popen(
        [sys.executable, "-c", sleeper, leases.url, RESOURCE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    lease = acquire(leases, RESOURCE, ME, limit=60)
    assert lease.after_crash
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate("\n", timeout=60)
    assert out == "LeaseLostError\n"
    assert [r.holder.run_id for r in leases.held()] == ["me"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["claim", "renew", "release", "over"]), max_size=30))
def test_tokens_only_grow_and_only_the_newest_may_write(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str]
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('leases') / 'ledger.db'}"
    upgrade(url)
    store, owned, seen = Leases(url), [], None
    for number, action in enumerate(actions):
        holder = replace(ME, run_id=str(number))
        if action in ("claim", "over"):
            found = store.claim("one", holder, over=seen if action == "over" else None)
            if isinstance(found, Lease):
                assert not owned or found.token == owned[-1].token + 1
                owned.append(found)
            else:
                seen = found
        elif owned and action == "renew":
            store.renew(owned[-1:])
        elif owned:
            store.release(owned[-1])
    for lease in owned[:-1]:
        with pytest.raises(LeaseLostError):
            store.require(lease)
    for lease in owned[-1:]:
        store.require(lease)
