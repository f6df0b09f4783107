"""The columns of a source: what a file may have in their place, and what they are read as."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from platform_assets.domain.source_spec import SourceSpec

_EXPECTED = {
    "string": "string",
    "int": "a whole number of at most 64 bits",
    "float": "float",
    "bool": "bool",
    "timestamp": "timestamp with timezone UTC",
}


def arrow_type(declared: str) -> pa.DataType:
    """The Arrow type that a declared column is read as."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    return types[declared]


def arrow_schema(source: SourceSpec) -> pa.Schema:
    """The declared columns of a source, in their order."""
    import pyarrow as pa

    return pa.schema([(name, arrow_type(c.type)) for name, c in source.columns.items()])


def schema_problem(schema: pa.Schema, source: SourceSpec) -> str | None:
    """Why the columns of a file are not those of its source; None if they are."""
    problems = []
    for name, column in source.columns.items():
        found = schema.get_all_field_indices(name)
        if not found:
            problems.append(f"column {name} is missing, {_EXPECTED[column.type]} is expected")
        elif len(found) > 1:
            problems.append(f"column {name} is there {len(found)} times, once is expected")
        elif not _compatible(schema.field(found[0]).type, column.type):
            problems.append(
                f"column {name} is {schema.field(found[0]).type}, {_EXPECTED[column.type]} is "
                "expected"
            )
    return "; ".join(problems) or None


def _compatible(found: pa.DataType, declared: str) -> bool:
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_null(found):
        return True  # what pandas writes for a column without any value
    if kinds.is_dictionary(found):
        found = found.value_type
    match declared:
        case "string":
            return bool(kinds.is_string(found) or kinds.is_large_string(found))
        case "int":
            return bool(kinds.is_integer(found) and not kinds.is_uint64(found))
        case "float":
            # Whole numbers widen: an hour whose values are all whole is often written so.
            return bool(kinds.is_floating(found) or kinds.is_integer(found))
        case "bool":
            return bool(kinds.is_boolean(found))
        case _:
            return bool(kinds.is_timestamp(found) and found.tz in ("UTC", "Etc/UTC", "+00:00"))


def cast_to(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table that `schema_problem` found nothing wrong with, in the declared types.

    Raises:
        ValueError: a value does not fit.
    """
    import pyarrow as pa

    columns = []
    for field in schema:
        column = table.column(field.name)
        # Nanoseconds lose what microseconds cannot hold; every other loss is an error.
        safe = not (pa.types.is_timestamp(column.type) and column.type.unit == "ns")
        columns.append(column.cast(field.type, safe=safe))
    return pa.table(columns, schema=schema)
