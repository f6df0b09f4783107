"""Runs in a hurry on this machine, and stepping aside for them.

Nice and long slices give a run in a hurry its core at once. What runs on the other cores still
slows it: they share a cache, the memory, and often one core of the silicon. So a run that stands
back does nothing for a moment.

A run in a hurry has a lock on a file of the home for as long as its process lives, however that
ends. Others only look whether there is one, and never take it: nobody waits for them. Where files
cannot be locked (another system, some network file systems), nobody ever is in a hurry.

Who stands back does so for a fifth of the time at the most. Runs of a few seconds follow each
other, each in a process of its own: so what is left after each time is kept in the home, and the
next begins with no more.
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
LEFT = "patience"
"""Beside it: what was left after somebody stood aside, and when that was."""

POLL_SECONDS = 0.02
TELL_SECONDS = 1.0
"""Who stepped aside for longer says so in its log."""

_LOCK = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux, fcntl(2): type, whence, start, length, pid."""

_LEFT = struct.Struct("<dd")
"""Seconds that were left, and the clock of `Patience` then, which is one of the whole machine."""

_kept: list[int] = []
"""Open for as long as this process lives."""

_stood = [0.0]
"""For how long this process has stood aside, seconds."""


class Patience:
    """How long somebody still stands aside; grows again while it goes on.

    Args:
        most: seconds at a stretch.
        monotonic: a clock that never goes back, in seconds.
        within: what it is a part of: it takes from that, and has no more than that has.
    """

    def __init__(
        self,
        most: float = MOST_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        within: "Patience | None" = None,
    ) -> None:
        self._most, self.monotonic, self._within = most, monotonic, within
        self._left, self._since, self.aside = most, monotonic(), False

    @property
    def whole(self) -> "Patience":
        """What it is a part of, or itself."""
        return self._within or self

    def left(self) -> float:
        """Seconds, as of now."""
        now = self.monotonic()
        passed, self._since = now - self._since, now
        if self.aside:
            self._left -= passed
        else:
            self._left = recovered(self._left, passed, self._most)
        return self._left if self._within is None else min(self._left, self._within.left())

    def stands(self, aside: bool) -> None:
        """From now on it is spent, or grows."""
        self.left()
        self.aside = aside
        if self._within is not None:
            self._within.stands(aside)

    def at_most(self, left: float) -> None:
        """There is no more than this."""
        self._left = min(self.left(), left)


class Way:
    """Who is in a hurry on this machine.

    Args:
        root: of the home.
    """

    def __init__(self, root: Path) -> None:
        self._path, self._left = root / FILE, root / LEFT

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
            self.goes_on(patience)  # nobody ever was
            return None

        def why() -> str | None:
            return why_step_aside(at_work=self.at_work(), age=age, patience=patience.left())

        reason = why()
        if reason is not None and not patience.aside:
            patience.whole.at_most(self._left_to_all(patience))
            reason = why()
        if reason is None:
            self.goes_on(patience)
        else:
            patience.stands(True)
        return reason

    def goes_on(self, patience: Patience) -> None:
        """Who was told to do nothing does so no more."""
        stood = patience.aside
        patience.stands(False)
        if stood:
            whole = patience.whole
            whole.at_most(self._left_to_all(patience))
            self._keep(_LEFT.pack(whole.left(), whole.monotonic()))

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
        self.goes_on(patience)
        waited = time.monotonic() - began
        _stood[0] += waited
        if waited >= TELL_SECONDS:
            tell(f"stepped aside for {waited:.1f} s: {reason}")
        return waited

    def _left_to_all(self, patience: Patience) -> float:
        """What those who stood aside before have left by now, in whatever process."""
        with suppress(OSError, struct.error):
            left, then = _LEFT.unpack(self._left.read_bytes())
            passed = patience.monotonic() - then
            if passed >= 0 and abs(left) <= MOST_SECONDS:  # else of before the machine was started
                return recovered(left, passed, MOST_SECONDS)
        return MOST_SECONDS

    def _keep(self, left: bytes) -> None:
        with suppress(OSError):
            file = os.open(self._left, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(file, left, 0)  # 16 bytes at once: nobody reads a part
            finally:
                os.close(file)

    def _open(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        now = time.time()  # by the clock that ages are told by: a file server has one of its own
        with suppress(OSError):
            os.utime(file, (now, now))
        return file


def gives_way() -> bool:
    """Whether this process belongs to a run that stands back."""
    return os.environ.get(GIVES_WAY) == "1"


def seconds_aside() -> float:
    """For how long this process has stood aside until now."""
    return _stood[0]


FREE = Patience()
HOLDING = Patience(MOST_HOLDING_SECONDS, within=FREE)
"""Of this process, while it holds no lease and while it does."""


def _flock(kind: int) -> bytes:
    return _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _after_fork() -> None:
    # What a run in a hurry has forked and left behind is not in a hurry.
    while _kept:
        with suppress(OSError):
            os.close(_kept.pop())
    _stood[0] = 0.0


os.register_at_fork(after_in_child=_after_fork)
