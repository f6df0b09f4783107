"""The content digest: a name for the rows of a table that says what they are, not where."""

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SCHEME = b"signalbox-rows-1"


def content_digest(table: "pa.Table") -> str:
    """SHA-256 over the rows of a table, as 64 hexadecimal digits.

    The table counts as a multiset of rows with named, typed columns. So the order of rows and
    columns, chunks and files do not matter; a changed cell, a null in the place of a value or of
    NaN, a row more or less, a renamed column and another type do.

    Scheme `signalbox-rows-1`: a header (scheme, number of rows, number of columns and, in the
    order of their names, each column's name and logical type, all with their lengths before
    them), then the rows, each encoded at a fixed width and sorted by its bytes. A cell is one
    byte, 0 for null or 1, and a payload, zero for null: numbers, dates and timestamps are their
    little-endian bytes (each NaN the same one, -0.0 not 0.0), text is the SHA-256 of its UTF-8.
    Text is `string` however Arrow lays it out (large, view, dictionary).

    Args:
        table: columns of text, booleans, integers, floats, dates, timestamps.

    Raises:
        UsageError: a column of another type, or two columns of one name.
    """
    encoded = EncodedRows.of(table)
    return encoded.digest(encoded.rows)


@dataclass(frozen=True)
class EncodedRows:
    """The columns of a table as a header, its rows as byte strings of one width (uint8, n x w)."""

    columns: bytes
    rows: "np.ndarray"

    @classmethod
    def of(cls, table: "pa.Table") -> "EncodedRows":
        import numpy as np

        names = sorted(table.column_names)
        if len(set(names)) != len(names):
            raise UsageError(f"a table with two columns of one name has no digest: {names}")
        parts = [struct.pack("<I", len(names))]
        cells = []
        for name in names:
            kind, valid, payload = _encode_column(name, table.column(name))
            parts += [_prefixed(name.encode()), _prefixed(kind.encode())]
            cells.append((valid, payload))
        width = sum(1 + payload.shape[1] for _, payload in cells)
        rows = np.empty((table.num_rows, width), dtype=np.uint8)
        at = 0
        for valid, payload in cells:
            rows[:, at] = valid
            rows[:, at + 1 : at + 1 + payload.shape[1]] = payload
            at += 1 + payload.shape[1]
        return cls(b"".join(parts), rows)

    def digest(self, rows: "np.ndarray") -> str:
        """The digest of some of the rows."""
        import numpy as np

        hasher = hashlib.sha256(_prefixed(SCHEME) + struct.pack("<Q", len(rows)) + self.columns)
        if rows.size:
            hasher.update(np.sort(_as_records(rows)).tobytes())
        return hasher.hexdigest()

    def order(self, rows: "np.ndarray") -> "np.ndarray":
        """The positions of some of the rows, in the order of their bytes."""
        import numpy as np

        if not rows.size:
            return np.arange(len(rows))
        return np.argsort(_as_records(rows), kind="stable")


def _as_records(rows: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()


def _prefixed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _encode_column(name: str, column: "pa.ChunkedArray") -> tuple[str, Any, "np.ndarray"]:
    """Logical type, validity (n, or 1 for all), payload (n x width, uint8)."""
    import numpy as np
    import pyarrow as pa

    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # a column without any chunk
        array = pa.array([], column.type)
    kind = array.type
    valid: Any = 1
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
    if is_text(kind):
        if not pa.types.is_dictionary(kind):
            array = array.dictionary_encode()
        words = [] if len(array) == 0 else array.dictionary.to_pylist()
        hashes = b"".join(hashlib.sha256((word or "").encode()).digest() for word in words)
        table = np.frombuffer(hashes, np.uint8).reshape(len(words), 32)
        if isinstance(valid, int):
            return "string", valid, table[array.indices.to_numpy(zero_copy_only=False)]
        positions = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        payload = table[positions] if words else np.zeros((len(array), 32), np.uint8)
        payload[~valid] = 0
        return "string", valid, payload
    if not is_plain(kind):
        raise UsageError(
            f"column {name!r} is of type {kind}; a dataset holds text, booleans, integers, "
            "floats, dates and timestamps"
        )
    if pa.types.is_boolean(kind):
        values = array.cast(pa.uint8())
    elif pa.types.is_temporal(kind):
        values = array.view(pa.int32() if pa.types.is_date32(kind) else pa.int64())
    else:
        values = array
    numbers = (values.fill_null(0) if array.null_count else values).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        odd = np.isnan(numbers)
        if odd.any():
            numbers = np.where(odd, numbers.dtype.type(np.nan), numbers)
    payload = np.ascontiguousarray(numbers).view(np.uint8)
    return str(kind), valid, payload.reshape(len(array), numbers.dtype.itemsize)


def is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_float32(kind)
        or types.is_float64(kind)
        or types.is_date32(kind)
        or types.is_timestamp(kind)
    )
