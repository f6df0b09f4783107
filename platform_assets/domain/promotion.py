"""Which model is champion: the best judged one, compared on the same rows."""

from collections.abc import Mapping
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["binary_classification", "regression"]

PRIMARY_METRIC: Mapping[str, str] = {
    "binary_classification": "log_loss",
    "regression": "rmse",
}
"""The metric that decides, by kind of model; smaller is better for each of them."""


class Contender(BaseModel):
    """One model version, the date it was trained for, and its scores on the judged days."""

    model_config = ConfigDict(frozen=True)

    version: int
    date: date
    metrics: Mapping[str, float]


class Decision(BaseModel):
    """What became of a candidate, and why."""

    model_config = ConfigDict(frozen=True)

    promoted: bool
    candidate: int
    incumbent: int | None
    reason: str


def compare(candidate: Contender, incumbent: Contender | None, kind: Kind) -> Decision:
    """Decide between two models that were scored on the very same rows.

    A tie keeps the incumbent: a change of champion needs a reason.
    """
    metric = PRIMARY_METRIC[kind]
    mine = candidate.metrics[metric]
    if incumbent is None:
        return Decision(
            promoted=True,
            candidate=candidate.version,
            incumbent=None,
            reason=f"version {candidate.version} is the first to be judged, {metric} {mine:.4f}",
        )
    theirs = incumbent.metrics[metric]
    better = mine < theirs
    return Decision(
        promoted=better,
        candidate=candidate.version,
        incumbent=incumbent.version,
        reason=f"version {candidate.version} has {metric} {mine:.4f} on the days after "
        f"{candidate.date}, version {incumbent.version} has {theirs:.4f}: "
        f"{'promoted' if better else 'the incumbent stays'}",
    )
