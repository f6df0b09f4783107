"""A trainer whose models are truly bad: it learns the opposite of what happened."""

from typing import Any

from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer


class OppositeTrainer(LightGBMTrainer):
    """Fits to the labels turned round."""

    def fit(self, frame: Any, target: Any, **rest: Any) -> object:
        return super().fit(frame, 1 - target, **rest)
