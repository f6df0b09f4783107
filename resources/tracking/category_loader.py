"""Goes into a model's folder: lets `mlflow.pyfunc` predict where columns are categories.

MLflow's schema check turns categories into plain objects, and a request over HTTP brings
strings; LightGBM accepts neither. Nothing of Signalbox may be imported here: the folder is
loaded on machines that do not have it.
"""

import importlib
import json
from pathlib import Path
from typing import Any

FILE = "categories.json"


class CategoryModel:
    """The model of MLflow's own loader, given categories where it was trained on them."""

    def __init__(self, model: Any, columns: list[str]) -> None:
        self.model = model
        self.columns = columns

    def get_raw_model(self) -> Any:
        """The Booster or estimator itself."""
        return self.model.get_raw_model()

    def predict(self, dataframe: Any, params: dict[str, Any] | None = None) -> Any:
        """Predictions for the rows; a category unseen in training counts as missing."""
        frame = dataframe.astype(dict.fromkeys(self.columns, "category"))
        return self.model.predict(frame, params)


def _load_pyfunc(path: str) -> CategoryModel:
    settings = json.loads(Path(path, FILE).read_text())
    loader = importlib.import_module(settings["loader"])
    inner = Path(path, settings["data"]) if settings["data"] else Path(path)
    return CategoryModel(loader._load_pyfunc(str(inner)), settings["columns"])
