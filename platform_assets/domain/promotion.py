"""The kinds of model, and the metric that decides between two of a kind."""

from collections.abc import Mapping
from typing import Literal

Kind = Literal["binary_classification", "regression"]

PRIMARY_METRIC: Mapping[str, str] = {
    "binary_classification": "log_loss",
    "regression": "rmse",
}
"""The metric that decides, by kind of model; smaller is better for each of them."""
