"""The metric of each round, measured on some of the rows where there are many."""

import numpy as np
import pandas as pd
import pytest

from platform_assets.trainers import lightgbm_tabular
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer


def trained(rows: int) -> tuple[str, list[float]]:
    """The model's text, and the log loss of each round."""
    random = np.random.RandomState(3)
    frame = pd.DataFrame(random.rand(rows, 3), columns=list("abc"))
    frame["d"] = pd.Categorical(np.where(frame.b > 0.5, "x", "y"))
    target = ((frame.a > 0.5) ^ (frame.d == "x")).astype("float64")
    losses: list[float] = []
    model = LightGBMTrainer().fit(
        frame,
        target,
        kind="binary_classification",
        parameters={"num_boost_round": 8, "num_threads": 1},
        seed=1,
        on_round=lambda _, metrics: losses.append(metrics["train_log_loss"]),
    )
    text: str = model.model_to_string()  # type: ignore[attr-defined]
    return text, losses


def test_model_is_the_same_and_the_metric_close(monkeypatch: pytest.MonkeyPatch) -> None:
    model, of_some = trained(30_000)
    monkeypatch.setattr(lightgbm_tabular, "METRIC_ROWS", 30_000)
    whole, of_all = trained(30_000)
    assert model == whole
    assert of_some != of_all
    assert of_some == pytest.approx(of_all, rel=0.02)
    assert sorted(of_some, reverse=True) == of_some
