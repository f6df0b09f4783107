"""How the runs of the lanes share the cores of this machine.

Two things keep a run that is in a hurry from waiting for a core beside runs that are not. Those are
nice, so they get little of a core that somebody else wants. And their slices are long: Linux (6.12
and later) takes a core at once from a process with a longer slice than the one that wakes up, else
it lets it finish its slice. A run wakes up hundreds of times, after each write to a database, and
waiting a millisecond each time doubles what is short (`python -m benchmarks.wakeups`). A third
keeps it from being slowed by what runs on the other cores: `resources.giving_way`.
"""

import os
import platform
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LONG_SLICE = 20_000_000
"""Nanoseconds; Linux allows 100,000 to 100,000,000, and without being asked takes 700,000 to
3,000,000 by the number of cores."""

_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Numbers of sched_setattr and sched_getattr, which Debian's C library has no functions for."""

_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr, sched(7): size, policy, flags, nice, priority, runtime, deadline, period."""

_IN_THE_WAY = (OSError, AttributeError, ImportError)
"""Another C library, no libffi, a container that forbids the call."""


def stand_back(tags: "Mapping[str, str]", autogroup: str = "/proc/self/autogroup") -> None:
    """Give way to the lanes that are in a hurry: this process, and all that it will start.

    Each run is a session of its own, and Linux may weigh sessions first and processes within them
    only (autogroups): then the session has to stand back too. Lanes that cannot be read are said
    so where the run claims its slot.
    """
    from platform_assets.domain.errors import SignalboxError
    from platform_assets.domain.lanes import lane_given
    from resources.giving_way import GIVES_WAY, Way
    from resources.home import Home
    from resources.lanes import load_lanes

    try:
        nice = load_lanes().nice(lane_given(tags))
        if nice == 0:
            Way(Home.locate().root).enter()
    except (SignalboxError, ValueError):
        return
    if nice == 0:
        return
    os.environ[GIVES_WAY] = "1"
    with suppress(OSError):
        os.nice(nice)
    take_slices(LONG_SLICE)
    if os.getsid(0) != os.getpid():
        return  # somebody else's session, a terminal's
    with suppress(OSError), open(autogroup, "w") as file:  # noqa: PTH123 - no Path here
        file.write(str(nice))


def step_aside(tell: "Callable[[str], object]" = lambda _: None) -> None:
    """If this process stands back: let one in a hurry have the machine first, for a moment.

    A termination that comes meanwhile, and is held back until the run begins, ends that.
    """
    from dagster._utils.interrupts import check_captured_interrupt

    from platform_assets.domain.errors import SignalboxError
    from resources.giving_way import FREE, Way, gives_way
    from resources.home import Home

    if gives_way():
        with suppress(SignalboxError):
            Way(Home.locate().root).step_aside(FREE, tell, check_captured_interrupt)


def take_slices(nanoseconds: int) -> bool:
    """Ask for slices of a length, for this thread and what it starts; tells whether it was heard.

    An older kernel hears it and does nothing. Whatever stands in the way, a run goes on.
    """
    calls = _calls()
    if calls is None:
        return False
    try:
        policy, nice = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
        wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, 0, nice, 0, nanoseconds, 0, 0)
        return _call(calls[0], wanted, 0) == 0
    except _IN_THE_WAY:
        return False


def slice_taken() -> int:
    """The length of this thread's slices, nanoseconds; 0 where the kernel does not say."""
    calls = _calls()
    found = bytearray(_ATTRIBUTES.size)
    try:
        if calls is None or _call(calls[1], found, _ATTRIBUTES.size, 0) != 0:
            return 0
    except _IN_THE_WAY:
        return 0
    return int(_ATTRIBUTES.unpack(found)[5])


def _calls() -> tuple[int, int] | None:
    return _CALLS.get(platform.machine()) if platform.system() == "Linux" else None


def _call(number: int, data: bytes | bytearray, *more: int) -> int:
    import ctypes  # which not every Python has

    buffer = (ctypes.c_char * len(data)).from_buffer(data) if isinstance(data, bytearray) else data
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, 0, buffer, *more))
