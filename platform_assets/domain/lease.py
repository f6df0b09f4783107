"""Leases: who may write a partition now, and when somebody else may take it over.

A lease has no time at which it ends. Its holder renews it; whoever waits counts, on a clock of its
own that never goes back, how long it has seen no renewal. So a clock that is set forward takes
nobody's lease away, and one that is set back keeps no dead one alive.

A lease that is taken over gets a higher token. A writer that slept through the loss of its lease
still holds the old one, and is refused wherever it writes: the fencing token.
"""

from dataclasses import dataclass
from enum import StrEnum

from platform_assets.domain.errors import RefusedError, TransientError

RENEW_SECONDS = 5.0
"""How often a holder renews its leases."""

TIMEOUT_SECONDS = 30.0
"""A lease that was not renewed for this long is taken over: six renewals have failed."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        run_id: the Dagster run, or what else is at work: `maintenance`.
        machine: identifies the kernel and the process namespace, so that `pid` means something.
        pid: process.
        started: when the process started, as the kernel counts it: a pid is used again.
    """

    run_id: str
    machine: str
    pid: int
    started: str


@dataclass(frozen=True)
class Lease:
    """A lease that is held.

    Attributes:
        resource: what may be written: `flights/features JFK|2013-01-05`.
        token: one higher with each holder; the fencing token.
        after_crash: the holder before did not give it back: it may still write.
    """

    resource: str
    token: int
    holder: Holder
    after_crash: bool = False


@dataclass(frozen=True)
class Taken:
    """A lease that somebody else holds.

    Attributes:
        renewals: how often it was renewed; that this stands still is what a waiter looks for.
    """

    resource: str
    token: int
    holder: Holder
    renewals: int

    def same_sign_of_life(self, other: "Taken") -> bool:
        return (self.token, self.renewals) == (other.token, other.renewals)


class Step(StrEnum):
    WAIT = "wait"
    TAKE_OVER = "take over"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Decision:
    """What a waiter does next, and why."""

    step: Step
    reason: str


def decide(
    taken: Taken, *, unchanged_seconds: float, waited_seconds: float, limit: float, dead: bool
) -> Decision:
    """What to do about a lease that somebody else holds.

    Args:
        taken: the lease.
        unchanged_seconds: for how long no renewal was seen, on the waiter's monotonic clock.
        waited_seconds: for how long the waiter has waited altogether.
        limit: for how long it is willing to.
        dead: the holder's process is known to be gone; False if it lives, or if nobody can tell.
    """
    who = f"run {taken.holder.run_id} (process {taken.holder.pid})"
    if dead:
        return Decision(Step.TAKE_OVER, f"{who} has ended without giving it back")
    if unchanged_seconds >= TIMEOUT_SECONDS:
        return Decision(
            Step.TAKE_OVER, f"{who} has not renewed it for {unchanged_seconds:.0f} seconds"
        )
    if waited_seconds >= limit:
        return Decision(Step.GIVE_UP, f"{who} still holds it after {waited_seconds:.0f} seconds")
    return Decision(Step.WAIT, f"{who} holds it")


class LeaseTakenError(TransientError):
    """Somebody else held the lease for as long as one was willing to wait."""

    def __init__(self, resource: str, why: str) -> None:
        super().__init__(
            f"{resource} is being worked on: {why}; nothing was written, it may be tried again "
            "when that run has ended"
        )


class LeaseLostError(RefusedError):
    """The lease was taken over while its holder slept: what it wanted to write is refused."""

    def __init__(self, lease: Lease, now: str) -> None:
        self.lease = lease
        super().__init__(
            f"{lease.resource}: run {lease.holder.run_id} held token {lease.token} of it, but "
            f"{now}; it was not heard of for {TIMEOUT_SECONDS:.0f} seconds or more and was taken "
            "for dead. Nothing was recorded; what the later run wrote stands"
        )
