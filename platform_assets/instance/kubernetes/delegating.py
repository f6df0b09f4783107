"""Dagster's executor of delegated steps, which asks the cluster before it takes a failure for one.

It leans on three insides of `StepDelegatingExecutor`, which tests/test_cluster_seams.py guards: an
unhealthy step goes through `log_failure_or_retry_event_after_error`, all events of the run through
`_pop_events`, and an event that is written is read back from the log before it counts.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from dagster import DagsterInstance
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.context.system import IStepContext
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import (
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)
from dagster_shared.error import SerializableErrorInfo

from platform_assets.domain.cluster_budgets import Verdict
from platform_assets.domain.cluster_causes import Fault, Finding
from platform_assets.instance.kubernetes.recovering import (
    STARTS,
    Recovery,
    after_skips,
    ends,
    error_of,
    interrupted,
    superseded,
    unseen,
)


class Told(Protocol):
    """A step handler that knows what the cluster says."""

    recovery: Recovery

    def context_of(self, key: str) -> StepHandlerContext | None:
        """The newest context of a step; None where this process has not handled it."""

    def taken(self, key: str) -> tuple[Finding, Verdict] | None:
        """What the last look at a step came to, once; None where it was another's failure."""

    def interruption(self, key: str) -> Finding | None:
        """Who interrupted a step, by the cluster; None where it knows nothing of it."""

    def begun(self, key: str) -> str:
        """As `ended`, of a step that has just begun; one that runs something else is ended."""

    def ended(self, key: str, *, succeeded: bool) -> str:
        """Why what a step ran is not known to be what was asked for; empty if it is, or was said.

        Args:
            succeeded: it counts as well then, so something must have shown what it ran.
        """


