"""Rows of several partitions, maybe from several tables, put in one order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True)
class Rows:
    """Rows of a table, and which of them are those of a partition.

    Attributes:
        table: rows, maybe also such as nobody asked for.
        at: by partition the positions of its rows, in the order of their content.
    """

    table: "pa.Table"
    at: "Mapping[PartitionKey, np.ndarray]"


def named(partitions: Sequence[PartitionVersion]) -> dict[PartitionKey, PartitionVersion]:
    """Partition versions by what they are versions of.

    Raises:
        UsageError: one is named twice.
    """
    wanted = {PartitionKey.parse(p.partition): p for p in partitions}
    if len(wanted) != len(partitions):
        raise UsageError(f"{len(partitions)} partitions were named, some of them twice")
    return wanted


def arranged(found: Sequence[Rows], ordered: Sequence[PartitionKey]) -> "pa.Table":
    """The rows of partitions in an order; columns that some of them have not are null there.

    Raises:
        RefusedError: a column is of different types.
    """
    import numpy as np
    import pyarrow as pa

    at: dict[PartitionKey, np.ndarray] = {}
    start = 0
    for rows in found:
        at |= {key: positions + start for key, positions in rows.at.items()}
        start += rows.table.num_rows
    try:
        whole = pa.concat_tables([rows.table for rows in found], promote_options="default")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise RefusedError(
            f"a column has different types in the tables that are read at once ({error}); "
            "rebuild the partitions of one of them"
        ) from error
    if not ordered:
        return whole.slice(0, 0)
    return whole.take(pa.array(np.concatenate([at[key] for key in ordered])))


def selected(table: "pa.Table", columns: Sequence[str] | None, path: str) -> "pa.Table":
    """Some columns of a table, all of them by default.

    Raises:
        UsageError: one does not exist.
    """
    if columns is None:
        return table
    unknown = sorted(set(columns) - set(table.column_names))
    if unknown:
        raise UsageError(
            f"{path} has no column {', '.join(unknown)}; its columns are "
            f"{', '.join(table.column_names)}"
        )
    return table.select(list(columns))
