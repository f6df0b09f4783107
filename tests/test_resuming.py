"""A run worker is killed while a step of it runs, and another one goes on with the run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance import DagsterInstance
from dagster._core.test_utils import instance_for_test
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import serialize_value
from dagster_k8s.launcher import K8sRunLauncher

from resources.failures import VARIABLE as FAILURES
from resources.images import VARIABLE, change_lock
from tests import cluster as fake
from tests import cluster_steps
from tests.cluster_runs import HOST, LOCK, RUN, STEPS

pytestmark = pytest.mark.heavy

PATIENCE = 120
OTHER = f"docker-pullable://{HOST}/run@sha256:{'e' * 64}"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def kubelet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Cluster]:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    (tmp_path / "failures.yaml").write_text("failures: {evicted: {retries: 1, wait: 1}}")
    monkeypatch.setenv(FAILURES, str(tmp_path / "failures.yaml"))
    (tmp_path / "steps").mkdir()
    monkeypatch.setenv(STEPS, str(tmp_path / "steps"))
    with fake.running(tmp_path, runs=True) as found:
        yield found


@dataclass(frozen=True)
class Resumed:
    """How the run ended, what its log says, and how often its first step was started."""

    success: bool
    told: str
    attempts: int


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        time.sleep(0.1)


def worker(
    instance: DagsterInstance, run: dg.DagsterRun, *, resumes: bool
) -> subprocess.Popen[str]:
    """Start what the container of a run worker starts."""
    kind = ResumeRunArgs if resumes else ExecuteRunArgs
    assert run.job_code_origin is not None
    arguments = kind(run.job_code_origin, run.run_id, instance.get_ref())
    command = "resume_run" if resumes else "execute_run"
    return subprocess.Popen(
        [sys.executable, "-m", "dagster", "api", command, serialize_value(arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def resumed(
    cluster: fake.Cluster,
    job: str,
    before: Callable[[], object],
    after: Callable[[], object],
    when: Callable[[], object] | None = None,
) -> Resumed:
    """Kill the run's worker while the first step runs, and start another.

    Args:
        before: done while there is no worker.
        after: done once the second one has begun.
        when: the first one is killed; by default once the step's code runs.
    """
    definition = getattr(cluster_steps, job)
    steps = Path(os.environ[STEPS])
    settings = {
        "load_incluster_config": False,
        "kubeconfig_file": cluster.kubeconfig,
        "job_namespace": fake.NAMESPACE,
    }
    image = {"job_image": RUN} if job.startswith("stock") else {"image": "run"}
    folder = cluster.folder / job
    folder.mkdir()
    launcher = {
        "module": K8sRunLauncher.__module__,
        "class": K8sRunLauncher.__name__,
        "config": {
            "service_account_name": "dagster",
            "instance_config_map": "dagster-instance",
            "dagster_home": str(folder),
            "load_incluster_config": False,
            "kubeconfig_file": cluster.kubeconfig,
            "job_image": RUN,
        },
    }
    monitoring = {"enabled": True, "max_resume_run_attempts": 3}
    with instance_for_test(
        overrides={"run_launcher": launcher, "run_monitoring": monitoring},
        temp_dir=str(folder),
        set_dagster_home=True,
    ) as instance:
        run = instance.create_run_for_job(
            definition,
            run_config={"execution": {"config": {**settings, **image}}},
            job_code_origin=dg.reconstructable(definition).get_python_origin(),
        )
        first = worker(instance, run, resumes=False)
        try:
            until(when or (steps / "step-1").exists, "the step")
        finally:
            first.kill()
            first.wait()
        before()
        second = worker(instance, run, resumes=True)
        try:
            words = "Resuming execution from failure"
            until(
                lambda: (
                    any(words in e.message for e in instance.all_logs(run.run_id))
                    or second.poll() is not None
                ),
                "the second worker",
            )
            after()
            second.wait(PATIENCE)
        finally:
            second.kill()
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        told = [
            f"{e.message} {getattr(e.dagster_event.event_specific_data, 'error', '')}"
            for e in instance.all_logs(run.run_id)
            if e.dagster_event is not None
        ]
    attempts = len(list(steps.glob("step-*")))
    return Resumed(found.status is dg.DagsterRunStatus.SUCCESS, "\n".join(told), attempts)


def end() -> None:
    (Path(os.environ[STEPS]) / "end").touch()


@pytest.mark.parametrize("job", ["stock_told", "pinned_told"])
def test_a_step_that_runs_goes_on(kubelet: fake.Cluster, job: str) -> None:
    found = resumed(kubelet, job, before=lambda: None, after=end)
    assert found.success, found.told
    assert found.attempts == 1
    assert len(kubelet.jobs) == 2


def test_a_step_whose_image_left_the_lock_meanwhile_is_ended(kubelet: fake.Cluster) -> None:
    moved = LOCK.images["run"].model_copy(update={"digest": f"sha256:{'3' * 64}"})

    def bump() -> None:
        images = {**LOCK.images, "run": moved}
        change_lock(lambda _: LOCK.model_copy(update={"images": images}))

    found = resumed(kubelet, "pinned_told", before=bump, after=lambda: None)
    assert not found.success
    assert f"{RUN} does not stand in the lock any more" in found.told
    assert "step until_told was ended" in found.told
    # It is not started once more, in the new image and under the same name.
    assert found.attempts == 1
    assert kubelet.jobs == {}


def test_a_step_that_ended_meanwhile_is_taken_as_it_ended(kubelet: fake.Cluster) -> None:
    def over() -> bool:
        return any((job.get("status") or {}).get("succeeded") for job in kubelet.jobs.values())

    def ends() -> None:
        end()
        until(over, "the end of the step")

    found = resumed(kubelet, "pinned_told", before=ends, after=lambda: None)
    assert found.success, found.told
    assert found.attempts == 1
    assert len(kubelet.jobs) == 2


def test_a_step_that_was_evicted_meanwhile_is_asked_for_again(kubelet: fake.Cluster) -> None:
    # The accident: an eviction that no worker saw fails the run.
    found = resumed(kubelet, "stock_told", before=kubelet.evict, after=lambda: None)
    assert not found.success
    assert found.attempts == 1

    kubelet.jobs.clear()
    for note in Path(os.environ[STEPS]).iterdir():
        note.unlink()
    found = resumed(kubelet, "pinned_told", before=kubelet.evict, after=lambda: None)
    assert found.success, found.told
    assert "The node was low on resource: memory" in found.told
    assert "It is asked for again in 1 s (1 of 1)" in found.told
    assert found.attempts == 2


def test_a_step_that_was_never_created_is_started(kubelet: fake.Cluster) -> None:
    """Its worker was killed between saying that it starts it and being heard."""
    kubelet.faults.append(fake.Fault("POST", "/jobs", 503, times=1000))
    found = resumed(
        kubelet,
        "pinned_told",
        before=kubelet.faults.clear,
        after=end,
        when=lambda: any(method == "POST" for method, _ in kubelet.asked),
    )
    assert found.success, found.told
    assert found.attempts == 1
    assert len(kubelet.jobs) == 2


def records(kubelet: fake.Cluster, job: str, kind: dg.DagsterEventType) -> bool:
    """Whether the log of the job's run has an event of a kind."""
    with DagsterInstance.from_config(str(kubelet.folder / job)) as instance:
        (run,) = instance.get_runs()
        return bool(instance.all_logs(run.run_id, of_type=kind))


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        ("preempt", "Preempted: Preempted by pod 1f on node node-1"),
        ("drain", "was deleted while it ran"),
    ],
)
def test_a_step_that_was_interrupted_meanwhile_is_asked_for_again(
    kubelet: fake.Cluster, happens: str, words: str
) -> None:
    """It had the time to record that it failed, and nobody was there to ask the cluster why."""
    budgets = "failures: {evicted: {retries: 1, wait: 1}, preempted: {retries: 1, wait: 1}}"
    Path(os.environ[FAILURES]).write_text(budgets)

    def interrupts(job: str) -> Callable[[], object]:
        def interrupt() -> None:
            getattr(kubelet, happens)()
            failure = dg.DagsterEventType.STEP_FAILURE
            until(lambda: records(kubelet, job, failure), "the step's own word")
            until(lambda: not kubelet.pods, "the end of the pod")

        return interrupt

    found = resumed(kubelet, "stock_told", before=interrupts("stock_told"), after=lambda: None)
    assert not found.success
    assert found.attempts == 1

    kubelet.jobs.clear()
    for note in Path(os.environ[STEPS]).iterdir():
        note.unlink()
    found = resumed(kubelet, "pinned_told", before=interrupts("pinned_told"), after=lambda: None)
    assert found.success, found.told
    assert words in found.told
    assert "It is asked for again in 1 s (1 of 1)" in found.told
    assert found.attempts == 2


