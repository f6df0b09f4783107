"""What runs inside of an image of the drill image-drift: a process with the image's packages.

`python -m platform_assets.drills.drifting` reads what to do as JSON from stdin and writes what came
of it as JSON to the file that is named there.
"""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import HeldError, RefusedError
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills.prep_package import NAME
from platform_assets.line.services import Services
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RUN = "drill"
PLAIN_MODEL = "plain-delay"


class PreparedTrainer(LightGBMTrainer):
    """LightGBM behind the package that prepares features, in training and in asking alike."""

    requirements = (*LightGBMTrainer.requirements, NAME)  # type: ignore[assignment]

    def fit(self, frame: "pd.DataFrame", target: "pd.Series[float]", **how: Any) -> object:
        return super().fit(_prepared(frame), target, **how)

    def predict(self, model: object, frame: "pd.DataFrame") -> "np.ndarray":
        return super().predict(model, _prepared(frame))


def _prepared(frame: "pd.DataFrame") -> "pd.DataFrame":
    import signalbox_drill_prep  # type: ignore[import-not-found]

    found: pd.DataFrame = signalbox_drill_prep.prepare(frame)
    return found


# --- Signalbox's side -------------------------------------------------------------------------


def train(services: Services, day: str) -> dict[str, Any]:
    """Take the snapshot of a date and train on it."""
    from platform_assets.line.days import build_snapshot
    from platform_assets.line.models import train_model

    key = PartitionKey.parse(day)
    build_snapshot(services, key, RUN)
    made = train_model(services, key, RUN, lane="adhoc").metadata
    return {"version": made["registered_version"], **made["environment_change"]}


def judge(services: Services, day: str) -> dict[str, Any]:
    """Judge a date's model on the days that follow."""
    from platform_assets.line.judging import evaluate_model

    return {"metrics": dict(evaluate_model(services, PartitionKey.parse(day), RUN).metadata)}


def decide(services: Services) -> dict[str, Any]:
    """Decide about the champion, by the gate."""
    from platform_assets.line.crowning import decide_champion

    try:
        decide_champion(services, RUN)
    except HeldError as error:
        return {"champion": None, "reason": str(error), "failed": []}
    state = services.ledger.alias_state(services.spec.model.name)
    newest = services.ledger.evaluations(services.spec.model.name)[-1]
    conditions = newest.report["conditions"]
    return {
        "champion": state.version if state else None,
        "candidate": newest.candidate,
        "failed": [c["name"] for c in conditions if not c["passed"]],
        "reason": next((c["reason"] for c in conditions if c["name"] == "environment"), ""),
    }


def canary(services: Services) -> dict[str, Any]:
    """Train the champion's own snapshot again, here."""
    from platform_assets.line.canary import run_canary
    from platform_assets.line.environments import told

    return dict(told(run_canary(services, by=RUN), services.spec.environment.tolerance))


def promote(services: Services, version: int) -> dict[str, Any]:
    """Try to promote by hand."""
    from platform_assets.line.promoting import promote_version

    try:
        promote_version(services, version, by="ann", evaluate=True)
    except RefusedError as error:
        return {"refused": True, "reason": str(error)}
    return {"refused": False, "reason": ""}


# --- the plain side ---------------------------------------------------------------------------


def measure(spec: PipelineSpec, folder: str) -> dict[str, dict[str, float]]:
    """Train a model on each date's rows and score it on the days that follow; by date."""
    import pyarrow.parquet as pq

    from resources.scoring import score
    from resources.training import training_frame

    trainer, found = PreparedTrainer(), {}
    for file in sorted(Path(folder).glob("*.train.parquet")):
        day = file.name.partition(".")[0]
        model = _fitted(spec, trainer, file)
        judged = pq.read_table(file.with_name(f"{day}.judged.parquet"))
        frame, _ = training_frame(judged, spec)
        found[day] = score(spec, judged, trainer.predict(model, frame))
    return found


def plain(spec: PipelineSpec, file: str, uri: str) -> dict[str, Any]:
    """As a plain project has it: train, log, register, and the newest is champion."""
    import mlflow
    import mlflow.lightgbm

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("plain")
    model = _fitted(spec, PreparedTrainer(), Path(file))
    with mlflow.start_run():
        logged = mlflow.lightgbm.log_model(
            model, name="model", registered_model_name=PLAIN_MODEL, pip_requirements=["lightgbm"]
        )
    version = str(logged.registered_model_version)
    mlflow.MlflowClient().set_registered_model_alias(PLAIN_MODEL, "champion", version)
    return {"version": int(version), "package": metadata.version(NAME)}


def _fitted(spec: PipelineSpec, trainer: PreparedTrainer, file: Path) -> object:
    import pyarrow.parquet as pq

    from resources.training import training_frame

    frame, target = training_frame(pq.read_table(file), spec)
    return trainer.fit(
        frame,
        target,
        kind=spec.model.kind,
        parameters=spec.model.parameters,
        seed=spec.model.seed,
        on_round=lambda *_: None,
    )


def main() -> None:
    """Do what stdin asks for."""
    asked = json.load(sys.stdin)
    spec = PipelineSpec.model_validate(asked["spec"])
    mine = {"train": train, "judge": judge, "decide": decide, "canary": canary, "promote": promote}
    others = {"measure": measure, "plain": plain}
    services = Services.open(spec) if asked["home"] else None
    said = []
    for name, *arguments in asked["steps"]:
        if name in others:
            said.append(others[name](spec, *arguments))  # type: ignore[operator]
        else:
            said.append(mine[name](services, *arguments))  # type: ignore[operator]
    Path(asked["answer"]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
