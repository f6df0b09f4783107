"""Gradient-boosted trees by LightGBM."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError
from platform_assets.domain.promotion import Kind
from platform_assets.trainers.lightgbm_rounds import MODEL, Rounds, not_saved, save
from resources.checkpoints.port import Checkpointer
from resources.training import OnRound, Parameters, require_trainable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_OBJECTIVE = {
    "binary_classification": {"objective": "binary", "metric": "binary_logloss"},
    "regression": {"objective": "regression", "metric": "rmse"},
}
_METRIC = {"binary_logloss": "train_log_loss", "rmse": "train_rmse"}
_ROUNDS = "num_boost_round"
METRIC_ROWS = 10_000
"""Of more rows than these the metric of a round is measured on so many, evenly spaced.

Measuring all of 200,000 rows in each round costs a sixth of the training."""
# Equal rows, parameters and seed give an equal model; each of these is needed for that.
_FIXED = {"deterministic": True, "force_row_wise": True, "verbosity": -1}
# LightGBM derives these from its seed.
_SEEDS = (
    "seed",
    "bagging_seed",
    "data_random_seed",
    "drop_seed",
    "extra_seed",
    "feature_fraction_seed",
    "objective_seed",
)


class LightGBMTrainer:
    """Trains a `lightgbm.Booster`.

    Parameters are LightGBM's own, and `num_boost_round` (100); its aliases are known. What the
    platform sets itself may not be given: objective, metric, seeds, determinism. The metric of
    each round is that of the training rows, of at most 10,000 of them. Interrupted and gone on
    with, it makes the same model (lightgbm_rounds.py).
    """

    flavor = "lightgbm"
    requirements = ("lightgbm", "pandas", "numpy", "scikit-learn")
    imports = ("lightgbm",)

    def fit(
        self,
        frame: "pd.DataFrame",
        target: "pd.Series[float]",
        *,
        kind: Kind,
        parameters: Parameters,
        seed: int,
        on_round: OnRound,
        checkpointer: Checkpointer | None = None,
    ) -> object:
        # Threads that wait by spinning cost ten times the training where other runs share the
        # cores. OpenMP reads this once, as its library is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import lightgbm as lgb

        require_trainable(target, kind)
        number, own = _parameters(parameters)
        settings = {**own, **_OBJECTIVE[kind], **_FIXED, "seed": seed}
        rounds, why = Rounds({} if not_saved(own) else own, seed), not_saved(own)
        if why and checkpointer is not None:
            checkpointer.decline(why)
            checkpointer = None
        found = checkpointer.load() if checkpointer is not None else None
        begun = found.step if found is not None else 0
        before = lgb.Booster(model_str=found.state[MODEL].decode()) if found is not None else None

        def prepare(state: Any) -> None:
            chosen = rounds.of(begun + state.iteration - state.begin_iteration)
            if chosen:
                state.model.reset_parameter(chosen)

        def report(state: Any) -> None:
            step = begun + state.iteration - state.begin_iteration + 1
            measured = {
                _METRIC[metric]: float(value)
                for _, metric, value, *_ in state.evaluation_result_list
            }
            on_round(step, measured)
            if step < number and checkpointer is not None:
                save(state.model, step, rounds, checkpointer)
            if begun and step == number:
                # It was asked for all rounds: their number stands in the model.
                raise lgb.callback.EarlyStopException(-1, [])

        prepare.before_iteration = True  # type: ignore[attr-defined]
        rows = lgb.Dataset(frame, label=target, free_raw_data=True)
        measured_on = rows
        if len(frame) > METRIC_ROWS:
            spaced = range(0, len(frame), -(-len(frame) // METRIC_ROWS))
            measured_on = rows.subset(list(spaced))
        return lgb.train(
            settings | rounds.first(begun),
            rows,
            num_boost_round=number,
            valid_sets=[measured_on],
            valid_names=["train"],
            init_model=before,
            callbacks=[prepare, report],
        )

    def predict(self, model: object, frame: "pd.DataFrame") -> "np.ndarray":
        import numpy as np

        if not len(frame):
            return np.empty(0)
        booster: Any = model
        return np.asarray(booster.predict(frame), dtype=np.float64)

    def importance(self, model: object) -> Mapping[str, float]:
        """Total gain of the splits on each feature."""
        booster: Any = model
        gains = booster.feature_importance(importance_type="gain")
        return dict(zip(booster.feature_name(), map(float, gains), strict=True))


def _parameters(parameters: Parameters) -> tuple[int, dict[str, bool | int | float | str]]:
    """Number of rounds, and the parameters under their main names.

    Raises:
        UsageError: a name that LightGBM does not know, that the platform sets, or given twice.
    """
    from lightgbm.basic import _ConfigAliases

    # LightGBM only warns of a name that it does not know, and trains without it.
    known: dict[str, list[str]] = _ConfigAliases._get_all_param_aliases()
    main = {alias: name for name, aliases in known.items() for alias in (name, *aliases)}
    main |= dict.fromkeys((_ROUNDS, "num_iterations", *known.get("num_iterations", ())), _ROUNDS)
    fixed = {*_FIXED, *_SEEDS, "objective", "metric"}
    settings: dict[str, bool | int | float | str] = {}
    for name, value in parameters.items():
        if name not in main:
            raise UsageError(
                f"model.parameters.{name} is no parameter of LightGBM; allowed are "
                f"{', '.join(sorted({*main.values()} - fixed))}"
            )
        if main[name] in fixed:
            raise UsageError(
                f"model.parameters.{name} is set by the platform: the objective and metric follow "
                "from model.kind, the seeds from model.seed, and training is deterministic; "
                "leave it out"
            )
        if main[name] in settings:
            raise UsageError(f"model.parameters.{name} is given twice, as {main[name]} too")
        settings[main[name]] = value
    return int(settings.pop(_ROUNDS, 100)), settings
