"""Runs forked from a zygote: executed, logged, terminated, watched; and what a death leaves."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from platform_assets.domain.lanes import LANE_TAG, Lane
from platform_assets.instance import forked, nursery, preload
from platform_assets.instance.compute_logs import FileComputeLogManager
from platform_assets.instance.forked import ForkedRunLauncher
from platform_assets.instance.nursery import CannotForkError, Fork
from platform_assets.instance.scheduling import LONG_SLICE, slice_taken, take_slices
from platform_assets.instance.whereabouts import PROCESS_TAG, worker_of
from platform_assets.instance.zygote import foreign_threads
from resources.home import Home
from resources.lanes import load_lanes
from tests import fork_jobs

SECONDS = 60.0
JOBS = Path(fork_jobs.__file__)
OPS = {
    "telling": "tell",
    "waiting": "wait",
    "failing": "fail",
    "vanishing": "vanish",
    "recording": "record",
}

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux"),
]


def until(done: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := done()):
        assert time.monotonic() < deadline, f"waited {SECONDS:.0f} s in vain for {what}"
        time.sleep(0.02)
    return found


def code_in(file: Path) -> ReconstructableRepository:
    return ReconstructableRepository.for_file(str(file), "defs", str(file.parent))


class Yard:
    """An instance with the launcher under test, and a folder that the jobs write into."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path) -> None:
        self.instance = instance
        self.folder = folder
        assert isinstance(instance.run_launcher, ForkedRunLauncher)
        self.launcher: ForkedRunLauncher = instance.run_launcher
        self.file = JOBS

    def create(self, job: str, tags: Mapping[str, str] | None = None) -> dg.DagsterRun:
        return self.instance.create_run_for_job(
            getattr(fork_jobs, job),
            run_config={"ops": {OPS[job]: {"config": {"folder": str(self.folder)}}}},
            job_code_origin=code_in(self.file).get_reconstructable_job(job).get_python_origin(),
            status=dg.DagsterRunStatus.STARTING,
            tags=tags,
        )

    def launch(self, job: str, tags: Mapping[str, str] | None = None) -> dg.DagsterRun:
        run = self.create(job, tags)
        self.launcher.launch_run(LaunchRunContext(run, None))
        return run

    def now(self, run: dg.DagsterRun) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found

    def ended(self, run: dg.DagsterRun) -> str:
        until(lambda: self.now(run).is_finished, f"the end of {run.job_name}")
        return self.now(run).status.value

    def running(self, run: dg.DagsterRun) -> psutil.Process:
        """The process of a `waiting` run, once it waits."""
        mark = self.folder / run.run_id
        until(lambda: mark.exists() and mark.read_text(), "the run to work")
        return psutil.Process(int(mark.read_text()))

    def messages(self, run: dg.DagsterRun) -> str:
        return "\n".join(e.user_message or e.message for e in self.instance.all_logs(run.run_id))

    def zygote(self) -> psutil.Process:
        return psutil.Process(self.launcher.warm(code_in(self.file).get_python_origin()))


@pytest.fixture(scope="module")
def instance(
    home_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dg.DagsterInstance]:
    root = tmp_path_factory.mktemp("yard") / "home"
    shutil.copytree(home_template, root)
    # No home of their own: none of these runs is in a hurry, nor steps aside.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGNALBOX_HOME", str(root / "none"))
        yield from _opened(root)


def _opened(root: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(Home.locate(root).dagster)) as found:
        yield found


@pytest.fixture
def yard(instance: dg.DagsterInstance, tmp_path: Path) -> Iterator[Yard]:
    yield Yard(instance, tmp_path)
    (tmp_path / "enough").touch()


def test_the_instance_that_homes_are_made_with_forks_its_runs(yard: Yard) -> None:
    assert type(yard.instance.run_launcher) is ForkedRunLauncher
    assert yard.instance.run_launcher.supports_check_run_worker_health


def test_a_run_is_forked_with_everything_imported_and_differs_from_its_siblings(
    yard: Yard,
) -> None:
    runs = [yard.launch("telling"), yard.launch("telling")]
    assert [yard.ended(run) for run in runs] == ["SUCCESS", "SUCCESS"]
    told = [(yard.folder / run.run_id).read_text().split() for run in runs]
    zygote = yard.zygote()
    assert [parent for _, parent, _, _ in told] == [str(zygote.pid)] * 2
    assert all(imported == "True" for *_, imported in told)
    assert told[0][0] != told[1][0], "each has a process of its own"
    assert told[0][2] != told[1][2], "numpy's random numbers would be the same in each fork"
    until(lambda: not zygote.children(), "its children to be gone, zombies too")


