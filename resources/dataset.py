"""Rows of a dataset partition: source rows, joined, filtered, derived, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.partition import local_hours
from platform_assets.domain.spec import PipelineSpec, names_in
from resources.columns import DATE, RELEVANCE, OutputColumn, output_columns
from resources.expressions import Columns, nullable, without_nan

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["BuiltRows", "OutputColumn", "build_rows", "output_columns"]

_EXAMPLES = 3


@dataclass(frozen=True)
class BuiltRows:
    """The rows of one partition, and what became of the source rows.

    Attributes:
        table: columns as in `output_columns`, sorted by time and the unique columns.
        excluded: rows left out, by rule; a row counts under the first rule that it meets.
        rows_in: rows of the source.
        unmatched: rows of the table to which some join found no row.
    """

    table: "pa.Table"
    excluded: dict[str, int]
    rows_in: int
    unmatched: int


@dataclass(frozen=True)
class _Plan:
    """What follows from a spec once, for all of its partitions."""

    columns: tuple[OutputColumn, ...]
    schema: "pa.Schema"
    checked: tuple[str, ...]
    late_unique: tuple[str, ...]
    read: tuple[str, ...]
    contract: Any


_PLANS: list[tuple[PipelineSpec, _Plan]] = []


def build_rows(
    spec: PipelineSpec, key: str, day: date, sources: "Mapping[str, pa.Table]"
) -> BuiltRows:
    """Build the rows of one partition.

    Args:
        spec: the pipeline.
        key: partition key, such as JFK.
        day: calendar day in the pipeline's timezone.
        sources: for each source that the dataset reads, its rows of that key and day, with the
            columns of the spec.

    Raises:
        UsageError: a source is missing.
        RefusedError: the rows break the contract: a row of another day, a repeated row, a join
            that would multiply rows, an expression that fails, a value that must not be.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    plan = _plan(spec)
    origin = f"{spec.pipeline} {key}|{day}"
    dataset = spec.dataset
    table = _source(spec, dataset.rows, sources)
    time = spec.sources[dataset.rows].time_column
    _require_day(table[time], spec, day, origin)
    rows_in = table.num_rows
    matched = None
    for join in dataset.joins:
        table, hits = _join(spec, join.source, join.columns, table, time, sources, origin)
        matched = hits if matched is None else pc.and_(matched, hits)

    table = table.append_column(spec.partitions.key, _constant(key, pa.string(), rows_in))
    columns = Columns.of(table.select(plan.read), origin)
    for name, expression in dataset.derive.items():
        columns.series[name] = nullable(columns.evaluate(name, expression))
    kept, excluded = _exclude(spec, columns)
    if kept is not None:
        columns = columns.filter(kept)
        mask = pa.array(kept)
        table = table.filter(mask)
        matched = matched if matched is None else matched.filter(mask)

    target = dataset.target
    arrays: dict[str, Any] = {name: table[name] for name in table.column_names}
    arrays |= {name: columns.series[name] for name in dataset.derive}
    arrays[DATE] = _constant(day, pa.date32(), table.num_rows)
    arrays[target.name] = columns.evaluate(target.name, target.expression)
    if dataset.relevance is not None:
        arrays[RELEVANCE] = columns.evaluate(RELEVANCE, dataset.relevance)
    # The target becomes int8 only after its values have been checked.
    loose = {target.name: pa.float64()}
    built = pa.table(
        {
            name: _conform(
                arrays[name], loose.get(name, plan.schema.field(name).type), name, origin
            )
            for name in plan.schema.names
        }
    )
    checked = built.select(plan.checked)
    for name in plan.late_unique:
        checked = checked.append_column(name, table[name])
    _check(plan, checked, spec, origin)
    order = [(time, "ascending"), *((u, "ascending") for u in _known_unique(spec) if u != time)]
    built = built.cast(plan.schema)
    return BuiltRows(
        table=built.take(pc.sort_indices(built, sort_keys=order)),
        excluded=excluded,
        rows_in=rows_in,
        unmatched=0 if matched is None else len(matched) - (pc.sum(matched).as_py() or 0),
    )


