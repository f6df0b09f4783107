"""A training that was interrupted makes the same model as one that was not."""

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest

from platform_assets.domain.checkpoints import CheckpointKey, CheckpointsSpec
from platform_assets.trainers.lightgbm_rounds import MODEL, SAVES_EXACTLY
from platform_assets.trainers.lightgbm_tabular import METRIC_ROWS, LightGBMTrainer
from resources.checkpoints import CheckpointStore, Interrupted, Notice, Saver

ROUNDS = 12
SMALL = {"num_leaves": 7, "num_boost_round": ROUNDS, "min_data_in_leaf": 5}
RANDOM = {"feature_fraction": 0.6, "bagging_fraction": 0.7, "bagging_freq": 1}
CASES: Mapping[str, Mapping[str, Any]] = {
    "nothing random": {},
    "columns": {"feature_fraction": 0.5},
    "columns by node": {"feature_fraction": 0.8, "feature_fraction_bynode": 0.5},
    "bags": {"bagging_fraction": 0.7, "bagging_freq": 1},
    "small bags": {"bagging_fraction": 0.3, "bagging_freq": 1},
    "balanced bags": {
        "pos_bagging_fraction": 0.5,
        "neg_bagging_fraction": 0.9,
        "bagging_freq": 1,
    },
    "both": RANDOM,
    "a bag for three rounds": {**RANDOM, "bagging_freq": 3},
    "random cuts": {"extra_trees": True},
    "no average": {"boost_from_average": False, **RANDOM},
    "bounded": {"max_delta_step": 0.2, "lambda_l1": 0.1, "lambda_l2": 1.0, "max_depth": 3},
    "categories": {"cat_smooth": 1.0, "cat_l2": 1.0, "max_cat_to_onehot": 1, **RANDOM},
    "weighted": {"is_unbalance": True},
}


