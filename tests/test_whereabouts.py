"""Which process a run is in, whoever started it; and what becomes of it when that has gone."""

import json
import multiprocessing
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test
from dagster_dg_cli.cli.launch import launch_command

from platform_assets.domain.image_spec import DEPLOYMENT
from platform_assets.domain.lease import TIMEOUT_SECONDS, Holder, Lease
from platform_assets.instance.forked import ForkedRunLauncher
from platform_assets.instance.whereabouts import (
    PROCESS_TAG,
    SILENT_SECONDS,
    Silence,
    own_tag,
    tag_of,
    worker_of,
)
from resources.home import Home
from resources.ledger.leases import LeaseRecord, Leases
from resources.processes import holder, machine, rebooted
from tests.small import Line, Templates, copied

DONE = "JFK|2013-01-03"
NAME, BOOT, SPACE = "host-a", "1f2e", "pid:[4026531836]"


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).empty, tmp_path) as line:
        line.land("2013-01-03", airports=["JFK"])
        yield line


def before_the_start() -> str:
    """This machine, before it was started the last time."""
    name, _, space = machine().split(" ")
    return f"{name} {BOOT} {space}"


def elsewhere(place: str = f"{NAME} {BOOT} {SPACE}") -> Holder:
    return Holder("run", place, 4711, "77")


def lease(renewals: int, resource: str = "lane/adhoc/0", by: Holder | None = None) -> LeaseRecord:
    now = datetime.now(UTC)
    return LeaseRecord(resource, 1, by or elsewhere(), renewals, now, now, None)


def run_with(tags: dict[str, str]) -> dg.DagsterRun:
    return dg.DagsterRun(job_name="job", run_id="run", tags=tags)


# --- the tag ----------------------------------------------------------------------------------


def launched(line: Line) -> dg.DagsterRun:
    """`dg launch`, which executes in its own process, past every queue and every launcher."""
    place = ["--partition", line.dagster_key(DONE), "--module-name", "tests.small"]
    done = CliRunner().invoke(
        launch_command, ["--assets", "flights/features", *place, "--attribute", "repository"]
    )
    assert done.exit_code == 0, done.output
    (run,) = line.instance.get_runs(limit=1)
    return run


def test_a_run_that_nobody_launched_says_which_process_it_is_in(line: Line) -> None:
    run = launched(line)
    assert worker_of(run) == holder(run.run_id)


def test_a_run_of_a_cluster_does_not(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEPLOYMENT, "k8s")
    assert PROCESS_TAG not in launched(line).tags


def test_only_a_process_that_is_the_runs_own_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = holder("run")
    assert own_tag(run_with({})) == tag_of(here)
    assert own_tag(run_with(tag_of(here))) == {}
    assert own_tag(run_with({GRPC_INFO_TAG: "{}"})) == {}
    assert own_tag(run_with(tag_of(holder("run", os.getppid())))) == {}, "a step's own process"
    found: list[dict[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(own_tag(run_with({}))))
    thread.start()
    thread.join()
    assert found == [{}], "a signal would be the whole process's"
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert own_tag(run_with({})) == {}, "a step of Dagster's multiprocess executor"


def test_the_tag_of_the_run_that_is_executed_anew_is_not_its_own() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        parent = tag_of(holder("parent", process.pid))
        process.kill()
    assert own_tag(run_with(parent)) == tag_of(holder("run"))


# --- machines that cannot be looked at --------------------------------------------------------


def test_a_machine_that_was_started_anew_is_known_by_its_name() -> None:
    assert rebooted(elsewhere(before_the_start()))
    assert not rebooted(elsewhere(machine()))
    assert not rebooted(elsewhere()), "another name"
    assert not rebooted(elsewhere(machine().rpartition(" ")[0])), "not as Linux has it"
    name, boot, _ = machine().split(" ")
    assert not rebooted(elsewhere(f"{name} {boot} pid:[1]")), "a container beside this one"


class Hands:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_run_elsewhere_is_dead_once_its_leases_stand_still() -> None:
    clock = Hands()
    silence = Silence(clock)
    for renewals in (1, 2):
        assert silence.why_gone(elsewhere(), [lease(renewals)]) is None
        clock.now += SILENT_SECONDS - 1
        assert silence.why_gone(elsewhere(), [lease(renewals)]) is None
    clock.now += 1
    said = silence.why_gone(elsewhere(), [lease(2)])
    assert said == "process 4711 of host-a has renewed none of its leases for 300 seconds"
    assert silence.why_gone(elsewhere(), [lease(2), lease(0, "x")]) is None, "it takes another"


def test_a_run_elsewhere_that_waits_for_its_slot_is_left_alone() -> None:
    clock = Hands()
    silence = Silence(clock)
    assert silence.why_gone(elsewhere(), []) is None
    clock.now += 100 * SILENT_SECONDS
    assert silence.why_gone(elsewhere(), []) is None


def test_a_run_of_before_the_machines_start_is_dead_unless_its_leases_are_renewed() -> None:
    clock = Hands()
    silence, gone = Silence(clock), elsewhere(before_the_start())
    assert "was started anew" in (silence.why_gone(gone, []) or "")
    assert silence.why_gone(gone, [lease(1)]) is None, "another machine may have the same name"
    clock.now += TIMEOUT_SECONDS
    assert silence.why_gone(gone, [lease(2)]) is None
    clock.now += TIMEOUT_SECONDS
    assert silence.why_gone(gone, [lease(2)]) is not None


def test_monitoring_ends_a_run_of_before_the_machines_start(home: Home) -> None:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, ForkedRunLauncher)

        def state(worker: Holder) -> WorkerStatus:
            run = create_run_for_test(
                instance, status=dg.DagsterRunStatus.STARTED, tags=tag_of(worker)
            )
            return launcher.check_run_worker_health(run).status

        assert state(elsewhere(before_the_start())) is WorkerStatus.FAILED
        assert state(elsewhere()) is WorkerStatus.RUNNING
        # The clock of the launcher, not of the ledger: the second look finds what it found first.
        launcher._silence = Silence(clock := Hands())
        run = create_run_for_test(
            instance, status=dg.DagsterRunStatus.STARTED, tags=tag_of(elsewhere())
        )
        own = replace(elsewhere(), run_id=run.run_id)
        assert isinstance(Leases(home.ledger_url).claim("x", own), Lease)
        assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
        clock.now += SILENT_SECONDS
        found = launcher.check_run_worker_health(run)
        assert (found.status, "none of its leases" in str(found.msg)) == (WorkerStatus.FAILED, True)


def test_a_tag_as_it_was_written_before_is_read() -> None:
    here = holder("run")
    old = {"machine": here.machine, "pid": here.pid, "started": here.started}
    assert worker_of(run_with({PROCESS_TAG: json.dumps(old)})) == here
