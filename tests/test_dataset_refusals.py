"""Rows that break the contract of a dataset are refused, each with its reason."""

from collections.abc import Mapping
from datetime import date, timedelta

import pandas as pd
import pyarrow as pa
import pytest

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.partition import local_hours
from platform_assets.domain.spec import PipelineSpec
from resources.dataset import BuiltRows, build_rows
from resources.expressions import Columns
from tests.nyc import changed, flights_spec, sources, with_cell, with_column

SPEC = flights_spec()
DAY = date(2013, 1, 5)


def build(tables: Mapping[str, pa.Table], day: date = DAY, spec: PipelineSpec = SPEC) -> BuiltRows:
    return build_rows(spec, "JFK", day, tables)


def test_two_rows_on_the_join_side_are_refused() -> None:
    tables = sources("JFK", DAY)
    weather = pa.concat_tables([tables["weather"], tables["weather"].slice(7, 2)])
    multiplied = tables["flights"].to_pandas().merge(weather.to_pandas(), how="left")
    assert len(multiplied) > tables["flights"].num_rows  # what would have happened
    with pytest.raises(
        RefusedError,
        match=r"flights JFK\|2013-01-05: source weather has several rows for 2 time\(s\), first "
        r"2013-01-05 12:00:00\+00:00, 2013-01-05 13:00:00\+00:00; one at most",
    ):
        build({**tables, "weather": weather})


def test_a_row_of_another_day_is_refused() -> None:
    """By UTC its day would be the same one."""
    tables = sources("JFK", DAY)
    hours = local_hours(DAY, "America/New_York")
    for odd in (hours[0] - timedelta(hours=1), hours[-1] + timedelta(hours=1), None):
        flights = with_cell(tables["flights"], "time_hour", 5, odd)
        with pytest.raises(RefusedError, match="a partition holds times from 2013-01-05 05:00"):
            build({**tables, "flights": flights})


def test_a_repeated_row_is_refused_and_named() -> None:
    tables = sources("JFK", DAY)
    doubled = pa.concat_tables([tables["flights"], tables["flights"].slice(0, 1)])
    with pytest.raises(
        RefusedError,
        match=r"2 rows share their time_hour, carrier, flight with another \(unique is required\), "
        r"first: 2013-01-05 \d\d:00:00\+00:00 \w\w \d+",
    ):
        build({**tables, "flights": doubled})


def test_a_missing_value_that_may_not_be_missing_is_refused() -> None:
    tables = sources("JFK", DAY)
    flights = with_cell(with_cell(tables["flights"], "dest", 3, None), "dest", 9, None)
    with pytest.raises(RefusedError, match=r"column 'dest' breaks not_nullable in 2 row\(s\)"):
        build({**tables, "flights": flights})


def test_an_unknown_outcome_is_no_zero() -> None:
    """NaN >= 15 is false in plain pandas: a cancelled flight would be a punctual one."""
    assert not (pd.Series([float("nan")]) >= 15).any()
    keep_all = changed(SPEC, dataset={"exclude": {}, "relevance": None})
    tables = sources("JFK", DAY)
    with pytest.raises(RefusedError, match=r"column 'delayed' breaks not_nullable in 2 row\(s\)"):
        build(tables, spec=keep_all)


def test_nan_is_a_missing_value() -> None:
    tables = sources("JFK", DAY)
    flights = tables["flights"]
    values = [float("nan") if v is None else v for v in flights["arr_delay"].to_pylist()]
    nan = pa.array(values, pa.float64(), from_pandas=False)
    assert nan.null_count == 0
    at = flights.column_names.index("arr_delay")
    other = build({**tables, "flights": flights.set_column(at, "arr_delay", nan)})
    assert other.excluded == {"cancelled": 2, "diverted": 0}
    assert other.table.equals(build(tables).table)
    weather = with_column(tables["weather"], "temp", [float("nan")] * 24)
    assert build({**tables, "weather": weather}).table["temp"].null_count == 300


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            {"exclude": {"odd": "distance * 2"}},
            r"dataset.exclude.odd = distance \* 2 gives Float64",
        ),
        (
            {"target": {"name": "y", "expression": "arr_delay"}},
            r"column 'y' breaks isin\(\[0, 1\]\) in \d+ row",
        ),
        (
            {"relevance": "arr_delay"},
            r"column 'relevance' breaks is_finite_and_not_negative in \d+ row",
        ),
        (
            {"target": {"name": "y", "expression": "carrier.str.upper()"}},
            "column 'y' must hold double, but",
        ),
        (
            {
                "derive": {"nan": "(distance - distance) / (distance - distance)"},
                "features": ["distance"],
                "categories": [],
                "target": {"name": "y", "expression": "nan > 1"},
            },
            "column 'y' breaks not_nullable in 300 row",
        ),
        (
            {"derive": {"odd": "distance.str.upper()"}, "features": ["odd"], "categories": []},
            "odd = distance.str.upper.. cannot be computed .AttributeError",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_expression_that_does_not_fit_is_refused(
    dataset: dict[str, object], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        build(sources("JFK", DAY), spec=changed(SPEC, dataset=dataset))


def test_an_expression_reaches_nothing_but_its_columns() -> None:
    """The spec refuses other names; were it not for that, they would still not be there."""
    columns = Columns({"n": pd.Series([1, 2])}, pd.RangeIndex(2), "here")
    assert columns.evaluate("twice", "n * 2").tolist() == [2, 4]
    for name in ("without_nan", "columns", "self", "open", "__builtins__"):
        for expression in (name, f"{name}(n)"):
            with pytest.raises(RefusedError, match=r"here: odd = .* cannot be computed"):
                columns.evaluate("odd", expression)


def test_an_infinite_target_is_refused() -> None:
    spec = changed(
        SPEC,
        model={"kind": "regression"},
        dataset={"target": {"name": "y", "expression": "1 / (distance - distance)"}},
    )
    with pytest.raises(RefusedError, match=r"column 'y' breaks is_finite in 300 row"):
        build(sources("JFK", DAY), spec=spec)


def test_a_source_that_was_not_given_is_named() -> None:
    tables = sources("JFK", DAY)
    with pytest.raises(UsageError, match="reads source 'weather', but was given flights"):
        build({"flights": tables["flights"]})
    with pytest.raises(UsageError, match=r"given without its column\(s\) temp;"):
        build({**tables, "weather": tables["weather"].drop_columns("temp")})
