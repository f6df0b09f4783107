"""A run that ended and did not do what it was asked for: when it is launched again, and when not.

Dagster launches a run key once, however its run ended. What failed for a while (an hour that was
away, a tracking server that was down) would then never be made up for; so each attempt has a run
key of its own, and what decides on the next one is here.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

WAITS = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=30))
"""How long after the first failed attempt, the second and so on the next one is launched."""

MOST_ATTEMPTS = len(WAITS) + 1

AFTER_SUCCESS = timedelta(minutes=15)
"""A run that ended well and is asked for again: a look that read the ledger before it ended does
that too. This much later it is no such look; days that changed there and back again are."""

SKEW = timedelta(seconds=30)
"""So far two machines' clocks may be apart; what lies farther ahead is of a clock set back."""

Step = Literal["request", "under way", "wait", "give up", "left"]

ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class PastRun(BaseModel):
    """A run that was launched for a request.

    Attributes:
        state: Dagster's; a failed one that Dagster itself launches again counts as QUEUED.
        attempt: which attempt it belongs to; a re-execution belongs to that of its parent.
        ended_at: on the machine's clock; none while it has not.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    state: str
    attempt: int = 1
    ended_at: AwareDatetime | None = None


class Attempt(BaseModel):
    """What is done about a request.

    Attributes:
        step: `request` attempt `number` now; `under way`; `wait` for `number`; `give up` after the
            last one; `left` to a person, whose cancel it was.
        failed: the newest run, where it ended badly.
        attempts: how many there were since one ended well.
    """

    model_config = ConfigDict(frozen=True)

    step: Step
    number: int
    reason: str
    failed: PastRun | None = None
    attempts: int = 0


def next_step(runs: Sequence[PastRun], now: datetime) -> Attempt:
    """Whether a request that is still wanted is launched, and as which attempt.

    A canceled run is taken as a person's word: it is not launched again by itself until its
    inputs are others. A failed one is, after a while, `MOST_ATTEMPTS` times in all.

    Args:
        runs: launched for the request, newest first.
        now: on the machine's clock.
    """
    if not runs:
        return Attempt(step="request", number=1, reason="it was not launched yet")
    newest, following = runs[0], max(run.attempt for run in runs) + 1
    if newest.state not in ENDED:
        return Attempt(
            step="under way", number=newest.attempt, reason=f"run {newest.run_id} is under way"
        )
    if newest.state == "CANCELED":
        return Attempt(
            step="left",
            number=newest.attempt,
            reason="it was canceled, and is not launched again by itself until its inputs change",
            failed=newest,
            attempts=_attempts(runs),
        )
    # A run that ends in the future ended before the clock was set back. Nobody knows how long ago
    # that was: to wait until the clock is there again could be days.
    since = newest.ended_at or now
    if newest.ended_at and newest.ended_at > now + SKEW:
        since = now - max(AFTER_SUCCESS, *WAITS)
    if newest.state == "SUCCESS":
        at = since + AFTER_SUCCESS
        if now < at:
            why = f"run {newest.run_id} has just ended well"
            return Attempt(step="under way", number=newest.attempt, reason=why)
        return Attempt(
            step="request",
            number=following,
            reason=f"run {newest.run_id} ended well, and is not what is wanted now",
        )
    attempts = _attempts(runs)
    if attempts >= MOST_ATTEMPTS:
        return Attempt(
            step="give up",
            number=newest.attempt,
            reason=f"{attempts} attempts failed, it is not launched again by itself until its "
            "inputs change",
            failed=newest,
            attempts=attempts,
        )
    at = since + WAITS[attempts - 1]
    waits = now < at
    return Attempt(
        step="wait" if waits else "request",
        number=following,
        reason=f"attempt {attempts} of {MOST_ATTEMPTS} failed"
        + (f", the next one is launched at {at:%Y-%m-%d %H:%M:%S}Z" if waits else ""),
        failed=newest,
        attempts=attempts,
    )


def _attempts(runs: Sequence[PastRun]) -> int:
    """How many attempts failed since one ended well; what Dagster relaunched of one counts once."""
    failed = set()
    for run in runs:
        if run.state == "SUCCESS":
            break
        failed.add(run.attempt)
    return len(failed)
