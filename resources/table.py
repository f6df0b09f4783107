"""One Delta table of a dataset: each partition is replaced by one atomic commit.

A partition is a key (an airport) and a date. What it holds is named by `content_digest`, never by
where it lies: compaction, another file layout or another order of the rows keep the name.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from platform_assets.domain.errors import SignalboxError, TransientError, UsageError
from platform_assets.domain.partition import PartitionKey
from resources.content import content_digest, is_text
from resources.delta import (
    CHECKPOINT_INTERVAL,
    column,
    is_storable,
    literal,
    newest_table,
    translated,
)
from resources.files import Files
from resources.table_reader import DATE, ReadableTable
from resources.table_schema import ColumnTypes, create_table, schema_differs

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

_CONFLICT_ATTEMPTS = 5
_FENCE = "signalbox.fence"


@dataclass(frozen=True)
class Commit:
    """What became of one commit.

    Attributes:
        data_version: content digest of the rows, 64 hexadecimal digits.
        table_version: the Delta version that holds them; None if nothing was written, since the
            partition held these rows already.
        rows: how many there are.
        changed: whether a version was written.
    """

    data_version: str
    table_version: int | None
    rows: int
    changed: bool


class DatasetTable(ReadableTable):
    """A Delta table partitioned by a key column and `date`.

    An object is a name and may be sent to another process; what it has open belongs to the thread
    that opened it. A process that has used a table must not fork: delta-rs refuses to work in the
    child (spawn it, or fork from a process that has only imported it).
    """

    def __init__(self, path: Path | str, key_column: str, types: ColumnTypes | None = None) -> None:
        """Name a table.

        Args:
            path: a folder, or a URL.
            key_column: by which it is partitioned, beside `date`.
            types: of the dataset that it is a part of, asked before it gets a column.
        """
        super().__init__(path, key_column)
        self.types = types

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
        """Replace one partition by these rows, all or nothing.

        Zero rows are a version like any other: whoever reads it reads zero rows. Of two writers
        on one partition the later one wins, as a whole.

        The commit is made against the version that the guard was asked for, or not at all: where
        somebody has changed the partition since, Delta refuses it, and the guard is asked again.
        So a writer that slept between its guard and its commit overwrites nothing that was
        written meanwhile.

        Args:
            partition: a key and a date; each row must carry both.
            table: the rows, with the key column and `date`.
            previous: digest of the rows that the partition is known to hold; if these are they,
                nothing is written.
            guard: raises if this writer may not write any more.
            token: of the lease that it writes under; stands in the commit.
            fence: another writer may still be at it, though it may not write any more: write a
                version that it conflicts with, even if the partition holds these rows already.

        Raises:
            UsageError: rows of another partition, or of a type that a dataset does not hold.
            RefusedError: a column has another type in the table.
            TransientError: the disk is full, or other writers won each time.
            HomeError: the folder may not be written.
        """
        rows = self._storable(partition, table)
        digest = content_digest(rows)
        if digest == previous and not fence and self.stands(partition, rows.num_rows):
            return Commit(digest, None, rows.num_rows, changed=False)
        from deltalake.exceptions import CommitFailedError

        for _ in range(_CONFLICT_ATTEMPTS):
            try:
                opened = newest_table(self.path) or self._create(rows.schema)
                guard()
                version = self._overwrite(opened, partition, rows, digest, token)
                if fence and rows.num_rows == 0:
                    # Nothing added and maybe nothing removed: Delta would see no conflict in that,
                    # but does in a change of the table's properties.
                    opened.alter.set_table_properties(
                        {_FENCE: f"{partition} {token}"}, raise_if_not_exists=False
                    )
            except CommitFailedError as error:
                full = translated(error, self.path)
                if full is not None:
                    raise full from error
            except SignalboxError:
                raise
            except Exception as error:
                known = translated(error, self.path)
                if known is None:
                    raise
                raise known from error
            else:
                return Commit(digest, version, rows.num_rows, changed=True)
        raise TransientError(
            f"partition {partition} of {self.path} could not be committed: other writers changed "
            f"it {_CONFLICT_ATTEMPTS} times meanwhile; one run at a time may build a partition, "
            "try again when the others have ended"
        )

    def stands(self, partition: PartitionKey, rows: int) -> bool:
        """Whether the table still has a partition, and its files are there.

        A table on S3 is opened for it, and each file is a request.
        """
        table = newest_table(self.path)
        if table is None or rows == 0:
            return table is not None
        own = [(self.key_column, "=", partition.key or ""), (DATE, "=", str(partition.date))]
        names = [uri.removeprefix(self.path).lstrip("/") for uri in table.file_uris(own)]
        files = Files(self.path)
        return bool(names) and all(map(files.has, names))

    # --- writing ------------------------------------------------------------------------------

    def _storable(self, partition: PartitionKey, table: "pa.Table") -> "pa.Table":
        import pyarrow as pa
        import pyarrow.compute as pc

        if partition.key is None:
            raise UsageError(f"{partition} has no {self.key_column}; as in JFK|2013-01-05")
        fields = []
        for field in table.schema:
            kind = pa.string() if is_text(field.type) else field.type
            if not is_storable(kind):
                raise UsageError(
                    f"column {field.name!r} is of type {kind}; a dataset holds text, booleans, "
                    "signed integers, floats, dates, and timestamps in microseconds, UTC"
                )
            fields.append(pa.field(field.name, kind))
        rows = table.cast(pa.schema(fields))
        for name, value in ((self.key_column, partition.key), (DATE, partition.date)):
            if name not in rows.column_names:
                raise UsageError(f"rows for {partition} lack the partition column {name!r}")
            own = pc.all(pc.fill_null(pc.equal(rows[name], pa.scalar(value)), False)).as_py()
            if rows.num_rows and not own:
                raise UsageError(f"rows for {partition} hold another {name} than {value}")
        return rows

    def _overwrite(
        self,
        table: "DeltaTable",
        partition: PartitionKey,
        rows: "pa.Table",
        digest: str,
        token: int | None,
    ) -> int:
        from deltalake import CommitProperties, PostCommitHookProperties, write_deltalake
        from deltalake.exceptions import DeltaError

        merge = schema_differs(self.path, table, rows.schema)
        if merge and self.types is not None:
            self.types.admit(rows.schema)
        write_deltalake(
            table,
            rows,
            mode="overwrite",
            predicate=f"{column(self.key_column)} = {literal(partition.key or '')} "
            f"AND {column(DATE)} = DATE '{partition.date}'",
            schema_mode="merge" if merge else None,
            commit_properties=CommitProperties(
                custom_metadata={
                    "signalbox.partition": str(partition),
                    "signalbox.digest": digest,
                    "signalbox.columns": rows.column_names,
                    **({} if token is None else {"signalbox.token": token}),
                },
                max_commit_retries=200,
            ),
            post_commithook_properties=PostCommitHookProperties(
                create_checkpoint=False, cleanup_expired_logs=False
            ),
        )
        version = table.version()
        if version % CHECKPOINT_INTERVAL == 0:
            # The commit stands by now. A checkpoint makes opening faster and nothing else, so a
            # failure of it (a full disk) must not look like a failed commit.
            with suppress(DeltaError, OSError):
                table.create_checkpoint()
        return version

    def _create(self, schema: "pa.Schema") -> "DeltaTable":
        """Create the table, or open the one that another process has created meanwhile."""
        if self.types is not None:
            self.types.admit(schema)
        return create_table(self.path, schema, [self.key_column, DATE])
