"""Which model is champion: the best judged one, compared on the same rows."""

import math
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

    A tie keeps the incumbent: a change of champion needs a reason. Where the deciding metric is
    not defined (there was no row to judge on), nobody is promoted.
    """
    metric = PRIMARY_METRIC[kind]

    def decided(promoted: bool, reason: str) -> Decision:
        return Decision(
            promoted=promoted,
            candidate=candidate.version,
            incumbent=incumbent.version if incumbent else None,
            reason=reason,
        )

    mine = candidate.metrics.get(metric, math.nan)
    if not math.isfinite(mine):
        return decided(
            False, f"version {candidate.version} has no {metric} on the days after {candidate.date}"
        )
    if incumbent is None:
        return decided(
            True, f"version {candidate.version} is the first to be judged, {metric} {mine:.4f}"
        )
    theirs = incumbent.metrics.get(metric, math.nan)
    better = not math.isfinite(theirs) or mine < theirs
    return decided(
        better,
        f"version {candidate.version} has {metric} {mine:.4f} on the days after "
        f"{candidate.date}, version {incumbent.version} has {theirs:.4f}: "
        f"{'promoted' if better else 'the incumbent stays'}",
    )
