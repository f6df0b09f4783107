"""Steps that run as pods of the fake cluster, under dagster-k8s's executor and the pinned one."""

import os
import time
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from platform_assets.instance.kubernetes.step_pod import STEP_KEY, step_pod_executor
from resources.checkpoints import (
    CheckpointKey,
    CheckpointsSpec,
    CheckpointStore,
    Interrupted,
    Notice,
    Saver,
)

LASTS = 25
"""Seconds; a step that lasts is ended by something else."""

STEPS = "FAKE_STEPS"
"""Variable of the pods: the folder in which a step notes that it has started."""

if os.environ.get(STEP_KEY):
    stock = pinned = step_pod_executor()  # the pod of a step starts no other
else:
    from tests.cluster_executors import pinned, stock


def started(name: str) -> int:
    """Note that a step has started; which time it is."""
    folder = Path(os.environ[STEPS])
    number = len(list(folder.glob(f"{name}-*"))) + 1
    (folder / f"{name}-{number}").touch()
    return number


@dg.op
def lasts_once() -> int:
    """Its first attempt lasts until somebody ends it."""
    number = started("step")
    if number == 1:
        time.sleep(LASTS)
    return number


@dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
def fails_once_later(context: dg.OpExecutionContext) -> int:
    """It is interrupted, then its code fails, then it is well: its op allows for one failure."""
    number = started("step")
    if number == 1:
        time.sleep(LASTS)
    if number == 2:
        raise ValueError("the code's own")
    return context.retry_number


@dg.op
def leaves() -> int:
    """Its process ends without a word."""
    started("step")
    os._exit(3)


@dg.op
def leaves_well_once() -> int:
    """Its first process ends well, and records nothing: as a second pod of the same Job does."""
    number = started("step")
    if number == 1:
        os._exit(0)
    return number


@dg.op
def beside() -> int:
    """It ends when the step that comes after another one runs."""
    started("beside")
    for _ in range(10 * LASTS):
        if any(Path(os.environ[STEPS]).glob("after-*")):
            return 1
        time.sleep(0.1)
    raise RuntimeError("the other step never came")


@dg.op
def after(x: int) -> int:
    started("after")
    return x


@dg.op
def trivial() -> int:
    started("step")
    return 1


@dg.op
def until_told() -> int:
    """Its first attempt ends when it is told so."""
    number = started("step")
    for _ in range(50 * LASTS):  # a second run worker may take its time to start
        if number > 1 or (Path(os.environ[STEPS]) / "end").exists():
            return number
        time.sleep(0.1)
    raise RuntimeError("nobody told it to end")


@dg.op
def trains() -> int:
    """Six rounds with checkpoints; its first attempt stands at the third until it is told to go."""
    folder = Path(os.environ[STEPS])
    number = len(list(folder.glob("begun-*"))) + 1
    key = CheckpointKey("flights/model", "2013-01-28", "f" * 64)
    store = CheckpointStore(folder / "checkpoints", key, token=number)
    notice = Notice()
    saver = Saver(store, "the training", CheckpointsSpec(), notice)
    try:
        with notice.on_sigterm():
            found = saver.load()
            begun = found.step if found is not None else 0
            (folder / f"begun-{number}-{begun}").touch()
            for step in range(begun + 1, 7):
                if step == begun + 1 + 2 * (number == 1):
                    started("step")  # the signal comes now
                for _ in range(10 * LASTS if (number, step) == (1, 3) else 0):
                    if notice.given:
                        break
                    time.sleep(0.1)
                if saver.due(step):
                    saver.save(step, {"state": b"%d" % step})
                    saver.stop_if_interrupted(step)
    except Interrupted as error:
        raise DagsterExecutionInterruptedError from error  # as the line does (factory/events.py)
    return begun


@dg.job(executor_def=pinned)
def pinned_trains() -> None:
    trains()


@dg.job(executor_def=stock)
def stock_lasts_once() -> None:
    lasts_once()


@dg.job(executor_def=pinned)
def pinned_lasts_once() -> None:
    lasts_once()


@dg.job(executor_def=stock)
def stock_fails_once_later() -> None:
    fails_once_later()


@dg.job(executor_def=pinned)
def pinned_fails_once_later() -> None:
    fails_once_later()


@dg.job(executor_def=stock)
def stock_leaves() -> None:
    leaves()


@dg.job(executor_def=pinned)
def pinned_leaves() -> None:
    leaves()


@dg.job(executor_def=stock)
def stock_leaves_well_once() -> None:
    leaves_well_once()


@dg.job(executor_def=pinned)
def pinned_leaves_well_once() -> None:
    leaves_well_once()


@dg.job(executor_def=stock)
def stock_two() -> None:
    beside()
    after(trivial())


@dg.job(executor_def=pinned)
def pinned_two() -> None:
    beside()
    after(trivial())


@dg.job(executor_def=stock)
def stock_chain() -> None:
    after(trivial())


@dg.job(executor_def=pinned)
def pinned_chain() -> None:
    after(trivial())


@dg.job(executor_def=stock)
def stock_told() -> None:
    after(until_told())


@dg.job(executor_def=pinned)
def pinned_told() -> None:
    after(until_told())


@dg.job(executor_def=pinned)
def pinned_alone() -> None:
    until_told()


@dg.job(executor_def=stock)
def stock_trivial() -> None:
    trivial()


@dg.job(executor_def=pinned)
def pinned_trivial() -> None:
    trivial()
