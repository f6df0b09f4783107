"""The lake: a dataset is a folder of Delta tables, one a key and calendar month.

What a commit costs grows with the files of its table (docs/lake.md): so a table ends with its
month. A dataset that was begun as one table, or with tables a year, by an earlier version, goes on
so.
"""

import os
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from resources.content import content_digest
from resources.delta import LOG
from resources.table import Commit, DatasetTable
from resources.table_rows import arranged, named, selected
from resources.table_schema import MONTH, SPANS, ColumnTypes, begun_with, table_folders

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Commit", "Dataset", "DatasetTable", "content_digest", "found_dataset"]

COLUMNS = "columns"
"""The table of a dataset's columns. Those of its rows have a `=` in their names."""

ONE = "."
"""The name of the table of a dataset that is one table."""

_PLAIN = frozenset((string.ascii_letters + string.digits + "-_.").encode())


class Dataset:
    """The tables of a dataset, each with the rows of one key and calendar month.

    An object is a name and may be sent to another process, as with DatasetTable.
    """

    def __init__(self, path: Path | str, key_column: str) -> None:
        self.path = str(path)
        self.key_column = key_column
        self._types = ColumnTypes(f"{self.path}/{COLUMNS}")
        self._remote_is_one: bool | None = None
        self._remote_span: str | None = None

    # --- names --------------------------------------------------------------------------------

    def is_one_table(self) -> bool:
        """Whether all partitions lie in one table, as an earlier version made it.

        Raises:
            RefusedError: they lie in one table and in others beside it.
        """
        if "://" in self.path:
            if self._remote_is_one is None:
                self._remote_is_one = _is_table(self.path)
                if self._remote_is_one:
                    self._require_alone(_is_table(self._types.path))
            return self._remote_is_one
        one = _has_log(self.path)
        if one:
            self._require_alone(_has_log(self._types.path))
        return one

    def _require_alone(self, others: bool) -> None:
        if others:
            raise RefusedError(
                f"{self.path} holds tables of its keys, and is a table itself, which an "
                "earlier version of Signalbox has made since; allowed is one of both. End that "
                f"version, move {LOG} and {self.key_column}=*/date=* of that folder away, and "
                "materialize again what that version has built"
            )

    def _require_of_a_span(self, names: Sequence[str]) -> None:
        span = self.span()
        others = [name for name in names if f"/{span}=" not in name]
        if others:
            raise RefusedError(
                f"{self.path} holds tables a key and {span}, and others that another version of "
                f"Signalbox has made since: {', '.join(others[:3])}; allowed is one of both. End "
                "that version, move its tables away, and materialize again what it has built"
            )

    def span(self) -> str:
        """What a table holds of a key: a month, or a year as an earlier version began it.

        Raises:
            RefusedError: something else; a later version made the dataset.
        """
        if "://" not in self.path:
            return self._types.layout() or begun_with(self.path)
        if self._remote_span is None:
            self._remote_span = self._types.layout()
        return self._remote_span or MONTH

    def table_name(self, partition: PartitionKey) -> str:
        """The folder of a partition's table in the dataset's: `airport=JFK/month=2013-01`."""
        return self._names([partition])[partition]

    def _names(self, partitions: Iterable[PartitionKey]) -> dict[PartitionKey, str]:
        if self.is_one_table():
            return dict.fromkeys(partitions, ONE)
        span = self.span()
        digits = SPANS[span]
        return {
            p: f"{self.key_column}={quoted(p.key or '')}/{span}={p.date.isoformat()[:digits]}"
            for p in partitions
        }

    def table_named(self, name: str) -> DatasetTable:
        """A table by its name."""
        if name == ONE:
            return DatasetTable(self.path, self.key_column)
        return DatasetTable(f"{self.path}/{name}", self.key_column, self._types)

    def table_of(self, partition: PartitionKey) -> DatasetTable:
        """The table that a partition lies in."""
        return self.table_named(self.table_name(partition))

    def tables(self, known: Iterable[PartitionKey] = ()) -> dict[str, DatasetTable]:
        """The tables that there are, by name.

        Args:
            known: partitions that were committed. A remote dataset is not listed: its tables are
                those of these partitions.

        Raises:
            RefusedError: beside them there are tables that another version of Signalbox has made.
        """
        names = set(self._names(known).values())
        if self.is_one_table():
            names = {ONE}
        elif "://" not in self.path:
            found = table_folders(self.path)
            self._require_of_a_span(found)
            names |= set(found)
        return {name: self.table_named(name) for name in sorted(names)}

    def versions(self, known: Iterable[PartitionKey] = ()) -> dict[str, int]:
        """The newest version of each table; see `tables`."""
        found = {name: table.version() for name, table in self.tables(known).items()}
        return {name: version for name, version in found.items() if version is not None}

    def by_table(
        self, partitions: Iterable[PartitionVersion]
    ) -> dict[str, dict[PartitionKey, PartitionVersion]]:
        """Partition versions by the table that they lie in."""
        found: dict[str, dict[PartitionKey, PartitionVersion]] = {}
        wanted = named(list(partitions))
        for key, name in self._names(sorted(wanted)).items():
            found.setdefault(name, {})[key] = wanted[key]
        return dict(sorted(found.items()))

    def read_versions(self, partitions: Iterable[PartitionVersion]) -> dict[str, int]:
        """The version of each table at which its partitions are read at once."""
        return {
            name: max(version.table_version for version in own.values())
            for name, own in self.by_table(partitions).items()
        }

    # --- rows ---------------------------------------------------------------------------------

    def commit(
        self,
        partition: PartitionKey,
        table: "pa.Table",
        *,
        previous: str | None,
        guard: Callable[[], None] = lambda: None,
        token: int | None = None,
        fence: bool = False,
    ) -> Commit:
        """Replace one partition by these rows, all or nothing; see `DatasetTable.commit`."""
        return self.table_of(partition).commit(
            partition, table, previous=previous, guard=guard, token=token, fence=fence
        )

    def stands(self, partition: PartitionKey, rows: int) -> bool:
        """Whether the dataset still has a partition; a remote one is believed to."""
        return self.table_of(partition).stands(partition, rows)

    def read(
        self, partitions: Sequence[PartitionVersion], columns: Sequence[str] | None = None
    ) -> "pa.Table":
        """Read partitions in exactly the versions that are named.

        The same versions give the same rows in the same order, whatever was committed or
        compacted since: by date and key, within a partition by content. Each table is read as it
        is now; what is not there as it was, at the newest of the versions that are named; and
        what is not there either, at the version that committed it.

        Args:
            partitions: what to read; each partition's digest is verified.
            columns: the columns to return; all of them by default.

        Raises:
            RefusedError: rows that the digest names are not there: changed, vacuumed, deleted.
            UsageError: a partition is named twice, or a column does not exist.
        """
        versions = self.read_versions(partitions)
        found = [
            self.table_named(name).rows_of(own, versions[name], newest_first=True)
            for name, own in self.by_table(partitions).items()
        ]
        whole = arranged(found, sorted(named(partitions))) if found else self._no_rows()
        return selected(whole, columns, self.path)

    def newest_rows(self, known: Iterable[PartitionKey] = ()) -> "pa.Table":
        """All that the tables hold now, as any reader of Delta finds it; see `tables`."""
        import pyarrow as pa
        from deltalake import DeltaTable

        opened = [DeltaTable(self.table_named(name).path) for name in self.versions(known)]
        found = [table.to_pyarrow_table() for table in opened]
        return pa.concat_tables([self._no_rows(), *found], promote_options="default")

    def _no_rows(self) -> "pa.Table":
        if self.is_one_table():
            table = self.table_named(ONE)
            return arranged([table.rows_of({}, table.version() or 0)], [])
        schema = self._types.schema()
        if schema is None:
            raise RefusedError(f"{self.path} holds no table yet; materialize a partition of it")
        return schema.empty_table()


def quoted(key: str) -> str:
    """A key as part of a folder's name: letters and digits, `-`, `_` and `.` stand for themselves.

    Each other byte of its UTF-8 is `=` and two hexadecimal digits. A `%` would be taken for a
    quotation once more where the folder is part of an address.
    """
    plain = _PLAIN.__contains__
    return "".join(chr(b) if plain(b) else f"={b:02X}" for b in key.encode())


def found_dataset(path: str) -> Dataset:
    """The dataset in a local folder, whatever its keys are called."""
    folders = table_folders(path)
    return Dataset(path, folders[0].partition("=")[0] if folders else "key")


def _has_log(path: str) -> bool:
    try:
        with os.scandir(f"{path}/{LOG}") as entries:
            return any(True for _ in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_table(path: str) -> bool:
    from deltalake import DeltaTable

    return DeltaTable.is_deltatable(path)
