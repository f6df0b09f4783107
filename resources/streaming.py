"""A dataset at a pinned snapshot, in parts: for one that is too large for memory."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 65_536
"""Partitions are read together up to so many rows; one that has more is read alone."""

Read = Callable[[Sequence[PartitionVersion]], "pa.Table"]
"""Reads partitions in exactly the named versions and verifies the digest of each, or refuses."""


def read_parts(
    read: Read, partitions: Sequence[PartitionVersion], rows: int = ROWS
) -> "Iterator[pa.Table]":
    """The rows of partitions in the order in which one read would give them all.

    No more than one part is held at a time. A partition is never cut: its digest is over all of
    its rows, and no row of it is given before it was verified.

    Args:
        read: of the dataset, such as `DatasetTable.read` at a version.
        partitions: what to read, in the versions of a snapshot.
        rows: see `ROWS`.

    Raises:
        RefusedError: rows that a digest names are not there; parts before it were given already.
    """
    for group in grouped(partitions, rows):
        yield read(group)


def read_batches(
    read: Read, partitions: Sequence[PartitionVersion], rows: int = ROWS
) -> "Iterator[pa.RecordBatch]":
    """As `read_parts`, as Arrow record batches of at most so many rows."""
    for part in read_parts(read, partitions, rows):
        yield from part.to_batches(max_chunksize=rows)


def grouped(
    partitions: Sequence[PartitionVersion], rows: int = ROWS
) -> list[list[PartitionVersion]]:
    """Whole dates together, as many as make up so many rows; by date and key."""
    ordered = sorted(partitions, key=lambda p: PartitionKey.parse(p.partition))
    groups: list[list[PartitionVersion]] = []
    held = 0
    for _, found in groupby(ordered, key=lambda p: PartitionKey.parse(p.partition).date):
        day = list(found)
        size = sum(p.rows for p in day)
        if groups and held + size <= rows:
            groups[-1] += day
            held += size
        elif size <= rows:
            groups.append(day)
            held = size
        else:
            groups += [[one] for one in day]
            held = rows
    return groups
