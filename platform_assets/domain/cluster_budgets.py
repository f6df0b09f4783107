"""How often what the cluster broke is asked for again, by cause, apart from an op's own retries.

A Job is never given a `backoffLimit`: Dagster would have recorded the failure by the time that
Kubernetes starts the next pod.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from platform_assets.domain.cluster_causes import Cause, Fault, Finding
from platform_assets.domain.errors import SignalboxError, SpecError
from platform_assets.domain.interruptions import MOST_KILLED

MOST = 100
LONGEST = timedelta(hours=1)
"""No wait between two attempts is longer, however often they were doubled."""


class ClusterError(SignalboxError):
    """The cluster did not do what it was asked to.

    Attributes:
        cause: what kind of failure it is; says whether it is asked for again.
        perhaps: whether it may have been done all the same: it was asked for, and what came of it
            was not told.
    """

    def __init__(self, cause: Cause, words: str, *, perhaps: bool = False) -> None:
        self.cause, self.words, self.perhaps = cause, words, perhaps
        super().__init__(f"{words}. {ADVICE[cause]}")


class Budget(BaseModel):
    """What is done about one cause.

    Attributes:
        retries: further attempts of one step, or of one run worker, after this cause.
        wait: seconds before the first of them; each further one waits twice as long, at most 1 h.
        patience: seconds that it is waited for where it may still go on by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    retries: int = Field(default=0, ge=0, le=MOST)
    wait: int = Field(default=30, ge=1, le=3600)
    patience: int = Field(default=0, ge=0)


DEFAULTS: Mapping[Cause, Budget] = {
    Cause.EVICTED: Budget(retries=3, wait=30),
    Cause.PREEMPTED: Budget(retries=10, wait=30),
    Cause.NODE_LOST: Budget(retries=3, wait=30),
    Cause.OUT_OF_MEMORY: Budget(),
    Cause.IMAGE: Budget(patience=120),
    Cause.CONTAINER_CONFIG: Budget(patience=60),
    Cause.QUOTA: Budget(retries=10, wait=60, patience=6 * 3600),
    Cause.PRIORITY_CLASS: Budget(),
    Cause.FORBIDDEN: Budget(),
    Cause.UNSCHEDULABLE: Budget(patience=6 * 3600),
    Cause.SUSPENDED: Budget(patience=7 * 24 * 3600),
    Cause.API: Budget(retries=5, wait=30, patience=600),
    Cause.CREDENTIALS: Budget(),
    Cause.DELETED: Budget(),
    Cause.RESTARTED: Budget(retries=3, wait=30),
    Cause.DEADLINE: Budget(),
    Cause.EXITED: Budget(),
    Cause.KILLED: Budget(retries=MOST_KILLED, wait=30),
}

ADVICE: Mapping[Cause, str] = {
    Cause.EVICTED: "It is no error of the code: the node had to be cleared",
    Cause.PREEMPTED: "It is no error of the code: what has a higher priority needed the place",
    Cause.NODE_LOST: "It is no error of the code: the node is gone or does not answer",
    Cause.OUT_OF_MEMORY: (
        "The same limit would end it again: raise `resources.limits.memory` of the step, or make "
        "it read less at once"
    ),
    Cause.IMAGE: (
        "Look whether the registry has it (`signalbox images verify`), and whether the node may "
        "pull it (`image_pull_secrets`)"
    ),
    Cause.CONTAINER_CONFIG: (
        "Create the ConfigMap, Secret or volume that it names, or correct its command"
    ),
    Cause.QUOTA: "Wait for what runs, or raise the namespace's ResourceQuota",
    Cause.PRIORITY_CLASS: "Create the PriorityClass, or name one that there is",
    Cause.FORBIDDEN: "Give the Role what it lacks, or make the pod what the namespace allows",
    Cause.UNSCHEDULABLE: "No node has room for it: ask for less, or add one",
    Cause.SUSPENDED: "Its queue has not let it start: look at its Workload, or at who suspended it",
    Cause.API: "It is no error of the code: the API server did not do what it was asked to",
    Cause.CREDENTIALS: (
        "The token was read again, and refused as well: look at the service account and its Role"
    ),
    Cause.DELETED: "It is not started again, for somebody meant it: launch it anew if nobody did",
    Cause.RESTARTED: "It is no error of the code; Jobs of steps have `backoffLimit: 0`",
    Cause.DEADLINE: "Raise `active_deadline_seconds`, or make it shorter",
    Cause.EXITED: "It ended by itself: its log says why",
    Cause.KILLED: (
        "A training of this run has a checkpoint, and goes on from it. If it is killed each time, "
        "raise `resources.limits.memory` of the step, or make it read less at once"
    ),
}
"""What to do, or that there is nothing to do, by cause."""


