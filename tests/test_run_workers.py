"""Run workers that the cluster ends, and requests that the API server refuses for a while."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes.client
import pytest
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._core.test_utils import instance_for_test
from dagster._daemon.monitoring.run_monitoring import monitor_started_run, monitor_starting_run
from dagster_k8s.launcher import K8sRunLauncher

from platform_assets.domain.cluster_budgets import ClusterError
from platform_assets.domain.cluster_causes import Cause
from platform_assets.instance.kubernetes import admitting
from platform_assets.instance.kubernetes.admitting import AdmittingApiClient
from platform_assets.instance.kubernetes.calling import Patience
from platform_assets.instance.kubernetes.launcher import PinnedK8sRunLauncher
from resources.failures import VARIABLE as FAILURES
from resources.images import VARIABLE, change_lock, load_lock
from tests import cluster as fake
from tests.cluster_runs import HOST, LOCK, RUN, TRAIN

QUICK = Patience(pause=lambda _: None)


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    (tmp_path / "failures.yaml").write_text("failures: {evicted: {retries: 1}}")
    monkeypatch.setenv(FAILURES, str(tmp_path / "failures.yaml"))
    monkeypatch.setattr(admitting, "Patience", lambda: QUICK)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[fake.Cluster]:
    with fake.running(tmp_path) as found:
        yield found


# --- requests -------------------------------------------------------------------------------------


def client(
    cluster: fake.Cluster, patience: Patience = QUICK, renews: bool = True
) -> kubernetes.client.BatchV1Api:
    configuration = kubernetes.client.Configuration()
    read = admitting.credentials(False, cluster.kubeconfig)
    read(configuration)
    own = AdmittingApiClient(
        load_lock, read if renews else None, patience, configuration=configuration
    )
    return kubernetes.client.BatchV1Api(own)


def a_job(run: str = "r", name: str = "j") -> dict[str, Any]:
    labels = {"dagster/run-id": run, "dagster/op": "x", "dagster/job": "y"}
    pod = {"restartPolicy": "Never", "containers": [{"name": "dagster", "image": RUN}]}
    return {
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


@pytest.mark.parametrize("does", ["drop", "late", 409, 429, 500, 502, 503, 504])
def test_a_request_is_sent_again_and_creates_one_job(
    cluster: fake.Cluster, does: int | str
) -> None:
    cluster.faults.append(fake.Fault("POST", "/jobs", does, times=3))
    made = client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())
    assert made.metadata.uid == cluster.jobs["j"]["metadata"]["uid"]
    assert list(cluster.jobs) == ["j"]


def test_an_answer_that_never_comes_has_an_end(cluster: fake.Cluster) -> None:
    cluster.faults.append(fake.Fault("POST", "/jobs", "hang", times=2))
    client(cluster).create_namespaced_job(fake.NAMESPACE, a_job(), _request_timeout=0.2)
    assert list(cluster.jobs) == ["j"]
    cluster.faults.append(fake.Fault("GET", "/jobs", "hang", times=100))
    with pytest.raises(ClusterError, match=r"ReadTimeoutError.*3 times"):
        client(cluster).read_namespaced_job("j", fake.NAMESPACE, _request_timeout=0.1)


def test_retry_after_is_followed_up_to_a_limit(cluster: fake.Cluster) -> None:
    waits: list[float] = []
    patience = Patience(pause=waits.append, chance=lambda: 1.0)
    for asked in ("7", "3600", "soon"):
        headers = {"Retry-After": asked}
        cluster.faults.append(fake.Fault("POST", "/jobs", 429, headers=headers))
    client(cluster, patience).create_namespaced_job(fake.NAMESPACE, a_job())
    assert waits == [7.0, 30.0, 2.0]
    # urllib3 would sleep for an hour, for a request that is read.
    waits.clear()
    cluster.faults[:] = [fake.Fault("GET", "/jobs", 429, headers={"Retry-After": "3600"})]
    client(cluster, patience).read_namespaced_job("j", fake.NAMESPACE)
    assert waits == [30.0]


def test_waits_have_an_end(cluster: fake.Cluster) -> None:
    waits: list[float] = []
    patience = Patience(pause=waits.append)
    headers = {"Retry-After": "25"}
    cluster.faults.append(fake.Fault("POST", "/jobs", 503, times=100, headers=headers))
    with pytest.raises(ClusterError, match="503") as raised:
        client(cluster, patience).create_namespaced_job(fake.NAMESPACE, a_job())
    assert waits == [25.0, 25.0]
    assert raised.value.cause is Cause.API


def test_a_name_that_is_anothers_is_refused(cluster: fake.Cluster) -> None:
    cluster.create(a_job(run="another"))
    with pytest.raises(ClusterError, match="it is not what was to be created"):
        client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())
    cluster.create(a_job(name="k"))
    client(cluster).create_namespaced_job(fake.NAMESPACE, a_job(name="k"))  # our own, of before


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_a_job_with_other_images_is_anothers(cluster: fake.Cluster, kind: str) -> None:
    """The labels are those of the run and the step: anybody can write them."""
    other = a_job()
    pod = other["spec"]["template"]["spec"]
    pod[kind] = [*pod.get(kind, ()), {"name": "f", "image": TRAIN}]
    cluster.create(other)
    with pytest.raises(ClusterError, match="it is not what was to be created"):
        client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())


def test_what_is_given_up_is_looked_for_once_more(cluster: fake.Cluster) -> None:
    """Created at the first try, and never told: who asks under another name has two."""
    cluster.faults[:] = [fake.Fault("POST", "/jobs", "late", times=100)]
    made = client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())
    assert made.metadata.uid == cluster.jobs["j"]["metadata"]["uid"]
    # The first one has filled the quota, which is asked before the name.
    cluster.jobs.clear()
    full = fake.Fault("POST", "/jobs", 403, message="exceeded quota: lane")
    cluster.faults[:] = [fake.Fault("POST", "/jobs", "late"), full]
    client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())
    assert list(cluster.jobs) == ["j"]


@pytest.mark.parametrize("asked", [200, 503, "drop"])
def test_it_is_told_whether_it_is_known_that_nothing_was_created(
    cluster: fake.Cluster, asked: int | str
) -> None:
    cluster.faults[:] = [fake.Fault("POST", "/jobs", "drop", times=100)]
    if asked != 200:
        cluster.faults.append(fake.Fault("GET", "/jobs", asked, times=100))
    with pytest.raises(ClusterError, match="6 times") as raised:
        client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())
    assert raised.value.perhaps == (asked != 200)
    assert raised.value.cause is Cause.API


def test_a_name_that_is_taken_is_asked_about_until_it_is_known(cluster: fake.Cluster) -> None:
    cluster.create(a_job())
    cluster.faults[:] = [fake.Fault("GET", "/jobs", 503, times=2)]
    client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())
    assert list(cluster.jobs) == ["j"]


@pytest.mark.parametrize(
    ("status", "message", "cause"),
    [
        (403, "exceeded quota: lane", Cause.QUOTA),
        (403, 'User "x" cannot create resource "jobs"', Cause.FORBIDDEN),
        (422, "Invalid value", Cause.FORBIDDEN),
        (401, "Unauthorized", Cause.CREDENTIALS),
    ],
)
def test_a_refusal_is_not_sent_again(
    cluster: fake.Cluster, status: int, message: str, cause: Cause
) -> None:
    cluster.faults.append(fake.Fault("POST", "/jobs", status, times=100, message=message))
    with pytest.raises(ClusterError, match=message) as raised:
        client(cluster).create_namespaced_job(fake.NAMESPACE, a_job())
    assert raised.value.cause is cause
    assert len(cluster.asked) == (2 if status == 401 else 1)


def test_what_has_no_name_is_sent_once(cluster: fake.Cluster) -> None:
    job = a_job()
    job["metadata"] = {"generateName": "j-", "labels": job["metadata"]["labels"]}
    cluster.faults.append(fake.Fault("POST", "/jobs", 503))
    with pytest.raises(ClusterError, match="503"):
        client(cluster).create_namespaced_job(fake.NAMESPACE, job)


def test_a_token_is_read_again(cluster: fake.Cluster) -> None:
    api = client(cluster)
    cluster.token_file.write_text("new")
    cluster.tokens = {"new"}
    api.create_namespaced_job(fake.NAMESPACE, a_job())
    assert list(cluster.jobs) == ["j"]
    cluster.tokens = {"newer"}
    with pytest.raises(ClusterError, match="read again, and refused as well"):
        api.read_namespaced_job("j", fake.NAMESPACE)


# --- run workers ----------------------------------------------------------------------------------


@dg.op
def nothing() -> None:
    pass


@dg.job
def empty() -> None:
    nothing()


class Run:
    """A run whose worker is a pod of the fake."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str) -> None:
        self.instance, self.run_id = instance, run_id

    @property
    def run(self) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(self.run_id)
        assert found is not None
        return found

    def monitor(self) -> str:
        """A look of Dagster's monitor; what the run's log says of it."""
        record = self.instance.get_run_record_by_id(self.run_id)
        workspace: Any = None
        log = logging.getLogger("monitor")
        assert record is not None
        if record.dagster_run.status is DagsterRunStatus.STARTED:
            monitor_started_run(self.instance, workspace, record, log)
        else:
            monitor_starting_run(self.instance, record, log)
        return "\n".join(entry.message for entry in self.instance.all_logs(self.run_id))


