"""A run whose process was ended from outside: launched again, from budgets of their own.

What ends a process is no failure of what it did. Told to go (SIGTERM, and nobody has canceled the
run) it was preempted; gone without a word (SIGKILL, out of memory, a machine that is lost) it was
killed. A run that was killed is launched again if that can help: where a training of it has saved
something to go on from, or where whoever launched it has asked for that. An error of the code is
neither, and Dagster's rule for it is left alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

SAVED_TAG = "signalbox/saved_by"
"""On a run of which a training has a durable checkpoint: its own id, for a retry inherits tags."""

PREEMPTED_TAG = "signalbox/preempted"
"""On a run that was preempted: how often its run was, by now; for people and for a filter."""

MAX_RETRIES_TAG = "dagster/max_retries"
REASON_TAG = "dagster/failure_reason"

TOLD_TO_GO = "UNEXPECTED_TERMINATION"
GONE = ("UNKNOWN", "RUN_WORKER_RESTART", "")

MOST_KILLED = 3
"""What was killed so often is killed by what it does itself, as often as it is launched."""

Kind = Literal["preempted", "killed"]


@dataclass(frozen=True)
class Ended:
    """A run of a group (a run and its retries) that has ended badly.

    Attributes:
        run_id: Dagster's.
        tags: of the run.
        reason: why Dagster says that it failed; empty where it does not say.
    """

    run_id: str
    tags: Mapping[str, str]
    reason: str = ""

    @property
    def kind(self) -> Kind | None:
        """How it was interrupted; None if it was not."""
        if self.reason == TOLD_TO_GO:
            return "preempted"
        return "killed" if self.reason in GONE else None

    @property
    def saved(self) -> bool:
        """Whether a training of it has something to go on from."""
        return self.tags.get(SAVED_TAG) == self.run_id


@dataclass(frozen=True)
class Again:
    """Whether an interrupted run is launched again.

    Attributes:
        kind: how it was interrupted.
        launch: whether it is.
        count: how often its group was interrupted so, this time included.
        reason: why, for a person.
    """

    kind: Kind
    launch: bool
    count: int
    reason: str


def again(ended: Ended, group: Iterable[Ended], preemptions: int) -> Again | None:
    """What becomes of a run that failed; None where it was not interrupted.

    Args:
        ended: the run.
        group: the runs of its group that failed, it included or not.
        preemptions: how often one group may be preempted and launched again.
    """
    kind = ended.kind
    if kind is None:
        return None
    others = [run for run in group if run.run_id != ended.run_id]
    count = 1 + sum(run.kind == kind for run in others)
    if kind == "preempted":
        most, what = preemptions, "it was told to go (SIGTERM), which nobody asked for in Dagster"
    else:
        asked = ended.tags.get(MAX_RETRIES_TAG, "0")
        most = int(asked) if asked.isdecimal() else 0
        what = "its process is gone without a word (SIGKILL, out of memory, a lost machine)"
        if ended.saved or any(run.saved for run in others):
            most = max(most, MOST_KILLED)
        elif not most:
            return Again(
                kind, False, count, f"{what}; nothing of it was saved, and nobody asked for a retry"
            )
    often = f"{count} of {most}"
    if count > most:
        return Again(kind, False, count, f"{what}, for the {count}th time; {most} are made up for")
    return Again(kind, True, count, f"{what}; that is no failure, it is launched again ({often})")
