"""A code location whose training is interrupted as a file in the home says."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from platform_assets.domain.spec import PipelineSpec
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from resources.checkpoints.port import Checkpointer
from resources.training import OnRound
from tests.small import definitions, small_spec

PLAN = "interrupt.json"
ROUNDS = 8
PARAMETERS = {
    "num_boost_round": ROUNDS,
    "num_leaves": 7,
    "min_data_in_leaf": 20,
    "num_threads": 1,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
}


class InterruptedTrainer(LightGBMTrainer):
    """LightGBM's, which does to itself what the plan says: once, for it is removed when done."""

    def fit(
        self,
        frame: Any,
        target: Any,
        *,
        on_round: OnRound,
        checkpointer: Checkpointer | None = None,
        **rest: Any,
    ) -> object:
        file = Path(os.environ["SIGNALBOX_HOME"], PLAN)
        plan = json.loads(file.read_text()) if file.exists() else {}

        def told(step: int, metrics: Mapping[str, float]) -> None:
            on_round(step, metrics)
            if step == plan.get("sleep_at"):
                time.sleep(1.1)  # so that a checkpoint is due after this round
            if step == plan.get("pause_at"):
                # So that it is durable, and seen to be after this round.
                time.sleep(plan.get("pause_seconds", 0.5))
            if step == plan.get("at"):
                file.unlink()
                if plan.get("raise"):
                    raise ValueError("as the code would")
                os.kill(os.getpid(), plan["signal"])

        return super().fit(frame, target, on_round=told, checkpointer=checkpointer, **rest)


class PlainTrainer(InterruptedTrainer):
    """The same as plain Dagster would have it: nothing is saved."""

    def fit(self, frame: Any, target: Any, *, on_round: OnRound, **rest: Any) -> object:  # type: ignore[override]
        return super().fit(frame, target, on_round=on_round, **rest)


def spec(trainer: type = InterruptedTrainer, **checkpoints: object) -> PipelineSpec:
    """The small pipeline, whose checkpoints are due after a second."""
    return small_spec(
        model={
            "trainer": f"{__name__}:{trainer.__name__}",
            "parameters": PARAMETERS,
            "window_days": 3,
            "min_days": 2,
            "checkpoints": {"most_lost_seconds": 1, **checkpoints},
        }
    )


def repository() -> dg.RepositoryDefinition:
    return definitions(spec()).get_repository_def()
