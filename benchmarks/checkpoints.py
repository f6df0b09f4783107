"""What checkpoints cost a training, and what interruptions cost it with them.

Trainings of the same rows, each in a process of its own: without a checkpointer and with one at the
interval that it chooses, in turn; then one that gets SIGKILL every ten of its intervals. Compared
are the rounds that were done, and the CPU from the first round to the last one, of the process and
its children; starting again is stated apart. The time is told, and not judged: on a busy machine it
is its neighbours' as well.
"""

import argparse
import json
import math
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from platform_assets.domain.checkpoints import CheckpointKey, CheckpointsSpec
from platform_assets.drills.interrupting import TimedTrainer, attempts
from resources.checkpoints import CheckpointStore, Notice, Saver

ROOT = Path(__file__).resolve().parents[1]
COST_LIMIT, INTERRUPTED_LIMIT = 0.035, 1.1
INTERVALS = 10
"""So many checkpoint intervals pass between two interruptions."""

PARAMETERS = {
    "num_leaves": 31,
    "learning_rate": 0.05,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "num_threads": 1,
}


def rows(count: int) -> tuple[object, object]:
    """Rows with 20 numbers, of which the target depends on some."""
    import numpy as np
    import pandas as pd

    chance = np.random.default_rng(1)
    frame = pd.DataFrame({f"number{n}": chance.normal(size=count) for n in range(20)})
    value = frame["number0"] + frame["number1"] * frame["number2"] + chance.normal(size=count)
    return frame, (value > 0.5).astype("float64")


def train(folder: str, count: int, rounds: int, lost: float, token: int) -> None:
    """One attempt; a folder of "" takes no checkpoints."""
    saver = None
    if folder:
        store = CheckpointStore(folder, CheckpointKey("bench", "one", "f" * 64), token=token)
        spec = CheckpointsSpec(most_lost_seconds=lost)
        saver = Saver(store, "the training", spec, Notice())
        store.note({})
    frame, target = rows(count)
    model = TimedTrainer().fit(
        frame,
        target,
        kind="binary_classification",
        parameters={**PARAMETERS, "num_boost_round": rounds},
        seed=3,
        on_round=lambda *_: None,
        checkpointer=saver,
    )
    digest = hash(model.model_to_string(num_iteration=-1))  # type: ignore[attr-defined]
    said: dict[str, object] = {"model": digest}
    if saver is not None:
        saver.wait()
        said |= vars(saver.account) | {"interval": saver.interval.seconds}
    print(json.dumps(said))


def measure(count: int, rounds: int, lost: float, runs: int) -> Mapping[str, Any]:
    """Run all of them; the figures."""
    environment = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory(prefix="signalbox-bench-") as name:
        scratch = Path(name)

        def command(folder: str) -> list[str]:
            # The attempt's number is its token: each has a file of its own for its rounds.
            numbers = [str(count), str(rounds), str(lost)]
            return [sys.executable, str(Path(__file__).resolve()), "--train", folder, *numbers]

        def said(folder: Path, number: int) -> dict[str, object]:
            last = (folder / f"said-{number}").read_text().strip().splitlines()[-1]
            found: dict[str, object] = json.loads(last)
            return found

        bare, saved, accounts, cpu, bare_cpu = [], [], [], [], []
        for number in range(runs):
            folder = scratch / f"bare-{number}"
            (one,) = attempts(command(""), environment, folder)
            bare.append(one.training)
            bare_cpu.append(one.cpu)
            whole = said(folder, 0)["model"]
            folder = scratch / f"saved-{number}"
            (one,) = attempts(command(str(scratch / f"c-{number}")), environment, folder)
            saved.append(one.training)
            cpu.append(one.cpu)
            accounts.append(said(folder, 0))
        calm = statistics.median(saved)
        # As it came out: the interval follows the cost, which differs from one to the next.
        interval = calm / (1 + statistics.median(int(str(a["taken"])) for a in accounts))
        most = math.floor(calm / (INTERVALS * interval))
        folder = scratch / "interrupted"
        found = attempts(
            command(str(scratch / "c-interrupted")),
            environment,
            folder,
            every=INTERVALS * interval,
            signals=lambda n: signal.SIGKILL if n < most else None,
        )
        model = said(folder, len(found) - 1)["model"]
    total, done = sum(one.training for one in found), sum(one.rounds for one in found)
    spent = [float(str(a["cost_seconds"])) + float(str(a["writer_seconds"])) for a in accounts]
    shares = [cost / seconds for cost, seconds in zip(spent, saved, strict=True)]
    cost = statistics.median(shares)
    worked = sum(one.cpu for one in found) / statistics.median(cpu)
    return {
        "rows": count,
        "rounds": rounds,
        "runs": runs,
        "load": [round(value, 1) for value in os.getloadavg()],
        "undisturbed_seconds": {"without": _few(bare), "with": _few(saved)},
        "ratio_with_to_without": round(statistics.median(saved) / statistics.median(bare), 4),
        "ratio_of_cpu": round(min(cpu) / min(bare_cpu), 4),
        "checkpoints": [found["taken"] for found in accounts],
        "interval_seconds": round(interval, 2),
        "cost_share": round(cost, 4),
        "cost_limit": COST_LIMIT,
        "interruptions": len(found) - 1,
        "interrupted_seconds": round(total, 2),
        "interrupted_ratio": round(total / calm, 3),
        "interrupted_cpu_ratio": round(worked, 3),
        "interrupted_limit": INTERRUPTED_LIMIT,
        "restart_seconds": _few([one.restart for one in found[1:]]),
        "rounds_ratio": round(done / rounds, 3),
        "rounds_done": done,
        "same_model": model == whole,
        "within_limits": within(cost, worked, done / rounds),
    }


def within(cost: float, cpu: float, rounds: float) -> dict[str, bool]:
    """Which goals are reached, each by itself.

    Args:
        cost: share of the checkpoints in a training's time.
        cpu: of an interrupted training against an undisturbed one, starting excluded.
        rounds: that it did, against those of an undisturbed one.
    """
    return {
        "cost": cost <= COST_LIMIT,
        "cpu": cpu <= INTERRUPTED_LIMIT,
        "rounds": rounds <= INTERRUPTED_LIMIT,
    }


def _few(values: list[float]) -> list[float]:
    return [round(value, 2) for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=2500)
    parser.add_argument("--most-lost", type=float, default=1.0, help="most_lost_seconds")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.train:
        folder, count, rounds, lost = chosen.train
        token = int(Path(os.environ["SIGNALBOX_DRILL_PROGRESS"]).name.rpartition("-")[2]) + 1
        train(folder, int(count), int(rounds), float(lost), token)
        return
    found = measure(chosen.rows, chosen.rounds, chosen.most_lost, chosen.runs)
    print(json.dumps(found, indent=2))
    if not found["interruptions"]:
        print("nothing was interrupted: the training is too short, --rounds more", file=sys.stderr)
        raise SystemExit(1)
    if not (all(found["within_limits"].values()) and found["same_model"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
