"""Failures of the cluster: what dagster-k8s makes of each, and what the pinned executor does."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster_k8s.client
import pytest

from platform_assets.instance.kubernetes import admitting
from platform_assets.instance.kubernetes.calling import Patience
from resources.failures import VARIABLE as FAILURES
from resources.images import VARIABLE, change_lock
from tests import cluster as fake
from tests.cluster_runs import LOCK, RUN, STEPS, execute

pytestmark = pytest.mark.heavy

BUDGETS = """
failures:
  evicted: {retries: 1, wait: 1}
  preempted: {retries: 1, wait: 1}
  node_lost: {retries: 1, wait: 1}
  restarted: {retries: 1, wait: 1}
  killed: {retries: 1, wait: 1}
  api: {retries: 1, wait: 1}
  quota: {retries: 2, wait: 1, patience: 60}
  image: {patience: 1}
  container_config: {patience: 1}
  unschedulable: {patience: 1}
  suspended: {patience: 1}
"""


@pytest.fixture
def kubelet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Cluster]:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    change_lock(lambda _: LOCK)
    (tmp_path / "failures.yaml").write_text(BUDGETS)
    monkeypatch.setenv(FAILURES, str(tmp_path / "failures.yaml"))
    (tmp_path / "steps").mkdir()
    monkeypatch.setenv(STEPS, str(tmp_path / "steps"))
    # dagster-k8s waits 10 s between its tries, the pinned client up to 30 s.
    short = SimpleNamespace(sleep=lambda _: time.sleep(0.05), time=time.time)
    monkeypatch.setattr(dagster_k8s.client, "time", short)
    monkeypatch.setattr(admitting, "Patience", partial(Patience, first=0.02))
    with fake.running(tmp_path, runs=True) as found:
        yield found


def asked_often(cluster: fake.Cluster, once: Callable[[], object]) -> Callable[[], bool]:
    """A condition: the cluster was asked 15 times since something holds, and nothing came of it."""
    since: list[int] = []

    def often() -> bool:
        if not since and once():
            since.append(len(cluster.asked))
        return bool(since) and len(cluster.asked) >= since[0] + 15

    return often


# --- pods that the cluster ends -------------------------------------------------------------------

ENDED = {
    "evict": "TerminationByKubelet: The node was low on resource: memory.",
    "preempt": "PreemptionByScheduler: default-scheduler: preempting to accommodate",
    "drain": "EvictionByEvictionAPI: Eviction API: evicting",
    "lose_node": "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint",
}


@pytest.mark.parametrize(("happens", "words"), ENDED.items(), ids=list(ENDED))
def test_what_the_cluster_ends_is_asked_for_again(
    kubelet: fake.Cluster, happens: str, words: str
) -> None:
    lost = asked_often(
        kubelet, lambda: any("deletionTimestamp" in p["metadata"] for p in kubelet.pods.values())
    )
    ended = execute(kubelet, "stock_lasts_once", getattr(kubelet, happens), hangs_if=lost)
    # The accident: the run fails as if the code had, or waits for a node that is gone.
    assert not ended.success
    assert ended.hung == (happens == "lose_node")
    assert words not in ended.told
    assert ended.attempts == 1

    ended = execute(kubelet, "pinned_lasts_once", getattr(kubelet, happens))
    assert ended.success, ended.told
    assert words in ended.told
    assert "It is no error of the code" in ended.told
    assert "It is asked for again in 1 s (1 of 1)" in ended.told
    assert ended.attempts == 2


def test_an_eviction_takes_nothing_of_what_the_op_may_do_wrong(kubelet: fake.Cluster) -> None:
    # One failure is allowed: dagster-k8s has spent it on the eviction.
    ended = execute(kubelet, "stock_fails_once_later", kubelet.evict)
    assert not ended.success
    assert ended.attempts == 2
    for happens in (kubelet.evict, kubelet.preempt):
        ended = execute(kubelet, "pinned_fails_once_later", happens)
        assert ended.success, ended.told
        assert ended.attempts == 3
        assert ended.events.count("STEP_UP_FOR_RETRY") == 2


def test_a_training_that_is_preempted_goes_on_from_its_checkpoint(
    kubelet: fake.Cluster, tmp_path: Path
) -> None:
    ended = execute(kubelet, "pinned_trains", kubelet.preempt)
    assert ended.success, ended.told
    assert ENDED["preempt"] in ended.told
    assert ended.attempts == 2
    begun = sorted(found.name for found in (tmp_path / "steps").glob("begun-*"))
    assert begun == ["begun-1-0", "begun-2-3"]


def _sigkill(cluster: fake.Cluster) -> None:
    """To the pod's process, by nobody known."""
    cluster.kubelet.kill(cluster.the_pod())


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (fake.Cluster.out_of_memory, "exit code 137 (OOMKilled, signal 9); "),
        (_sigkill, "exit code 137 (Error, signal 9)"),
        (fake.Cluster.evict, ENDED["evict"]),
        (fake.Cluster.lose_node, ENDED["lose_node"]),
    ],
    ids=["out_of_memory", "sigkill", "evict", "lose_node"],
)
def test_a_training_that_is_killed_goes_on_from_its_checkpoint(
    kubelet: fake.Cluster,
    tmp_path: Path,
    happens: Callable[[fake.Cluster], None],
    words: str,
) -> None:
    ended = execute(kubelet, "pinned_trains", partial(happens, kubelet))
    assert ended.success, ended.told
    assert words in ended.told
    assert "It is asked for again in 1 s (1 of 1)" in ended.told
    assert ended.attempts == 2
    begun = sorted(found.name for found in (tmp_path / "steps").glob("begun-*"))
    assert begun == ["begun-1-0", "begun-2-2"]


