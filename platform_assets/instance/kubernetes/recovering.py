"""Steps that the cluster ended are asked for again by budgets of their own.

Dagster knows one count of attempts, which its op's RetryPolicy is held against. Here a retry that
the cluster caused is marked by an event of the run, and the pod of the next attempt is told only
of the others: an eviction takes nothing of what the op may do wrong. The marks stand in the event
log, so that a run worker that comes after this one counts on.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData
from dagster._core.executor.step_delegating import StepHandlerContext
from dagster._grpc.types import ExecuteStepArgs
from dagster_shared.error import SerializableErrorInfo
from dagster_shared.record import replace

from platform_assets.domain.cluster_budgets import Budgets, ClusterError, Verdict, decide, since
from platform_assets.domain.cluster_causes import Cause, Finding
from platform_assets.domain.interruptions import SAVED_TAG

CAUSE = "signalbox/cause"
"""Key of the metadata of an event that marks a retry, or a wait, as the cluster's."""
RETRIED = "signalbox/asked_again"
PLACE = "signalbox/container"
"""Key of the metadata of an event that says that what a container runs was compared."""


class Attempt(StepHandlerContext):
    """A step's context whose pod is told only of the retries that the code caused.

    Attributes:
        original: with all of them; Jobs are named by it.
    """

    def __init__(self, original: StepHandlerContext, args: ExecuteStepArgs) -> None:
        self.original, self._args = original, args

    @property
    def execute_step_args(self) -> ExecuteStepArgs:
        """What the pod is told."""
        return self._args

    @property
    def dagster_run(self) -> dg.DagsterRun:
        """See StepHandlerContext."""
        return self.original.dagster_run

    @property
    def step_tags(self) -> Any:
        """See StepHandlerContext."""
        return self.original.step_tags

    @property
    def instance(self) -> dg.DagsterInstance:
        """See StepHandlerContext."""
        return self.original.instance

    def get_step_context(self, step_key: str) -> Any:
        """See StepHandlerContext."""
        return self.original.get_step_context(step_key)


@dataclass
class _Step:
    """What is known of one step in this process."""

    retried: Counter[Cause] | None = None
    waits: Cause | None = None
    first: datetime | None = None
    pods: set[str] = field(default_factory=set)


