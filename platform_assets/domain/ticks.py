"""When backfills are to be evaluated: at news that can lead to something, and now and then."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

IDLE_SECONDS = 30.0
"""Backfills of which there is no news are evaluated this often all the same."""

FEW_QUEUED = 3
"""With this many runs still to be started, what an ended run makes possible can wait."""


class Progress(BaseModel):
    """How far a backfill is, as a quick look tells.

    Attributes:
        status: of the backfill.
        queued: how many of its runs wait for a slot; counted up to FEW_QUEUED + 1.
        unfinished: the ids of its runs that have not ended.
    """

    model_config = ConfigDict(frozen=True)

    status: str
    queued: int
    unfinished: frozenset[str]


REQUESTED = "REQUESTED"
"""Status of a backfill that goes on."""


def can_wait(before: Mapping[str, Progress], now: Mapping[str, Progress]) -> bool:
    """Whether nobody notices a later evaluation: none is new, and none is being ended."""
    return all(name in before and now[name].status == REQUESTED for name in now)


def is_due(
    before: Mapping[str, Progress], now: Mapping[str, Progress], seconds: float
) -> str | None:
    """Why the backfills are to be evaluated now; None if they need not be.

    An evaluation costs about as much as building a partition. While runs of a backfill wait for
    a slot, a further run of it would only wait too.

    Args:
        before: what was found when they were evaluated last.
        now: what there is.
        seconds: since then.
    """
    if not now:
        return None
    for name, progress in now.items():
        known = before.get(name)
        if known is None:
            return f"backfill {name} is new"
        if known.status != progress.status:
            return f"backfill {name} is {progress.status}"
        if not progress.unfinished:
            return f"backfill {name} has no run that goes on"
        if known.unfinished != progress.unfinished and progress.queued <= FEW_QUEUED:
            return f"runs of backfill {name} have ended"
    if seconds >= IDLE_SECONDS:
        return f"{seconds:.0f} s have passed"
    return None
