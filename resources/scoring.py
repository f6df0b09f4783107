"""Scores of predictions on judged rows; computed by scikit-learn."""

from typing import TYPE_CHECKING

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.spec import PipelineSpec
from resources.columns import DATE, RELEVANCE

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def score(spec: PipelineSpec, table: "pa.Table", predictions: "np.ndarray") -> dict[str, float]:
    """Score predictions.

    A metric that the rows do not define is left out, never written as 0 or NaN:

    - no row: only `rows`, which is 0;
    - one class only: no `auc`;
    - `ndcg_at_<k>` is the mean over the days of the NDCG@k of that day's ranking, over all
      partition keys together, by falling prediction and with `relevance` as gain. A day with
      fewer than two rows, or without any gain, has no ranking and does not enter the mean; where
      no day is left, or the spec declares no relevance, the metric is left out.

    Args:
        spec: the pipeline.
        table: rows of the dataset, with target, date, and relevance where declared.
        predictions: probability or value of each row, in the order of the rows.

    Returns:
        rows, and log_loss, auc, ndcg_at_<k> of a classification, or rmse, mae (and ndcg_at_<k>)
        of a regression.

    Raises:
        RefusedError: the predictions are not one finite number a row, or no probabilities.
    """
    import numpy as np
    from sklearn import metrics

    values = np.asarray(predictions, dtype=np.float64)
    if values.shape != (table.num_rows,):
        raise RefusedError(
            f"model of pipeline {spec.pipeline} gave predictions of shape {values.shape} for "
            f"{table.num_rows} rows; one number a row is needed"
        )
    if not np.isfinite(values).all():
        raise RefusedError(
            f"model of pipeline {spec.pipeline} gave {int((~np.isfinite(values)).sum())} "
            "predictions that are no finite number; it cannot be judged"
        )
    result: dict[str, float] = {"rows": float(table.num_rows)}
    if not table.num_rows:
        return result
    target = table[spec.dataset.target.name].to_numpy()
    if spec.model.kind == "binary_classification":
        if values.min() < 0 or values.max() > 1:
            raise RefusedError(
                f"model of pipeline {spec.pipeline} gave predictions from {values.min():g} to "
                f"{values.max():g}; a probability lies between 0 and 1"
            )
        result["log_loss"] = float(metrics.log_loss(target, values, labels=[0, 1]))
        if 0 < target.sum() < len(target):
            result["auc"] = float(metrics.roc_auc_score(target, values))
    else:
        result["rmse"] = float(metrics.root_mean_squared_error(target, values))
        result["mae"] = float(metrics.mean_absolute_error(target, values))
    if spec.dataset.relevance is not None:
        k = spec.evaluation.ndcg_at
        gains = table[RELEVANCE].to_numpy()
        days = table[DATE].to_numpy()
        ranked = []
        for day in np.unique(days):
            of_day = days == day
            if of_day.sum() >= 2 and gains[of_day].max() > 0:
                ranked.append(metrics.ndcg_score([gains[of_day]], [values[of_day]], k=k))
        if ranked:
            result[f"ndcg_at_{k}"] = float(np.mean(ranked))
    return result