class Recovery:
    """Decides about steps, and writes it down."""

    def __init__(
        self,
        budgets: Budgets,
        *,
        retries: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._budgets, self._retries, self.clock, self._chance = budgets, retries, clock, chance
        self._steps: dict[str, _Step] = {}
        self.verdicts: dict[str, tuple[Finding, Verdict]] = {}

    def pods(self, key: str) -> set[str]:
        """Names of the pods of a step that were seen, to be added to."""
        return self._step(key).pods

    def attempt(self, context: StepHandlerContext, key: str) -> StepHandlerContext:
        """The context that the step's pod is to be made of.

        After a retry of the cluster Dagster's own check of the pod's attempt is left out: it holds
        the count against events of all attempts.
        """
        args = context.execute_step_args
        caused = sum(self.retried(context, key).values())
        if not caused or args.known_state is None:
            return context
        counts = dict(args.known_state.previous_retry_attempts)
        counts[key] = max(0, counts.get(key, 0) - caused)
        state = args.known_state._replace(previous_retry_attempts=counts)
        return Attempt(context, replace(args, known_state=state, should_verify_step=False))

    def retried(self, context: StepHandlerContext, key: str) -> Counter[Cause]:
        """How often the step was asked for again, by cause."""
        step = self._step(key)
        if step.retried is None:
            step.retried = Counter()
            if attempts_of(context, key):
                step.retried.update(marked(context.instance, context.dagster_run.run_id, key))
        return step.retried

    def judge(self, context: StepHandlerContext, key: str, finding: Finding) -> Verdict:
        """What is done about a finding; a wait is recorded when it begins, not at each look."""
        finding = _of_this_run(context, finding)
        step, now = self._step(key), self.clock()
        if finding.state == "waits" and step.waits is not finding.cause:
            step.waits, step.first = finding.cause, now
            verdict = self._decide(context, key, finding, since(now, now))
            if verdict.step == "wait":
                self._report(context, key, f"step {key} waits: {verdict.words}", finding)
            return verdict
        return self._decide(context, key, finding, since(step.first, now))

    def away(self, context: StepHandlerContext, key: str, error: ClusterError) -> None:
        """The cluster cannot be asked: say so once, and leave the step alone."""
        step = self._step(key)
        if step.waits is not error.cause:
            step.waits, step.first = error.cause, self.clock()
            words = f"it is not known how it is, and it is left alone: {error}"
            self._report(context, key, f"step {key}: {words}", Finding(error.cause, "waits", ""))

    def well(self, context: StepHandlerContext, key: str) -> None:
        """Nothing keeps the step: say so where something did."""
        step = self._step(key)
        if step.waits is not None:
            waited = since(step.first, self.clock()).total_seconds()
            context.instance.report_engine_event(
                f"step {key} goes on after {waited:.0f} s: {step.waits.value} is over",
                context.dagster_run,
                step_key=key,
            )
            step.waits = step.first = None

    def retry(
        self, context: StepHandlerContext, key: str, finding: Finding, verdict: Verdict
    ) -> DagsterEvent:
        """Mark it as the cluster's, and have Dagster put the step back into its queue."""
        self.mark(context, key, finding, verdict.words)
        return DagsterEvent.step_retry_event(
            context.get_step_context(key),
            StepRetryData(error=error_of(verdict), seconds_to_wait=verdict.seconds),
        )

    def mark(self, context: StepHandlerContext, key: str, finding: Finding, words: str) -> None:
        """Count a retry as the cluster's."""
        finding = _of_this_run(context, finding)
        retried = self.retried(context, key)
        retried[finding.cause] += 1
        self._report(context, key, f"step {key}: {words}", finding, {RETRIED: True})
        step = self._step(key)
        step.waits = step.first = None
        step.pods.clear()

    def fail(self, context: StepHandlerContext, key: str, verdict: Verdict) -> DagsterEvent:
        """The step is over."""
        return DagsterEvent.step_failure_event(
            context.get_step_context(key),
            StepFailureData(error=error_of(verdict), user_failure_data=None),
            message=f"Execution of step {key!r} failed: {verdict.words}",
        )

    def unlaunched(
        self, context: StepHandlerContext, key: str, error: ClusterError
    ) -> Iterator[DagsterEvent]:
        """The step's Job was not created: its step is asked for again or over, no other is."""
        finding = Finding(error.cause, "over", error.words)
        verdict = self.judge(context, key, finding)
        if verdict.step == "retry":
            yield self.retry(context, key, finding, verdict)
        else:
            yield self.fail(context, key, verdict)

    def tell(self, context: StepHandlerContext, key: str, words: str, finding: Finding) -> None:
        """Say what happened where Dagster has recorded the failure itself."""
        self._report(context, key, f"step {key}: {words}", finding)

    def _decide(
        self, context: StepHandlerContext, key: str, finding: Finding, waited: Any
    ) -> Verdict:
        retried = self.retried(context, key)[finding.cause]
        verdict = decide(finding, self._budgets, retried, waited, self._chance())
        if verdict.step == "retry" and not self._retries:
            words = verdict.words.rpartition(". It is asked for again")[0]
            return Verdict("fail", f"{words}. The executor's retries are disabled")
        return verdict

    def _report(
        self,
        context: StepHandlerContext,
        key: str,
        words: str,
        finding: Finding,
        more: dict[str, Any] | None = None,
    ) -> None:
        metadata = {CAUSE: finding.cause.value, "fault": finding.cause.fault.value, **(more or {})}
        context.instance.report_engine_event(
            words, context.dagster_run, EngineEventData(metadata), step_key=key
        )

    def _step(self, key: str) -> _Step:
        return self._steps.setdefault(key, _Step())


def _of_this_run(context: StepHandlerContext, finding: Finding) -> Finding:
    """What a kill is to this run: a training of it may have a checkpoint by now.

    The tag is read anew: it is set while the step runs, and a retry of a run inherits tags.
    """
    if not finding.killed:
        return finding
    run_id = context.dagster_run.run_id
    run = context.instance.get_run_by_id(run_id)
    saved = run is not None and run.tags.get(SAVED_TAG) == run_id
    return finding.of_a_saved_run() if saved else finding


def error_of(verdict: Verdict) -> SerializableErrorInfo:
    """A verdict as Dagster keeps an error; it has no stack, for no code raised it."""
    return SerializableErrorInfo(verdict.words, [], ClusterError.__name__)


def attempts_of(context: StepHandlerContext, key: str) -> int:
    """How often the step was up for retry, whoever caused it."""
    state = context.execute_step_args.known_state
    return state.get_retry_state().get_attempt_count(key) if state is not None else 0


def marked(instance: dg.DagsterInstance, run_id: str, key: str | None) -> list[Cause]:
    """Causes of the retries that the cluster caused, by the run's events; of no step: the run's."""
    found = []
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        if event is None or event.step_key != key:
            continue
        metadata = event.engine_event_data.metadata
        if RETRIED in metadata and CAUSE in metadata:
            found.append(Cause(str(metadata[CAUSE].value)))
    return found


ENDS = {
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.STEP_UP_FOR_RETRY,
    DagsterEventType.STEP_SKIPPED,
}


STARTS = {DagsterEventType.STEP_START, DagsterEventType.STEP_RESTARTED}


def end_recorded(context: StepHandlerContext, key: str) -> bool:
    """Whether this attempt of the step said itself how it ended; who looks may have read less."""
    events = _events(context, key, ENDS)
    ups = [n for n, event in enumerate(events) if event.is_step_up_for_retry]
    return len(ups) > attempts_of(context, key) or bool(events[ups[-1] + 1 if ups else 0 :])


def begun(context: StepHandlerContext, key: str) -> bool:
    """Whether this attempt of the step said itself that it began: so it had a Job."""
    events = _events(context, key, {*STARTS, DagsterEventType.STEP_UP_FOR_RETRY})
    ups = [n for n, event in enumerate(events) if event.is_step_up_for_retry]
    return bool(events[ups[-1] + 1 if ups else 0 :])


def compared(context: StepHandlerContext, key: str) -> set[str]:
    """Containers of a step that a run worker has compared with its lock, and found well."""
    events = _events(context, key, {DagsterEventType.ENGINE_EVENT})
    told = (event.engine_event_data.metadata for event in events)
    return {str(metadata[PLACE].value) for metadata in told if PLACE in metadata}


def _events(
    context: StepHandlerContext, key: str, kinds: set[DagsterEventType]
) -> list[DagsterEvent]:
    entries = context.instance.all_logs(context.dagster_run.run_id, of_type=kinds)
    return [e.dagster_event for e in entries if e.dagster_event and e.dagster_event.step_key == key]


def interrupted(event: DagsterEvent) -> bool:
    """Whether a step says that it was interrupted: by a signal, and by no error of its code."""
    if event.is_step_failure:
        return event.step_failure_data.error_source.value == "INTERRUPT"
    if event.is_step_up_for_retry:
        error: SerializableErrorInfo | None = event.step_retry_data.error
        names = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
        while error is not None:
            if error.cls_name in names:
                return True
            error = error.cause
    return False


def superseded(events: Sequence[DagsterEvent], number: int) -> bool:
    """Whether a run worker has put another end in the place of one that the step recorded.

    An interruption that was the cluster's is followed by a retry, the success of what was not
    asked for by a failure.
    """
    event = events[number]
    later = [e for e in events[number + 1 :] if e.step_key == event.step_key]
    if event.is_step_failure and interrupted(event):
        return any(e.is_step_up_for_retry for e in later)
    return event.is_step_success and any(e.is_step_failure for e in later)


def unseen(events: Sequence[DagsterEvent]) -> set[int]:
    """Which of a run's events are ends of steps that perhaps no run worker has seen to.

    A run worker that launches a step has seen to what ended before: there it is known. It has also
    where it counted a retry as the cluster's.
    """
    starting = DagsterEventType.STEP_WORKER_STARTING
    launched = max((n for n, e in enumerate(events) if e.event_type is starting), default=-1)
    found = {n for n, e in enumerate(events) if n > launched and ends(e)}
    return {n for n in found if not _counted(events, n)}


def ends(event: DagsterEvent) -> bool:
    """Whether a step says how it ended."""
    return event.is_step_success or event.is_step_failure or event.is_step_up_for_retry


def _counted(events: Sequence[DagsterEvent], number: int) -> bool:
    event = events[number]
    return event.is_step_up_for_retry and any(
        e.is_engine_event and RETRIED in e.engine_event_data.metadata
        for e in events[number + 1 :]
        if e.step_key == event.step_key
    )


def after_skips(events: Sequence[DagsterEvent]) -> set[int]:
    """Which of a run's events are of steps that were started after the first one was skipped."""
    first = next((n for n, event in enumerate(events) if event.is_step_skipped), len(events))
    begun_at: dict[str | None, int] = {}
    for n in range(first, len(events)):
        if events[n].event_type is DagsterEventType.STEP_WORKER_STARTING:
            begun_at.setdefault(events[n].step_key, n)
    return {
        n for n in range(first, len(events)) if n >= begun_at.get(events[n].step_key, len(events))
    }
