"""Runs in a hurry on this machine, and stepping aside for them.

Nice and long slices give a run in a hurry its core at once. What runs on the other cores still
slows it: they share a cache, the memory, and often one core of the silicon. So a run that stands
back does nothing for a moment.

A run in a hurry has a lock on a file of the home for as long as its process lives, however that
ends. Others only look whether there is one, and never take it: nobody waits for them.
"""

import fcntl
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platform_assets.domain.giving_way import why_step_aside

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


class Way:
    """Who is in a hurry on this machine.

    Where files cannot be locked (another system, some network file systems), nobody ever is.

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
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
            finally:
                os.close(file)
            return bool(_LOCK.unpack(found)[0] != fcntl.F_UNLCK)
        return False

    def why_not(self, waited: float = 0.0, *, holding: bool = False) -> str | None:
        """Why nothing is to be begun now by who stands back: see `why_step_aside`."""
        try:
            age = time.time() - self._path.stat().st_mtime
        except OSError:
            return None  # nobody ever was
        return why_step_aside(at_work=self.at_work(), age=age, waited=waited, holding=holding)

    def step_aside(
        self,
        tell: Callable[[str], None] = lambda _: None,
        *,
        holding: bool = False,
        ended: Callable[[], bool] = lambda: False,
    ) -> float:
        """Do nothing while a run in a hurry needs the machine; the seconds that this took.

        To be called within no transaction.

        Args:
            tell: is told if it took long.
            holding: whether a lease is held: then it is for a short time only.
            ended: whether somebody has asked for an end meanwhile.
        """
        began = time.monotonic()
        reason = why = self.why_not(holding=holding)
        while why is not None and not ended():
            time.sleep(POLL_SECONDS)
            why = self.why_not(time.monotonic() - began, holding=holding)
        waited = time.monotonic() - began
        if waited >= TELL_SECONDS:
            tell(f"stepped aside for {waited:.1f} s: {reason}")
        return waited

    def _open(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.utime(file)
        return file


def gives_way() -> bool:
    """Whether this process belongs to a run that stands back."""
    return os.environ.get(GIVES_WAY) == "1"


def _flock(kind: int) -> bytes:
    return _LOCK.pack(kind, os.SEEK_SET, 0, 0, 0)