def _plan(spec: PipelineSpec) -> _Plan:
    for known, plan in _PLANS:
        if known is spec:
            return plan
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "int8": pa.int8(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", "UTC"),
        "date": pa.date32(),
    }
    columns = tuple(output_columns(spec))
    dataset = spec.dataset
    unique = spec.sources[dataset.rows].unique
    names = [column.name for column in columns]
    late = tuple(name for name in unique if name not in names)
    expressions = [*dataset.exclude.values(), *dataset.derive.values(), dataset.target.expression]
    if dataset.relevance is not None:
        expressions.append(dataset.relevance)
    read = sorted(set().union(*(names_in(e) for e in expressions)) - set(dataset.derive))
    constant = (spec.partitions.key, DATE)
    checked = tuple(
        column.name
        for column in columns
        if column.name not in constant and (not column.nullable or column.name in unique)
    )
    plan = _Plan(
        columns=columns,
        schema=pa.schema([(column.name, types[column.type]) for column in columns]),
        checked=checked,
        late_unique=late,
        read=tuple(read),
        contract=_contract(spec, [c for c in columns if c.name in checked]),
    )
    _PLANS.append((spec, plan))
    del _PLANS[:-16]
    return plan


def _contract(spec: PipelineSpec, columns: list[OutputColumn]) -> Any:
    """What the rows must keep beyond their types, which the Arrow schema fixes."""
    import numpy as np
    import pandera.pandas as pa

    unique = spec.sources[spec.dataset.rows].unique
    checks = {}
    if spec.model.kind == "binary_classification":
        checks[spec.dataset.target.name] = pa.Check.isin([0, 1])
    else:
        checks[spec.dataset.target.name] = pa.Check(np.isfinite, error="is_finite")
    if spec.dataset.relevance is not None:
        checks[RELEVANCE] = pa.Check(
            lambda gains: np.isfinite(gains) & (gains >= 0), error="is_finite_and_not_negative"
        )
    return pa.DataFrameSchema(
        {
            column.name: pa.Column(None, checks.get(column.name), nullable=column.nullable)
            for column in columns
        },
        unique=list(unique) or None,
    )


def _known_unique(spec: PipelineSpec) -> list[str]:
    rows = spec.sources[spec.dataset.rows]
    return [name for name in rows.unique if rows.columns[name].known == "before"]


def _source(spec: PipelineSpec, name: str, sources: "Mapping[str, pa.Table]") -> "pa.Table":
    if name not in sources:
        raise UsageError(
            f"dataset of pipeline {spec.pipeline} reads source {name!r}, but was given "
            f"{', '.join(sorted(sources)) or 'none'}"
        )
    table = sources[name]
    missing = sorted(set(spec.sources[name].columns) - set(table.column_names))
    if missing:
        raise UsageError(
            f"source {name} of pipeline {spec.pipeline} was given without its column(s) "
            f"{', '.join(missing)}; all of {', '.join(spec.sources[name].columns)} are needed"
        )
    return table.select(list(spec.sources[name].columns))


def _constant(value: Any, kind: Any, rows: int) -> Any:
    import pyarrow as pa

    return pa.repeat(pa.scalar(value, kind), rows)


def _require_day(times: "pa.ChunkedArray", spec: PipelineSpec, day: date, origin: str) -> None:
    import pyarrow.compute as pc

    if len(times) == 0:
        return
    hours = local_hours(day, spec.partitions.timezone)
    span = pc.min_max(times).as_py()
    end = hours[-1] + timedelta(hours=1)
    if times.null_count or span["min"] < hours[0] or span["max"] >= end:
        raise RefusedError(
            f"{origin}: rows of source {spec.dataset.rows} have times from {span['min']} to "
            f"{span['max']} and {times.null_count} without one; a partition holds times from "
            f"{hours[0]} until before {end}, correct the landing files"
        )


