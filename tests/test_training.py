"""Trainers: what they read, and that the same input gives the same model."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from platform_assets.trainers.sklearn_linear import LinearTrainer
from resources.dataset import build_rows
from resources.training import Trainer, load_trainer, training_frame
from tests.nyc import changed, flights_spec, sources

SPEC = flights_spec()
LIGHTGBM = "platform_assets.trainers.lightgbm_tabular:LightGBMTrainer"
LINEAR = "platform_assets.trainers.sklearn_linear:LinearTrainer"
FEW: dict[str, Any] = {**SPEC.model.parameters, "num_boost_round": 15}


@cache
def dataset() -> pa.Table:
    days = [date(2013, 1, day) for day in (5, 6, 7, 8)]
    parts = [build_rows(SPEC, "JFK", day, sources("JFK", day)).table for day in days]
    return pa.concat_tables(parts)


def quiet(number: int, metrics: Mapping[str, float]) -> None:
    return None


def fit(
    trainer: Trainer,
    table: pa.Table | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 7,
    kind: Any = "binary_classification",
) -> Any:
    frame, target = training_frame(table if table is not None else dataset(), SPEC)
    if kind == "regression":
        target = frame["distance"] + target
    if parameters is None:
        parameters = FEW if trainer.flavor == "lightgbm" else {}
    return trainer.fit(frame, target, kind=kind, parameters=parameters, seed=seed, on_round=quiet)


# --- what is read -------------------------------------------------------------------------------


def test_the_frame_holds_the_features_in_order() -> None:
    frame, target = training_frame(dataset(), SPEC)
    assert tuple(frame.columns) == SPEC.dataset.features
    for name in frame.columns:
        expected = "category" if name in SPEC.dataset.categories else "float64"
        assert frame[name].dtype == expected
    assert target.dtype == "float64"
    assert target.tolist() == dataset()["delayed"].to_pylist()
    assert frame["wind_gust"].isna().any()


def test_categories_do_not_depend_on_the_order_of_rows() -> None:
    turned = dataset().take(pa.array(reversed(range(dataset().num_rows))))
    for table in (dataset(), turned):
        frame, _ = training_frame(table, SPEC)
        assert list(frame["carrier"].cat.categories) == sorted(
            set(dataset()["carrier"].to_pylist())
        )


def test_rows_of_an_older_spec_are_refused() -> None:
    with pytest.raises(RefusedError, match="have no dest, temp; they were built before"):
        training_frame(dataset().drop_columns(["temp", "dest"]), SPEC)


# --- finding a trainer --------------------------------------------------------------------------


def test_a_trainer_is_found_by_its_entry_point() -> None:
    for entry_point, kind in ((LIGHTGBM, LightGBMTrainer), (LINEAR, LinearTrainer)):
        trainer = load_trainer(entry_point)
        assert isinstance(trainer, kind)
        assert isinstance(trainer, Trainer)


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("no.such_module:Trainer", "module no.such_module cannot be imported"),
        (LIGHTGBM.replace("LightGBMT", "T"), "has no 'Trainer'; its classes are LightGBMTrainer"),
        ("platform_assets.domain.errors:UsageError", "is no trainer, it lacks flavor, requir"),
    ],
)
def test_an_entry_point_that_leads_nowhere(entry_point: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_trainer(entry_point)


def test_importing_the_adapters_loads_no_heavy_package() -> None:
    """The code location imports them, at each start of each process."""
    modules = "lake, content, columns, dataset, expressions, training, scoring, plots"
    program = f"""