def test_a_step_that_ended_meanwhile_is_compared_with_the_lock(kubelet: fake.Cluster) -> None:
    kubelet.image_ids = {RUN: OTHER}

    def over() -> bool:
        return any((job.get("status") or {}).get("succeeded") for job in kubelet.jobs.values())

    # The first worker is gone before it has looked.
    found = resumed(
        kubelet,
        "pinned_trivial",
        before=lambda: until(over, "the end of the step"),
        after=lambda: None,
        when=lambda: any(method == "POST" for method, _ in kubelet.asked),
    )
    assert not found.success
    assert "it ended before it was looked at; the cluster runs sha256:eeee" in found.told
    assert found.attempts == 1


def test_a_step_that_was_compared_before_is_not_held_against_the_next_lock(
    kubelet: fake.Cluster,
) -> None:
    moved = LOCK.images["run"].model_copy(update={"digest": f"sha256:{'3' * 64}"})

    def ends() -> None:
        end()
        success = dg.DagsterEventType.STEP_SUCCESS
        until(lambda: records(kubelet, "pinned_alone", success), "the end of the step")
        images = {**LOCK.images, "run": moved}
        change_lock(lambda _: LOCK.model_copy(update={"images": images}))

    def compared() -> bool:
        with DagsterInstance.from_config(str(kubelet.folder / "pinned_alone")) as instance:
            (run,) = instance.get_runs()
            return any("as it was asked for" in e.message for e in instance.all_logs(run.run_id))

    found = resumed(kubelet, "pinned_alone", before=ends, after=lambda: None, when=compared)
    assert found.success, found.told
    assert found.told.count("as it was asked for") == 1


