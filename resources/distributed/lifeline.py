"""A process that ends with the one that has started it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int, deadly: signal.Signals = signal.SIGKILL) -> None:
    """Have this process get a signal as soon as its parent is gone, however that ends.

    Args:
        parent: process id of the one that has started this one.
        deadly: the signal.

    It is the kernel's doing (Linux). Elsewhere nothing is done: there a step that is killed
    leaves its ranks to end by themselves, at the first message that they cannot send.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(deadly), 0, 0, 0)
    if os.getppid() != parent:  # it was gone already
        os._exit(128 + int(deadly))
