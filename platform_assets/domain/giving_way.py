"""When a run that stands back lets the machine be, because one in a hurry is at work on it."""

YOUNG_SECONDS = 30.0
"""How long a run in a hurry is stepped aside for. Whoever works for longer has its cores by `nice`,
and is slower by what shares a cache with it."""

ANNOUNCED_SECONDS = 1.0
"""How long a run in a hurry that was submitted is waited for."""

MOST_SECONDS = 30.0
"""How long who stands back does nothing at a stretch, however many runs in a hurry come."""

MOST_HOLDING_SECONDS = 5.0
"""The same of who holds a lease: the run in a hurry may be waiting for it."""

RECOVERS = 0.25
"""Seconds of patience for each second in which it went on: a fifth of the time is the most that a
stream of runs in a hurry can take from it."""


def why_step_aside(*, at_work: bool, age: float, patience: float) -> str | None:
    """Why to do nothing now; None if there is no reason, or not any more.

    Args:
        at_work: whether a run in a hurry is at work on this machine.
        age: seconds since the last one of them was submitted or has begun; below 0 where the clock
            was set back since.
        patience: seconds that may still be spent on it.
    """
    if patience <= 0:
        return None
    if at_work and abs(age) < YOUNG_SECONDS:
        return "a run in a hurry is at work on this machine"
    if 0 <= age < ANNOUNCED_SECONDS:
        return "a run in a hurry was just submitted"
    return None


def recovered(patience: float, went_on: float, most: float) -> float:
    """The patience after seconds in which it went on."""
    return min(most, patience + RECOVERS * went_on)
