"""Model folders: saving, loading, and a digest that identical trainings share."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.digests import canonical_json, combine
from platform_assets.domain.errors import RefusedError, UsageError
from resources.tracking import category_loader, torch_models

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MODEL_FILE = "MLmodel"
# Ids and times of this save, the pip and interpreter of this machine, and what MLflow writes
# into the folder when somebody loads it by its registered name: not the model's.
VOLATILE = frozenset({MODEL_FILE, "conda.yaml", "python_env.yaml", "registered_model_meta"})
# Of the MLmodel file: ids, times and sizes. All else of it says how the model is loaded.
VOLATILE_KEYS = frozenset(
    {
        "artifact_path",
        "model_id",
        "model_size_bytes",
        "model_uuid",
        "run_id",
        "utc_time_created",
    }
)
TRUSTED = "skops_trusted_types"
LOADER = "signalbox_category_loader"
EXAMPLE_ROWS = 5
SIGNATURE_ROWS = 1000


@dataclass(frozen=True)
class LoggedModel:
    """A registered version of a model.

    Attributes:
        version: number in the registry, from 1.
        uri: `models:/<name>/<version>`, readable by any MLflow client of the same store.
        digest: `model_digest` of its files.
    """

    version: int
    uri: str
    digest: str


def flavor_module(flavor: str) -> Any:
    """MLflow's module of that flavor ("lightgbm", "sklearn", ...)."""
    try:
        module = importlib.import_module(f"mlflow.{flavor}")
    except ImportError as error:
        raise UsageError(
            f"the MLflow flavor {flavor!r} cannot be imported ({error}), a flavor is a module of "
            "mlflow such as lightgbm or sklearn: correct the trainer's flavor"
        ) from error
    if not hasattr(module, "save_model"):
        raise UsageError(
            f"mlflow.{flavor} is not a flavor, it has no save_model; a flavor is a module such "
            "as lightgbm or sklearn: correct the trainer's flavor"
        )
    return module


def pinned(requirements: Sequence[str]) -> list[str]:
    """Each bare distribution name with its installed version; what names one stays as it is."""
    found = []
    for requirement in requirements:
        if any(mark in requirement for mark in "=<>~!@ ["):
            found.append(requirement)
            continue
        try:
            found.append(f"{requirement}=={importlib.metadata.version(requirement)}")
        except importlib.metadata.PackageNotFoundError as error:
            raise UsageError(
                f"the trainer requires {requirement!r}, which is not installed here; requirements "
                "are names of installed distributions: correct the trainer's requirements"
            ) from error
    return found


def save_model(
    folder: Path,
    model: object,
    flavor: str,
    *,
    identity: dict[str, str],
    input_example: pd.DataFrame,
    predictions: np.ndarray[Any, Any],
    requirements: Sequence[str],
) -> str:
    """Writes the model as an MLflow folder, without any of MLflow's process-wide state.

    Args:
        folder: does not exist yet.
        identity: `run_id`, `model_id` and `artifact_path` for the MLmodel file.
        input_example: rows as the model takes them; the first 1,000 give the signature, the
            first 5 are stored.
        predictions: shape (rows of input_example,).

    Returns:
        The digest of what was written.
    """
    module = flavor_module(flavor)
    from mlflow.models import Model

    arguments: dict[str, Any] = {}
    if flavor == "sklearn":
        # Not MLflow's default everywhere: on Databricks it would be a pickle.
        arguments["serialization_format"] = "skops"
        arguments[TRUSTED] = _types_of(model)
    elif flavor == "lightgbm":
        arguments["serialization_format"] = "skops"  # of its sklearn classes; a Booster is text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for people at a prompt: integers, type hints
        saved = Model(model_uuid=identity["model_id"], **identity)
        signature = _signature_of(input_example.head(SIGNATURE_ROWS), predictions[:SIGNATURE_ROWS])
        if flavor == torch_models.FLAVOR:
            torch_models.save(
                folder,
                model,
                saved,
                signature=signature,
                input_example=input_example.head(EXAMPLE_ROWS),
                pip_requirements=pinned(requirements),
            )
            return model_digest(folder)
        module.save_model(
            model,
            path=str(folder),
            mlflow_model=saved,
            signature=signature,
            input_example=input_example.head(EXAMPLE_ROWS),
            # Given, so that MLflow does not load the model in a fresh process to find them out.
            pip_requirements=pinned(requirements),
            **arguments,
        )
    categories = list(input_example.select_dtypes("category").columns)
    if categories and "python_function" in saved.flavors:
        _load_categories(folder, saved, categories)
    return model_digest(folder)


