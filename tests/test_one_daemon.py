"""One daemon a line: of all the machines that share it, and after whatever ended the last one."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from dagster._daemon import controller
from dagster._daemon.types import DaemonHeartbeat

from platform_assets.demo import daemons
from platform_assets.demo.daemons import (
    RESOURCE,
    beats,
    end_without,
    require_no_daemon,
    sole_daemon,
)
from platform_assets.demo.server import DagsterDev
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lease import Holder, Lease
from resources.home import Home
from resources.ledger.leases import Leases
from resources.processes import holder
from tests.ports import free_port

ELSEWHERE = Holder(RESOURCE, "host-a 1f2e pid:[4026531836]", 4711, "77")
SERVER = "postgresql://server/dagster"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(daemons, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(daemons, "BEAT_SECONDS", 0.5)


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home.dagster)) as found:
        yield found


@contextmanager
def sleeper(**variables: str) -> Iterator[Holder]:
    """A process that only waits, as the holder of the daemon's lease."""
    command = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield holder(RESOURCE, process.pid)
        process.kill()


@contextmanager
def over_and_over(work: Callable[[], object]) -> Iterator[None]:
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(0.05):
            work()

    thread = threading.Thread(target=go_on)
    thread.start()
    yield
    ended.set()
    thread.join()


def taken(home: Home, by: Holder) -> Lease:
    lease = Leases(home.ledger_url).claim(RESOURCE, by)
    assert isinstance(lease, Lease)
    return lease


def never(message: str) -> None:
    raise AssertionError(f"there was nothing to wait for: {message}")


# --- the lease --------------------------------------------------------------------------------


def test_a_start_is_refused_while_another_machine_runs_the_daemon_and_ends_no_run(
    home: Home, instance: dg.DagsterInstance
) -> None:
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
    leases, lease = Leases(home.ledger_url), taken(home, ELSEWHERE)
    with (
        over_and_over(lambda: leases.renew([lease])),
        pytest.raises(RefusedError, match="is process 4711 of host-a; one machine runs it"),
        DagsterDev(home, free_port()),
    ):
        pytest.fail("there are two daemons")
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.STARTED


def test_a_daemon_elsewhere_that_shows_no_sign_of_life_is_replaced(home: Home) -> None:
    before = taken(home, ELSEWHERE)
    with sole_daemon(home) as lease:
        assert lease.token == before.token + 1
    with sole_daemon(home):
        pass


def test_one_that_ends_while_it_is_watched_is_replaced(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "TIMEOUT_SECONDS", 60.0)
    leases, lease = Leases(home.ledger_url), taken(home, ELSEWHERE)
    with over_and_over(lambda: leases.release(lease)), sole_daemon(home):
        pass


def test_one_that_was_killed_on_this_machine_is_replaced_at_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "_tell", never)
    with sleeper(DAGSTER_HOME=str(home.dagster)) as killed:
        taken(home, killed)
        with pytest.raises(RefusedError, match=f"process {killed.pid} of"), sole_daemon(home):
            pytest.fail("it lives")
    with sole_daemon(home):
        pass


def test_the_daemon_of_the_home_that_this_one_was_copied_from_is_not_its_own(home: Home) -> None:
    sqlite = home.ledger_url.startswith("sqlite:")
    with sleeper(DAGSTER_HOME="/another/home/dagster") as theirs:
        taken(home, theirs)
        if sqlite:
            with sole_daemon(home):
                pass
        else:  # a ledger on a server is no copy
            with pytest.raises(RefusedError), sole_daemon(home):
                pytest.fail("two homes share one ledger")


def test_a_daemon_that_slept_through_the_loss_of_its_lease_ends(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    killed: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        ended.set()

    monkeypatch.setattr(daemons, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(os, "kill", kill)
    with sole_daemon(home) as lease:
        end_without(home, lease)
        assert not ended.wait(0.5), "the lease is its own still"
        known = Leases(home.ledger_url).claim(RESOURCE, ELSEWHERE)
        assert not isinstance(known, Lease)
        Leases(home.ledger_url).claim(RESOURCE, ELSEWHERE, over=known)
        assert ended.wait(30)
    assert killed == [(os.getpid(), signal.SIGTERM)]


# --- heartbeats, of daemons that hold no lease ------------------------------------------------


def beat(instance: dg.DagsterInstance, at: float, kind: str = "SENSOR") -> None:
    instance.add_daemon_heartbeat(DaemonHeartbeat(at, kind, "theirs"))


def test_a_daemon_writes_a_heartbeat_while_it_is_watched() -> None:
    assert controller.DEFAULT_HEARTBEAT_INTERVAL_SECONDS == 30


def test_a_heartbeat_that_comes_is_a_daemons_and_one_that_stands_still_is_nobodys(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(instance, time.time() - 20)
    assert not beats(instance, 0.0), "it was killed 20 s ago"
    with over_and_over(lambda: beat(instance, time.time(), "BACKFILL")):
        assert beats(instance, 0.0)
    monkeypatch.setattr(daemons, "_tell", never)
    assert not beats(instance, time.time() + 1), "those of our own, whose lease tells"


def test_a_heartbeat_of_long_ago_is_nobodys(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "_tell", never)
    assert not beats(instance, 0.0)
    beat(instance, time.time() - 3600)
    assert not beats(instance, 0.0)


def test_dagsters_own_daemon_on_another_machine_is_refused_where_storage_is_shared(
    home: Home, instance: dg.DagsterInstance
) -> None:
    shared, alone = replace(home, dagster_url=SERVER), replace(home, dagster_url=None)
    beat(instance, time.time())
    with over_and_over(lambda: beat(instance, time.time())):
        require_no_daemon(alone)
        with pytest.raises(RefusedError, match="daemon of another machine works on the storage"):
            require_no_daemon(shared)
    require_no_daemon(shared)


def test_a_restart_after_signalboxs_own_daemon_waits_for_no_heartbeat(
    home: Home, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(home, dagster_url=SERVER)
    monkeypatch.setattr(daemons, "_tell", never)
    with sleeper(DAGSTER_HOME=str(home.dagster)) as killed:
        lease = taken(home, killed)
        beat(instance, time.time())
    require_no_daemon(shared)
    Leases(home.ledger_url).release(lease)
    require_no_daemon(shared)


# --- the process ------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.embedded
def test_the_daemon_process_is_refused_beside_another_and_says_so_in_a_sentence(home: Home) -> None:
    root = Path(__file__).parents[1]
    with sleeper(DAGSTER_HOME=str(home.dagster)) as other:
        taken(home, other)
        done = subprocess.run(
            [sys.executable, "-m", daemons.DAEMON, str(root / "workspace.yaml")],
            env={**os.environ, **home.environment(), "PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"signalbox: the daemon of {home.root}")
