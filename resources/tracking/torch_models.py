"""PyTorch models in MLflow's folders: an exported graph and its numbers, no pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.digests import canonical_json
from platform_assets.domain.errors import UsageError
from resources.tracking import torch_loader

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LOADER = "signalbox_torch_loader"
FLAVOR = "pytorch"


@dataclass(frozen=True)
class FrameModel:
    """A network and how rows become its tensor. What a trainer of this flavor gives.

    Attributes:
        module: takes one float32 tensor (rows, columns), gives one of shape (rows,).
        columns: features, in the order of the tensor's columns.
        categories: by name their values; the code of one is its place from 1 on, 0 is unknown.
    """

    module: Any
    columns: Sequence[str]
    categories: Mapping[str, Sequence[str]]

    def tensor(self, frame: pd.DataFrame) -> Any:
        """Rows as the network takes them."""
        import torch

        return torch.from_numpy(torch_loader.encoded(frame, self.columns, self.categories))

    def predict(self, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
        """What it says of the rows, float64 of shape (rows,)."""
        import torch

        with torch.no_grad():
            found: np.ndarray[Any, Any] = self.module(self.tensor(frame)).numpy()
        return found.astype("float64")


def save(
    folder: Path,
    model: object,
    saved: Any,
    *,
    signature: Any,
    input_example: pd.DataFrame,
    pip_requirements: Sequence[str],
) -> None:
    """Write the model, with our loader between `mlflow.pyfunc` and the network.

    Args:
        folder: does not exist yet.
        model: a FrameModel.
        saved: MLflow's Model, which becomes the MLmodel file.
        signature: of the rows.
        input_example: at least one row.
        pip_requirements: pinned.
    """
    import mlflow.pytorch
    from mlflow.models.utils import _save_example
    from mlflow.types.schema import Schema, TensorSpec

    if not isinstance(model, FrameModel):
        raise UsageError(
            f"the trainer gave a {type(model).__name__}, and its flavor is {FLAVOR}; allowed is a "
            "resources.tracking.torch_models.FrameModel, which says how rows become a tensor"
        )
    import numpy as np
    from mlflow.models import ModelSignature

    rows = model.tensor(input_example).numpy()
    # Of one row, the export would take it that there never are more.
    traced = rows if len(rows) > 1 else np.concatenate([rows, rows])
    width = len(model.columns)
    mlflow.pytorch.save_model(
        model.module,
        path=str(folder),
        mlflow_model=saved,
        serialization_format="pt2",
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("float32"), (-1, width))]),
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1,))]),
        ),
        input_example=traced,
        pip_requirements=list(pip_requirements),
    )
    _forget_where(folder / "data" / "model.pt2")
    for name in ("input_example.json", "serving_input_example.json"):
        (folder / name).unlink(missing_ok=True)
    saved.signature = signature
    _save_example(saved, input_example, str(folder))
    settings = {
        "columns": list(model.columns),
        "categories": {name: list(values) for name, values in model.categories.items()},
    }
    (folder / torch_loader.FILE).write_text(canonical_json(settings))
    code = folder / "code"
    code.mkdir(exist_ok=True)
    shutil.copyfile(torch_loader.__file__, code / f"{LOADER}.py")
    entry = saved.flavors["python_function"]
    entry.pop("data", None)
    entry["loader_module"] = LOADER
    entry["code"] = "code"
    saved.save(str(folder / "MLmodel"))


def _forget_where(archive: Path) -> None:
    """Take the lines of source out of an exported graph: they name folders of this machine."""
    import torch

    exported = torch.export.load(archive)
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(exported, archive)


def load(folder: Path) -> FrameModel:
    """The model that `save` wrote. MLflow refuses an archive in which there is a pickle."""
    import mlflow.pytorch

    settings = json.loads((folder / torch_loader.FILE).read_text())
    module = mlflow.pytorch.load_model(str(folder))
    return FrameModel(module, settings["columns"], settings["categories"])
