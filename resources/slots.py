"""A slot of a lane, held while a run works: also by a run that never stood in the queue."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from platform_assets.domain.lanes import Lane, LaneFullError, Lanes, slot_prefix, slots_of
from platform_assets.domain.lease import Holder, Lease
from resources import processes
from resources.leasing import POLL_SECONDS, SLOWEST_POLL_SECONDS, Waiter, keeper
from resources.ledger.leases import Leases

WAIT_SECONDS = 600.0
"""For how long a run waits for a slot of its lane before it gives up."""


@contextmanager
def slot(
    url: str,
    lanes: Lanes,
    lane: Lane,
    run_id: str,
    *,
    limit: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Lease]:
    """Hold one of a lane's slots while the block runs.

    Args:
        url: of the ledger.
        lanes: the declaration.
        lane: the run's.
        run_id: of the run.
        limit: for how many seconds to wait for a slot; WAIT_SECONDS if not said.
        tell: is told once that one waits, and for whom.

    Raises:
        LaneFullError: all of them were taken for that long; says by whom.
    """
    leases = Leases(url)
    seconds = WAIT_SECONDS if limit is None else limit
    lease = _claim(leases, lanes, lane, processes.holder(run_id), seconds, tell)
    with keeper(url).keep(lease):
        yield lease


def holders(url: str) -> dict[Lane, list[Holder]]:
    """Who holds the slots of each lane now."""
    leases = Leases(url)
    return {lane: [r.holder for r in leases.held(slot_prefix(lane))] for lane in Lane}


def _claim(
    leases: Leases,
    lanes: Lanes,
    lane: Lane,
    holder: Holder,
    limit: float,
    tell: Callable[[str], None],
) -> Lease:
    # Each waiter remembers since when it has seen no renewal of its slot.
    waiters = [Waiter(leases, name, holder, limit=limit) for name in slots_of(lanes, lane)]
    began, pause, told = time.monotonic(), POLL_SECONDS, False
    while True:
        for waiter in waiters:
            found = waiter.attempt()
            if isinstance(found, Lease):
                return found
        waited = time.monotonic() - began
        held = [record.holder for record in leases.held(slot_prefix(lane))]
        if waited >= limit:
            raise LaneFullError(lane, held, waited)
        if not told:
            who = ", ".join(f"run {h.run_id} (process {h.pid})" for h in held)
            tell(f"waiting for one of {len(waiters)} slot(s) of lane {lane}, held by {who}")
            told = True
        time.sleep(pause)
        pause = min(pause * 1.5, SLOWEST_POLL_SECONDS)
