"""Waiting for a tracking server that is away."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from resources.tracking.client import AwayError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and by which clock.

    Attributes:
        seconds: from the first call that was not answered; then the error goes on.
        first, longest: seconds of the pauses, which double.
        clock: seconds that never go back.
        sleep: waits that many seconds.
    """

    seconds: float = 600.0
    first: float = 0.5
    longest: float = 15.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def wait(self, call: Callable[[], T]) -> T:
        """The answer of `call`, which must not matter to be made twice.

        Raises:
            AwayError: the server was away for all of that time.
        """
        until, pause = None, self.first
        while True:
            try:
                return call()
            except AwayError:
                now = self.clock()
                until = now + self.seconds if until is None else until
                if now >= until:
                    raise
                self.sleep(min(pause, until - now))
                pause = min(pause * 2, self.longest)

    def make(self, make: Callable[[], T], find: Callable[[], T | None]) -> T:
        """What `make` makes, once: a request that was not answered may have been carried out.

        Args:
            find: what an earlier call has made; None where it was not carried out.

        Raises:
            AwayError: the server was away for all of that time.
        """
        tried = False

        def call() -> T:
            nonlocal tried
            found = find() if tried else None
            tried = True
            return make() if found is None else found

        return self.wait(call)
