"""Counts of what the cluster broke, kept in the run's events; and what an interruption is."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.plan.objects import ErrorSource, StepFailureData, StepRetryData
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._core.test_utils import create_run_for_test, instance_for_test
from dagster._grpc.types import ExecuteStepArgs
from dagster_shared.error import SerializableErrorInfo

from platform_assets.domain.cluster_budgets import Budgets
from platform_assets.domain.cluster_causes import Cause, Finding
from platform_assets.domain.interruptions import MOST_KILLED, SAVED_TAG
from platform_assets.instance.kubernetes.recovering import (
    Attempt,
    Recovery,
    after_skips,
    interrupted,
    superseded,
)

EVICTED = Finding(Cause.EVICTED, "over", "pod x: Evicted: low on memory")
QUOTA = Finding(Cause.QUOTA, "waits", "Job x: FailedCreate: exceeded quota")


class Ticking:
    now = datetime(2026, 11, 23, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def run() -> Iterator[tuple[dg.DagsterInstance, dg.DagsterRun]]:
    with instance_for_test() as instance:
        yield instance, create_run_for_test(instance, job_name="x")


@dg.op
def _one() -> None:
    pass


@dg.job
def _job() -> None:
    _one()


def context(run: tuple[dg.DagsterInstance, dg.DagsterRun], attempts: int) -> Any:
    """A step's context, as far as it is looked at."""
    state = KnownExecutionState(previous_retry_attempts={"step": attempts})
    args = ExecuteStepArgs(
        dg.reconstructable(_job).get_python_origin(),
        run[1].run_id,
        ["step"],
        retry_mode=RetryMode.DEFERRED,
        known_state=state,
        should_verify_step=True,
    )
    return SimpleNamespace(instance=run[0], dagster_run=run[1], execute_step_args=args)


def told(run: tuple[dg.DagsterInstance, dg.DagsterRun]) -> list[str]:
    return [entry.message for entry in run[0].all_logs(run[1].run_id)]


def test_the_pod_is_told_only_of_the_retries_that_the_code_caused(
    run: tuple[dg.DagsterInstance, dg.DagsterRun],
) -> None:
    recovery = Recovery(Budgets())
    first = context(run, 0)
    assert recovery.attempt(first, "step") is first
    recovery.mark(first, "step", EVICTED, "it was evicted")
    # Another run worker comes after this one, and reads the counts back.
    for known in (recovery, Recovery(Budgets())):
        third = known.attempt(context(run, 2), "step")
        assert isinstance(third, Attempt)
        state = third.execute_step_args.known_state
        assert state is not None
        assert state.previous_retry_attempts == {"step": 1}
        assert third.execute_step_args.should_verify_step is False
        assert third.original.execute_step_args.known_state.previous_retry_attempts == {"step": 2}
        assert known.retried(context(run, 2), "step") == {Cause.EVICTED: 1}
        assert not known.retried(context(run, 2), "another")


def test_a_mark_whose_retry_was_never_written_is_no_negative_count(
    run: tuple[dg.DagsterInstance, dg.DagsterRun],
) -> None:
    recovery = Recovery(Budgets())
    recovery.mark(context(run, 0), "step", EVICTED, "it was evicted")
    state = recovery.attempt(context(run, 0), "step").execute_step_args.known_state
    assert state is not None
    assert state.previous_retry_attempts == {"step": 0}


def test_a_wait_is_said_when_it_begins_and_when_it_ends(
    run: tuple[dg.DagsterInstance, dg.DagsterRun],
) -> None:
    clock = Ticking()
    recovery = Recovery(Budgets(), clock=clock)
    for _ in range(5):
        assert recovery.judge(context(run, 0), "step", QUOTA).step == "wait"
        clock.now += timedelta(hours=1)
    recovery.well(context(run, 0), "step")
    recovery.well(context(run, 0), "step")
    assert [line.partition(":")[0] for line in told(run)] == [
        "step step waits",
        "step step goes on after 18000 s",
    ]
    # A new wait has all of its patience again.
    assert recovery.judge(context(run, 0), "step", QUOTA).step == "wait"
    clock.now += timedelta(hours=6)
    assert recovery.judge(context(run, 0), "step", QUOTA).step == "fail"