def test_a_run_keeps_its_connections_and_has_dagsters_statements_compiled_already(
    yard: Yard,
) -> None:
    run = yard.launch("recording")
    assert yard.ended(run) == "SUCCESS"
    found = json.loads((yard.folder / run.run_id).read_text())
    own = f"{run.run_id}.db"
    assert {own, "index.db"} <= {Path(path).name for path in found["idle"]}
    # Each event opened both of them; a run that keeps none has none idle.
    assert all(number <= 1 for number in found["opened"].values()), found["opened"]
    assert found["compiled"] == [], "the zygote's rehearsal has done it"


def test_runs_of_backfills_give_way_to_the_others(yard: Yard) -> None:
    """Two cores, two backfill runs at work: without it today's training gets half a core less."""
    ours = os.nice(0)
    found = {
        lane: yard.running(yard.launch("waiting", {LANE_TAG: lane})).nice()
        for lane in map(str, (*Lane, "no such lane"))
    }
    for lane in (Lane.BACKFILL, Lane.LATE):
        standing_back = load_lanes().nice(lane)
        assert standing_back > 0
        assert found.pop(lane) == min(19, ours + standing_back)
    assert set(found.values()) == {ours}


def test_what_a_run_prints_is_in_its_compute_logs(yard: Yard) -> None:
    run = yard.launch("telling")
    assert yard.ended(run) == "SUCCESS"
    captured = [
        event.dagster_event.event_specific_data
        for event in yard.instance.all_logs(run.run_id)
        if event.dagster_event and event.dagster_event.event_type_value == "LOGS_CAPTURED"
    ]
    key = [run.run_id, "compute_logs", captured[0].file_key]  # type: ignore[union-attr]
    data = yard.instance.compute_log_manager.get_log_data(key)
    assert f"said by {run.run_id}".encode() in (data.stdout or b"")
    assert b"written past Python" in (data.stderr or b"")


def test_a_run_starts_no_processes_for_its_logs_where_dagsters_own_manager_does(
    yard: Yard, tmp_path: Path
) -> None:
    run = yard.launch("waiting")
    assert yard.running(run).children(recursive=True) == []
    assert yard.launcher.terminate(run.run_id)
    assert yard.ended(run) == "CANCELED"
    # Where nothing was forked it is Dagster's own: there may be a terminal to copy to.
    assert type(yard.instance.compute_log_manager) is FileComputeLogManager
    manager = FileComputeLogManager(str(tmp_path / "logs"))
    with manager.capture_logs([run.run_id, "compute_logs", "x"]):
        assert len(psutil.Process().children()) >= 2
    assert manager.is_capture_complete([run.run_id, "compute_logs", "x"])


def test_a_session_that_is_somebody_elses_does_not_stand_back(tmp_path: Path) -> None:
    """Where Linux weighs sessions first, nice alone says nothing: a run has one of its own."""
    code = (
        "import os, sys; from platform_assets.instance.scheduling import stand_back;"
        "stand_back({'signalbox/lane': 'backfill'}, sys.argv[1]); print(os.nice(0))"
    )
    for own in (True, False):
        file = tmp_path / str(own)
        done = subprocess.run(
            [sys.executable, "-c", code, str(file)],
            start_new_session=own,
            stdout=subprocess.PIPE,
            check=True,
        )
        assert int(done.stdout) == min(19, os.nice(0) + 15)
        assert file.exists() == own


def test_who_stands_back_takes_long_slices_and_so_do_its_threads() -> None:
    """Else each wakeup of a run in a hurry waits for the end of one; benchmarks/wakeups.py."""
    code = (
        "import threading; from platform_assets.instance import scheduling as s;"
        "print(s.slice_taken()); s.stand_back({'signalbox/lane': '%s'}); print(s.slice_taken());"
        "threading.Thread(target=lambda: print(s.slice_taken())).start()"
    )

    def slices(lane: Lane) -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", code % lane], stdout=subprocess.PIPE, check=True
        )
        return [int(line) for line in done.stdout.split()]

    before, after, thread = slices(Lane.BACKFILL)
    assert len(set(slices(Lane.DAILY))) == 1
    if before:  # Linux 6.12 and later say it
        assert before < after == thread == LONG_SLICE
    else:
        assert after == thread == 0


