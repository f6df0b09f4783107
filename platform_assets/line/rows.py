"""The rows of a training: all at once, or in parts where the catalog asks for that."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError
from platform_assets.domain.manifest import Snapshot
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from resources.streaming import read_parts
from resources.training import Trainer, training_frame

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Frames = Callable[[], "Iterator[tuple[pd.DataFrame, pd.Series[float]]]"]


class Rows:
    """What a model is trained on.

    Attributes:
        count: how many there are.
        frame: features; where they come in parts those of the first part, for an example.
    """

    def __init__(self, services: Services, snapshot: Snapshot) -> None:
        spec = services.spec
        self.count = sum(partition.rows for partition in snapshot.partitions)
        self._spec = spec
        self._frames: Frames | None = None
        if spec.model.stream and self.count:
            self._frames = lambda: (
                training_frame(part, spec)
                for part in read_parts(services.dataset.read, snapshot.partitions)
            )
            self.frame, self._target = next(iter(self._frames()))
        else:
            table = services.dataset.read(snapshot.partitions)
            self.frame, self._target = training_frame(table, spec)

    def fit(self, trainer: Trainer, how: Mapping[str, Any]) -> object:
        """Train on them; `how`: the other arguments of `fit`."""
        if self._frames is None:
            return trainer.fit(self.frame, self._target, **how)
        return in_parts(trainer, self._spec)(self._frames, **how)


def fit_table(trainer: Trainer, table: "pa.Table", spec: PipelineSpec, how: Any) -> object:
    """Train on rows that are all there, as a training did that had them in parts, if it had."""
    frame, target = training_frame(table, spec)
    if not spec.model.stream or not len(frame):
        return trainer.fit(frame, target, **how)
    return in_parts(trainer, spec)(lambda: iter([(frame, target)]), **how)


def in_parts(trainer: Trainer, spec: PipelineSpec) -> Callable[..., object]:
    """The trainer's function for rows in parts.

    Raises:
        UsageError: it has none.
    """
    found: Callable[..., object] | None = getattr(trainer, "fit_stream", None)
    if found is None:
        raise UsageError(
            f"model.stream is true, and {spec.model.trainer} has no fit_stream: it takes its rows "
            "all at once; leave model.stream out, or name a trainer that has one "
            "(docs/distributed.md)"
        )
    return found