class RecoveringExecutor(StepDelegatingExecutor):
    """Retries what the cluster broke by its own budgets; the op's RetryPolicy is for the code."""

    def __init__(
        self, handler: StepHandler, told: Told, retries: RetryMode, **settings: Any
    ) -> None:
        super().__init__(handler, retries=retries, **settings)
        self._told = told
        self._held: list[DagsterEvent] | None = None
        self._over: set[str | None] = set()
        self._waiting: set[str | None] = set()

    def log_failure_or_retry_event_after_error(
        self,
        step_context: IStepContext,
        err_info: SerializableErrorInfo,
        known_state: KnownExecutionState,
    ) -> DagsterEvent:
        """See Executor; a step that failed its health check comes here."""
        key = step_context.step.key
        found, context = self._told.taken(key), self._told.context_of(key)
        if found is None or context is None:
            return super().log_failure_or_retry_event_after_error(
                step_context, err_info, known_state
            )
        finding, verdict = found
        recovery = self._told.recovery
        if verdict.step == "retry":
            return recovery.retry(context, key, finding, verdict)
        if verdict.step == "fail":
            return recovery.fail(context, key, verdict)
        counts = dict(known_state.previous_retry_attempts)
        counts[key] = max(0, counts.get(key, 0) - sum(recovery.retried(context, key).values()))
        return super().log_failure_or_retry_event_after_error(
            step_context, error_of(verdict), known_state._replace(previous_retry_attempts=counts)
        )

    def _pop_events(
        self, instance: DagsterInstance, run_id: str, seen_storage_ids: set[int]
    ) -> Sequence[DagsterEvent]:
        """What the steps wrote, without the failures that are the cluster's.

        A pod that is evicted or preempted has the time to record that its step failed. A run worker
        that goes on with a run reads what is there before it knows any step; ends that came when no
        worker was there are held back until the next time, so that Dagster takes their steps up as
        running, by which they are known.
        """
        first, held = self._held is None, self._held or []
        events = [*held, *self._read(instance, run_id, seen_storage_ids, whole=first)]
        late = self._put_off(events, first)
        told = [n for n in range(len(events)) if not superseded(events, n)]
        self._held = [events[n] for n in told if n in late]
        kept = [
            events[n]
            for n in told
            # What was skipped is skipped once more; Dagster takes no log's word for it.
            if n not in late and not (first and events[n].is_step_skipped)
            if self._counts(events[n])
        ]
        ended = {event.step_key for event in kept if ends(event)}
        for key in {e.step_key for e in kept if e.event_type in STARTS} - ended:
            self._compare(key)
        return kept

    def _put_off(self, events: Sequence[DagsterEvent], first: bool) -> set[int]:
        """Which events wait until the steps that they are of have been taken up.

        Of a step that was started after another one was skipped, all: Dagster comes to it only once
        it has skipped the other one itself, and is then told that it is there already.
        """
        unknown = {n for n, event in enumerate(events) if not self._known(event)}
        if not first:
            return {n for n in unknown if events[n].step_key in self._waiting}
        behind = after_skips(events) & unknown
        self._waiting = {events[n].step_key for n in behind}
        return behind | (unseen(events) & unknown)

    def _read(
        self, instance: DagsterInstance, run_id: str, seen_storage_ids: set[int], *, whole: bool
    ) -> list[DagsterEvent]:
        """The events since the last time; whole: all of them, where Dagster reads 1,000.

        A run worker that goes on with a run would start again what comes later in a longer log.
        """
        found = page = list(super()._pop_events(instance, run_id, seen_storage_ids))
        while whole and page:
            page = list(super()._pop_events(instance, run_id, seen_storage_ids))
            found = [*found, *page]
        return found

    def _counts(self, event: DagsterEvent) -> bool:
        """Whether an event is Dagster's to see.

        Not a second end of one attempt, at which it would break off the run: a step that is ended
        from here has the time to record that it was interrupted.
        """
        key = event.step_key
        if event.event_type is DagsterEventType.STEP_WORKER_STARTING:
            self._over.discard(key)
        if not ends(event):
            return True
        if key in self._over or self._replaced(event) or self._ran_another(event):
            return False
        self._over.add(key)
        return True

    def _compare(self, key: str | None) -> None:
        """Look at a step as soon as it has begun: it waits for that before it writes anything."""
        context = self._told.context_of(key) if key is not None else None
        if key is None or context is None:
            return
        reason = self._told.begun(key)
        if reason:
            words = f"step {key} was ended: {reason}"
            self._told.recovery.fail(context, key, Verdict("fail", words))

    def _known(self, event: DagsterEvent) -> bool:
        return event.step_key is None or self._told.context_of(event.step_key) is not None

    def _ran_another(self, event: DagsterEvent) -> bool:
        """Whether the success of a step does not count: it may be of another image."""
        key = event.step_key
        context = self._told.context_of(key) if key is not None and ends(event) else None
        if key is None or context is None:
            return False
        reason = self._told.ended(key, succeeded=event.is_step_success)
        if reason and event.is_step_success:
            words = f"it ended before it was looked at; {reason}"
            self._told.recovery.fail(context, key, Verdict("fail", words))
            return True
        if reason:
            words = f"step {key}: {reason}"
            context.instance.report_engine_event(words, context.dagster_run, step_key=key)
        return False

    def _replaced(self, event: DagsterEvent) -> bool:
        if event.step_key is None or not interrupted(event):
            return False
        key = event.step_key
        context = self._told.context_of(key)
        finding = self._told.interruption(key) if context is not None else None
        if context is None or finding is None:
            return False
        recovery = self._told.recovery
        verdict = recovery.judge(context, key, finding)
        if event.is_step_up_for_retry:
            # The op's own policy has put it back already; it is not to be held against it.
            if verdict.step == "retry" and finding.cause.fault is Fault.CLUSTER:
                words = f"{verdict.words.rpartition('. It is asked for again')[0]}. It is asked "
                recovery.mark(context, key, finding, f"{words}for again as its op says")
            return False
        if verdict.step != "retry":
            recovery.tell(context, key, verdict.words, finding)
            return False
        recovery.retry(context, key, finding, verdict)
        return True