def test_where_the_kernel_does_not_hear_it_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "vax")
        assert not take_slices(LONG_SLICE)
        assert slice_taken() == 0

    def forbidden(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("os.sched_getscheduler", forbidden)
    assert not take_slices(LONG_SLICE)
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert slice_taken() == 0


def test_a_failing_run_fails_with_its_reason(yard: Yard) -> None:
    run = yard.launch("failing")
    assert yard.ended(run) == "FAILURE"
    assert any(
        "as it must" in str(event.dagster_event.event_specific_data)
        for event in yard.instance.all_logs(run.run_id)
        if event.dagster_event and event.dagster_event.is_step_failure
    )


def test_a_run_is_terminated(yard: Yard) -> None:
    run = yard.launch("waiting")
    process = yard.running(run)
    assert yard.launcher.terminate(run.run_id)
    assert yard.ended(run) == "CANCELED"
    until(lambda: not process.is_running(), "its process to end")
    assert not yard.launcher.terminate(run.run_id), "there is nothing left to terminate"


def test_a_run_terminated_before_it_begins_does_nothing(yard: Yard) -> None:
    run = yard.create("telling")
    assert yard.launcher.terminate(run.run_id)
    assert yard.now(run).status is dg.DagsterRunStatus.CANCELING
    yard.launcher.launch_run(LaunchRunContext(yard.now(run), None))
    assert yard.ended(run) == "CANCELED"
    assert not (yard.folder / run.run_id).exists()


def test_a_termination_while_the_fork_waits_for_its_start_is_not_lost(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, start = yard.create("waiting"), Fork.start

    def terminated_first(fork: Fork) -> None:
        assert yard.launcher.terminate(run.run_id)
        start(fork)

    monkeypatch.setattr(Fork, "start", terminated_first)
    yard.launcher.launch_run(LaunchRunContext(run, None))
    assert yard.ended(run) == "CANCELED"


@pytest.mark.parametrize("how", ["it vanishes", "it is killed while being terminated"])
def test_a_run_whose_process_is_killed_ends_at_once(yard: Yard, how: str) -> None:
    if how == "it vanishes":
        run = yard.launch("vanishing")
        assert yard.ended(run) == "FAILURE"
    else:
        run = yard.launch("waiting")
        process = yard.running(run)
        process.suspend()  # it cannot follow the request
        assert yard.launcher.terminate(run.run_id)
        process.kill()
        assert yard.ended(run) == "CANCELED"
    assert "SIGKILL" in yard.messages(run) or "signal 9" in yard.messages(run)


def test_monitoring_sees_whether_the_process_lives(yard: Yard) -> None:
    run = yard.launch("waiting")
    process = yard.running(run)
    assert yard.launcher.check_run_worker_health(yard.now(run)).status is WorkerStatus.RUNNING
    # Its number alone would not do: the kernel gives it to somebody else.
    yard.instance.add_run_tags(
        run.run_id,
        {PROCESS_TAG: yard.now(run).tags[PROCESS_TAG].replace('"started": "', '"started": "1')},
    )
    assert yard.launcher.check_run_worker_health(yard.now(run)).status is WorkerStatus.FAILED
    assert not forked._interrupt(worker_of(yard.now(run)))  # type: ignore[arg-type]
    assert process.is_running()
    process.kill()
    yard.ended(run)


def test_the_zygote_has_no_threads_and_no_database_open(yard: Yard) -> None:
    run = yard.launch("telling")
    yard.ended(run)
    zygote = yard.zygote()
    names = [
        (task / "comm").read_text().strip() for task in Path(f"/proc/{zygote.pid}/task").iterdir()
    ]
    assert {name for name in names if name != "signalbox-forks"} <= {"jemalloc_bg_thd"}
    assert not [file.path for file in zygote.open_files() if ".db" in file.path]


def test_a_thread_that_a_fork_would_not_survive_is_seen() -> None:
    before = foreign_threads()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert len(foreign_threads()) == len(before) + 1
    stop.set()
    thread.join()


@pytest.mark.heavy
def test_a_killed_zygote_loses_no_run_that_works_and_none_that_comes(yard: Yard) -> None:
    working = yard.launch("waiting")
    process = yard.running(working)
    before = yard.zygote()
    before.kill()
    after = yard.launch("telling")
    assert yard.ended(after) == "SUCCESS"
    assert yard.zygote().pid != before.pid
    assert "to fork from" in yard.messages(after)
    assert process.is_running()
    (yard.folder / "enough").touch()
    assert yard.ended(working) == "SUCCESS"


@pytest.mark.heavy
def test_a_fork_whose_zygote_died_before_answering_does_nothing(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is started anew: without the pipe it would be executed twice."""
    ask, children, lost = nursery.Zygote._ask, [], []

    def lose_the_answer(self: nursery.Zygote, request: Any, *rest: Any) -> Any:
        found = ask(self, request, *rest)
        if "pid" in found and "ready" not in found:
            children.append(found["pid"])
            if not lost:
                lost.append(found["pid"])
                self.process.kill()
                raise nursery.ZygoteLostError("no answer")
        return found

    monkeypatch.setattr(nursery.Zygote, "_ask", lose_the_answer)
    run = yard.launch("telling")
    assert yard.ended(run) == "SUCCESS"
    assert len(children) == 2
    executed = (yard.folder / run.run_id).read_text().split()[0]
    assert executed == str(children[1])
    until(lambda: not psutil.pid_exists(lost[0]), "the first fork to end")
    started = [e for e in yard.messages(run).splitlines() if "Run forked into" in e]
    assert len(started) == 1


@pytest.mark.heavy
def test_changed_code_is_loaded_anew_as_with_a_fresh_interpreter(
    yard: Yard, tmp_path: Path
) -> None:
    yard.file = tmp_path / "jobs_of_today.py"
    shutil.copyfile(JOBS, yard.file)
    os.utime(yard.file, (1, 1))
    first = yard.launch("telling")
    assert yard.ended(first) == "SUCCESS"
    before = yard.zygote()
    assert yard.ended(yard.launch("telling")) == "SUCCESS"
    assert yard.zygote().pid == before.pid, "nothing has changed"
    yard.file.write_text(yard.file.read_text().replace("said by", "now told by"))
    second = yard.launch("telling")
    assert yard.ended(second) == "SUCCESS"
    assert yard.zygote().pid != before.pid
    until(lambda: not before.is_running(), "the old zygote to end")


def test_a_run_that_cannot_be_forked_is_launched_as_dagster_does(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    monkeypatch.setattr(
        DefaultRunLauncher,
        "launch_run",
        lambda _, context: launched.append(context.dagster_run.run_id),
    )
    monkeypatch.setenv(forked.FORKED, "0")
    run = yard.launch("telling")
    assert launched == [run.run_id]
    assert f"{forked.FORKED} is 0" in yard.messages(run)
    assert worker_of(yard.now(run)) is None
    assert yard.launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    yard.instance.report_run_failed(run)


@pytest.mark.heavy
def test_the_zygote_ends_with_its_owner_but_not_before_its_runs(
    home_template: Path, tmp_path: Path
) -> None:
    shutil.copytree(home_template, tmp_path / "home")
    with dg.DagsterInstance.from_config(str(tmp_path / "home" / "dagster")) as instance:
        yard = Yard(instance, tmp_path)
        run = yard.launch("waiting")
        process, zygote = yard.running(run), yard.zygote()
        instance.run_launcher.dispose()
        assert process.is_running()
        assert zygote.is_running()
        (tmp_path / "enough").touch()
        assert yard.ended(run) == "SUCCESS"
        until(lambda: not zygote.is_running() or zygote.status() == "zombie", "the zygote to end")


def test_definitions_that_cannot_be_loaded_are_not_forked(yard: Yard, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('broken on purpose')")
    with pytest.raises(CannotForkError, match="broken on purpose"):
        yard.launcher.warm(code_in(broken).get_python_origin())


def test_what_runs_import_is_imported_before_the_fork() -> None:
    """What is missing here is imported by every run anew."""
    names = set(preload.OF_DAGSTER) | set(preload.OF_THE_LINE)
    code = (
        "import sys; from platform_assets.instance.preload import preload; missing = preload();"
        "from mlflow.utils import requirements_utils as r;"
        "assert not missing, missing; assert r._MODULES_TO_PACKAGES;"
        f"assert {sorted(names)!r} and set({sorted(names)!r}) <= set(sys.modules);"
        "assert 'lightgbm' in sys.modules;"
        "from resources import surroundings;"
        "assert surroundings._installed_in.cache_info().currsize, 'packages are looked at once'"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
    )
