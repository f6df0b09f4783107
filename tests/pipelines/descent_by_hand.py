"""Trains the trainer of docs/training.md on made-up rows: `… FOLDER STEPS`, slowly."""

import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np
import pandas as pd

from platform_assets.domain.checkpoints import TrainingInterruptedError
from resources.checkpoints import by_hand
from tests.pipelines.descent_trainer import DescentTrainer


def main(folder: str, steps: int) -> None:
    chance = np.random.default_rng(0)
    frame = pd.DataFrame(chance.normal(size=(500, 4)), columns=list("abcd"))
    target = frame["a"] * 2 - frame["b"] + chance.normal(size=500)

    def told(step: int, metrics: Mapping[str, float]) -> None:
        if step == 1:
            print("the first step is done", flush=True)
        time.sleep(0.02)

    with by_hand(folder) if folder != "-" else nullcontext() as checkpointer:
        model = DescentTrainer().fit(
            frame,
            target,
            kind="regression",
            parameters={"steps": steps},
            seed=1,
            on_round=told,
            checkpointer=checkpointer,
        )
    print("weights", [float(value).hex() for value in model.coef_])  # type: ignore[attr-defined]


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except TrainingInterruptedError as error:
        print(error)
        sys.exit(3)