class Budgets(BaseModel):
    """The budgets by cause; what is not named has its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failures: Mapping[Cause, Budget] = Field(default_factory=dict)

    def of(self, cause: Cause) -> Budget:
        """The budget of a cause."""
        return self.failures.get(cause, DEFAULTS[cause])

    @property
    def in_all(self) -> int:
        """Retries of all causes: a limit that counts them together must not end any of them."""
        return sum(self.of(cause).retries for cause in Cause)

    @property
    def to_start(self) -> int:
        """Seconds that a pod may wait for its place; nothing queues run workers (Kueue)."""
        return max(self.of(cause).patience for cause in (Cause.QUOTA, Cause.UNSCHEDULABLE))


def parse_budgets(document: Any, origin: str) -> Budgets:
    """Read a declaration.

    Raises:
        SpecError: an unknown cause or field, or a number that is not allowed.
    """
    try:
        budgets = Budgets.model_validate(document if document is not None else {})
    except ValidationError as error:
        problems = {
            ".".join(str(part) for part in one["loc"] if part != "[key]"): one["msg"]
            for one in error.errors()
        }
        raise SpecError(origin, problems) from None
    memory = budgets.of(Cause.OUT_OF_MEMORY)
    if memory.retries > 1:
        why = f"found {memory.retries}, at most 1 is allowed: the same limit ends it again"
        raise SpecError(origin, {"failures.out_of_memory.retries": why})
    if budgets.of(Cause.EXITED).retries:
        why = "none are allowed: what the code does wrong is the op's RetryPolicy's"
        raise SpecError(origin, {"failures.exited.retries": why})
    return budgets


Step = Literal["wait", "retry", "fail", "theirs"]


@dataclass(frozen=True)
class Verdict:
    """What is done.

    Attributes:
        step: `wait`: leave it; `retry`: ask for it again in `seconds`; `fail`: it is over;
            `theirs`: it is the code's, so the op's RetryPolicy decides.
        words: for a person: what happened, what is done, what to do.
    """

    step: Step
    words: str
    seconds: float = 0


def decide(
    finding: Finding, budgets: Budgets, retried: int, waited: timedelta, jitter: float = 0.5
) -> Verdict:
    """What is done about a finding.

    Args:
        finding: what the cluster says.
        budgets: by cause.
        retried: how often it was asked for again after this cause.
        waited: for how long it has been so.
        jitter: from 0 to 1; spreads what one node's loss broke over up to a quarter of the wait.
    """
    cause, budget = finding.cause, budgets.of(finding.cause)
    if finding.state == "waits" and waited < timedelta(seconds=budget.patience):
        left = _span(timedelta(seconds=budget.patience))
        return Verdict("wait", f"{finding.words}. It is waited for, up to {left}")
    if cause.fault is Fault.CODE:
        return Verdict("theirs", f"{finding.words}. {ADVICE[cause]}")
    long = f", for {_span(waited)}" if finding.state == "waits" else ""
    if retried < budget.retries and (finding.state == "over" or cause is Cause.API):
        seconds = wait(budget, retried, jitter)
        again = f"It is asked for again in {seconds:.0f} s ({retried + 1} of {budget.retries})"
        return Verdict("retry", f"{finding.words}{long}. {ADVICE[cause]}. {again}", seconds)
    often = "once" if retried == 1 else f"{retried} times"
    spent = f" It was asked for again {often}." if retried else ""
    return Verdict("fail", f"{finding.words}{long}.{spent} {ADVICE[cause]}")


def restarting(manifest: Mapping[str, Any]) -> str:
    """Why Kubernetes would start a pod of a run's or step's Job again; empty if it would not.

    Dagster has recorded the failure by then, or its second pod leaves without a word
    (dagster-io/dagster#33755): either way what Kubernetes started is thrown away.
    """
    labels = (manifest.get("metadata") or {}).get("labels") or {}
    if manifest.get("kind") != "Job" or "dagster/run-id" not in labels:
        return ""
    spec = manifest.get("spec") or {}
    limit = spec.get("backoffLimit", 6)  # Kubernetes' own default
    if limit != 0:
        return f"backoffLimit is {limit}, allowed is 0"
    policy = ((spec.get("template") or {}).get("spec") or {}).get("restartPolicy", "Always")
    return "" if policy == "Never" else f"restartPolicy is {policy}, allowed is Never"


def wait(budget: Budget, retried: int, jitter: float) -> float:
    """Seconds before the next attempt."""
    seconds = min(budget.wait * 2.0 ** min(retried, 20), LONGEST.total_seconds())
    return seconds * (1 + jitter / 4)


def since(first: datetime | None, now: datetime) -> timedelta:
    """For how long something has been so; none where it is new, or the clock was set back."""
    return max(now - first, timedelta(0)) if first is not None else timedelta(0)


def _span(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds // 60} min" if seconds >= 120 else f"{seconds} s"
