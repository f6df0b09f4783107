"""Trainers: what trains a model, found by its entry point; and what they are given to read."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.promotion import Kind
from platform_assets.domain.spec import PipelineSpec

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from resources.distributed.launching import Processes

Parameters = Mapping[str, bool | int | float | str]
OnRound = Callable[[int, Mapping[str, float]], None]


@runtime_checkable
class Trainer(Protocol):
    """What a pipeline names under `model.trainer`.

    Attributes:
        flavor: the MLflow flavor that stores its models: lightgbm, sklearn.
        requirements: distributions whose installed versions are written into the model.

    It may have `imports`, names of modules that `fit` and `predict` import: they are imported
    once, in the process that runs are forked from, and must start no thread when they are. It may
    have `check_installed`, which refuses where something optional is missing.
    """

    flavor: str
    requirements: tuple[str, ...]

    def fit(
        self,
        frame: "pd.DataFrame",
        target: "pd.Series[float]",
        *,
        kind: Kind,
        parameters: Parameters,
        seed: int,
        on_round: OnRound,
    ) -> object:
        """Train a model; equal arguments must give equal models.

        Args:
            frame: features in the order of the spec; categories as dtype category.
            target: 0 or 1, or a value; one a row.
            kind: binary_classification or regression.
            parameters: those of the spec; a name that the trainer does not know is refused.
            seed: of everything that is random.
            on_round: called with the number of rounds done and the metrics so far, if there are
                rounds.

        One that can go on from where it was interrupted names a further argument,
        `checkpointer: Checkpointer | None = None`, and is given one (docs/training.md). What it
        makes must be the same, however often it was interrupted.

        One that can train in several processes names `processes: Processes | None = None`, and is
        given one where the catalog asks for them (docs/distributed.md).
        """
        ...

    def predict(self, model: object, frame: "pd.DataFrame") -> "np.ndarray":
        """The probability of class 1, or the value, of each row: float64, shape (rows,)."""
        ...

    def importance(self, model: object) -> Mapping[str, float]:
        """How much each feature matters, 0 or more; may be empty."""
        ...


def takes_checkpointer(trainer: Trainer) -> bool:
    """Whether `fit` names the further argument `checkpointer`."""
    return "checkpointer" in inspect.signature(trainer.fit).parameters


def with_processes(trainer: Trainer, processes: "Processes | None") -> "dict[str, Processes]":
    """The further argument of `fit`, for a model that asks for several processes.

    Raises:
        UsageError: the trainer cannot train in several.
    """
    if processes is None:
        return {}
    if "processes" not in inspect.signature(trainer.fit).parameters:
        raise UsageError(
            f"model.processes asks for up to {processes.spec.max}, and {type(trainer).__name__} "
            "trains in one: its fit takes no argument `processes`; leave model.processes out, or "
            "name a trainer that does (docs/distributed.md)"
        )
    return {"processes": processes}


def load_trainer(entry_point: str) -> Trainer:
    """Import a trainer: an object, or a class that is called without arguments.

    Args:
        entry_point: `package.module:Name`.

    Raises:
        UsageError: there is no such module or object, or it is no trainer.
    """
    module_name, _, name = entry_point.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"trainer {entry_point!r}: module {module_name} cannot be imported ({error}); install "
            "the package that holds it, or correct model.trainer"
        ) from error
    if not hasattr(module, name):
        public = sorted(
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module_name and name[0] != "_"
        )
        raise UsageError(
            f"trainer {entry_point!r}: module {module_name} has no {name!r}; its classes are "
            f"{', '.join(public) or 'none'}"
        )
    found = getattr(module, name)
    trainer = found() if isinstance(found, type) else found
    lacking = [
        part
        for part in ("flavor", "requirements", "fit", "predict", "importance")
        if not hasattr(trainer, part)
    ]
    if lacking:
        raise UsageError(
            f"trainer {entry_point!r} is no trainer, it lacks {', '.join(lacking)}; see "
            "resources.training.Trainer"
        )
    check = getattr(trainer, "check_installed", None)
    if check is not None:
        check()
    return cast(Trainer, trainer)


def training_frame(
    table: "pa.Table", spec: PipelineSpec
) -> "tuple[pd.DataFrame, pd.Series[float]]":
    """Features and target of dataset rows.

    Args:
        table: rows of the dataset.
        spec: the pipeline.

    Returns:
        Features in the order of the spec, categories as dtype category (their values sorted),
        all others float64 with NaN where the value is missing; and the target as float64.

    Raises:
        RefusedError: the rows lack a column, since they were built by an older spec.
    """
    import pandas as pd
    import pyarrow as pa

    dataset = spec.dataset
    names = [*dataset.features, dataset.target.name]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise RefusedError(
            f"the rows of pipeline {spec.pipeline} have no {', '.join(missing)}; they were built "
            "before the spec named it, build their partitions again"
        )
    columns = {}
    for name in dataset.features:
        if name in dataset.categories:
            columns[name] = table[name].cast(pa.string()).to_pandas().astype("category")
        else:
            columns[name] = table[name].cast(pa.float64()).to_pandas()
    frame = pd.DataFrame(columns)
    return frame, table[dataset.target.name].cast(pa.float64()).to_pandas()


def require_trainable(target: "pd.Series[float]", kind: Kind) -> None:
    """Refuse rows that no model can learn from.

    Raises:
        RefusedError: there are none, or all of them are of one class.
    """
    if len(target) == 0:
        raise RefusedError(
            "there is no row to train on; at least one is needed, see what the dataset excludes"
        )
    if kind == "binary_classification" and target.nunique() < 2:
        raise RefusedError(
            f"all {len(target)} rows to train on are of class {target.iloc[0]:g}; both are "
            "needed, widen model.window_days or correct the target"
        )
