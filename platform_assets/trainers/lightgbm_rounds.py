"""Boosting that can be gone on with: interrupted after any round, the model is the same to the bit.

LightGBM's own way to go on (`init_model`) is not that. Its trees and the scores of the rows come
back exactly: trees are written with 17 digits, and a row's score is the same sum in the same order
of doubles. Its random states do not: they begin again at their seeds, as if the first round came
next, so that bags and columns are other ones. Therefore each round is given seeds of its own here,
which follow from the model's seed and the number of the round alone, whether the training was
interrupted or not. What LightGBM keeps besides (dropped trees of DART, the first rounds of GOSS,
costs of columns that were used, the patience of early stopping) does not come back: a training
with such parameters is not saved, and if it is interrupted it begins again.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from resources.checkpoints.port import Checkpointer

MODEL = "model.txt"
"""The part of a checkpoint: the trees so far, as LightGBM writes them."""

SAVES_EXACTLY = frozenset(
    {
        *("learning_rate", "num_leaves", "max_depth", "min_data_in_leaf", "num_threads"),
        *("min_sum_hessian_in_leaf", "min_gain_to_split", "lambda_l1", "lambda_l2"),
        *("bagging_fraction", "bagging_freq", "pos_bagging_fraction", "neg_bagging_fraction"),
        *("feature_fraction", "feature_fraction_bynode", "extra_trees", "max_delta_step"),
        *("max_bin", "min_data_in_bin", "boost_from_average", "scale_pos_weight", "is_unbalance"),
        *("cat_smooth", "cat_l2", "max_cat_threshold", "max_cat_to_onehot", "min_data_per_group"),
    }
)
"""Parameters with which a training that was gone on with was shown to make the same model."""

_ONLY = {
    "boosting": {"gbdt", "gbrt"},
    "data_sample_strategy": {"bagging"},
    "tree_learner": {"serial"},
    "device_type": {"cpu"},
}
"""Parameters with which that holds for some values."""

Parameters = Mapping[str, bool | int | float | str]


def not_saved(own: Parameters) -> str:
    """Why a training with these parameters takes no checkpoints; empty if it does.

    Args:
        own: those of the spec, under their main names.
    """
    odd = sorted(
        name
        for name, value in own.items()
        if name not in SAVES_EXACTLY and value not in _ONLY.get(name, ())
    )
    if not odd:
        return ""
    return (
        f"with {', '.join(f'{name} {own[name]}' for name in odd)} a model that was gone on with "
        "was not shown to be the same as one that was not interrupted; no checkpoint is taken, "
        "and an interrupted training begins again"
    )


class Rounds:
    """The random choices of each round.

    Args:
        own: the parameters of the spec, under their main names.
        seed: of the model.
    """

    def __init__(self, own: Parameters, seed: int) -> None:
        self._seed = seed
        self._fraction = float(own.get("bagging_fraction", 1.0))
        parts = ("pos_bagging_fraction", "neg_bagging_fraction")
        bags = self._fraction < 1 or any(float(own.get(name, 1.0)) < 1 for name in parts)
        freq = int(own.get("bagging_freq", 0))
        self._bags = bags and freq > 0
        columns = ("feature_fraction", "feature_fraction_bynode")
        draws = any(float(own.get(name, 1.0)) < 1 for name in columns) or own.get("extra_trees")
        self._random = bool(self._bags or draws)
        self.every = freq if self._bags else 1
        """A bag is used for so many rounds; between two of them nothing is saved."""

    def first(self, step: int) -> dict[str, Any]:
        """What the booster has to be made with, so that `of` changes it, if `step` comes next."""
        return {"bagging_fraction": self._bag(step + self.every)} if self._bags else {}

    def of(self, step: int) -> dict[str, Any]:
        """What is set before the round that follows `step` rounds; empty if nothing is."""
        if not self._random or step % self.every:
            return {}
        seeds = {
            name: int.from_bytes(
                hashlib.sha256(f"{self._seed} {step} {name}".encode()).digest()[:4], "little"
            )
            >> 1
            for name in ("bagging_seed", "feature_fraction_seed", "extra_seed")
        }
        return {**seeds, **({"bagging_fraction": self._bag(step)} if self._bags else {})}

    def _bag(self, step: int) -> float:
        # LightGBM takes up a new seed of its bags only with another fraction: every other time it
        # is one that no row can tell, for it draws numbers of 15 bits.
        return self._fraction * (1 - 1e-12) if step // self.every % 2 else self._fraction


def save(booster: Any, step: int, rounds: Rounds, checkpointer: Checkpointer) -> None:
    """Take a checkpoint after a round if one is due; leave if the training is to stop.

    Raises:
        TrainingInterruptedError: it is.
    """
    if step % rounds.every == 0 and checkpointer.due(step):
        text: str = booster.model_to_string(num_iteration=-1)
        checkpointer.save(step, {MODEL: text.encode()})
        checkpointer.stop_if_interrupted(step)