def test_a_step_never_created_while_the_cluster_is_away_is_nobodys_deletion(
    kubelet: fake.Cluster,
) -> None:
    Path(os.environ[FAILURES]).write_text("failures: {api: {retries: 1, wait: 1}}")
    kubelet.faults.append(fake.Fault("POST", "/jobs", 503, times=1000))

    def away() -> None:
        # As often as one request is tried; the second look is answered.
        kubelet.faults[:] = [fake.Fault("GET", "/jobs/", 503, times=6)]

    found = resumed(
        kubelet,
        "pinned_told",
        before=away,
        after=end,
        when=lambda: any(method == "POST" for method, _ in kubelet.asked),
    )
    assert found.success, found.told
    assert "it is left alone" in found.told
    assert "somebody deleted it" not in found.told
    assert found.attempts == 1


def test_a_step_whose_job_was_deleted_meanwhile_is_not_started_again(
    kubelet: fake.Cluster,
) -> None:
    def deletes() -> None:
        (pod,) = kubelet.pods.values()
        kubelet.kubelet.processes[pod["metadata"]["name"]].kill()  # it records no end
        kubelet.delete_by_hand()
        until(lambda: not kubelet.pods, "the end of the pod")

    found = resumed(kubelet, "pinned_told", before=deletes, after=lambda: None)
    assert not found.success
    assert "somebody deleted it" in found.told
    assert found.attempts == 1


def test_a_run_that_skipped_a_step_goes_on(kubelet: fake.Cluster) -> None:
    """The step that runs was started after that, and was given what was not skipped."""
    found = resumed(kubelet, "stock_skips", before=lambda: None, after=end)
    assert not found.success
    assert "was reported as skipped from outside" in found.told

    kubelet.jobs.clear()
    for note in Path(os.environ[STEPS]).iterdir():
        note.unlink()
    found = resumed(kubelet, "pinned_skips", before=lambda: None, after=end)
    assert found.success, found.told
    assert found.attempts == 1
    assert len(kubelet.jobs) == 3


def test_a_log_that_is_longer_than_dagster_reads_at_once_is_read_whole(
    kubelet: fake.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_EXECUTOR_POP_EVENTS_LIMIT", "4")  # of 1,000
    # It starts the step that runs once more, under the name that is taken, and ends it for that.
    found = resumed(kubelet, "stock_long", before=lambda: None, after=end)
    assert not found.success
    assert "already exists" in found.told

    kubelet.jobs.clear()
    for note in Path(os.environ[STEPS]).iterdir():
        note.unlink()
    found = resumed(kubelet, "pinned_long", before=lambda: None, after=end)
    assert found.success, found.told
    assert found.attempts == 1
    assert len(kubelet.jobs) == 2
