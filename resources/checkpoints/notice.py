"""Whether the place of a training is being taken away: SIGTERM, while it trains."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 20.0
"""A training that has not looked by then ends as any other code does: Kubernetes kills after 30."""


class Notice:
    """That the process was told to go; given by a signal, read by the training.

    Args:
        meant: whether the signal is a person's word (the run is being canceled): then it does
            what it does to any other code, when the training looks. Asked once, and not within
            the signal's handler: it may ask a database.
    """

    def __init__(self, meant: Callable[[], bool] = lambda: False) -> None:
        self._meant = meant
        self._told = self._judged = False
        self._end: Callable[[], None] = lambda: None

    def give(self) -> None:
        self._told = True

    @property
    def told(self) -> bool:
        """Whether it was given, whoever meant it."""
        return self._told

    @property
    def given(self) -> bool:
        """Whether it was, and is no person's word."""
        if self._told and not self._judged:
            if self._meant():
                self._end()
            self._judged = True
        return self._told

    @contextmanager
    def on_sigterm(self, grace: float = GRACE_SECONDS) -> Iterator[None]:
        """Have SIGTERM give it, until the block is left.

        A second SIGTERM, or no look at it for `grace` seconds, does what SIGTERM did before. In
        another thread than the main one there are no signals: nothing is watched there.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)
        late: list[threading.Timer] = []

        def end(frame: FrameType | None = None) -> None:
            if callable(before):
                before(signal.SIGTERM, frame)
            elif before is not signal.SIG_IGN:
                raise SystemExit(128 + signal.SIGTERM)

        def remind() -> None:
            if not self._judged:
                os.kill(os.getpid(), signal.SIGTERM)

        def told(number: int, frame: FrameType | None) -> None:
            if self._told:
                end(frame)
                return
            self._told = True
            timer = threading.Timer(grace, remind)
            timer.daemon = True
            late.append(timer)
            timer.start()

        self._end = end
        signal.signal(signal.SIGTERM, told)
        try:
            yield
        finally:
            for timer in late:
                timer.cancel()
            signal.signal(signal.SIGTERM, before)
        if self._told:
            # What it was given for has come to its end all the same: the process is to go now.
            os.kill(os.getpid(), signal.SIGTERM)
