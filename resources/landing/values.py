"""Value rules: the rows of many delivered hours, judged at once.

Two steps. A look over the columns in Arrow tells which files are in doubt, at the price of a few
milliseconds for a thousand files. Whatever is in doubt is judged by pandera, with all its files
in one validation; its verdict, and no other, refuses a file.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from platform_assets.domain.source_spec import NULL_SAMPLE
from resources.landing.rawfile import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from platform_assets.domain.source_spec import ColumnSpec, SourceSpec

# Names that no catalog can give to a column: they could not be written in YAML.
_FILE = "\0file"
_OFFSET = "\0microseconds into the hour"
_SHARE = "\0null share of "

HOUR_US = 3_600_000_000
"""Microseconds."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXAMPLE = 60


class ValueRules:
    """The rules of one source on the rows of its hours."""

    def __init__(self, source: SourceSpec) -> None:
        self.source = source
        self.time = source.time_column
        self.columns: Mapping[str, ColumnSpec] = {
            name: column
            for name, column in source.columns.items()
            if name == self.time
            or name in source.unique
            or not column.nullable
            or column.has_value_rules
        }

    def judge(self, files: Sequence[tuple[pa.Table, datetime]]) -> dict[int, str]:
        """Which files are refused, by their position, and why.

        Args:
            files: the rows of each, with the declared columns in their types, and its hour.
        """
        doubted = sorted(self.doubt(files))
        if not doubted:
            return {}
        reasons = self.verdict([files[i] for i in doubted])
        return {doubted[i]: reason for i, reason in reasons.items()}

    # --- in doubt ---------------------------------------------------------------------------

    def doubt(self, files: Sequence[tuple[pa.Table, datetime]]) -> set[int]:
        """The files that break a rule, or may: no rule is broken in any other."""
        import numpy as np
        import pyarrow as pa

        counts = np.array([table.num_rows for table, _ in files], dtype=np.int64)
        if not counts.sum():
            return set()
        numbers = np.repeat(np.arange(len(files)), counts)
        rows = pa.concat_tables([t.select(list(self.columns)) for t, _ in files]).combine_chunks()
        bad = np.zeros(len(files), dtype=bool)
        for name, column in self.columns.items():
            missing = _missing(rows[name])
            if missing.any():
                if not column.nullable or name == self.time:
                    bad[numbers[missing]] = True
                if column.max_null_fraction is not None:
                    nulls = np.bincount(numbers[missing], minlength=len(files))
                    share = nulls / np.maximum(counts, 1)
                    bad |= (share > column.max_null_fraction) & (counts >= NULL_SAMPLE)
            wrong = _outside(rows[name], column)
            if wrong is not None:
                bad[numbers[wrong]] = True
        offsets = _microseconds(rows[self.time]) - np.repeat(_starts(files), counts)
        bad[numbers[(offsets < 0) | (offsets >= HOUR_US)]] = True
        if self.source.unique:
            bad[list(self._repeated(rows, numbers))] = True
        return set(np.flatnonzero(bad).tolist())

    def _repeated(self, rows: pa.Table, numbers: np.ndarray[Any, Any]) -> set[int]:
        """The files in which two rows agree in the unique columns."""
        import pyarrow as pa
        import pyarrow.compute as pc

        keys = {name: _comparable(rows[name]) for name in self.source.unique}
        keyed = pa.table({_FILE: pa.array(numbers), **keys})
        groups = keyed.group_by([_FILE, *keys], use_threads=False).aggregate([([], "count_all")])
        if groups.num_rows == keyed.num_rows:
            return set()
        repeated = groups.filter(pc.greater(groups["count_all"], 1))
        return set(repeated[_FILE].to_pylist())

    # --- the verdict ------------------------------------------------------------------------

    def verdict(self, files: Sequence[tuple[pa.Table, datetime]]) -> dict[int, str]:
        """What pandera refuses, by position of the file; all files in one validation."""
        import pandera.errors

        frame = self._frame(files)
        try:
            self._contract.validate(frame, lazy=True)
        except pandera.errors.SchemaErrors as error:
            cases = error.failure_cases
        else:
            return {}
        if cases["index"].isna().any():  # a check that could not be applied names no row
            if len(files) > 1:
                each = {i: self.verdict([file]) for i, file in enumerate(files)}
                return {i: found[0] for i, found in each.items() if found}
            return {0: f"the rows cannot be judged ({_shown(cases['failure_case'].iloc[0])})"}
        numbers = frame[_FILE].to_numpy()
        cases = cases.assign(file=numbers[cases["index"].to_numpy(dtype="int64")])
        return {
            int(number): self._describe(own, frame[numbers == number], files[int(number)])
            for number, own in cases.groupby("file", sort=True)
        }

    def _frame(self, files: Sequence[tuple[pa.Table, datetime]]) -> pd.DataFrame:
        import numpy as np
        import pandas as pd
        import pyarrow as pa

        counts = [table.num_rows for table, _ in files]
        rows = pa.concat_tables([t.select(list(self.columns)) for t, _ in files]).combine_chunks()
        # Whole numbers with nulls must not become floats: those know no 2**53 + 1.
        whole = {pa.int64(): pd.Int64Dtype()}
        kept = [name for name in self.columns if name != self.time]
        frame: pd.DataFrame = rows.select(kept).to_pandas(types_mapper=whole.get)
        # An instant may lie beyond those that pandas and Python know: it stays a number.
        frame[self.time] = rows[self.time].cast(pa.int64()).to_pandas(types_mapper=whole.get)
        frame[_FILE] = np.repeat(np.arange(len(files)), counts)
        frame[_OFFSET] = frame[self.time] - np.repeat(_starts(files), counts)
        for name, column in self.columns.items():
            if column.max_null_fraction is not None:
                by_file = frame[name].isna().groupby(frame[_FILE])
                sampled = by_file.transform("size") >= NULL_SAMPLE
                frame[_SHARE + name] = by_file.transform("mean").where(sampled, 0.0)
        return frame

    @cached_property
    def _contract(self) -> Any:
        import pandera.pandas as pa

        columns = {}
        for name, column in self.columns.items():
            checks = []
            low, high = _bounds(column)
            if low is not None:
                checks.append(pa.Check.ge(low))
            if high is not None:
                checks.append(pa.Check.le(high))
            if column.allowed:
                checks.append(pa.Check.isin(list(column.allowed)))
            if column.max_null_fraction is not None:
                columns[_SHARE + name] = pa.Column(None, pa.Check.le(column.max_null_fraction))
            nullable = column.nullable and name != self.time
            columns[name] = pa.Column(None, checks, nullable=nullable)
        within = pa.Check.in_range(0, HOUR_US, include_max=False)
        columns[_OFFSET] = pa.Column(None, within, nullable=True)
        unique = [_FILE, *self.source.unique] if self.source.unique else None
        return pa.DataFrameSchema(columns, unique=unique)

    def _describe(
        self, cases: pd.DataFrame, frame: pd.DataFrame, file: tuple[pa.Table, datetime]
    ) -> str:
        """One clause for each broken rule of a file: column, rows, what is allowed, an example."""
        total, clauses = len(frame), []
        for name, column in self.columns.items():
            own = cases[cases["column"] == name]
            missing = int((own["check"] == "not_nullable").sum())
            if missing:
                clauses.append(nulls_clause(name, missing, total))
            wrong = own[own["check"].str.startswith(("greater_", "less_", "isin"))]
            if len(wrong):
                example = frame.loc[wrong["index"].iloc[0], name]
                clauses.append(
                    f"column {name} has {wrong['index'].nunique()} of {total} rows with a value "
                    f"that is not allowed, such as {_shown(example)}; {_allowed(column)}"
                )
            if (cases["column"] == _SHARE + name).any():
                clauses.append(
                    f"column {name} is null in {int(frame[name].isna().sum())} of {total} rows, a "
                    f"share of {column.max_null_fraction} at most is allowed (max_null_fraction)"
                )
        if (cases["column"] == _OFFSET).any():
            times = frame[self.time].dropna()
            clauses.append(hour_clause(self.time, int(times.min()), int(times.max())))
        repeated = cases.loc[cases["check"] == "multiple_fields_uniqueness", "index"]
        if len(repeated):
            unique = self.source.unique
            first = int(repeated.min()) - int(frame.index[0])
            row = file[0].select(list(unique)).slice(first, 1)
            example = ", ".join(_shown(_value(row[name])) for name in unique)
            clauses.append(
                f"{repeated.nunique()} of {total} rows share their {', '.join(unique)} with "
                f"another, such as {example}; each is allowed once (unique)"
            )
        return "; ".join(clauses)


