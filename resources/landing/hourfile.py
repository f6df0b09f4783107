"""One hour's Parquet file: judged when it arrives, read as its spec says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from resources.landing.rawfile import printable, read_raw
from resources.landing.schema import arrow_schema, cast_to, schema_problem
from resources.landing.values import EPOCH, HOUR_US, ValueRules, hour_clause, nulls_clause

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyarrow as pa

    from platform_assets.domain.source_spec import SourceSpec

_JUDGING = 1
"""To be raised when files are judged otherwise by the same rules: then refused ones are looked at
again."""

UNPACKED = 8
"""How many times `max_hour_bytes` the rows of a file may take in memory."""


class UnreadableError(Exception):
    """The rows of a file could not be had; the text says why."""


@dataclass(frozen=True)
class Inspection:
    """What one look at a file told: its identity and, where it is refused, why.

    Attributes:
        digest: SHA-256 of `content`; empty where it was not read.
        content: the bytes that were judged; None where they were not read.
        table: the rows, where they are still to be judged by the source's rules for values.
    """

    size: int
    mtime_ns: int
    rows: int
    rejected: str | None
    digest: str = ""
    content: bytes | None = field(default=None, repr=False)
    table: pa.Table | None = field(default=None, repr=False)


class HourFormat:
    """Writes, judges and reads the hourly files of one source."""

    def __init__(self, source: SourceSpec) -> None:
        self.source = source
        self._required = [name for name, column in source.columns.items() if not column.nullable]
        # Of a source without rules for values no more is looked at before it is read.
        self._judged = list(dict.fromkeys([source.time_column, *self._required]))
        self.rules = f"rules:{_JUDGING}:{source.rules_digest[:16]}"
        self.values = ValueRules(source) if source.has_value_rules else None
        # The schema that was accepted last: files of one producer hardly ever differ in it.
        self._accepted: _Accepted | None = None

    @cached_property
    def _schema(self) -> pa.Schema:
        return arrow_schema(self.source)

    def encode(self, table: pa.Table) -> bytes:
        """A table as Parquet bytes, set for a few rows: no dictionaries, no compression.

        Measured on an hour of flights (13 rows): 0.3 ms and 2.9 kB, against 0.5 ms and 4.7 kB
        with the defaults; zstd saves 0.5 kB and costs 0.15 ms. Checksums of the pages tell
        bytes that have changed; statistics stand where other readers may want them.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        judged = dict.fromkeys([self.source.time_column, *self._required])
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="none",
            use_dictionary=False,
            write_statistics=[name for name in judged if name in table.column_names] or False,
            store_schema=False,
            write_page_checksum=True,
        )
        return bytes(sink.getvalue())

    # --- arrival ----------------------------------------------------------------------------

    def inspect(self, path: Path | str, hour: datetime, boundary: str | None = None) -> Inspection:
        """Judge a file by its footer and its rows, but for the source's rules for values.

        Args:
            path: of the file.
            hour: that its rows must belong to.
            boundary: real path of the folder that it must lie in; None: anywhere.

        Raises:
            FileNotFoundError: it is gone.
            ChangedError: it changed while it was read.
        """
        raw = read_raw(path, self.source.contract.max_hour_bytes, boundary)
        content = raw.content
        if content is None:
            return Inspection(raw.size, raw.mtime_ns, 0, raw.refused)
        try:
            rows, table, problem = self._judge(content, hour)
        except _damage() as error:
            rows, table = 0, None
            problem = (
                "no readable Parquet file, it may have been cut off or damaged "
                f"({_first_line(error)})"
            )
        digest = hashlib.sha256(content).hexdigest()
        return Inspection(raw.size, raw.mtime_ns, rows, problem, digest, content, table)

    def _judge(self, content: bytes, hour: datetime) -> tuple[int, pa.Table | None, str | None]:
        """Number of rows, the rows if they are to be judged further, and why it is refused."""
        import pyarrow as pa

        if not content:
            return 0, None, "the file has 0 bytes; an hour without rows is a Parquet file of 0 rows"
        file = _open(content)
        rows = file.metadata.num_rows
        problem = self._problem(file.metadata) or self._size_problem(file.metadata, content)
        if problem is not None:
            return 0, None, problem
        # Of the footer's columns nothing is asked here, no statistics either: where their metadata
        # are damaged, pyarrow ends the whole process instead of raising.
        if self.values is not None:
            return rows, self._decode(file, self._schema), None
        judged = pa.schema([self._schema.field(name) for name in self._judged])
        return rows, None, self._rows_problem(self._decode(file, judged), hour)

    def _problem(self, footer: Any) -> str | None:
        """Why the columns of a file are not those of its source; None if they are."""
        if self._accepted is not None and self._accepted.covers(footer):
            return None
        problem = schema_problem(footer.schema.to_arrow_schema(), self.source)
        if problem is None:
            self._accepted = _Accepted(
                schema=footer.schema,
                metadata=footer.metadata,
                leaves={footer.schema.column(i).path: i for i in range(len(footer.schema))},
                exact=footer.schema.names == list(self.source.columns),
            )
        return problem

    def _size_problem(self, footer: Any, content: bytes) -> str | None:
        """Why the rows of a file are not decoded: they would be too many, or fill the memory."""
        contract, rows = self.source.contract, footer.num_rows
        if not 0 <= rows <= contract.max_hour_rows:
            return f"{rows} rows, at most {contract.max_hour_rows} are allowed (max_hour_rows)"
        limit = UNPACKED * contract.max_hour_bytes
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        sizes = [group.total_byte_size for group in groups]
        if any(size < 0 for size in sizes) or sum(sizes) > limit:
            return (
                f"the footer tells of {sum(sizes)} bytes when unpacked, at most {limit} are "
                f"allowed ({UNPACKED} times max_hour_bytes)"
            )
        # No value is longer than all of it: most files need no closer look.
        if rows * max(sum(sizes), len(content)) > limit:
            length = _length_of_strings(content, self.source)
            if length > limit:
                return (
                    f"the strings take {length} bytes when unpacked, at most {limit} are allowed "
                    f"({UNPACKED} times max_hour_bytes)"
                )
        return None

    def _rows_problem(self, table: pa.Table, hour: datetime) -> str | None:
        """Rows of another hour, and nulls where the spec has none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        nulls = {name: table[name].null_count for name in self._required}
        span = pc.min_max(table[self.source.time_column].cast(pa.int64())).as_py()
        return _nulls_problem(nulls, table.num_rows) or _hour_problem(
            self.source.time_column, span["min"], span["max"], hour
        )

    # --- rows -------------------------------------------------------------------------------

    def read(self, content: bytes, hour: datetime) -> pa.Table:
        """The declared columns of a file, in their order and types.

        Args:
            content: of a file that was accepted.
            hour: that its rows must belong to.

        Raises:
            UnreadableError: damaged pages, columns that are not the spec's, values that do not
                fit their types, rows of another hour.
        """
        try:
            file = _open(content)
            problem = self._problem(file.metadata) or self._size_problem(file.metadata, content)
            if problem is None:
                table = self._decode(file, self._schema)
                problem = self._rows_problem(table, hour)
        except _damage() as error:
            raise UnreadableError(_first_line(error)) from error
        if problem is not None:
            raise UnreadableError(problem)
        return table

    def _decode(self, file: Any, schema: pa.Schema) -> pa.Table:
        """Some declared columns, in their types."""
        accepted = self._accepted
        assert accepted is not None
        exact = accepted.exact and schema is self._schema
        if exact:
            # What `ParquetFile.read` does with all columns, without working their places out.
            table = file.reader.read_all(use_threads=False)
        else:
            table = file.read(columns=schema.names, use_threads=False)
        if table.num_rows != file.metadata.num_rows:
            raise ValueError(
                f"{table.num_rows} rows where the footer tells of {file.metadata.num_rows}"
            )
        if not accepted.proven.issuperset(schema.names):
            try:
                _require_agreement(file.metadata, [accepted.leaves[name] for name in schema.names])
            except ValueError:
                self._accepted = None
                raise
            accepted.proven.update(schema.names)
        if not exact:
            table = table.select(schema.names)
        if not table.schema.equals(schema):
            table = cast_to(table, schema)
        table.validate(full=True)  # strings that are no UTF-8
        return table


@dataclass(frozen=True)
class _Accepted:
    """A schema that was found right.

    Attributes:
        leaves: where each column is in it.
        exact: whether it has the declared columns, in their order, and no others.
        proven: columns of which the row groups of a file have told the same type.
    """

    schema: Any
    metadata: dict[bytes, bytes] | None
    leaves: dict[str, int]
    exact: bool
    proven: set[str] = field(default_factory=set)

    def covers(self, footer: Any) -> bool:
        # The metadata too: types such as a duration are told by it alone.
        return bool(self.schema.equals(footer.schema)) and footer.metadata == self.metadata


def _require_agreement(footer: Any, leaves: Iterable[int]) -> None:
    """Refuse a footer whose schema and row groups disagree on a type, as after a flipped bit.

    Numbers that are read as another type than they were written in are other numbers, and no
    checksum of a page tells. To be asked only of columns that could be read, see `_judge`.

    Raises:
        ValueError: they disagree.
    """
    for leaf in leaves:
        declared = footer.schema.column(leaf)
        for number in range(footer.num_row_groups):
            found = footer.row_group(number).column(leaf).physical_type
            if found != declared.physical_type:
                raise ValueError(
                    f"column {declared.path} is {declared.physical_type} by the footer's schema "
                    f"and {found} by its row groups"
                )


def _nulls_problem(nulls: dict[str, int], rows: int) -> str | None:
    problems = [nulls_clause(name, count, rows) for name, count in nulls.items() if count]
    return "; ".join(problems) or None


def _hour_problem(
    name: str, earliest: int | None, latest: int | None, hour: datetime
) -> str | None:
    """Instants in microseconds since the epoch."""
    start = _since_1970(hour)
    if earliest is None or latest is None or start is None:
        return None
    if start <= earliest and latest < start + HOUR_US:
        return None
    return hour_clause(name, earliest, latest)


def _since_1970(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - EPOCH) // timedelta(microseconds=1)


def _open(content: bytes) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)


def _length_of_strings(content: bytes, source: SourceSpec) -> int:
    """Bytes of all strings, without unpacking them: a dictionary may hold one of a megabyte."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = [name for name, column in source.columns.items() if column.type == "string"]
    if not names:
        return 0
    file = pq.ParquetFile(
        pa.BufferReader(content), page_checksum_verification=True, read_dictionary=names
    )
    total = 0
    for column in file.read(columns=names, use_threads=False).columns:
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type):
                lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
                total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


def _damage() -> tuple[type[BaseException], ...]:
    """What pyarrow raises on a damaged file."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


def _first_line(error: BaseException) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0][:200])
