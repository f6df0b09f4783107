"""Goes into a model's folder: lets `mlflow.pyfunc` give a PyTorch model rows as they are.

The exported network takes one tensor of numbers; here categories become their codes. Nothing of
Signalbox may be imported here: the folder is loaded on machines that do not have it.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "columns.json"


def encoded(frame: Any, columns: Sequence[str], categories: Mapping[str, Sequence[str]]) -> Any:
    """Rows as float32, shape (rows, columns); of categories the codes, 0 where one is unknown."""
    import numpy as np
    import pandas as pd

    found = np.empty((len(frame), len(columns)), dtype=np.float32)
    for n, name in enumerate(columns):
        if name in categories:
            values = frame[name].astype(object)
            text = values.where(values.isna(), values.astype(str))
            found[:, n] = (
                pd.Index(np.array(list(categories[name]), dtype=object)).get_indexer(text) + 1
            )
        else:
            found[:, n] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return found


class TensorModel:
    """The exported network, given rows."""

    def __init__(self, model: Any, columns: list[str], categories: dict[str, list[str]]) -> None:
        self.model, self.columns, self.categories = model, columns, categories

    def get_raw_model(self) -> Any:
        """The network itself."""
        return self.model

    def predict(self, dataframe: Any, params: dict[str, Any] | None = None) -> Any:
        """Predictions for the rows, float64 of shape (rows,)."""
        import torch

        rows = encoded(dataframe, self.columns, self.categories)
        with torch.no_grad():
            return self.model(torch.from_numpy(rows)).numpy().astype("float64")


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> TensorModel:
    settings = json.loads(Path(path, FILE).read_text())
    loaded = importlib.import_module("mlflow.pytorch").load_model(path)
    return TensorModel(loaded, settings["columns"], settings["categories"])
