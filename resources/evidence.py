"""What the gate looks at, reckoned from the predictions of both models on the very same rows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from platform_assets.domain.gate import Calibration, GateTerms, Interval, Scored
from platform_assets.domain.promotion import Kind
from platform_assets.domain.spec import PipelineSpec
from resources.columns import DATE

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BINS = 10
EDGE = 2.0**-52
"""A probability is taken to lie this far from 0 and 1 at the least, as scikit-learn does."""


def losses(kind: Kind, target: "np.ndarray", predictions: "np.ndarray") -> "np.ndarray":
    """The loss of each row, float64, shape (rows,): log loss, or squared error."""
    import numpy as np

    if kind == "regression":
        return np.asarray((predictions - target) ** 2)
    p = np.clip(predictions, EDGE, 1 - EDGE)
    return np.asarray(-(target * np.log(p) + (1 - target) * np.log1p(-p)))


def metric_of(kind: Kind, mean_loss: "np.ndarray | float") -> "np.ndarray":
    """The deciding metric from mean losses: the log loss itself, or RMSE."""
    import numpy as np

    return np.sqrt(mean_loss) if kind == "regression" else np.asarray(mean_loss)


def blocks_of(spec: PipelineSpec, table: "pa.Table") -> "np.ndarray":
    """The number of each row's block: a day of a partition key; shape (rows,)."""
    import numpy as np

    days = table[DATE].to_numpy()
    keys = np.asarray(table[spec.partitions.key].to_pylist(), dtype=object)
    names = np.asarray([f"{key}|{day}" for key, day in zip(keys, days, strict=True)])
    return np.unique(names, return_inverse=True)[1]


def paired_interval(
    kind: Kind,
    candidate: "np.ndarray",
    champion: "np.ndarray",
    blocks: "np.ndarray",
    terms: GateTerms,
) -> Interval:
    """Paired block bootstrap of the champion's metric less the candidate's.

    Whole blocks are drawn, with replacement, and of each both models' losses: what makes a day
    hard for both cancels out, and rows that depend on each other stay together.

    Args:
        kind: of model.
        candidate, champion: loss of each row, shape (rows,), one row or more.
        blocks: number of each row's block, 0 and up, shape (rows,).
        terms: confidence, resamples and seed.
    """
    import numpy as np

    count = int(blocks.max()) + 1
    rows = np.bincount(blocks, minlength=count)
    sums = [np.bincount(blocks, weights=x, minlength=count) for x in (champion, candidate)]

    def difference(drawn: "np.ndarray") -> "np.ndarray":
        size = rows[drawn].sum(axis=-1)
        theirs, mine = (metric_of(kind, total[drawn].sum(axis=-1) / size) for total in sums)
        return np.asarray(theirs - mine)

    draws = np.random.default_rng(terms.seed).integers(0, count, (terms.resamples, count))
    tail = (1 - terms.confidence) / 2
    low, high = np.quantile(difference(draws), [tail, 1 - tail])
    return Interval(
        difference=float(difference(np.arange(count))), low=float(low), high=float(high)
    )


def calibration_of(kind: Kind, target: "np.ndarray", predictions: "np.ndarray") -> Calibration:
    """Bias, and for a classification the expected calibration error over ten equal bins."""
    import numpy as np

    bias = float(predictions.mean() - target.mean())
    if kind == "regression":
        spread = float(target.std())
        return Calibration(bias=bias / spread if spread else bias)
    numbers = np.minimum((predictions * BINS).astype(int), BINS - 1)
    gaps = np.bincount(numbers, weights=predictions - target, minlength=BINS)
    return Calibration(bias=bias, ece=float(np.abs(gaps).sum() / len(target)))


def slices_of(spec: PipelineSpec, table: "pa.Table") -> "Mapping[str, np.ndarray]":
    """Which rows are in each slice: the partition key's values, and those of declared columns."""
    import numpy as np

    found = {}
    for column in dict.fromkeys((spec.partitions.key, *spec.evaluation.gate.slices)):
        values = np.asarray([str(value) for value in table[column].to_pylist()], dtype=object)
        for value in sorted(set(values)):
            found[f"{column}={value}"] = values == value
    return found


def scored(
    spec: PipelineSpec,
    version: int,
    target: "np.ndarray",
    predictions: "np.ndarray",
    slices: "Mapping[str, np.ndarray]",
) -> Scored:
    """One model's part of the evidence.

    Args:
        target, predictions: shape (rows,).
        slices: as of `slices_of`.
    """
    kind = spec.model.kind
    each = losses(kind, target, predictions)
    if not len(each):
        nothing = Calibration(bias=float("nan"))
        return Scored(version=version, metric=float("nan"), calibration=nothing)
    return Scored(
        version=version,
        metric=float(metric_of(kind, each.mean())),
        calibration=calibration_of(kind, target, predictions),
        slices={s: float(metric_of(kind, each[rows].mean())) for s, rows in slices.items()},
    )