def model_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a model's files.

    The MLmodel file counts without its ids, times and sizes: it names the files that are loaded,
    and by what. Left out are conda.yaml and python_env.yaml (the machine's pip) and
    registered_model_meta (appears when somebody loads it). A `.skops` archive counts by its
    contents: its own bytes hold the time of the save and the memory addresses of the objects.
    """
    digests = _file_digests(folder)
    digests[MODEL_FILE] = hashlib.sha256(_lasting(folder / MODEL_FILE).encode()).hexdigest()
    return combine(digests)


def older_digest(folder: Path) -> str:
    """As the digest was before: of the MLmodel file only the signature counted.

    So that it can be told from changed files. It is good for nothing else: whoever writes the
    MLmodel file says what is run when the model is loaded, and this digest stays the same.
    """
    digests = _file_digests(folder)
    document = _document(folder / MODEL_FILE)
    signature = canonical_json(document.get("signature"))
    digests["signature"] = hashlib.sha256(signature.encode()).hexdigest()
    return combine(digests)


def _file_digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in VOLATILE and "__pycache__" not in path.parts:
            digests[name] = (
                _skops_digest(path)
                if path.suffix == ".skops"
                else hashlib.sha256(path.read_bytes()).hexdigest()
            )
    return digests


def private_copy(source: Path, folder: Path) -> Path:
    """A copy of a model's files, which nobody changes between the look at them and the load.

    Without what is not in the digest and can be run: byte code that lies beside the sources.
    """
    ignored = shutil.ignore_patterns("__pycache__", "registered_model_meta")
    return Path(shutil.copytree(source, folder / "verified", ignore=ignored))


def load_model(folder: Path, flavor: str) -> object:
    """The model that `save_model` wrote into `folder`. Loading runs what the files say.

    Raises:
        RefusedError: it was stored in another flavor: a trainer has changed its own since.
    """
    stored = _flavors(folder)
    if flavor not in stored:
        raise RefusedError(
            f"the model is stored as {', '.join(stored) or 'nothing'} and its trainer reads "
            f"{flavor} by now; give the trainer that was recorded with it its flavor back and "
            "name one with the new flavor otherwise, or train the model again"
        )
    if flavor == torch_models.FLAVOR:
        return torch_models.load(folder)
    loaded: object = flavor_module(flavor).load_model(str(folder))
    return loaded


def _signature_of(example: pd.DataFrame, predictions: np.ndarray[Any, Any]) -> Any:
    """MLflow's inferred signature, with category columns taken as they are.

    MLflow infers "string" for a category of strings, and then refuses to pass a category to a
    model with that signature; LightGBM takes nothing else.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    inferred = infer_signature(example, predictions)
    categories = set(example.select_dtypes("category").columns)
    columns = [
        ColSpec(AnyType(), column.name) if column.name in categories else column
        for column in inferred.inputs.inputs
    ]
    return ModelSignature(inputs=Schema(columns), outputs=inferred.outputs)


def _load_categories(folder: Path, saved: Any, columns: list[str]) -> None:
    """Puts our loader between `mlflow.pyfunc` and the flavor's, inside the model's own folder."""
    entry = saved.flavors["python_function"]
    settings = {
        "loader": entry["loader_module"],
        "data": entry.pop("data", None),
        "columns": columns,
    }
    (folder / category_loader.FILE).write_text(canonical_json(settings))
    code = folder / "code"
    code.mkdir()
    shutil.copyfile(category_loader.__file__, code / f"{LOADER}.py")
    entry["loader_module"] = LOADER
    entry["code"] = "code"
    saved.save(str(folder / MODEL_FILE))


def _types_of(model: object) -> list[str]:
    # skops refuses types that it does not know, which are whatever the trainer just built here:
    # trusting them adds nothing to having run the trainer. Loading trusts this recorded list.
    import skops.io  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(prefix="signalbox-") as folder:
        path = Path(folder, "model.skops")
        skops.io.dump(model, path)
        return sorted(skops.io.get_untrusted_types(file=path))


def _skops_digest(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        state = json.loads(archive.read("schema.json"))
        files = {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if name != "schema.json"
        }
    return hashlib.sha256(canonical_json(_without_addresses(state, files)).encode()).hexdigest()


def _without_addresses(node: Any, files: dict[str, str]) -> Any:
    """The state tree without object ids, each array's file named by its content."""
    if isinstance(node, dict):
        return {
            key: files.get(value, value)
            if key == "file" and isinstance(value, str)
            else _without_addresses(value, files)
            for key, value in node.items()
            if key != "__id__"
        }
    if isinstance(node, list):
        return [_without_addresses(value, files) for value in node]
    return node


def _flavors(folder: Path) -> list[str]:
    """The flavors that a model's folder names, but for the one that every model has."""
    found = _document(folder / MODEL_FILE).get("flavors")
    return sorted(set(found or ()) - {"python_function"})


def _document(path: Path) -> dict[str, Any]:
    """What an MLmodel file says; nothing where it cannot be read."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return document if isinstance(document, dict) else {}


def _lasting(path: Path) -> str:
    document = _document(path)
    if not document:
        return ""
    for flavor in (document.get("flavors") or {}).values():
        if isinstance(flavor, dict) and isinstance(flavor.get(TRUSTED), list):
            flavor[TRUSTED] = sorted(map(str, flavor[TRUSTED]))  # MLflow makes it of a set
    return canonical_json({k: v for k, v in document.items() if k not in VOLATILE_KEYS})
