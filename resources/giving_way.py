"""Runs in a hurry on this machine, and stepping aside for them.

Nice and long slices give a run in a hurry its core at once. What runs on the other cores still
slows it: they share a cache, the memory, and often one core of the silicon. So a run that stands
back does nothing for a moment.

A run in a hurry has a lock on a file of the home for as long as its process lives, however that
ends. Others only look whether there is one, and never take it: nobody waits for them. Where files
cannot be locked (another system, some network file systems), nobody ever is in a hurry.
"""

import fcntl
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platform_assets.domain.giving_way import (
    MOST_HOLDING_SECONDS,
    MOST_SECONDS,
    recovered,
    why_step_aside,
)

GIVES_WAY = "SIGNALBOX_GIVES_WAY"
"""Variable of the processes of a run that stands back, set by whoever executes it."""

FILE = "hurry"
POLL_SECONDS = 0.02
TELL_SECONDS = 1.0
"""Who stepped aside for longer says so in its log."""

_LOCK = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux, fcntl(2): type, whence, start, length, pid."""

_kept: list[int] = []
"""Open for as long as this process lives."""


class Patience:
    """How long somebody still stands aside; grows again while it goes on.

    Args:
        most: seconds at a stretch.
        monotonic: a clock that never goes back, in seconds.
    """

    def __init__(
        self, most: float = MOST_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._monotonic = most, monotonic
        self._left, self._since, self._aside = most, monotonic(), False

    def left(self) -> float:
        """Seconds, as of now."""
        now = self._monotonic()
        passed, self._since = now - self._since, now
        if self._aside:
            self._left -= passed
        else:
            self._left = recovered(self._left, passed, self._most)
        return self._left

    def stands(self, aside: bool) -> None:
        """From now on it is spent, or grows."""
        self.left()
        self._aside = aside


class Way:
    """Who is in a hurry on this machine.

    Args:
        root: of the home.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / FILE

    def announce(self) -> None:
        """A run in a hurry was submitted, and will begin here within moments."""
        with suppress(OSError):
            os.close(self._open())

    def enter(self) -> None:
        """This process is in a hurry from now on until it ends."""
        with suppress(OSError, AttributeError):
            file = self._open()
            _kept.append(file)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK))

    def at_work(self) -> bool:
        """Whether a process in a hurry lives on this machine."""
        with suppress(OSError, AttributeError):
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
            finally:
                os.close(file)
            return bool(_LOCK.unpack(found)[0] != fcntl.F_UNLCK)
        return False

    def why_not(self, patience: Patience) -> str | None:
        """Why nothing is to be begun now by who stands back: see `why_step_aside`.

        Who is told so is taken to do nothing until it asks again.
        """
        try:
            age = time.time() - self._path.stat().st_mtime
        except OSError:
            return None  # nobody ever was
        why = why_step_aside(at_work=self.at_work(), age=age, patience=patience.left())
        patience.stands(why is not None)
        return why

    def step_aside(
        self,
        patience: Patience,
        tell: Callable[[str], object] = lambda _: None,
        ended: Callable[[], bool] = lambda: False,
    ) -> float:
        """Do nothing while a run in a hurry needs the machine; the seconds that this took.

        To be called within no transaction.

        Args:
            patience: how long, at the most.
            tell: is told if it took long.
            ended: whether somebody has asked for an end meanwhile.
        """
        began = time.monotonic()
        reason = why = self.why_not(patience)
        while why is not None and not ended():
            time.sleep(POLL_SECONDS)
            why = self.why_not(patience)
        patience.stands(False)
        waited = time.monotonic() - began
        if waited >= TELL_SECONDS:
            tell(f"stepped aside for {waited:.1f} s: {reason}")
        return waited

    def _open(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        now = time.time()  # by the clock that ages are told by: a file server has one of its own
        os.utime(file, (now, now))
        return file


def gives_way() -> bool:
    """Whether this process belongs to a run that stands back."""
    return os.environ.get(GIVES_WAY) == "1"


FREE, HOLDING = Patience(), Patience(MOST_HOLDING_SECONDS)
"""Of this process, while it holds no lease and while it does."""


def _flock(kind: int) -> bytes:
    return _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _after_fork() -> None:
    # What a run in a hurry has forked and left behind is not in a hurry.
    while _kept:
        with suppress(OSError):
            os.close(_kept.pop())


os.register_at_fork(after_in_child=_after_fork)
