"""What ends with its owner, however that ends; and what a killed Dagster leaves behind."""

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.test_utils import create_run_for_test

from platform_assets.demo import guard
from platform_assets.demo.server import require_no_daemon
from platform_assets.domain.errors import RefusedError
from platform_assets.factory.instance import end_orphaned_runs
from platform_assets.instance.forked import PROCESS_TAG
from resources.home import Home
from resources.processes import holder

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


def test_a_home_with_a_daemon_is_refused(home: Home) -> None:
    require_no_daemon(home)
    # The name of the daemon's module, on the command line of something that only waits.
    command = [sys.executable, "-c", "import time; time.sleep(60)", "dagster._daemon"]
    with subprocess.Popen(command, env={"DAGSTER_HOME": str(home.dagster)}) as process:
        with pytest.raises(RefusedError, match=f"process {process.pid}"):
            require_no_daemon(home)
        process.kill()
    require_no_daemon(home)