@pytest.fixture
def launched(cluster: fake.Cluster, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Launch a run, and let it begin."""
    opened = []

    def launch(
        launcher: type[K8sRunLauncher], resumes: int = 0, begins: bool = True, timeout: int = 300
    ) -> Run:
        settings = {
            "service_account_name": "dagster",
            "instance_config_map": "dagster-instance",
            "dagster_home": "/opt/dagster",
            "job_namespace": fake.NAMESPACE,
            "load_incluster_config": False,
            "kubeconfig_file": cluster.kubeconfig,
            **({"image": "run"} if launcher is PinnedK8sRunLauncher else {"job_image": RUN}),
        }
        overrides = {
            "run_launcher": {
                "module": launcher.__module__,
                "class": launcher.__name__,
                "config": settings,
            },
            "run_monitoring": {
                "enabled": True,
                "max_resume_run_attempts": resumes,
                "start_timeout_seconds": timeout,
            },
        }
        context = instance_for_test(overrides=overrides)
        instance = context.__enter__()
        opened.append(context)
        origin = dg.reconstructable(empty).get_python_origin()
        run = instance.create_run_for_job(
            empty, job_code_origin=origin, status=DagsterRunStatus.STARTING
        )
        launch_event = dg.DagsterEvent(
            event_type_value=dg.DagsterEventType.PIPELINE_STARTING.value, job_name=run.job_name
        )
        instance.report_dagster_event(launch_event, run_id=run.run_id)
        instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        if begins:
            event = dg.DagsterEvent(
                event_type_value=dg.DagsterEventType.PIPELINE_START.value, job_name=run.job_name
            )
            instance.report_dagster_event(event, run_id=run.run_id)
        return Run(instance, run.run_id)

    yield launch
    for context in opened:
        context.__exit__(None, None, None)


BOTH = pytest.mark.parametrize("launcher", [K8sRunLauncher, PinnedK8sRunLauncher])


@BOTH
@pytest.mark.parametrize(
    ("happens", "words"),
    [
        ("evict", "TerminationByKubelet: The node was low on resource: memory."),
        ("out_of_memory", "exit code 137 (OOMKilled, signal 9)"),
        ("delete_by_hand", "somebody deleted it"),
        ("preempt", "pod 1f on node node-1"),
    ],
)
def test_a_run_says_what_ended_its_worker(
    cluster: fake.Cluster,
    launched: Callable[..., Run],
    launcher: type[K8sRunLauncher],
    happens: str,
    words: str,
) -> None:
    run = launched(launcher)
    getattr(cluster, happens)()
    cluster.work()
    told = run.monitor()
    assert run.run.status is DagsterRunStatus.FAILURE
    (failed,) = [line for line in told.splitlines() if "Detected run worker status" in line]
    if launcher is PinnedK8sRunLauncher:
        assert words in failed
    else:
        # Further down dagster-k8s shows what the pod says, as long as there is a pod.
        assert "Run has not completed but K8s job has no active pods" in failed or (
            "could not be found" in failed
        )
        assert (words in told) <= (happens in ("evict", "out_of_memory"))


@BOTH
def test_a_server_that_cannot_be_asked_ends_no_run(
    cluster: fake.Cluster,
    launched: Callable[..., Run],
    launcher: type[K8sRunLauncher],
) -> None:
    run = launched(launcher, resumes=1)
    cluster.faults.append(fake.Fault("GET", "/jobs/", 429, times=100))
    told = run.monitor()
    # dagster-k8s does not know how the worker is, so Dagster starts a second one beside it.
    assert len(cluster.jobs) == (2 if launcher is K8sRunLauncher else 1), told
    cluster.faults.clear()
    if launcher is PinnedK8sRunLauncher:
        result = run.instance.run_launcher.check_run_worker_health(run.run)
        assert result.status is WorkerStatus.RUNNING


def test_a_worker_is_started_again_by_the_budget_of_what_ended_it(
    cluster: fake.Cluster, launched: Callable[..., Run]
) -> None:
    run = launched(PinnedK8sRunLauncher, resumes=5)
    cluster.evict()
    cluster.work()
    told = run.monitor()
    assert "the run's worker was lost: pod dagster-run-" in told
    assert run.run.status is DagsterRunStatus.STARTED
    assert len(cluster.jobs) == 2
    cluster.evict()
    cluster.work()
    with pytest.raises(ClusterError, match="low on resource"):
        run.monitor()
    assert run.run.status is DagsterRunStatus.FAILURE
    assert len(cluster.jobs) == 2


def test_a_worker_that_ends_without_a_word_has_a_budget_too(
    cluster: fake.Cluster, launched: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "failures.yaml").write_text("failures: {restarted: {retries: 1}}")
    run = launched(PinnedK8sRunLauncher, resumes=34)

    def ends() -> None:
        cluster.kubelet.ended(cluster.of_job(list(cluster.jobs)[-1])[0], 0)
        cluster.work()

    ends()
    assert "the run's worker was lost: Job dagster-run-" in run.monitor()
    assert run.run.status is DagsterRunStatus.STARTED
    ends()
    with pytest.raises(ClusterError, match="did not say that it ended"):
        run.monitor()
    assert run.run.status is DagsterRunStatus.FAILURE
    assert len(cluster.jobs) == 2


@pytest.mark.parametrize("happens", ["out_of_memory", "delete_by_hand"])
@BOTH
def test_what_would_only_happen_again_is_not_resumed(
    cluster: fake.Cluster,
    launched: Callable[..., Run],
    launcher: type[K8sRunLauncher],
    happens: str,
) -> None:
    run = launched(launcher, resumes=5)
    getattr(cluster, happens)()
    cluster.work()
    if launcher is K8sRunLauncher:
        run.monitor()
        assert run.run.status is DagsterRunStatus.STARTED  # it runs into the same limit again
    else:
        with pytest.raises(ClusterError):
            run.monitor()
        assert run.run.status is DagsterRunStatus.FAILURE


@BOTH
@pytest.mark.parametrize("resumes", [0, 5])
def test_a_worker_that_runs_another_image_is_ended(
    cluster: fake.Cluster,
    launched: Callable[..., Run],
    launcher: type[K8sRunLauncher],
    resumes: int,
) -> None:
    cluster.image_ids = {RUN: f"docker-pullable://{HOST}/run@sha256:{'e' * 64}"}
    run = launched(launcher, resumes)
    cluster.create(a_job(run.run_id, "its-step"))
    cluster.create(a_job("another", "anothers-step"))
    if launcher is K8sRunLauncher:
        assert "sha256:eeee" not in run.monitor()
        assert run.run.status is DagsterRunStatus.STARTED
        return
    if resumes:
        with pytest.raises(ClusterError, match="the cluster runs sha256:eeee"):
            run.monitor()
    else:
        run.monitor()
    told = "\n".join(entry.message for entry in run.instance.all_logs(run.run_id))
    assert "the worker was ended: the cluster runs sha256:eeee" in told
    assert "somebody deleted it" not in told
    assert "Job dagster-run-" in told
    assert "its-step" in told
    assert run.run.status is DagsterRunStatus.FAILURE
    assert list(cluster.jobs) == ["anothers-step"]


@BOTH
@pytest.mark.parametrize("resumes", [0, 5])
def test_the_steps_of_a_run_whose_worker_is_not_resumed_are_ended(
    cluster: fake.Cluster,
    launched: Callable[..., Run],
    launcher: type[K8sRunLauncher],
    resumes: int,
) -> None:
    run = launched(launcher, resumes)
    cluster.out_of_memory()
    cluster.work()
    cluster.create(a_job(run.run_id, "its-step"))
    if launcher is K8sRunLauncher:
        run.monitor()  # failed or resumed, it leaves them
        assert "its-step" in cluster.jobs
        return
    if resumes:
        with pytest.raises(ClusterError):
            run.monitor()
    else:
        run.monitor()
    assert run.run.status is DagsterRunStatus.FAILURE
    assert "its-step" not in cluster.jobs


@BOTH
def test_the_steps_of_a_run_that_is_terminated_are_ended(
    cluster: fake.Cluster, launched: Callable[..., Run], launcher: type[K8sRunLauncher]
) -> None:
    """Its worker leaves them to the next one, as long as it might be resumed."""
    run = launched(launcher, resumes=5)
    cluster.create(a_job(run.run_id, "its-step"))
    run.instance.run_launcher.terminate(run.run_id)
    assert ("its-step" in cluster.jobs) is (launcher is K8sRunLauncher)


def test_jobs_that_cannot_be_deleted_are_told(
    cluster: fake.Cluster, launched: Callable[..., Run]
) -> None:
    run = launched(PinnedK8sRunLauncher)
    cluster.out_of_memory()
    cluster.work()
    cluster.create(a_job(run.run_id, "its-step"))
    cluster.faults.append(fake.Fault("DELETE", "/jobs/its-step", 403, times=100))
    told = run.monitor()
    assert "Jobs of the run were not deleted, they may go on" in told
    assert run.run.status is DagsterRunStatus.FAILURE


def test_a_worker_whose_image_left_the_lock_goes_on(
    cluster: fake.Cluster, launched: Callable[..., Run]
) -> None:
    """As the cluster reports it, by one of the digests that the lock had of it."""
    cluster.image_ids = {RUN: LOCK.images["run"].config}
    run = launched(PinnedK8sRunLauncher)
    run.monitor()
    moved = LOCK.images["run"].model_copy(update={"digest": f"sha256:{'3' * 64}"})
    images = {**LOCK.images, "run": moved}
    change_lock(lambda _: LOCK.model_copy(update={"images": images}))
    run.monitor()
    assert run.run.status is DagsterRunStatus.STARTED
    # Unless somebody has put another one there than was sent.
    (pod,) = cluster.pods.values()
    other = f"{HOST}/run@sha256:{'f' * 64}"
    pod["spec"]["containers"] = [{**pod["spec"]["containers"][0], "image": other}]
    assert "does not stand in the lock any more" in run.monitor()
    assert run.run.status is DagsterRunStatus.FAILURE


def test_a_worker_that_does_not_start_says_why(
    cluster: fake.Cluster, launched: Callable[..., Run]
) -> None:
    cluster.full = "0/2 nodes are available: 2 Insufficient cpu."
    run = launched(PinnedK8sRunLauncher, begins=False, timeout=0)
    told = run.monitor()
    assert "Unschedulable: 0/2 nodes are available: 2 Insufficient cpu." in told