def _join(
    spec: PipelineSpec,
    name: str,
    columns: tuple[str, ...],
    table: "pa.Table",
    time: str,
    sources: "Mapping[str, pa.Table]",
    origin: str,
) -> "tuple[pa.Table, pa.Array]":
    """Add columns of another source by time; a row that finds none keeps nulls."""
    import pyarrow.compute as pc

    other = _source(spec, name, sources)
    theirs = other[spec.sources[name].time_column]
    counts = pc.value_counts(theirs.drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = ", ".join(str(v) for v in repeated.field("values")[:_EXAMPLES].to_pylist())
        raise RefusedError(
            f"{origin}: source {name} has several rows for {len(repeated)} time(s), first {first}; "
            "one at most is allowed, since each would multiply the rows of "
            f"{spec.dataset.rows}; correct the landing files"
        )
    positions = pc.index_in(table[time], value_set=theirs.combine_chunks())
    positions = positions.combine_chunks()
    joined = other.select(list(columns)).take(positions)
    for column in columns:
        table = table.append_column(column, joined[column])
    return table, pc.is_valid(positions)


def _exclude(spec: PipelineSpec, columns: Columns) -> "tuple[Any, dict[str, int]]":
    """Which rows stay (None: all), and how many each rule leaves out."""
    import pandas as pd

    kept = None
    excluded = {}
    for name, expression in spec.dataset.exclude.items():
        met = columns.evaluate(name, expression)
        if not pd.api.types.is_bool_dtype(met.dtype):
            raise RefusedError(
                f"{columns.origin}: dataset.exclude.{name} = {expression} gives {met.dtype}; "
                "it must be true or false for each row"
            )
        hit = met.fillna(False).to_numpy(dtype=bool)
        if kept is not None:
            hit &= kept
        excluded[name] = int(hit.sum())
        kept = ~hit if kept is None else kept & ~hit
    return (None if kept is None or kept.all() else kept), excluded


def _conform(values: Any, kind: Any, name: str, origin: str) -> Any:
    """Values as an Arrow array of the column's type; NaN becomes null."""
    import pyarrow as pa

    try:
        if not isinstance(values, pa.ChunkedArray | pa.Array):
            values = pa.array(values, from_pandas=True)
        if pa.types.is_floating(values.type):
            values = without_nan(values)
        return values if values.type == kind else values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise RefusedError(
            f"{origin}: column {name!r} must hold {kind}, but {error}; correct the expression in "
            "the catalog, or the landing files"
        ) from error


def _check(plan: _Plan, table: "pa.Table", spec: PipelineSpec, origin: str) -> None:
    import pandera.errors

    frame = table.to_pandas()
    try:
        plan.contract.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        found = "; ".join(_describe(error.failure_cases, frame, spec))
        raise RefusedError(
            f"{origin}: {found}; correct the landing files or the catalog"
        ) from error


def _describe(cases: "pd.DataFrame", frame: "pd.DataFrame", spec: PipelineSpec) -> list[str]:
    """One clause a violated check: column, check, number of rows, first examples."""
    unique = list(spec.sources[spec.dataset.rows].unique)
    clauses = []
    repeated = cases["check"] == "multiple_fields_uniqueness"
    if repeated.any():
        rows = frame.loc[sorted(set(cases.loc[repeated, "index"])), unique]
        first = [" ".join(map(str, row)) for row in rows.drop_duplicates().to_numpy()[:_EXAMPLES]]
        clauses.append(
            f"{len(rows)} rows share their {', '.join(unique)} with another (unique is "
            f"required), first: {', '.join(first)}"
        )
    for (column, check), group in cases[~repeated].groupby(["column", "check"], sort=True):
        first = [str(value) for value in group["failure_case"].head(_EXAMPLES)]
        clauses.append(
            f"column {column!r} breaks {check} in {len(group)} row(s), first: {', '.join(first)}"
        )
    return clauses
