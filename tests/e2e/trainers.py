"""A trainer that takes as long as it is told to, and says which process it runs in."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PID_FILE = "slow-trainer.pid"
TRAINING = "training-"


class SlowTrainer:
    """Sleeps for `seconds`, in the place of a long training."""

    flavor = "sklearn"
    requirements = ("scikit-learn",)

    def fit(self, frame: pd.DataFrame, target: Any, *, parameters: Any, **_: Any) -> object:
        draft = Path(os.environ["SIGNALBOX_HOME"]) / f"{PID_FILE}.new"
        draft.write_text(str(os.getpid()))
        draft.rename(draft.with_suffix(""))
        time.sleep(float(parameters["seconds"]))
        raise RuntimeError("nobody ended this training")

    def predict(self, model: object, frame: pd.DataFrame) -> np.ndarray:
        return np.zeros(len(frame))

    def importance(self, model: object) -> Mapping[str, float]:
        return {}


class GatedTrainer(SlowTrainer):
    """Trains until the file that it wrote, named by its process, is taken away."""

    def fit(self, frame: pd.DataFrame, target: Any, *, parameters: Any, **_: Any) -> object:
        mark = Path(os.environ["SIGNALBOX_HOME"]) / f"{TRAINING}{os.getpid()}"
        mark.touch()
        while mark.exists():
            time.sleep(0.1)
        raise RuntimeError("its file was taken away")
