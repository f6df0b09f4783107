"""Rows for the ranks of torch_tabular.py: how they are laid out, written and read in batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from platform_assets.domain.promotion import Kind
from resources.tracking.torch_loader import encoded

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

BLOCK = 8192
"""Rows that are read, and shuffled, at a time."""

TARGET = "target"


class Layout(BaseModel):
    """What has to be known of all rows before the first is learnt from.

    Attributes:
        columns: features in their order.
        categories: by name the values that occur, sorted; code 0 is for all others.
        mean, scale: of each column that is no category, in their order; scale is never 0.
        target_mean, target_scale: 0 and 1 but for a regression.
        rows: how many there are.
    """

    kind: Kind
    columns: list[str]
    categories: dict[str, list[str]]
    mean: list[float]
    scale: list[float]
    target_mean: float = 0.0
    target_scale: float = 1.0
    rows: int

    @classmethod
    def of(
        cls, frames: "Callable[[], Iterator[tuple[pd.DataFrame, pd.Series[float]]]]", kind: Kind
    ) -> "Layout":
        """Pass all rows once.

        Raises:
            RefusedError: there are none, or all are of one class.
        """
        import numpy as np
        import pandas as pd

        from resources.training import require_trainable

        columns: list[str] = []
        seen: dict[str, set[str]] = {}
        sums: Any = None
        rows, classes = 0, set()
        target = np.zeros(2)
        for frame, wanted in frames():
            if not columns:
                columns = list(frame.columns)
                named = frame.select_dtypes("category").columns
                seen = {name: set() for name in columns if name in named}
                sums = np.zeros((3, len(columns) - len(seen)))
            numbers = frame[[c for c in columns if c not in seen]].to_numpy(dtype=np.float64)
            there = ~np.isnan(numbers)
            filled = np.where(there, numbers, 0.0)
            sums += np.stack([there.sum(axis=0), filled.sum(axis=0), (filled**2).sum(axis=0)])
            for name, found in seen.items():
                found.update(map(str, frame[name].cat.remove_unused_categories().cat.categories))
            values = wanted.to_numpy(dtype=np.float64)
            target += [values.sum(), (values**2).sum()]
            rows += len(values)
            classes.update(np.unique(values)[:3].tolist())
        require_trainable(pd.Series(sorted(classes) if rows else [], dtype="float64"), kind)
        count = np.maximum(sums[0], 1)
        mean = sums[1] / count
        scale = _scale(sums[2] / count - mean**2)
        regression = kind == "regression"
        centre = float(target[0] / rows)
        return cls(
            kind=kind,
            columns=columns,
            categories={name: sorted(found) for name, found in seen.items()},
            mean=mean.tolist(),
            scale=scale.tolist(),
            target_mean=centre if regression else 0.0,
            target_scale=float(_scale(np.array([target[1] / rows - centre**2]))[0])
            if regression
            else 1.0,
            rows=rows,
        )


def _scale(variance: "np.ndarray") -> "np.ndarray":
    import numpy as np

    scale = np.sqrt(np.maximum(variance, 0.0))
    return np.where(scale > 1e-12, scale, 1.0)


def write_frames(
    path: Path,
    frames: "Callable[[], Iterator[tuple[pd.DataFrame, pd.Series[float]]]]",
    layout: Layout,
) -> None:
    """Write all rows as an Arrow file of float32 columns, in blocks; a block is all it holds."""
    import numpy as np
    import pyarrow as pa

    names = [*layout.columns, TARGET]
    schema = pa.schema([(name, pa.float32()) for name in names])
    waiting: list[np.ndarray] = []
    held = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:

        def write(block: np.ndarray) -> None:
            columns = [pa.array(np.ascontiguousarray(block[:, n])) for n in range(len(names))]
            writer.write_batch(pa.record_batch(columns, schema=schema))

        for frame, wanted in frames():
            for start in range(0, len(frame), BLOCK):
                part = frame.iloc[start : start + BLOCK]
                values = encoded(part, layout.columns, layout.categories)
                target = wanted.iloc[start : start + BLOCK].to_numpy(dtype=np.float32)
                waiting.append(np.column_stack([values, target]))
                held += len(part)
                if held >= BLOCK:
                    whole = np.concatenate(waiting)
                    while len(whole) >= BLOCK:
                        write(whole[:BLOCK])
                        whole = whole[BLOCK:]
                    waiting, held = [whole.copy()], len(whole)
        if held:
            write(np.concatenate(waiting))


class FrameReader:
    """Batches of an Arrow file, each found by the number of its step.

    One block is in memory at a time. In each epoch blocks, and the rows of a block, come in
    another order that follows from seed and epoch.
    """

    def __init__(self, path: Path, rows: int, batch: int, seed: int) -> None:
        import pyarrow as pa

        self._file = pa.OSFile(str(path), "rb")
        self._reader = pa.ipc.open_file(self._file)
        self._batch, self._seed = batch, seed
        blocks = self._reader.num_record_batches
        self._rows = [min(BLOCK, rows - n * BLOCK) for n in range(blocks)]
        self._steps = [-(-rows // batch) for rows in self._rows]
        self.steps = sum(self._steps)
        """Of one epoch."""
        self._at: tuple[int, int] | None = None
        self._block: Any = None
        self._epoch, self._order, self._ends = -1, [], []  # type: int, list[int], list[int]

    def batch(self, step: int, rank: int, world: int) -> "tuple[np.ndarray, np.ndarray, int]":
        """A rank's part of the batch of a step.

        Returns:
            features, float32 of shape (rows, columns); target, float32 of shape (rows,); and how
            many rows the batch has over all ranks.
        """
        import numpy as np

        epoch, within = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch = epoch
            drawn = np.random.default_rng((self._seed, epoch)).permutation(len(self._rows))
            self._order = [int(n) for n in drawn]
            self._ends = np.cumsum([self._steps[n] for n in self._order]).tolist()
        place = next(n for n, end in enumerate(self._ends) if within < end)
        block = self._order[place]
        if self._at != (epoch, block):
            self._at, self._block = (epoch, block), self._read(epoch, block)
        start = (within - (self._ends[place - 1] if place else 0)) * self._batch
        rows = self._block[start : start + self._batch]
        mine = rows[rank::world]
        return np.ascontiguousarray(mine[:, :-1]), np.ascontiguousarray(mine[:, -1]), len(rows)

    def _read(self, epoch: int, block: int) -> "np.ndarray":
        import numpy as np

        found = self._reader.get_batch(block)
        rows = np.column_stack([column.to_numpy() for column in found.columns])
        order = np.random.default_rng((self._seed, epoch, block)).permutation(len(rows))
        shuffled: np.ndarray = rows[order]
        return shuffled