import sys
from resources import {modules}
from platform_assets.trainers import lightgbm_tabular, sklearn_linear
heavy = "pandas pyarrow numpy deltalake pandera lightgbm sklearn matplotlib"
print(sorted(set(heavy.split()) & set(sys.modules)))
"""
    root = Path(__file__).parent.parent
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip() == "[]"


# --- the same input, the same model -------------------------------------------------------------

CHILD = """
import hashlib
from tests.test_training import LightGBMTrainer, fit
print(hashlib.sha256(fit(LightGBMTrainer()).model_to_string().encode()).hexdigest())
"""


def test_the_same_input_gives_the_same_model_in_any_process() -> None:
    here = [fit(LightGBMTrainer()).model_to_string() for _ in range(2)]
    assert here[0] == here[1]
    root = Path(__file__).parent.parent
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        "PYTHONPATH": str(root),
        "PYTHONHASHSEED": "4711",
        "OMP_DISPLAY_ENV": "verbose",
    }
    child = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=root, env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == hashlib.sha256(here[0].encode()).hexdigest()
    # Its threads do not spin while they wait: by default they do, 300,000 times.
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", child.stderr)) == {"0"}


def trees(model: Any) -> str:
    return json.dumps(model.dump_model()["tree_info"])


def test_the_number_of_threads_does_not_change_the_trees() -> None:
    one, two = (fit(LightGBMTrainer(), parameters={**FEW, "num_threads": n}) for n in (1, 2))
    assert trees(one) == trees(two)


def test_seed_and_order_of_rows_do_change_the_trees() -> None:
    """Which is why the lake fixes the order of what it reads, and the spec the seed."""
    rng = np.random.default_rng(1)
    model = fit(LightGBMTrainer())
    mixed = dataset().take(pa.array(rng.permutation(dataset().num_rows)))
    bagged = {**FEW, "bagging_fraction": 0.5, "bagging_freq": 1}
    assert trees(fit(LightGBMTrainer(), seed=8)) != trees(model)
    assert trees(fit(LightGBMTrainer(), mixed, bagged)) != trees(
        fit(LightGBMTrainer(), parameters=bagged)
    )


def test_the_linear_model_is_the_same_twice() -> None:
    one, two = fit(LinearTrainer()), fit(LinearTrainer())
    assert np.array_equal(one[-1].coef_, two[-1].coef_)
    assert one[-1].coef_.any()


# --- parameters ---------------------------------------------------------------------------------


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"model.parameters.learning_rat is no parameter of LightGBM; allowed are "
    ) as caught:
        fit(LightGBMTrainer(), parameters={"learning_rat": 0.5})
    assert " learning_rate," in str(caught.value)
    assert "objective" not in str(caught.value).replace("objective_seed", "")
    with pytest.raises(
        UsageError, match=r"is no parameter of LinearTrainer; .* are C, max_iter, t"
    ):
        fit(LinearTrainer(), parameters={"alpha": 0.5})


def test_lightgbm_alone_would_train_without_it() -> None:
    import lightgbm as lgb

    frame, target = training_frame(dataset(), SPEC)
    settings = {"learning_rat": 0.5, "verbosity": -1, "objective": "binary"}
    assert lgb.train(settings, lgb.Dataset(frame, target), num_boost_round=1)


@pytest.mark.parametrize(
    "name", ["objective", "application", "metric", "seed", "random_state", "deterministic"]
)
def test_what_the_platform_sets_may_not_be_given(name: str) -> None:
    with pytest.raises(UsageError, match=f"model.parameters.{name} is set by the platform"):
        fit(LightGBMTrainer(), parameters={name: 1})


def test_aliases_are_known() -> None:
    model = fit(LightGBMTrainer(), parameters={"n_estimators": 3, "eta": 0.5, "n_jobs": 1})
    assert model.num_trees() == 3
    assert model.params["learning_rate"] == 0.5
    with pytest.raises(UsageError, match="eta is given twice, as learning_rate too"):
        fit(LightGBMTrainer(), parameters={"learning_rate": 0.1, "eta": 0.5})


# --- what a model tells -------------------------------------------------------------------------


def test_each_round_is_told() -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []
    frame, target = training_frame(dataset(), SPEC)
    LightGBMTrainer().fit(
        frame,
        target,
        kind="binary_classification",
        parameters=FEW,
        seed=1,
        on_round=lambda number, metrics: seen.append((number, metrics)),
    )
    assert [number for number, _ in seen] == list(range(1, 16))
    losses = [metrics["train_log_loss"] for _, metrics in seen]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("trainer", [LightGBMTrainer(), LinearTrainer()], ids=lambda t: t.flavor)
def test_a_model_predicts_probabilities(trainer: Trainer) -> None:
    frame, target = training_frame(dataset(), SPEC)
    predictions = trainer.predict(fit(trainer), frame)
    assert predictions.shape == (len(frame),)
    assert predictions.dtype == np.float64
    assert 0 <= predictions.min() < predictions.max() <= 1
    late, punctual = predictions[target == 1].mean(), predictions[target == 0].mean()
    assert late > punctual + 0.05
    assert trainer.predict(fit(trainer), frame.head(0)).shape == (0,)


@pytest.mark.parametrize("trainer", [LightGBMTrainer(), LinearTrainer()], ids=lambda t: t.flavor)
def test_a_row_s_prediction_does_not_depend_on_its_company(trainer: Trainer) -> None:
    """One row knows one carrier only, whose code is 0 then: the model must use its own codes."""
    model = fit(trainer)
    whole, _ = training_frame(dataset(), SPEC)
    all_at_once = trainer.predict(model, whole)
    for at in (0, 400, 1000):
        alone, _ = training_frame(dataset().slice(at, 1), SPEC)
        assert list(alone["carrier"].cat.codes) == [0]
        assert trainer.predict(model, alone) == pytest.approx(all_at_once[at : at + 1], abs=1e-12)


@pytest.mark.parametrize("trainer", [LightGBMTrainer(), LinearTrainer()], ids=lambda t: t.flavor)
def test_unseen_and_missing_values_are_no_error(trainer: Trainer) -> None:
    table = dataset()
    for name, value in (("dest", "XXX"), ("carrier", None), ("temp", None)):
        kind = table.schema.field(name).type
        part = pa.array([value] * 20 + table[name].to_pylist()[20:], kind)
        table = table.set_column(table.column_names.index(name), name, part)
    frame, _ = training_frame(table, SPEC)
    assert np.isfinite(trainer.predict(fit(trainer), frame)).all()
    assert np.isfinite(trainer.predict(fit(trainer, table), frame)).all()
    lost = table.set_column(
        table.column_names.index("temp"), "temp", pa.nulls(table.num_rows, pa.float64())
    )
    frame, _ = training_frame(lost, SPEC)
    assert np.isfinite(trainer.predict(fit(trainer, lost), frame)).all()


@pytest.mark.parametrize("trainer", [LightGBMTrainer(), LinearTrainer()], ids=lambda t: t.flavor)
def test_a_regression_predicts_values(trainer: Trainer) -> None:
    frame, target = training_frame(dataset(), SPEC)
    predictions = trainer.predict(fit(trainer, kind="regression"), frame)
    wanted = (frame["distance"] + target).to_numpy()
    assert np.corrcoef(predictions, wanted)[0, 1] > 0.95
    assert predictions.max() > 1000


def test_importance_is_told_by_feature() -> None:
    gains = LightGBMTrainer().importance(fit(LightGBMTrainer()))
    assert tuple(gains) == SPEC.dataset.features
    assert min(gains.values()) >= 0
    assert max(gains.values()) > 0
    weights = LinearTrainer().importance(fit(LinearTrainer()))
    assert {"distance", "carrier_AA", "dest_LAX"} <= set(weights)
    assert min(weights.values()) >= 0


@pytest.mark.parametrize("trainer", [LightGBMTrainer(), LinearTrainer()], ids=lambda t: t.flavor)
def test_rows_that_nothing_can_be_learnt_from_are_refused(trainer: Trainer) -> None:
    with pytest.raises(RefusedError, match="there is no row to train on"):
        fit(trainer, dataset().slice(0, 0))
    punctual = dataset().filter(pa.array([v == 0 for v in dataset()["delayed"].to_pylist()]))
    with pytest.raises(RefusedError, match=r"all \d+ rows to train on are of class 0; both are"):
        fit(trainer, punctual)


def test_another_kind_of_spec_trains_from_rows_to_values() -> None:
    spec = changed(
        SPEC,
        model={"kind": "regression", "trainer": LINEAR, "parameters": {"alpha": 10.0}},
        dataset={"target": {"name": "delay", "expression": "arr_delay"}, "relevance": None},
    )
    day = date(2013, 1, 5)
    table = build_rows(spec, "JFK", day, sources("JFK", day)).table
    frame, target = training_frame(table, spec)
    trainer = load_trainer(spec.model.trainer)
    model = trainer.fit(
        frame,
        target,
        kind=spec.model.kind,
        parameters=spec.model.parameters,
        seed=spec.model.seed,
        on_round=quiet,
    )
    predictions = pd.Series(trainer.predict(model, frame))
    assert predictions.std() > 1