def test_what_is_killed_without_a_checkpoint_is_the_codes(kubelet: fake.Cluster) -> None:
    ended = execute(kubelet, "pinned_lasts_once", partial(_sigkill, kubelet))
    assert not ended.success
    assert ended.attempts == 1


def test_a_budget_has_an_end(kubelet: fake.Cluster, tmp_path: Path) -> None:
    (tmp_path / "failures.yaml").write_text("failures: {evicted: {retries: 0}}")
    ended = execute(kubelet, "pinned_lasts_once", kubelet.evict)
    assert not ended.success
    assert ended.attempts == 1
    assert ENDED["evict"] in ended.told


def test_without_retries_nothing_is_asked_for_again(kubelet: fake.Cluster) -> None:
    ended = execute(kubelet, "pinned_lasts_once", kubelet.evict, retries={"disabled": {}})
    assert not ended.success
    assert ended.attempts == 1
    assert "The executor's retries are disabled" in ended.told


# --- what is not the cluster's fault --------------------------------------------------------------


def test_memory_is_told_with_its_limit(kubelet: fake.Cluster) -> None:
    limit = {"container_config": {"resources": {"limits": {"memory": "512Mi"}}}}
    for job, words in (
        ("stock_fails_once_later", "Discovered failed Kubernetes job"),
        ("pinned_fails_once_later", "exit code 137 (OOMKilled, signal 9); its memory limit is"),
    ):
        ended = execute(kubelet, job, kubelet.out_of_memory, step_k8s_config=limit)
        assert not ended.success
        assert words in ended.told
        # An op's RetryPolicy runs into the same limit; ours does not try.
        assert ended.attempts == (2 if job.startswith("stock") else 1)
    assert "512Mi" in ended.told


def test_a_job_that_somebody_deletes(kubelet: fake.Cluster) -> None:
    for job in ("stock_lasts_once", "pinned_lasts_once"):
        ended = execute(kubelet, job, kubelet.delete_by_hand)
        assert not ended.success
        assert ended.attempts == 1
        assert ("somebody deleted it" in ended.told) == job.startswith("pinned")


