"""The checkpointer of one training: a thread that writes, and the interval that it keeps."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platform_assets.domain.checkpoints import (
    CheckpointsSpec,
    Interval,
    TrainingInterruptedError,
    interval,
    mean_time_between,
)
from platform_assets.domain.errors import SignalboxError
from resources.checkpoints.notice import Notice
from resources.checkpoints.port import Checkpoint, State
from resources.checkpoints.store import CheckpointStore

logger = logging.getLogger(__name__)


@dataclass
class Account:
    """What the checkpoints of an attempt did, and what they cost."""

    taken: int = 0
    failed: int = 0
    cost_seconds: float = 0.0
    writer_seconds: float = 0.0
    resumed_step: int | None = None
    durable_step: int | None = None
    declined: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass
class _Write:
    """One checkpoint on its way."""

    step: int
    began: float
    thread: threading.Thread | None = None
    cpu: float = 0.0
    error: BaseException | None = None


class Saver:
    """A `Checkpointer` over a store.

    Args:
        store: of this training and attempt.
        what: the training, for a person.
        spec: how many, how often.
        notice: that its place is taken away.
        interruptions, observed_seconds: what was seen of trainings before.
        guard: raises if this attempt may not write any more.
        tell: is told what a person at the log should know.
        extra: parts that are saved besides the trainer's.
        loaded: is told what was found to go on from.
        first: called once a checkpoint is known to be durable, the first time.
        clock: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        store: CheckpointStore,
        what: str,
        spec: CheckpointsSpec,
        notice: Notice,
        *,
        interruptions: int = 0,
        observed_seconds: float = 0.0,
        guard: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = logger.info,
        extra: Callable[[], Mapping[str, bytes]] = dict,
        loaded: Callable[[Checkpoint | None], None] = lambda _: None,
        first: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.account = store, Account()
        self._what, self._spec, self._notice = what, spec, notice
        self._interruptions, self._observed = interruptions, observed_seconds
        self._guard, self._tell, self._clock = guard, tell, clock
        self._extra, self._loaded, self._first = extra, loaded, first
        self._trained_before = 0.0
        self._began = self._since = clock()
        self._asked: float | None = None
        self._cost: float | None = None
        self._write: _Write | None = None
        self._lost: SignalboxError | None = None
        self.interval = self._next()

    # --- the port -----------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        found = self.store.load(self._tell)
        self._began = self._since = self._clock()
        if found is not None:
            self.account.resumed_step = self.account.durable_step = found.step
            self._trained_before = float(found.about.get("trained_seconds") or 0.0)
            self._cost = _positive(found.about.get("cost_seconds"))
            self.interval = self._next()
            self._tell(f"{self._what} goes on from step {found.step}, of {self.folder}")
        self._loaded(found)
        return found

    @property
    def trained_seconds(self) -> float:
        """Of training that were not lost, over all attempts."""
        return self._trained_before + self._clock() - self._began

    def decline(self, why: str) -> None:
        self.account.declined = why
        self._tell(f"{self._what}: {why}")

    def due(self, step: int) -> bool:
        now = self._clock()
        if self._write is not None and self._write.thread and self._write.thread.is_alive():
            due = self.interrupted  # else it would be waited for
        else:
            self._settle()
            due = self.interrupted or (
                now - self._since >= self.interval.seconds and self._affordable(now)
            )
        self._asked = now if due else None
        return due

    def save(self, step: int, state: State, *, paused: float | None = None) -> None:
        began = self._taken()
        self._settle()
        write = _Write(step, began)
        whole = {**state, **self._extra()}
        write.thread = threading.Thread(
            target=self._commit, args=(write, whole), name="checkpoint", daemon=True
        )
        self._count(began, paused)  # before it is written: its manifest says it
        write.thread.start()
        self._write = write

    def missed(self, step: int, why: str, *, paused: float | None = None) -> None:
        began = self._taken()
        self._settle()
        self._count(began, paused)
        self.account.failed += 1
        self._say_failed(step, why)

    @contextmanager
    def staged(self, step: int) -> Iterator[Path]:
        began = self._taken()
        self._settle()
        with self.store.staged() as folder:
            yield folder
            found = sorted(path for path in folder.rglob("*") if path.is_file())
            state: dict[str, bytes | Path] = dict(self._extra())
            state |= {path.relative_to(folder).as_posix(): path for path in found}
            write = _Write(step, began)
            self._commit(write, state)
            self._write = write
            self._settle()
        self._count(began, None)

    def wait(self) -> None:
        self._settle()

    def stop_if_interrupted(self, step: int) -> None:
        if self.interrupted:
            self._settle()
            raise TrainingInterruptedError(
                f"{self._what}, at step {step},", self.account.durable_step
            )

    @property
    def interrupted(self) -> bool:
        return self._notice.given

    @property
    def folder(self) -> str:
        return self.store.folder

    # --- the writer ---------------------------------------------------------------------------

    def _commit(self, write: _Write, state: Mapping[str, bytes | Path]) -> None:
        began = time.thread_time()
        try:
            about: dict[str, Any] = {
                "cost_seconds": self._cost or self._clock() - write.began,
                "trained_seconds": self.trained_seconds,
                "saved_at": time.time(),
            }
            self.store.commit(write.step, state, about=about, guard=self._guard)
        except BaseException as error:  # noqa: BLE001 - told where it is waited for
            write.error = error
        finally:
            write.cpu = time.thread_time() - began

    def _settle(self) -> None:
        """Wait for the one on its way, and say what became of it."""
        write, self._write = self._write, None
        if write is not None:
            if write.thread is not None:
                write.thread.join()
            self.account.writer_seconds += write.cpu
            self._learn_writer(write.cpu)
            if write.error is None:
                self.account.taken += 1
                self.account.durable_step = write.step
                if self.account.taken == 1:
                    self._first()
            else:
                self._failed(write)
        if self._lost is not None:
            raise self._lost

    def _failed(self, write: _Write) -> None:
        self.account.failed += 1
        error = write.error
        if isinstance(error, SignalboxError) and not error.retryable:
            self._lost = error
            return
        if not isinstance(error, Exception):
            raise error  # type: ignore[misc]
        self._say_failed(write.step, str(error))

    def _say_failed(self, step: int, error: str) -> None:
        last = self.account.durable_step
        lost = f"step {last}" if last is not None else "the beginning"
        why = f"checkpoint of step {step} in {self.folder} was not saved ({error}); the "
        why += f"training goes on, an interruption now would cost all since {lost}"
        self.account.problems.append(why)
        self._tell(why)

    # --- the interval -------------------------------------------------------------------------

    def _taken(self) -> float:
        """When what is taken now began: at the yes of `due`, if there was one."""
        began, self._asked = self._asked, None
        return began if began is not None else self._clock()

    def _count(self, began: float, paused: float | None) -> None:
        self._since = self._clock()
        cost = self._since - began if paused is None else paused
        self.account.cost_seconds += cost
        self._learn(cost)

    def _learn(self, cost: float) -> None:
        """The dearer of the last one and the mean: one that was cheap by chance is no promise."""
        mean = self.account.cost_seconds / max(self.account.taken + self.account.failed + 1, 1)
        self._cost = max(cost, mean)
        self.interval = self._next()

    def _learn_writer(self, cpu: float) -> None:
        # The writer's share of the cores is the training's as well.
        if self._cost is not None:
            self._cost += cpu
            self.interval = self._next()

    def _affordable(self, now: float) -> bool:
        """Whether all of them so far and one more cost no more than their share of the time.

        What one costs varies with what else the machine does: by the interval alone a dear one
        that follows cheap ones would exceed it. The first is taken to learn.
        """
        if self._cost is None:
            return True
        spent = self.account.cost_seconds + self.account.writer_seconds
        return spent + self._cost <= self._spec.most_cost * (now - self._began)

    def _next(self) -> Interval:
        seen = self._observed + self.trained_seconds
        return interval(self._cost, mean_time_between(self._interruptions, seen), self._spec)


def _positive(said: Any) -> float | None:
    """A number of a manifest, which another version may have written; None for another thing."""
    known = isinstance(said, int | float) and 0.0 < said < float("inf")
    return float(said) if known else None
