"""The content digest: what must not change it, and what must."""

import hashlib
import random
import struct
import time
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd  # noqa: F401  pyarrow imports it at the first array, which takes a second
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import UsageError
from resources.lake import content_digest

# Few values a type, so that equal rows, and equal tables, do come up.
VALUES: dict[str, tuple[pa.DataType, list[object]]] = {
    "string": (pa.string(), ["", "a", "b", "ab", "0", "\x00", "a\x00", "é"]),
    "int64": (pa.int64(), [0, 1, -1, 2**62]),
    "int8": (pa.int8(), [0, 1, -1]),
    "double": (pa.float64(), [0.0, -0.0, 1.0, float("nan"), float("inf")]),
    "bool": (pa.bool_(), [True, False]),
    "date32[day]": (pa.date32(), [date(1970, 1, 1), date(2013, 1, 5)]),
    "timestamp[us, tz=UTC]": (pa.timestamp("us", "UTC"), [0, 1, 10**15]),
}


PINNED = "57ed2b031b7257908af718a29980b01b87f0788734158a0a56b95e5e28b21d74"


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    names = draw(st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=3, unique=True))
    count = draw(st.integers(0, 4))
    columns = {}
    for name in names:
        kind, values = VALUES[draw(st.sampled_from(sorted(VALUES)))]
        cells = st.lists(st.none() | st.sampled_from(values), min_size=count, max_size=count)
        columns[name] = pa.array(draw(cells), kind)
    return pa.table(columns)


def plain(cell: object) -> object:
    """A cell so that equality is what the digest promises: NaN equals NaN, -0.0 not 0.0."""
    if isinstance(cell, float):
        return "nan" if cell != cell else struct.pack("<d", cell)
    return cell


def meaning(table: pa.Table) -> object:
    """What a digest stands for, in plain Python: the oracle."""
    names = sorted(table.column_names)
    rows = [tuple(plain(table[name][i].as_py()) for name in names) for i in range(table.num_rows)]
    counted = sorted(map(repr, rows))
    return [(name, str(table.schema.field(name).type)) for name in names], counted


