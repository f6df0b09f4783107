"""A training in a process of its own, interrupted from outside, and how long each part of it took.

The training writes the time of each round into a file; whoever watches it sends the signals. The
clock is the machine's monotonic one, which all processes share.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.promotion import Kind
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from resources.checkpoints.port import Checkpointer
from resources.training import OnRound, Parameters

PROGRESS = "SIGNALBOX_DRILL_PROGRESS"
"""Variable: the file that the rounds are written into."""

LOOK_SECONDS = 0.02
MOST_SECONDS = 900.0


def tell_round() -> None:
    """Write down that a round is done, now."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + ended.ru_utime + ended.ru_stime
    with Path(os.environ[PROGRESS]).open("a") as file:
        file.write(f"{time.monotonic()} {cpu}\n")


class TimedTrainer(LightGBMTrainer):
    """LightGBM's, which tells its rounds."""

    def fit(
        self,
        frame: object,
        target: object,
        *,
        kind: Kind,
        parameters: Parameters,
        seed: int,
        on_round: OnRound,
        checkpointer: Checkpointer | None = None,
    ) -> object:
        def told(step: int, metrics: Mapping[str, float]) -> None:
            on_round(step, metrics)
            tell_round()

        return super().fit(
            frame,  # type: ignore[arg-type]
            target,  # type: ignore[arg-type]
            kind=kind,
            parameters=parameters,
            seed=seed,
            on_round=told,
            checkpointer=checkpointer,
        )


@dataclass(frozen=True)
class Attempt:
    """One process of a training.

    Attributes:
        rounds: that it did.
        training: seconds from its first round to its last one, or to the signal.
        cpu: seconds of CPU from its first round to the last one that it did, of all its threads
            and of its children that have ended: what a busy machine changes least.
        restart: seconds from its start to its first round.
        by: the signal that ended it; None if it ended by itself.
    """

    rounds: int
    training: float
    cpu: float
    restart: float
    by: signal.Signals | None


def attempts(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    every: float = 0.0,
    after: int = 0,
    signals: Callable[[int], signal.Signals | None] = lambda _: None,
) -> list[Attempt]:
    """Start a training again and again until it ends well.

    Args:
        command: what starts it; `PROGRESS` is added to its environment.
        folder: for the files of its rounds and of what it says.
        every: seconds of training after which an attempt is interrupted.
        after: rounds of it that have to be done by then.
        signals: the signal for the attempt of that number, from 0; None: it is left alone.

    Raises:
        RefusedError: an attempt that was left alone ended badly, or none ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Attempt] = []
    while True:
        by = signals(len(done))
        attempt, code, said = _one(command, environment, folder, len(done), every, after, by)
        done.append(attempt)
        if attempt.by is not None:
            continue
        if code:
            raise RefusedError(f"an attempt that nobody interrupted ended with {code}: {said}")
        return done


def _one(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    number: int,
    every: float,
    after: int,
    by: signal.Signals | None,
) -> tuple[Attempt, int, str]:
    file, log = folder / f"rounds-{number}", folder / f"said-{number}"
    file.write_text("")
    began = time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(
            list(command),
            env={**os.environ, **environment, PROGRESS: str(file)},
            stdout=said,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    sent: float | None = None
    try:
        while process.poll() is None:
            now = time.monotonic()
            if now - began > MOST_SECONDS:
                raise RefusedError(f"an attempt did not end in {MOST_SECONDS:.0f} s: see {log}")
            told = _times(file) if by is not None and sent is None else []
            if by is not None and len(told) > after and now - told[0] >= every:
                sent = now
                process.send_signal(by)
            time.sleep(LOOK_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    lines = [line.split() for line in file.read_text().splitlines()]
    times, cpu = ([float(line[n]) for line in lines if len(line) == 2] for n in (0, 1))
    if not times:
        raise RefusedError(f"an attempt ended before its first round: {log.read_text()[-600:]}")
    interrupted = sent is not None and process.returncode != 0
    end = max(times[-1], sent or 0.0) if interrupted else times[-1]
    attempt = Attempt(
        rounds=len(times),
        training=end - times[0],
        cpu=cpu[-1] - cpu[0],
        restart=times[0] - began,
        by=by if interrupted else None,
    )
    return attempt, process.returncode, log.read_text()[-600:]


def _times(file: Path) -> list[float]:
    """When the rounds were done, as far as their lines are whole."""
    lines = file.read_text().splitlines(keepends=True)
    return [float(line.split()[0]) for line in lines if line.endswith("\n")]