def nulls_clause(name: str, count: int, rows: int) -> str:
    return f"column {name} is null in {count} of {rows} rows, a value is expected in each"


def hour_clause(name: str, earliest: int, latest: int) -> str:
    """Rows of another hour; instants in microseconds since the epoch."""
    return (
        f"column {name} runs from {_instant(earliest)} to {_instant(latest)}, only instants "
        "within the hour of the file's name are expected"
    )


def _instant(microseconds: int) -> str:
    try:
        moment = EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return f"{microseconds} microseconds since 1970"
    # Not strftime: it writes the year 13 as 13.
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def missing_values(table: pa.Table) -> dict[str, int]:
    """How many rows have no value, by column."""
    return {name: int(_missing(table[name]).sum()) for name in table.column_names}


def _missing(values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Which rows have no value: a NaN is none."""
    import pyarrow.compute as pc

    return _mask(pc.is_null(values, nan_is_null=True))


def _outside(values: pa.ChunkedArray, column: ColumnSpec) -> np.ndarray[Any, Any] | None:
    """Which rows have a value that is not allowed; None where every value is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = None
    for bound, compare in zip(_bounds(column), (pc.less, pc.greater), strict=True):
        if bound is not None:
            wrong = compare(values, pa.scalar(bound, values.type))
            found = wrong if found is None else pc.or_(found, wrong)
    if column.allowed:
        known = pc.is_in(values, value_set=pa.array(column.allowed, values.type), skip_nulls=True)
        wrong = pc.and_(pc.invert(known), pc.is_valid(values))
        found = wrong if found is None else pc.or_(found, wrong)
    return None if found is None else _mask(found)


def _mask(flags: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.asarray(flags.fill_null(False).to_numpy(), dtype=bool)


def _bounds(column: ColumnSpec) -> tuple[float | None, float | None]:
    """Minimum and maximum in the column's type: whole numbers compare exactly with such alone."""
    low, high = column.minimum, column.maximum
    if column.type == "int":
        low = None if low is None else math.ceil(_clamped(low))
        high = None if high is None else math.floor(_clamped(high))
    return low, high


def _clamped(bound: float) -> float:
    return min(max(bound, -(2**63)), 2**63 - 1)


def _comparable(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values that are equal to pandas are equal to Arrow: NaN is null, and -0.0 is 0.0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), None, pc.add(values, 0.0))


def _microseconds(times: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found: np.ndarray[Any, Any] = pc.fill_null(times.cast(pa.int64()), 0).to_numpy()
    return found


def _starts(files: Sequence[tuple[pa.Table, datetime]]) -> np.ndarray[Any, Any]:
    import numpy as np

    starts = [(hour - EPOCH) // timedelta(microseconds=1) for _, hour in files]
    return np.array(starts, dtype=np.int64)


def _value(column: pa.ChunkedArray) -> object:
    try:
        return column[0].as_py()
    except (OverflowError, ValueError):  # an instant that Python does not know
        return str(column[0])


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.replace(tzinfo=None).isoformat()}Z"
    text = printable(str(value))
    return text if len(text) <= _EXAMPLE else f"{text[:_EXAMPLE]}..."


def _allowed(column: ColumnSpec) -> str:
    rules = []
    if column.minimum is not None and column.maximum is not None:
        rules.append(f"{column.minimum:g} to {column.maximum:g} are allowed")
    elif column.minimum is not None:
        rules.append(f"{column.minimum:g} or more is allowed")
    elif column.maximum is not None:
        rules.append(f"{column.maximum:g} or less is allowed")
    if column.allowed:
        rules.append(f"allowed are {', '.join(map(str, column.allowed))}")
    return ", ".join(rules)
