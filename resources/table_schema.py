"""The columns of a Delta table: made with it, added later, and never of another type."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from platform_assets.domain.errors import RefusedError
from resources.delta import (
    CHECKPOINT_INTERVAL,
    LOG,
    first_configuration,
    newest_table,
    open_table,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

_CONFIGURATION: Mapping[str, str | None] = {
    # A registered model pins the versions that it was trained on: nothing may expire.
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 5200 weeks",
    "delta.deletedFileRetentionDuration": "interval 5200 weeks",
    # Partitions are found by their values; statistics of the columns would only swell the log.
    "delta.dataSkippingNumIndexedCols": "0",
    "delta.checkpointInterval": str(CHECKPOINT_INTERVAL),
}

LAYOUT = "signalbox.tables"
"""Property of the table of columns: what each table of the dataset holds of a key."""

MONTH, YEAR = "month", "year"
"""What it may be. A dataset whose table of columns does not say so was begun with years."""

SPANS = {MONTH: len("2013-01"), YEAR: len("2013")}
"""How much of a date stands in the name of a table."""

_ATTEMPTS = 5


def create_table(
    path: str,
    schema: "pa.Schema",
    partition_by: list[str],
    properties: Mapping[str, str] | None = None,
) -> "DeltaTable":
    """Create a table, or open the one that another process has created meanwhile.

    Args:
        path: a folder, or a URL.
        schema: its columns.
        partition_by: which of them it is partitioned by.
        properties: of its own, which Delta does not know.
    """
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        return DeltaTable.create(
            path,
            Schema.from_arrow(schema),
            partition_by=partition_by,
            configuration={**_CONFIGURATION, **(properties or {})},
            raise_if_key_not_exists=not properties,
            # Of two creations at once delta-rs would commit the second as version 1, and its
            # columns would replace those of the first.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except (CommitFailedError, DeltaError):
        table = open_table(path)
        if table is None:
            raise
        return table


def schema_differs(path: str, table: "DeltaTable", schema: "pa.Schema") -> bool:
    """Whether a table has other columns than these.

    Raises:
        RefusedError: one has another type in the table.
    """
    there = _columns(table)
    for field in schema:
        kind = there.get(field.name, field.type)
        if kind != field.type:
            raise RefusedError(
                f"column {field.name!r} is {field.type} now, but {kind} in {path}, whose "
                "older versions models were trained on; give the column another name"
            )
    return set(there) != set(schema.names)


def _columns(table: "DeltaTable") -> "dict[str, pa.DataType]":
    import pyarrow as pa

    return {field.name: field.type for field in pa.schema(table.schema().to_arrow())}


def table_folders(path: str) -> list[str]:
    """The names of the tables of keys in a dataset's local folder."""
    found = [log for span in SPANS for log in Path(path).glob(f"*=*/{span}=*/{LOG}")]
    return sorted(log.parent.relative_to(path).as_posix() for log in found)


def begun_with(path: str) -> str:
    """What each table of a dataset holds of a key that has no table of columns to say so.

    Nothing was committed to it yet; or, on a disk, that table is gone and the others are there.
    """
    if "://" in path:
        return MONTH
    return YEAR if any(f"/{YEAR}=" in name for name in table_folders(path)) else MONTH


class ColumnTypes:
    """The columns that any table of a dataset ever had, as a Delta table without rows.

    It is asked before a table is made and before one gets a column: what is read from several
    tables at once must have one type a column. A column stays in it, also where the commit that
    it was admitted for failed.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def layout(self) -> str | None:
        """What each table of the dataset holds of a key; None if no table was made yet.

        It is said as this table is made, before any other and by one writer.

        Raises:
            RefusedError: something that this version does not know.
        """
        found = first_configuration(self.path)
        if found is None:
            table = newest_table(self.path)
            if table is None:
                return None
            found = table.metadata().configuration
        said = found.get(LAYOUT) or YEAR
        if said not in SPANS:
            raise RefusedError(
                f"each table of the dataset of {self.path} holds a {said} of a key, says its "
                f"property {LAYOUT}; this version of Signalbox knows {MONTH} and {YEAR}: work "
                "with the version that made the dataset"
            )
        return said

    def admit(self, schema: "pa.Schema") -> None:
        """Take the columns of a schema in.

        Raises:
            RefusedError: one has another type already.
            CommitFailedError: others took theirs in, each time.
        """
        from deltalake import Schema
        from deltalake.exceptions import CommitFailedError

        for left in reversed(range(_ATTEMPTS)):
            table = newest_table(self.path) or create_table(
                self.path, schema, [], {LAYOUT: begun_with(self.path.rpartition("/")[0])}
            )
            schema_differs(self.path, table, schema)
            there = _columns(table)
            new = [f for f in Schema.from_arrow(schema).fields if f.name not in there]
            try:
                if new:
                    table.alter.add_columns(new)
                return
            except CommitFailedError:
                if not left:
                    raise

    def schema(self) -> "pa.Schema | None":
        """The columns and their types; None if no table was made yet."""
        import pyarrow as pa

        table = newest_table(self.path)
        return None if table is None else pa.schema(table.schema().to_arrow())