KILLS = [
    Finding(Cause.OUT_OF_MEMORY, "over", "pod x: OOMKilled", killed=True),
    Finding(Cause.EXITED, "over", "pod x: signal 9", killed=True),
]


def test_a_kill_is_the_clusters_once_a_checkpoint_is_durable(
    run: tuple[dg.DagsterInstance, dg.DagsterRun],
) -> None:
    told = [Recovery(Budgets()).judge(context(run, 0), "step", kill).step for kill in KILLS]
    assert told == ["fail", "theirs"]
    # A retry has the tags of the run before: nothing of this one is saved.
    run[0].add_run_tags(run[1].run_id, {SAVED_TAG: "another"})
    assert Recovery(Budgets()).judge(context(run, 0), "step", KILLS[0]).step == "fail"

    recovery = Recovery(Budgets())
    run[0].add_run_tags(run[1].run_id, {SAVED_TAG: run[1].run_id})  # not in the context's run
    error = Finding(Cause.EXITED, "over", "pod x: exit code 3")
    assert recovery.judge(context(run, 0), "step", error).step == "theirs"
    for count in range(MOST_KILLED):  # of both kinds together
        kill = KILLS[count % 2]
        assert recovery.judge(context(run, count), "step", kill).step == "retry"
        recovery.mark(context(run, count), "step", kill, "it was killed")
    for known in (recovery, Recovery(Budgets())):
        assert known.retried(context(run, MOST_KILLED), "step") == {Cause.KILLED: MOST_KILLED}
        assert known.judge(context(run, MOST_KILLED), "step", KILLS[1]).step == "fail"


def event(kind: DagsterEventType, data: Any, key: str = "step") -> DagsterEvent:
    return DagsterEvent(kind.value, "x", step_key=key, event_specific_data=data)


def error(name: str, cause: SerializableErrorInfo | None = None) -> SerializableErrorInfo:
    return SerializableErrorInfo("x", [], name, cause)


def failure(source: ErrorSource, key: str = "step") -> DagsterEvent:
    data = StepFailureData(error("x"), None, source)
    return event(DagsterEventType.STEP_FAILURE, data, key)


def retry(info: SerializableErrorInfo, key: str = "step") -> DagsterEvent:
    return event(DagsterEventType.STEP_UP_FOR_RETRY, StepRetryData(info), key)


def test_an_interruption_is_no_error_of_the_code() -> None:
    signal = error("DagsterExecutionInterruptedError")
    assert interrupted(failure(ErrorSource.INTERRUPT))
    assert interrupted(retry(error("RetryRequested", signal)))
    for source in ErrorSource:
        assert interrupted(failure(source)) == (source is ErrorSource.INTERRUPT)
    assert not interrupted(retry(error("RetryRequestedFromPolicy", error("ValueError"))))
    assert not interrupted(retry(error("ClusterError")))


def test_a_failure_that_was_retried_is_none() -> None:
    events = [failure(ErrorSource.INTERRUPT), retry(error("ClusterError"), "another")]
    assert not superseded(events, 0)
    assert superseded([*events, retry(error("ClusterError"))], 0)


def test_what_was_started_after_a_skip_is_known() -> None:
    starting, ended = DagsterEventType.STEP_WORKER_STARTING, DagsterEventType.STEP_SUCCESS
    skipped = DagsterEventType.STEP_SKIPPED
    told = [
        *((starting, "a"), (starting, "b"), (ended, "a")),
        *((skipped, "c"), (ended, "b"), (starting, "d"), (ended, "d")),
    ]
    events: list[Any] = [
        SimpleNamespace(event_type=kind, step_key=key, is_step_skipped=kind is skipped)
        for kind, key in told
    ]
    assert after_skips(events) == {5, 6}
    assert after_skips(events[:3]) == set()