def test_a_job_that_takes_too_long(kubelet: fake.Cluster) -> None:
    for job in ("stock_lasts_once", "pinned_lasts_once"):
        ended = execute(kubelet, job, kubelet.expire)
        assert not ended.success
        assert ended.attempts == 1
        told = "DeadlineExceeded: Job was active longer than specified deadline" in ended.told
        assert told == job.startswith("pinned")


def test_a_process_that_ends_without_a_word_is_the_codes(kubelet: fake.Cluster) -> None:
    for job in ("stock_leaves", "pinned_leaves"):
        ended = execute(kubelet, job)
        assert not ended.success
        assert ended.attempts == 1
        assert ("ended with exit code 3" in ended.told) == job.startswith("pinned")


def test_a_pod_that_kubernetes_starts_again(kubelet: fake.Cluster) -> None:
    ignored = {"action": "Ignore", "on_pod_conditions": [{"type": "DisruptionTarget"}]}
    policy = {"pod_failure_policy": {"rules": [ignored]}}
    again = {"job_spec_config": {"backoff_limit": 1, **policy}}
    # dagster-io/dagster#33755: the second pod leaves, the Job is Complete, the step stays STARTED.
    complete = asked_often(
        kubelet, lambda: any(job["status"].get("succeeded") for job in kubelet.jobs.values())
    )
    ended = execute(
        kubelet, "stock_lasts_once", kubelet.evict, hangs_if=complete, step_k8s_config=again
    )
    assert ended.hung
    assert ended.attempts == 1
    kubelet.jobs.clear()
    ended = execute(kubelet, "pinned_lasts_once", kubelet.evict, step_k8s_config=again)
    assert not ended.success
    assert "nothing was created: backoffLimit is 1, allowed is 0" in ended.told
    assert kubelet.jobs == {}


def test_a_job_that_ends_well_and_recorded_nothing(kubelet: fake.Cluster) -> None:
    complete = asked_often(
        kubelet, lambda: any(job["status"].get("succeeded") for job in kubelet.jobs.values())
    )
    assert execute(kubelet, "stock_leaves_well_once", hangs_if=complete).hung
    ended = execute(kubelet, "pinned_leaves_well_once")
    assert ended.success, ended.told
    assert "is Complete, but its step recorded no end" in ended.told


# --- pods that never start ------------------------------------------------------------------------


def _quota(cluster: fake.Cluster) -> None:
    cluster.quota = 0


def _priorities(cluster: fake.Cluster) -> None:
    cluster.priority_classes = {"daily"}


def _unpullable(words: str, cluster: fake.Cluster) -> None:
    cluster.unpullable = {RUN: words}


def _config(cluster: fake.Cluster) -> None:
    cluster.config_error = 'configmap "dagster-instance" not found'


def _full(cluster: fake.Cluster) -> None:
    cluster.full = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def _suspended(cluster: fake.Cluster) -> None:
    cluster.suspends = True


NEVER: dict[str, tuple[Callable[[fake.Cluster], None], str]] = {
    "an image that is gone": (
        partial(_unpullable, "ErrImagePull: manifest unknown"),
        "ErrImagePull: manifest unknown",
    ),
    "no image's name": (
        partial(_unpullable, "InvalidImageName: couldn't parse image reference"),
        "InvalidImageName: InvalidImageName: couldn't parse",
    ),
    "a ConfigMap that is not there": (
        _config,
        'CreateContainerConfigError: configmap "dagster-instance" not found',
    ),
    "an unknown PriorityClass": (
        _priorities,
        "no PriorityClass with name signalbox-step-adhoc was found",
    ),
    "a queue that does not let it in": (_suspended, "JobSuspended: Job suspended"),
    "no room": (_full, "Unschedulable: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu."),
}


