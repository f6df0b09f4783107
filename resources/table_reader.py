"""What one Delta table of a dataset holds, at any of its versions, verified by digest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from resources.content import EncodedRows
from resources.delta import column, filesystem, first_line, literal, newest_table, open_table
from resources.table_rows import Rows, arranged, named, selected

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from deltalake import DeltaTable

DATE = "date"


class ReadableTable:
    """A Delta table partitioned by a key column and `date`."""

    def __init__(self, path: Path | str, key_column: str) -> None:
        self.path = str(path)
        self.key_column = key_column

    def version(self) -> int | None:
        """The newest version of the table; None if there is no table yet."""
        table = open_table(self.path)
        return None if table is None else table.version()

    def read(
        self,
        partitions: Sequence[PartitionVersion],
        version: int,
        columns: Sequence[str] | None = None,
    ) -> "pa.Table":
        """Read partitions in exactly the versions that are named.

        The same versions give the same rows in the same order, whatever was committed or
        compacted since: by date and key, within a partition by content.

        Args:
            partitions: what to read; each partition's digest is verified.
            version: the table version to read at. A partition that holds other rows there is
                read at its own.
            columns: the columns to return; all of them by default.

        Raises:
            RefusedError: rows that the digest names are not there: changed, vacuumed, deleted.
            UsageError: a partition is named twice, or a column does not exist.
        """
        wanted = named(partitions)
        whole = arranged([self.rows_of(wanted, version)], sorted(wanted))
        return selected(whole, columns, self.path)

    def rows_of(
        self,
        wanted: Mapping[PartitionKey, PartitionVersion],
        version: int,
        *,
        newest_first: bool = False,
    ) -> Rows:
        """Find partitions in exactly the versions that are named; see `read`.

        Args:
            wanted: what to find.
            version: of the table.
            newest_first: look first into the table as it is kept open, at a later version maybe,
                and only for what is not there as it was into this one.
        """
        import numpy as np
        import pyarrow as pa

        tables: list[pa.Table] = []
        found: dict[PartitionKey, np.ndarray] = {}

        def add(table: pa.Table, at: Mapping[PartitionKey, np.ndarray]) -> None:
            start = sum(each.num_rows for each in tables)
            tables.append(table)
            found.update({key: positions + start for key, positions in at.items()})

        def digests() -> dict[PartitionKey, str]:
            return {key: wanted[key].data_version for key in sorted(wanted) if key not in found}

        if newest_first and "://" not in self.path:  # a remote one is not kept open
            table = newest_table(self.path)
            if table is not None and table.version() >= version:
                with suppress(RefusedError):
                    whole, at = self._verified(table, digests())
                    if at:
                        add(whole, at)
        if not found or digests():
            try:
                whole, at = self._verified(self._opened(version), digests())
                if at or not wanted:
                    add(whole, at)
            except RefusedError:
                if not wanted or version > (self.version() or 0):
                    raise
                # A file of that version is gone. Each may still lie where it was committed.
        for key in digests():
            own = self._at_own(key, wanted[key])
            add(own, {key: np.arange(own.num_rows)})
        return Rows(pa.concat_tables(tables, promote_options="default"), found)

    def _opened(self, version: int) -> "DeltaTable":
        from deltalake.exceptions import DeltaError

        try:
            table = open_table(self.path, version)
        except (DeltaError, OSError) as error:
            raise self._unreadable(version, error) from error
        if table is None:
            raise RefusedError(
                f"{self.path} is no Delta table, but versions of it are recorded; restore the "
                "folder, or rebuild its partitions"
            )
        return table

    def _unreadable(self, version: int, error: Exception) -> RefusedError:
        return RefusedError(
            f"version {version} of {self.path} cannot be read, so what was trained on it "
            f"cannot be repeated; was it vacuumed or deleted? ({first_line(error)})"
        )

    def _scan(self, table: "DeltaTable", keys: Sequence[PartitionKey]) -> "pa.Table":
        """All rows of these keys and dates, in no order."""
        import pyarrow as pa
        from deltalake.exceptions import DeltaError

        names = ", ".join(literal(name) for name in sorted({k.key or "" for k in keys}))
        days = ", ".join(f"DATE '{day}'" for day in sorted({k.date for k in keys}))
        try:
            dataset = table.to_pyarrow_dataset(
                filesystem=filesystem(self.path),
                file_pruning_predicate=f"{column(self.key_column)} IN ({names}) "
                f"AND {column(DATE)} IN ({days})"
                if keys
                else None,
            )
            return dataset.to_table() if keys else dataset.schema.empty_table()
        except (DeltaError, OSError, pa.ArrowInvalid) as error:
            raise self._unreadable(table.version(), error) from error

    def _verified(
        self, table: "DeltaTable", digests: Mapping[PartitionKey, str]
    ) -> tuple["pa.Table", dict[PartitionKey, "np.ndarray"]]:
        """Rows of a table, and for each partition that holds what is asked its positions."""
        whole = self._scan(table, list(digests))
        encoded = EncodedRows.of(whole)
        found = {}
        for key, positions in self._split(whole, list(digests)):
            rows = encoded.rows[positions]
            if encoded.digest(rows) == digests[key]:
                found[key] = positions[encoded.order(rows)]
        return whole, found

    def _split(
        self, table: "pa.Table", keys: Sequence[PartitionKey]
    ) -> Iterator[tuple[PartitionKey, "np.ndarray"]]:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        names = sorted({key.key or "" for key in keys})
        days = sorted({key.date for key in keys})
        name = pc.index_in(table[self.key_column], value_set=pa.array(names, pa.string()))
        day = pc.index_in(table[DATE], value_set=pa.array(days, pa.date32()))
        cell = name.to_numpy() * len(days) + day.to_numpy()
        order = np.argsort(cell, kind="stable")
        bounds = np.searchsorted(cell[order], np.arange(len(names) * len(days) + 1))
        for key in keys:
            at = names.index(key.key or "") * len(days) + days.index(key.date)
            yield key, order[bounds[at] : bounds[at + 1]]

    def _at_own(self, key: PartitionKey, partition: PartitionVersion) -> "pa.Table":
        """A partition at the version that committed it: it was replaced afterwards."""
        import pyarrow as pa

        own = partition.table_version
        try:
            rows = self._scan(self._opened(own), [key])
        except RefusedError as error:
            raise RefusedError(f"partition {partition.partition}: {error}") from error
        for names in (rows.column_names, self._committed_columns(own)):
            if not set(names) <= set(rows.column_names):
                continue
            # Columns that the dataset got before or after this commit are null here.
            part = rows.select(names)
            encoded = EncodedRows.of(part)
            if encoded.digest(encoded.rows) == partition.data_version:
                return part.take(pa.array(encoded.order(encoded.rows)))
        raise RefusedError(
            f"partition {partition.partition} of {self.path} holds other rows at version {own} "
            f"than the recorded ones (digest {partition.data_version[:12]}), it was tampered "
            "with; rebuild the partition and take the snapshot again"
        )

    def _committed_columns(self, version: int) -> list[str]:
        table = open_table(self.path, version)
        entry = table.history(1)[0] if table is not None else {}
        names = entry.get("signalbox.columns", [])
        return [str(name) for name in names]