def scheme(table: pa.Table) -> str:
    """`signalbox-rows-1` as its docstring tells it, one cell after the other."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def payload(kind: pa.DataType, value: object) -> bytes:
        if kind == pa.string():
            return bytes(32) if value is None else hashlib.sha256(str(value).encode()).digest()
        form = {1: "<b", 4: "<i", 8: "<d" if kind == pa.float64() else "<q"}[
            1 if kind == pa.bool_() else kind.bit_width // 8
        ]
        if value is None:
            return bytes(struct.calcsize(form))
        if isinstance(value, float) and value != value:
            return bytes.fromhex("000000000000f87f")
        if isinstance(value, datetime):
            value = (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        elif isinstance(value, date):
            value = (value - date(1970, 1, 1)).days
        return struct.pack(form, value)

    names = sorted(table.column_names)
    kinds = {name: table.schema.field(name).type for name in names}
    header = text(b"signalbox-rows-1") + struct.pack("<QI", table.num_rows, len(names))
    for name in names:
        header += text(name.encode()) + text(str(kinds[name]).encode())
    rows = []
    for row in table.to_pylist():
        cells = [bytes([row[name] is not None]) + payload(kinds[name], row[name]) for name in names]
        rows.append(b"".join(cells))
    return hashlib.sha256(header + b"".join(sorted(rows))).hexdigest()


@settings(deadline=None)
@given(tables())
def test_the_digest_is_what_its_docstring_says(table: pa.Table) -> None:
    assert content_digest(table) == scheme(table)


@settings(deadline=None)
@given(tables(), tables())
def test_two_digests_are_equal_exactly_where_the_tables_mean_the_same(
    one: pa.Table, other: pa.Table
) -> None:
    # A table without columns has no rows to speak of, whatever its length.
    assert (content_digest(one) == content_digest(other)) == (meaning(one) == meaning(other))


@settings(deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_order_of_rows_and_columns_chunks_and_layout_do_not_matter(
    table: pa.Table, rng: random.Random
) -> None:
    digest = content_digest(table)
    if table.num_columns:
        positions = list(range(table.num_rows))
        rng.shuffle(positions)
        names = list(table.column_names)
        rng.shuffle(names)
        moved = table.take(pa.array(positions, pa.int64())).select(names)
        cut = rng.randint(0, table.num_rows)
        pieces = pa.concat_tables([moved.slice(0, cut), moved.slice(cut), moved.slice(0, 0)])
        assert content_digest(moved) == digest
        assert content_digest(pieces) == digest
    for layout in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        schema = pa.schema(
            [(f.name, layout if f.type == pa.string() else f.type) for f in table.schema]
        )
        assert content_digest(table.cast(schema)) == digest


@settings(deadline=None)
@given(tables(), st.data())
def test_one_changed_cell_changes_the_digest(table: pa.Table, data: st.DataObject) -> None:
    if not table.num_columns or not table.num_rows:
        table = pa.table({"a": pa.array([1], pa.int64())})
    name = data.draw(st.sampled_from(table.column_names))
    at = data.draw(st.integers(0, table.num_rows - 1))
    kind, values = VALUES[str(table.schema.field(name).type)]
    cells = table[name].to_pylist()
    others = [v for v in [None, *values] if plain(pa.scalar(v, kind).as_py()) != plain(cells[at])]
    cells[at] = data.draw(st.sampled_from(others))
    after = table.set_column(table.column_names.index(name), name, pa.array(cells, kind))
    assert content_digest(after) != content_digest(table)


@settings(deadline=None)
@given(tables(), st.data())
def test_a_row_more_or_less_changes_the_digest(table: pa.Table, data: st.DataObject) -> None:
    if not table.num_columns or not table.num_rows:
        table = pa.table({"a": pa.array([None], pa.string())})
    at = data.draw(st.integers(0, table.num_rows - 1))
    doubled = pa.concat_tables([table, table.slice(at, 1)])
    fewer = pa.concat_tables([table.slice(0, at), table.slice(at + 1)])
    assert len({content_digest(t) for t in (table, doubled, fewer)}) == 3


def one(**columns: pa.Array) -> str:
    return content_digest(pa.table(columns))


def test_null_nan_zero_and_empty_text_are_four_things() -> None:
    floats = [pa.array([value], pa.float64()) for value in (None, float("nan"), 0.0, -0.0)]
    texts = [pa.array([value], pa.string()) for value in (None, "", "null", "\x00")]
    assert len({one(x=array) for array in (*floats, *texts)}) == 8


def test_each_nan_is_the_same_one() -> None:
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], dtype=np.uint64).view(np.float64)
    assert np.isnan(odd).all()
    same = np.array([np.nan, np.nan])
    assert one(x=pa.array(odd, from_pandas=False)) == one(x=pa.array(same, from_pandas=False))


def test_what_lies_under_a_null_does_not_matter() -> None:
    for values in ([1.0, 2.0], [1, 2], ["a", "b"], [True, False]):
        first = pa.array(values)
        second = pa.array([values[0], values[0]])
        mask = np.array([False, True])
        hidden = [
            pa.Array.from_buffers(a.type, 2, [pa.array(~mask).buffers()[1], *a.buffers()[1:]])
            for a in (first, second)
        ]
        assert hidden[0].to_pylist() == hidden[1].to_pylist() == [values[0], None]
        assert one(x=hidden[0]) == one(x=hidden[1])


def test_the_type_counts_also_where_the_values_look_the_same() -> None:
    kinds = [pa.int8(), pa.int64(), pa.float64(), pa.string(), pa.bool_(), pa.date32()]
    assert len({one(x=pa.array([None], kind)) for kind in kinds}) == len(kinds)
    assert len({one(x=pa.array([1]).cast(kind)) for kind in kinds[:5]}) == 5
    assert one(x=pa.array([], pa.int8())) != one(x=pa.array([], pa.int64()))


def test_swapped_columns_and_shifted_text_change_it() -> None:
    a, b = pa.array(["x", "y"]), pa.array(["y", "x"])
    # Each column holds the same values as before, each row the same ones crosswise.
    assert one(a=a, b=b) == one(a=b, b=a)  # here the rows are the same two: a multiset
    assert one(a=pa.array([1, 2]), b=pa.array([3, 4])) != one(
        a=pa.array([3, 4]), b=pa.array([1, 2])
    )
    assert one(a=pa.array(["x"]), bc=pa.array(["y"])) != one(ab=pa.array(["x"]), c=pa.array(["y"]))
    assert one(a=pa.array(["xy"]), b=pa.array(["z"])) != one(a=pa.array(["x"]), b=pa.array(["yz"]))
    # The same values paired otherwise: a digest by column could not tell.
    assert one(a=pa.array([1, 2]), b=pa.array([3, 4])) != one(
        a=pa.array([1, 2]), b=pa.array([4, 3])
    )


def test_the_scheme_stays_as_it_is() -> None:
    """Digests are in ledgers and models: another scheme needs another name."""
    table = pa.table(
        {
            "airport": pa.array(["JFK", "EWR", None]),
            "n": pa.array([1, None, 3], pa.int64()),
            "x": pa.array([1.5, float("nan"), None]),
        }
    )
    assert content_digest(table) == PINNED


def test_a_type_that_a_dataset_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="column 'x' is of type list<item: int64>"):
        one(x=pa.array([[1]]))
    with pytest.raises(UsageError, match="two columns of one name"):
        content_digest(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]))


def wide(rows: int) -> pa.Table:
    generator = np.random.default_rng(7)
    columns = {f"f{i}": pa.array(generator.random(rows)) for i in range(14)}
    for i in range(4):
        columns[f"s{i}"] = pa.array([f"v{v}" for v in generator.integers(0, 100, rows)])
    columns["k"] = pa.array(generator.integers(0, 9, rows))
    columns["b"] = pa.array(generator.random(rows) > 0.5)
    return pa.table(columns)


def test_it_is_cheap() -> None:
    def cpu_of(table: pa.Table, repeats: int) -> float:
        spent = []
        for _ in range(repeats):
            start = time.process_time()
            content_digest(table)
            spent.append(time.process_time() - start)
        return min(spent)

    assert cpu_of(wide(300), 20) < 0.01
    assert cpu_of(wide(200_000), 2) < 2.0
