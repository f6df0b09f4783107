"""When a run that stands back lets the machine be, because one in a hurry is at work on it."""

STEP_ASIDE_SECONDS = 30.0
"""How long a run that stands back steps aside for one in a hurry. Whoever works for longer has its
cores by `nice`, and is a few percent slower by what shares a cache with it."""

HOLDING_SECONDS = 5.0
"""The same of one that holds a lease: the run in a hurry may be waiting for it."""

ANNOUNCED_SECONDS = 1.0
"""How long a run in a hurry that was submitted is waited for."""


def why_step_aside(
    *, at_work: bool, age: float, waited: float = 0.0, holding: bool = False
) -> str | None:
    """Why to do nothing now; None if there is no reason, or not any more.

    Args:
        at_work: whether a run in a hurry is at work on this machine.
        age: seconds since the last one of them was submitted or has begun; below 0 where the clock
            was set back since.
        waited: seconds that it was stepped aside already.
        holding: whether something is held that others may wait for.
    """
    limit = HOLDING_SECONDS if holding else STEP_ASIDE_SECONDS
    if waited >= limit:
        return None
    if at_work and abs(age) < limit:
        return "a run in a hurry is at work on this machine"
    if 0 <= age < ANNOUNCED_SECONDS:
        return "a run in a hurry was just submitted"
    return None