@pytest.mark.parametrize(("sets", "words"), NEVER.values(), ids=list(NEVER))
def test_what_never_starts_is_told(
    kubelet: fake.Cluster, sets: Callable[[fake.Cluster], None], words: str
) -> None:
    sets(kubelet)
    # The pinned one gives it that of its lane, and refuses others.
    priority = {"pod_spec_config": {"priority_class_name": "nightly"}}
    waits = asked_often(kubelet, lambda: kubelet.jobs)
    ended = execute(kubelet, "stock_trivial", hangs_if=waits, step_k8s_config=priority)
    assert ended.hung  # it waits for ever, and says nothing
    assert words not in ended.told
    kubelet.jobs.clear()
    kubelet.pods.clear()
    ended = execute(kubelet, "pinned_trivial")
    assert not ended.success
    assert words in ended.told
    assert kubelet.jobs == {}  # so that it does not start when nobody waits for it any more


def test_a_quota_is_waited_for_and_said_once(kubelet: fake.Cluster) -> None:
    _quota(kubelet)

    def frees() -> None:
        kubelet.quota = None

    def told() -> bool:
        return bool(asked())

    asked = asked_often(kubelet, lambda: len(kubelet.events) > 3)
    kubelet.when(told, frees)
    ended = execute(kubelet, "pinned_trivial")
    assert ended.success, ended.told
    assert ended.told.count("step trivial waits: Job dagster-step-") == 1
    assert "is forbidden: exceeded quota: lane, requested: pods=1" in ended.told
    assert "It is waited for, up to 60 s" in ended.told
    assert "step trivial goes on after" in ended.told
    assert ended.attempts == 1


def test_a_quota_that_stays_full_ends_the_wait(kubelet: fake.Cluster, tmp_path: Path) -> None:
    _quota(kubelet)
    waits = asked_often(kubelet, lambda: len(kubelet.events) > 0)
    ended = execute(kubelet, "stock_trivial", hangs_if=waits)
    assert ended.hung  # it waits for ever, and says nothing
    assert "exceeded quota" not in ended.told
    kubelet.jobs.clear()
    (tmp_path / "failures.yaml").write_text("failures: {quota: {patience: 1}}")
    ended = execute(kubelet, "pinned_trivial")
    assert not ended.success
    assert "exceeded quota: lane" in ended.told
    assert "Wait for what runs, or raise the namespace's ResourceQuota" in ended.told
    assert kubelet.jobs == {}


# --- the API server -------------------------------------------------------------------------------

FULL = 'jobs.batch "x" is forbidden: exceeded quota: lane, requested: count/jobs.batch=1'
REFUSALS: dict[str, Any] = {
    "429": {"does": 429, "headers": {"Retry-After": "1"}, "message": "too many requests"},
    "409 of a quota's counter": {"does": 409, "message": "the object has been modified"},
    "403 of a full quota": {"does": 403, "message": FULL},
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))
def test_a_step_that_is_not_taken_costs_no_other_step(
    kubelet: fake.Cluster, refusal: dict[str, Any]
) -> None:
    def refuse() -> None:
        kubelet.faults.append(fake.Fault("POST", "/jobs", **refusal))

    ended = execute(kubelet, "stock_two", refuse)
    # The run fails at once, and what runs beside it is ended with it.
    assert not ended.success
    assert "Unexpected exception while steps were still in-progress" in ended.told
    kubelet.faults.clear()
    ended = execute(kubelet, "pinned_two", refuse)
    assert ended.success, ended.told


def test_a_step_that_is_forbidden_fails_alone(kubelet: fake.Cluster) -> None:
    text = 'jobs.batch "x" is forbidden: ValidatingAdmissionPolicy images denied request'
    faults: list[fake.Fault] = []

    def forbids() -> None:
        faults[:] = [fake.Fault("POST", "/jobs", 403, message=text)]
        kubelet.faults[:] = faults

    def goes_on() -> None:
        (Path(os.environ[STEPS]) / "after-0").touch()

    ended = execute(kubelet, "stock_two", forbids)
    assert not ended.success
    assert "Unexpected exception while steps were still in-progress" in ended.told
    faults.clear()
    kubelet.when(lambda: faults and not faults[0].times, goes_on)
    ended = execute(kubelet, "pinned_two", forbids)
    assert not ended.success
    assert "Execution of step 'after' failed: POST " in ended.told
    assert f"403 Forbidden: {text}. Give the Role what it lacks" in ended.told
    assert ended.events.count("STEP_SUCCESS") == 2
    assert ended.events.count("STEP_FAILURE") == 1


