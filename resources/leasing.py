"""Waiting for a lease, and keeping it: a thread renews whatever this process holds."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.lease import (
    RENEW_SECONDS,
    Decision,
    Holder,
    Lease,
    LeaseTakenError,
    Step,
    Taken,
    decide,
)
from resources import processes
from resources.ledger.leases import Leases

POLL_SECONDS = 0.25
"""How often a waiter looks at first; the longer it waits, the rarer it does."""

SLOWEST_POLL_SECONDS = 2.0

log = logging.getLogger(__name__)


class Waiter:
    """What one process knows of a lease that it waits for.

    Args:
        leases: of the ledger.
        resource: what is to be written.
        holder: who waits.
        limit: for how many seconds, at the most.
        monotonic: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        leases: Leases,
        resource: str,
        holder: Holder,
        *,
        limit: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._resource = resource
        self._holder = holder
        self._limit = limit
        self._monotonic = monotonic
        self._began = monotonic()
        self._seen: Taken | None = None
        self._since = self._began
        self.why = ""

    def attempt(self) -> Lease | Decision:
        """Try once: the lease, or what to do next and why.

        A lease whose holder is dead, or silent for too long, is taken over by the same attempt.
        """
        found = self._leases.claim(self._resource, self._holder)
        if isinstance(found, Lease):
            return found
        decision = self._judge(found)
        if decision.step is Step.TAKE_OVER:
            again = self._leases.claim(self._resource, self._holder, over=found)
            if isinstance(again, Lease):
                self.why = decision.reason
                return again
            decision = self._judge(again)
        return decision

    def _judge(self, found: Taken) -> Decision:
        now = self._monotonic()
        if self._seen is None or not self._seen.same_sign_of_life(found):
            self._seen, self._since = found, now
        return decide(
            found,
            unchanged_seconds=now - self._since,
            waited_seconds=now - self._began,
            limit=self._limit,
            dead=processes.is_dead(found.holder),
        )


def acquire(
    leases: Leases,
    resource: str,
    holder: Holder,
    *,
    limit: float,
    tell: Callable[[str], None] = lambda _: None,
) -> Lease:
    """Wait for a lease.

    Args:
        leases: of the ledger.
        resource: what is to be written.
        holder: this process, for a run.
        limit: for how many seconds to wait.
        tell: is told once that one waits, and once that a lease was taken over.

    Raises:
        LeaseTakenError: somebody else still held it.
    """
    waiter = Waiter(leases, resource, holder, limit=limit)
    pause, told = POLL_SECONDS, False
    while True:
        found = waiter.attempt()
        if isinstance(found, Lease):
            if found.after_crash:
                tell(f"{resource} was taken over: {waiter.why}")
            return found
        if found.step is Step.GIVE_UP:
            raise LeaseTakenError(resource, found.reason)
        if not told:
            tell(f"waiting for {resource}: {found.reason}")
            told = True
        time.sleep(pause)
        pause = min(pause * 1.5, SLOWEST_POLL_SECONDS)


class Keeper:
    """Renews the leases of this process for as long as it holds any."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._held: dict[str, Lease] = {}
        self._fencing = 0
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def holds_work(self) -> bool:
        """Whether others may be waiting for what this process works on; a slot is no such thing."""
        return self._fencing > 0

    @contextmanager
    def keep(self, lease: Lease, *, fences: bool = False) -> Iterator[Lease]:
        """Renew a lease until the block is left, then give it back.

        Args:
            lease: that was just taken.
            fences: work that succeeds shuts out a holder before that may only be asleep. Where it
                fails, the lease is left to be taken over in its turn: so the next one does that.
        """
        clean = not (fences and lease.after_crash)
        with self._guard:
            self._fencing += fences
            self._held[lease.resource] = lease
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._thread.start()
        try:
            yield lease
            clean = True
        finally:
            with self._guard:
                self._fencing -= fences
                self._held.pop(lease.resource, None)
            if clean:
                # Whoever waits finds out by itself that it is not renewed any more.
                with suppress(SignalboxError):
                    self._leases.release(lease)

    def _renew(self) -> None:
        while True:
            time.sleep(RENEW_SECONDS)
            with self._guard:
                held = list(self._held.values())
                if not held:
                    # Not at once when the last is given back: a batch takes one after the other.
                    self._thread = None
                    return
            try:
                lost = self._leases.renew(held)
            except Exception as error:  # noqa: BLE001 - the next renewal may succeed
                log.warning("leases were not renewed: %s", error)
                continue
            for lease in lost:
                with self._guard:
                    known = self._held.get(lease.resource)
                    if known == lease:
                        del self._held[lease.resource]
                        log.error("the lease of %s is lost to another run", lease.resource)


_keepers: dict[str, Keeper] = {}
_guard = threading.Lock()


def keeper(url: str) -> Keeper:
    """The keeper of a ledger's leases in this process."""
    with _guard:
        if url not in _keepers:
            _keepers[url] = Keeper(Leases(url))
        return _keepers[url]


def _after_fork() -> None:
    # Threads do not survive a fork, and the parent's leases are the parent's.
    global _guard
    _guard = threading.Lock()
    _keepers.clear()


os.register_at_fork(after_in_child=_after_fork)