@cache
def rows(count: int = 600) -> tuple[pd.DataFrame, "pd.Series[float]"]:
    chance = np.random.default_rng(5)
    frame = pd.DataFrame({f"number{n}": chance.normal(size=count) for n in range(6)})
    frame.loc[chance.integers(0, count, count // 8), "number2"] = np.nan
    frame["letter"] = pd.Categorical(chance.choice(list("abcdefghij"), count))
    value = frame["number0"] + frame["number1"] * frame["number3"]
    value += frame["letter"].isin(["a", "b"])
    return frame, (value + chance.normal(size=count) > 0.3).astype("float64")


Told = list[tuple[int, dict[str, float]]]


def train(
    folder: Path,
    own: Mapping[str, Any],
    token: int,
    *,
    stop: int | None = None,
    count: int = 600,
    kind: Any = "binary_classification",
    told: Told | None = None,
) -> str:
    """Train, with a notice after round `stop`; the model's text."""
    notice = Notice()
    key = CheckpointKey("flights/model", "2013-01-28", "f" * 64)
    saver = Saver(
        CheckpointStore(folder, key, token=token), "a training", CheckpointsSpec(), notice
    )

    def on_round(step: int, metrics: Mapping[str, float]) -> None:
        if told is not None:
            told.append((step, dict(metrics)))
        if step == stop:
            notice.give()

    frame, target = rows(count)
    if kind == "regression":
        target = frame["number0"] * 3 + target
    model: Any = LightGBMTrainer().fit(
        frame,
        target,
        kind=kind,
        parameters={**SMALL, **own},
        seed=7,
        on_round=on_round,
        checkpointer=saver,
    )
    return str(model.model_to_string(num_iteration=-1))


OF_CLASSES = {"is_unbalance", "pos_bagging_fraction"}
KINDS = [
    (case, kind)
    for case, own in CASES.items()
    for kind in ("binary_classification", "regression")
    if kind != "regression" or not OF_CLASSES & set(own)
]


@pytest.mark.parametrize(("case", "kind"), KINDS)
def test_interrupted_at_every_step(tmp_path: Path, case: str, kind: str) -> None:
    own = CASES[case]
    rounds: Told = []
    whole = train(tmp_path / "whole", own, 1, kind=kind, told=rounds)
    assert [step for step, _ in rounds] == list(range(1, ROUNDS + 1))
    every = own.get("bagging_freq", 1)
    for step in range(1, ROUNDS):
        folder, again = tmp_path / str(step), list[tuple[int, dict[str, float]]]()
        saved = min(-(-step // every) * every, ROUNDS)
        if saved < ROUNDS:
            with pytest.raises(Interrupted, match=f"step {saved} is saved"):
                train(folder, own, 1, stop=step, kind=kind)
            assert train(folder, own, 2, kind=kind, told=again) == whole
            assert again == rounds[saved:]


def test_interrupted_after_each_step_in_turn(tmp_path: Path) -> None:
    """One training that gets one round further with each attempt."""
    whole = train(tmp_path / "whole", RANDOM, 1)
    for step in range(1, ROUNDS):
        with pytest.raises(Interrupted):
            train(tmp_path, RANDOM, step, stop=step)
    assert train(tmp_path, RANDOM, ROUNDS) == whole


@pytest.mark.heavy
def test_a_long_one_at_random_steps(tmp_path: Path) -> None:
    own = {**RANDOM, "num_boost_round": 300, "num_leaves": 31}
    whole = train(tmp_path / "whole", own, 1, count=METRIC_ROWS + 2000)
    steps = sorted(random.Random(11).sample(range(1, 300), 6))
    for token, step in enumerate(steps, 1):
        with pytest.raises(Interrupted):
            train(tmp_path, own, token, stop=step, count=METRIC_ROWS + 2000)
    assert train(tmp_path, own, 99, count=METRIC_ROWS + 2000) == whole


def test_metrics_on_some_of_the_rows_go_on(tmp_path: Path) -> None:
    rounds: Told = []
    again: Told = []
    own = {**RANDOM, "num_boost_round": 6}
    whole = train(tmp_path / "whole", own, 1, count=METRIC_ROWS + 500, told=rounds)
    with pytest.raises(Interrupted):
        train(tmp_path, own, 1, stop=4, count=METRIC_ROWS + 500)
    assert train(tmp_path, own, 2, count=METRIC_ROWS + 500, told=again) == whole
    assert again == rounds[4:]


def test_rows_that_cannot_be_split(tmp_path: Path) -> None:
    own = {"min_data_in_leaf": 600, **RANDOM}
    whole = train(tmp_path / "whole", own, 1)
    for step in range(1, ROUNDS):
        with pytest.raises(Interrupted):
            train(tmp_path / str(step), own, 1, stop=step)
        assert train(tmp_path / str(step), own, 2) == whole


def test_lightgbms_own_way_to_go_on_makes_another_model() -> None:
    """Why each round has seeds of its own."""
    frame, target = rows()
    settings = {"objective": "binary", "verbosity": -1, "seed": 7, "deterministic": True}
    settings |= {**SMALL, **RANDOM}
    settings.pop("num_boost_round")

    def boost(rounds: int, before: lgb.Booster | None = None) -> lgb.Booster:
        data = lgb.Dataset(frame, label=target)
        return lgb.train(settings, data, num_boost_round=rounds, init_model=before)

    def trees(booster: lgb.Booster) -> str:
        return str(booster.model_to_string(num_iteration=-1)).partition("parameters:")[0]

    whole, half = boost(ROUNDS), boost(ROUNDS // 2)
    assert trees(boost(ROUNDS)) == trees(whole)
    assert trees(boost(ROUNDS // 2, half)) != trees(whole)


def test_bags_and_columns_differ_from_round_to_round(tmp_path: Path) -> None:
    def counts(own: Mapping[str, Any]) -> list[str]:
        text = train(tmp_path / str(len(own)), {**own, "learning_rate": 1e-9}, 1)
        return [line for line in text.splitlines() if line.startswith("leaf_count")]

    # With hardly any learning all rounds see the same gradients: what differs is the draw.
    assert len(set(counts({"bagging_fraction": 0.7, "bagging_freq": 1}))) == ROUNDS
    assert len(set(counts({"feature_fraction": 0.5, "max_depth": 3}))) > ROUNDS // 2


@pytest.mark.parametrize(
    "own",
    [
        {"boosting": "dart"},
        {"data_sample_strategy": "goss"},
        {"use_quantized_grad": True},
        {"linear_tree": True, "linear_lambda": 1.0},
        {"cegb_penalty_split": 0.1},
    ],
)
def test_what_is_not_shown_to_come_back_is_not_saved(
    tmp_path: Path, own: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole = train(tmp_path / "whole", own, 1)
    # It goes on to its end, whatever it is told: nothing it could save would help.
    assert train(tmp_path, own, 1, stop=3) == whole
    assert "begins again" in caplog.text
    assert not list(tmp_path.glob("flights.model/*/*/*.json"))


def test_values_that_are_the_default_are_saved(tmp_path: Path) -> None:
    own = {"boosting": "gbdt", "device_type": "cpu", "tree_learner": "serial"}
    with pytest.raises(Interrupted):
        train(tmp_path, own, 1, stop=3)
    assert "num_leaves" in SAVES_EXACTLY
    (saved,) = tmp_path.rglob(MODEL)
    assert saved.read_text().startswith("tree\n")
