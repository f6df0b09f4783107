"""What ends with its owner, however that ends; and what a killed Dagster leaves behind."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from platform_assets.demo import guard
from platform_assets.demo.daemons import require_no_daemon
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lease import Holder, Lease
from platform_assets.factory.instance import end_orphaned_runs
from platform_assets.instance.whereabouts import PROCESS_TAG, tag_of
from resources.home import Home
from resources.ledger.leases import Leases
from resources.processes import holder, machine

FAMILY = "setsid sleep 300 & sleep 300 & wait"
"""A shell with a child, and one that left its session."""


def start_guard(mark: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-m", guard.__name__, mark, "sh", "-c", FAMILY],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    deadline = time.monotonic() + 30
    while sum("sleep" in name_of(p) for p in guard.marked(mark)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.parametrize("how", ["its owner lets go", "it is killed with its child"])
def test_no_descendant_outlives_the_guard_or_its_owner(how: str) -> None:
    mark = uuid.uuid4().hex
    process = start_guard(mark)
    assert process.stdin is not None
    if how == "its owner lets go":
        process.stdin.close()
        process.wait(30)
    else:
        process.kill()
        process.wait(30)
        assert guard.marked(mark), "the family should have been orphaned"
        guard.end_marked(mark)
    assert guard.marked(mark) == []


def test_the_guard_ends_with_its_command_and_says_how_that_ended() -> None:
    command = [sys.executable, "-m", guard.__name__, uuid.uuid4().hex, "sh", "-c", "exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(30) == 7


def test_runs_in_progress_end_where_nothing_works_any_more(home: Home) -> None:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        states = {
            status: create_run_for_test(instance, status=status).run_id
            for status in (
                dg.DagsterRunStatus.NOT_STARTED,
                dg.DagsterRunStatus.STARTING,
                dg.DagsterRunStatus.STARTED,
                dg.DagsterRunStatus.CANCELING,
                dg.DagsterRunStatus.SUCCESS,
            )
        }
        ended = end_orphaned_runs(home)
        after = {
            before.value: run.status.value
            for before, run_id in states.items()
            if (run := instance.get_run_by_id(run_id))
        }
    assert after == {
        "NOT_STARTED": "NOT_STARTED",
        "STARTING": "FAILURE",
        "STARTED": "FAILURE",
        "CANCELING": "CANCELED",
        "SUCCESS": "SUCCESS",
    }
    assert len(ended) == 3
    assert end_orphaned_runs(home) == []


def test_a_forked_run_that_lives_on_is_not_ended(home: Home) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        worker = holder("a run", process.pid)
        place = {"machine": worker.machine, "pid": worker.pid, "started": worker.started}
        with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
            create_run_for_test(
                instance,
                status=dg.DagsterRunStatus.STARTED,
                tags={PROCESS_TAG: json.dumps(place)},
            )
        assert end_orphaned_runs(home) == []
        process.kill()
        process.wait()
        assert len(end_orphaned_runs(home)) == 1


# --- runs whose process may live --------------------------------------------------------------


def started(
    instance: dg.DagsterInstance, tags: Mapping[str, str] | None = None, by: Holder | None = None
) -> str:
    """A run at work; with the process in which it is, if that is said."""
    tags = {**(tags or {}), **(tag_of(by) if by else {})}
    return create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=tags).run_id


def leased(home: Home, run_id: str, by: Holder) -> None:
    """Have a process hold a lease for a run."""
    lease = Leases(home.ledger_url).claim(f"lane/{run_id}", replace(by, run_id=run_id))
    assert isinstance(lease, Lease)


def messages(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(e.user_message or e.message for e in instance.all_logs(run_id))


ELSEWHERE = Holder("", "host-a 1f2e pid:[4026531836]", 4711, "77")


def before_the_start() -> Holder:
    """A process of this machine, before it was started the last time."""
    name, _, space = machine().split(" ")
    return replace(ELSEWHERE, machine=f"{name} 1f2e {space}")


def dead() -> Holder:
    with subprocess.Popen(["sleep", "60"]) as process:
        found = holder("", process.pid)
        process.kill()
    return found


def test_a_run_that_still_holds_a_lease_is_not_ended(home: Home) -> None:
    """`dg launch`, at work beside a start of Dagster: it would go on committing."""
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        here, away, gone, none = (started(instance) for _ in range(4))
        for run_id, by in ((here, holder("")), (away, ELSEWHERE), (gone, dead())):
            leased(home, run_id, by)
        assert set(end_orphaned_runs(home)) == {gone, none}
        assert "is at work on it" in messages(instance, here)
        assert "process 4711 of host-a, which cannot be looked at" in messages(instance, away)


def test_a_run_of_another_machine_is_not_ended(home: Home) -> None:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        away = started(instance, by=ELSEWHERE)
        assert end_orphaned_runs(home) == []
        assert "process 4711 of host-a, which cannot be looked at" in messages(instance, away)


def test_a_run_of_before_the_machines_start_is_ended(home: Home) -> None:
    alone = replace(home, dagster_url=None)
    shared = replace(home, dagster_url="postgresql://server/dagster")
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        waiting, working = (started(instance, by=before_the_start()) for _ in range(2))
        leased(home, working, before_the_start())
        # On a server's storage another machine may have the name of this one, and renew it.
        assert end_orphaned_runs(shared) == [waiting]
        assert end_orphaned_runs(alone) == [working]


def test_a_run_of_a_code_server_is_ended_only_with_that(home: Home) -> None:
    alone = replace(home, dagster_url=None)
    shared = replace(home, dagster_url="postgresql://server/dagster")
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        served = started(instance, {GRPC_INFO_TAG: "{}"})
        assert end_orphaned_runs(alone, servers=True) == []
        assert end_orphaned_runs(shared) == []
        assert end_orphaned_runs(alone) == [served]


def test_runs_of_a_cluster_are_left_to_its_launcher(home: Home) -> None:
    config = home.dagster / "dagster.yaml"
    document = yaml.safe_load(config.read_text())
    document["run_launcher"] = {
        "module": "dagster._core.launcher.sync_in_memory_run_launcher",
        "class": "SyncInMemoryRunLauncher",
    }
    config.write_text(yaml.safe_dump(document))
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        started(instance)
    assert end_orphaned_runs(home) == []


def test_a_home_with_a_daemon_is_refused(home: Home) -> None:
    require_no_daemon(home)
    # The name of the daemon's module, on the command line of something that only waits.
    command = [sys.executable, "-c", "import time; time.sleep(60)", "dagster._daemon"]
    with subprocess.Popen(command, env={"DAGSTER_HOME": str(home.dagster)}) as process:
        with pytest.raises(RefusedError, match=f"process {process.pid}"):
            require_no_daemon(home)
        process.kill()
    require_no_daemon(home)
