"""One hour's Parquet file: judged when it arrives, read as its spec says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from resources.landing.rawfile import printable, read_raw
from resources.landing.schema import arrow_schema, cast_to, schema_problem
from resources.landing.values import EPOCH, HOUR, ValueRules, hour_clause, nulls_clause

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

    from platform_assets.domain.source_spec import SourceSpec

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
        self.values = ValueRules(source) if source.has_value_rules else None
        # The schema that was accepted last: files of one producer hardly ever differ in it.
        self._accepted: _Accepted | None = None

    @cached_property
    def _schema(self) -> pa.Schema:
        return arrow_schema(self.source)

    def encode(self, table: pa.Table) -> bytes:
        """A table as Parquet bytes, set for a few rows: no dictionaries, no compression.

        Measured on an hour of flights (13 rows): 0.3 ms and 2.9 kB, against 0.5 ms and 4.7 kB
        with the defaults; zstd saves 0.5 kB and costs 0.15 ms. Statistics go where `inspect`
        reads them.
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

    def inspect(self, path: Path, hour: datetime, boundary: str | None = None) -> Inspection:
        """Judge a file by its footer; its rows are decoded where the source has rules for values.

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
        if not content:
            return 0, None, "the file has 0 bytes; an hour without rows is a Parquet file of 0 rows"
        file = _open(content)
        rows = file.metadata.num_rows
        problem = self._problem(file.metadata) or self._size_problem(file.metadata, content)
        if problem is not None:
            return 0, None, problem
        if self.values is not None:
            # The rows tell what the footer's statistics would, and cannot be wrong about it.
            return rows, self._decode(file), None
        return rows, None, self._rows_problem(file, hour) if rows else None

    def _problem(self, footer: Any) -> str | None:
        """Why the columns of a file are not those of its source; None if they are."""
        if self._accepted is not None and self._accepted.covers(footer):
            return None
        problem = schema_problem(footer.schema.to_arrow_schema(), self.source)
        if problem is None:
            leaves = {footer.schema.column(i).path: i for i in range(len(footer.schema))}
            self._accepted = _Accepted(
                schema=footer.schema,
                metadata=footer.metadata,
                time=leaves[self.source.time_column],
                required=tuple((name, leaves[name]) for name in self._required),
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

    def _rows_problem(self, file: Any, hour: datetime) -> str | None:
        """Rows of another hour, and nulls where the spec has none, as the statistics tell."""
        assert self._accepted is not None
        footer = file.metadata
        earliest = latest = None
        nulls = dict.fromkeys(self._required, 0)
        for i in range(footer.num_row_groups):
            group = footer.row_group(i)
            if group.num_rows == 0:
                continue
            times = group.column(self._accepted.time).statistics
            if times is None or not times.has_min_max:
                return self._decoded_problem(self._decode(file), hour)
            low, high = times.min, times.max
            earliest = low if earliest is None else min(earliest, low)
            latest = high if latest is None else max(latest, high)
            for name, leaf in self._accepted.required:
                statistics = group.column(leaf).statistics
                if statistics is None or not statistics.has_null_count:
                    return self._decoded_problem(self._decode(file), hour)
                nulls[name] += statistics.null_count
        return _nulls_problem(nulls, footer.num_rows) or _hour_problem(
            self.source.time_column, _since_1970(earliest), _since_1970(latest), hour
        )

    def _decoded_problem(self, table: pa.Table, hour: datetime) -> str | None:
        """Rows of another hour, and nulls where the spec has none, as the rows tell."""
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
                table = self._decode(file)
                if self.values is None:  # its statistics were believed, and may be wrong
                    problem = self._decoded_problem(table, hour)
        except _damage() as error:
            raise UnreadableError(_first_line(error)) from error
        if problem is not None:
            raise UnreadableError(problem)
        return table

    def _decode(self, file: Any) -> pa.Table:
        assert self._accepted is not None
        names = None if self._accepted.exact else self._schema.names
        table = file.read(columns=names, use_threads=False)
        if table.num_rows != file.metadata.num_rows:
            raise ValueError(
                f"{table.num_rows} rows where the footer tells of {file.metadata.num_rows}"
            )
        if not self._accepted.exact:
            table = table.select(names)
        if not table.schema.equals(self._schema):
            table = cast_to(table, self._schema)
        table.validate(full=True)  # strings that are no UTF-8
        return table


@dataclass(frozen=True)
class _Accepted:
    """A schema that was found right, and where the judged columns are in it."""

    schema: Any
    metadata: dict[bytes, bytes] | None
    time: int
    required: Sequence[tuple[str, int]]
    exact: bool
    """Whether the file has the declared columns, in their order, and no others."""

    def covers(self, footer: Any) -> bool:
        # The metadata too: types such as a duration are told by it alone.
        return bool(self.schema.equals(footer.schema)) and footer.metadata == self.metadata


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
    if start <= earliest and latest < start + HOUR:
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