@pytest.mark.parametrize("breaks", ["drop", "late", 500, 503, 504])
def test_a_job_is_created_once(kubelet: fake.Cluster, breaks: int | str) -> None:
    kubelet.faults.append(fake.Fault("POST", "/jobs", breaks, times=2))
    ended = execute(kubelet, "pinned_trivial")
    assert ended.success, ended.told
    assert len(kubelet.jobs) == 1
    assert ended.attempts == 1


def test_a_server_that_is_away_for_longer(kubelet: fake.Cluster) -> None:
    kubelet.faults.append(fake.Fault("POST", "/jobs", 503, times=1000))
    assert not execute(kubelet, "stock_trivial").success
    kubelet.faults[:] = [fake.Fault("POST", "/jobs", 503, times=9)]  # 6 tries, and 3 of 6
    ended = execute(kubelet, "pinned_trivial")
    assert ended.success, ended.told
    assert "503 ServiceUnavailable" in ended.told or "503" in ended.told
    assert "It is asked for again in 1 s (1 of 1)" in ended.told
    kubelet.faults[:] = [fake.Fault("POST", "/jobs", 503, times=1000)]
    ended = execute(kubelet, "pinned_trivial")
    assert not ended.success
    assert "It was asked for again once" in ended.told


@pytest.mark.parametrize("asked", [200, 503], ids=["then it answers", "then it is away"])
def test_answers_that_are_late_more_often_than_asked_start_no_step_twice(
    kubelet: fake.Cluster, asked: int
) -> None:
    kubelet.faults.append(fake.Fault("POST", "/jobs", "late", times=8))
    if asked == 503:
        kubelet.faults.append(fake.Fault("GET", "/", 503, times=3))
    ended = execute(kubelet, "pinned_trivial")
    assert ended.success, ended.told
    assert len(kubelet.jobs) == 1
    assert ended.attempts == 1
    assert ("it is left alone" in ended.told) == (asked == 503)


def test_what_was_perhaps_created_and_was_not_is_asked_for_again(kubelet: fake.Cluster) -> None:
    kubelet.faults.append(fake.Fault("POST", "/jobs", "drop", times=6))
    kubelet.faults.append(fake.Fault("GET", "/", 503, times=3))
    ended = execute(kubelet, "pinned_trivial")
    assert ended.success, ended.told
    assert "it is left alone" in ended.told
    assert "It is asked for again in 1 s (1 of 1)" in ended.told
    assert len(kubelet.jobs) == 1
    assert ended.attempts == 1


def test_a_server_that_cannot_be_asked_ends_no_step(kubelet: fake.Cluster) -> None:
    def away() -> None:
        kubelet.faults.append(fake.Fault("GET", "/", 503, times=12))

    def back() -> bool:
        return bool(kubelet.faults) and kubelet.faults[0].times == 0

    kubelet.when(back, kubelet.evict)
    ended = execute(kubelet, "pinned_lasts_once", away)
    assert ended.success, ended.told
    assert ended.told.count("it is not known how it is, and it is left alone") == 1
    assert ended.attempts == 2


def test_a_token_is_read_again(kubelet: fake.Cluster) -> None:
    def expires() -> None:
        kubelet.token_file.write_text("new")
        kubelet.tokens = {"new"}

    for job in ("stock_chain", "pinned_chain"):
        kubelet.token_file.write_text("old")
        kubelet.tokens = {"old"}
        ended = execute(kubelet, job, expires)
        assert ended.success == job.startswith("pinned"), ended.told


def test_a_token_that_stays_refused_is_said_at_once(kubelet: fake.Cluster) -> None:
    kubelet.tokens = {"another"}
    ended = execute(kubelet, "pinned_trivial")
    assert not ended.success
    assert "401 Unauthorized" in ended.told
    assert "The token was read again, and refused as well" in ended.told
    assert len(kubelet.asked) == 2
