"""Rows of a dataset partition, built from real flights and weather."""

import random
from collections.abc import Mapping
from datetime import UTC, date, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import local_hours
from platform_assets.domain.spec import PipelineSpec
from resources.columns import output_columns
from resources.dataset import BuiltRows, build_rows
from resources.lake import content_digest
from tests.nyc import changed, flights_spec, sources, with_cell, with_column

SPEC = flights_spec()
DAY = date(2013, 1, 5)


def build(tables: Mapping[str, pa.Table], day: date = DAY, spec: PipelineSpec = SPEC) -> BuiltRows:
    return build_rows(spec, "JFK", day, tables)


# --- what the rows are --------------------------------------------------------------------------


def test_the_rows_are_those_of_the_same_join_in_pandas() -> None:
    tables = sources("JFK", DAY)
    built = build(tables)

    flights = tables["flights"].to_pandas()
    kept = flights[flights["arr_delay"].notna()]
    merged = kept.merge(tables["weather"].to_pandas(), on="time_hour", how="left")
    merged = merged.sort_values(["time_hour", "carrier", "flight"]).reset_index(drop=True)
    merged["airport"], merged["date"] = "JFK", DAY
    merged["dep_minute"] = (
        merged["sched_dep_time"] // 100 * 60 + merged["sched_dep_time"] % 100
    ).astype(float)
    merged["arr_minute"] = (
        merged["sched_arr_time"] // 100 * 60 + merged["sched_arr_time"] % 100
    ).astype(float)
    merged["weekday"] = float(DAY.weekday())
    merged["delayed"] = (merged["arr_delay"] >= 15).astype("int8")
    merged["relevance"] = merged["arr_delay"].clip(lower=0)

    result = built.table.to_pandas()
    pd.testing.assert_frame_equal(result, merged[list(result.columns)])
    assert 0 < result["delayed"].sum() < len(result)
    assert built.rows_in == len(flights) == 302
    assert built.excluded == {"cancelled": 2, "diverted": 0}
    assert built.unmatched == 0


def test_the_schema_follows_from_the_spec() -> None:
    table = build(sources("JFK", DAY)).table
    assert table.column_names == [
        *("airport", "date", "time_hour", "carrier", "flight"),
        *(f for f in SPEC.dataset.features if f not in ("airport", "carrier")),
        *("delayed", "relevance"),
    ]
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert kinds["date"] == "date32[day]"
    assert kinds["time_hour"] == "timestamp[us, tz=UTC]"
    assert kinds["delayed"] == "int8"
    assert kinds["flight"] == "int64"
    assert kinds["dest"] == "string"
    assert table.column_names == [column.name for column in output_columns(SPEC)]


def test_an_empty_day_has_the_same_schema() -> None:
    tables = sources("JFK", DAY)
    empty = build({name: table.slice(0, 0) for name, table in tables.items()})
    assert empty.table.num_rows == 0
    assert empty.table.schema == build(tables).table.schema
    assert empty.excluded == {"cancelled": 0, "diverted": 0}
    assert (empty.rows_in, empty.unmatched) == (0, 0)
    # So has a day of which nothing is kept.
    none = {**tables, "flights": with_column(tables["flights"], "arr_delay", [None] * 302)}
    assert build(none).table.schema == empty.table.schema
    assert build(none).excluded == {"cancelled": 2, "diverted": 300}


def test_cancelled_and_diverted_flights_are_left_out_and_counted() -> None:
    """2013-02-08: a blizzard."""
    day = date(2013, 2, 8)
    tables = sources("JFK", day)
    built = build(tables, day)
    cancelled = tables["flights"]["dep_time"].null_count
    diverted = tables["flights"]["arr_delay"].null_count - cancelled
    assert built.excluded == {"cancelled": cancelled, "diverted": diverted}
    assert cancelled + diverted == 159
    assert built.table.num_rows == built.rows_in - 159


def test_a_row_counts_under_the_first_rule_that_it_meets() -> None:
    rules = {"cancelled": "arr_delay.isnull()", "far": "distance > 2000", "all": "flight >= 0"}
    tables = sources("JFK", DAY)
    built = build(tables, spec=changed(SPEC, dataset={"exclude": rules}))
    flights = tables["flights"].to_pandas()
    kept = flights["arr_delay"].notna()
    assert built.excluded == {
        "cancelled": int((~kept).sum()),
        "far": int((kept & (flights["distance"] > 2000)).sum()),
        "all": int((kept & (flights["distance"] <= 2000)).sum()),
    }
    assert built.table.num_rows == 0


def test_a_row_without_weather_stays() -> None:
    """2013-12-31 has no weather at all: an inner join would lose the day without a word."""
    day = date(2013, 12, 31)
    tables = sources("JFK", day)
    built = build(tables, day)
    assert tables["flights"].to_pandas().merge(tables["weather"].to_pandas()).empty
    assert built.table.num_rows == built.unmatched == 279
    assert built.table["temp"].null_count == 279

    some = {**tables, "weather": sources("JFK", DAY)["weather"].slice(0, 0)}
    assert build(some, day).table.equals(built.table)


def test_one_missing_hour_of_weather_is_null_for_its_rows_alone() -> None:
    tables = sources("JFK", DAY)
    lost = tables["flights"]["time_hour"][100]
    weather = tables["weather"].filter(pc.not_equal(tables["weather"]["time_hour"], lost))
    built = build({**tables, "weather": weather})
    without = built.table.filter(pc.is_null(built.table["temp"]))
    assert without.num_rows == built.unmatched > 0
    assert set(without["time_hour"].to_pylist()) == {lost.as_py()}


@pytest.mark.parametrize(("day", "hours"), [(date(2013, 3, 10), 23), (date(2013, 11, 3), 25)])
def test_a_day_on_which_the_clock_changes(day: date, hours: int) -> None:
    tables = sources("JFK", day)
    built = build(tables, day)
    assert len(local_hours(day, "America/New_York")) == hours
    assert built.table.num_rows == built.rows_in - sum(built.excluded.values()) > 280
    assert built.unmatched == 0
    assert set(built.table["weekday"].to_pylist()) == {6.0}


def test_the_repeated_hour_has_two_weathers() -> None:
    """01:00 came twice on 2013-11-03; by local time each flight of it would match both."""
    day = date(2013, 11, 3)
    tables = sources("JFK", day)
    first, second = (datetime(2013, 11, 3, hour, tzinfo=UTC) for hour in (5, 6))
    weather = tables["weather"]
    temps = dict(zip(weather["time_hour"].to_pylist(), weather["temp"].to_pylist(), strict=True))
    assert {first, second} <= set(temps)
    flights = tables["flights"].slice(0, 2)
    flights = with_column(flights, "time_hour", [first, second])
    built = build({"flights": flights, "weather": with_cell(weather, "temp", 1, -40.0)}, day)
    found = dict(
        zip(built.table["time_hour"].to_pylist(), built.table["temp"].to_pylist(), strict=True)
    )
    theirs = with_cell(weather, "temp", 1, -40.0)
    expected = dict(zip(theirs["time_hour"].to_pylist(), theirs["temp"].to_pylist(), strict=True))
    assert found == {first: expected[first], second: expected[second]}


@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_order_and_the_chunks_of_the_input_do_not_matter(rng: random.Random) -> None:
    tables = sources("JFK", DAY)
    built = build(tables).table
    moved = {}
    for name, table in tables.items():
        positions = list(range(table.num_rows))
        rng.shuffle(positions)
        table = table.take(pa.array(positions))
        cut = rng.randint(0, table.num_rows)
        moved[name] = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert build(moved).table.equals(built)


def test_integers_pass_exactly() -> None:
    """Through float64 they would not: 2**60 + 1 would become 2**60."""
    tables = sources("JFK", DAY)
    big = 2**60 + 1
    assert int(float(big)) != big
    flights = with_cell(tables["flights"], "flight", 0, big)
    assert big in build({**tables, "flights": flights}).table["flight"].to_pylist()


# --- no leakage ---------------------------------------------------------------------------------


def test_nothing_that_is_known_only_afterwards_gets_in() -> None:
    late = {n for n, c in SPEC.sources["flights"].columns.items() if c.known == "after"}
    assert late == {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
    table = build(sources("JFK", DAY)).table
    assert not late & set(table.column_names)
    for column in output_columns(SPEC):
        if column.name not in ("delayed", "relevance"):
            assert not {name for _, name in column.inputs} & late


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_another_outcome_changes_target_and_relevance_alone(seed: int) -> None:
    rng = random.Random(seed)
    tables = sources("JFK", DAY)
    flights = tables["flights"]
    for name, column in SPEC.sources["flights"].columns.items():
        if column.known == "after":
            values = [
                None if v is None else rng.uniform(-60, 600) for v in flights[name].to_pylist()
            ]
            flights = with_column(flights, name, values)
    before, after = build(tables).table, build({**tables, "flights": flights}).table
    outcome = ["delayed", "relevance"]
    assert before.drop_columns(outcome).equals(after.drop_columns(outcome))
    assert content_digest(before) != content_digest(after)


def test_a_late_column_that_makes_rows_unique_is_checked_but_not_kept() -> None:
    document = SPEC.model_dump()
    document["sources"]["flights"]["unique"] = ["time_hour", "carrier", "flight", "dep_delay"]
    spec = changed(PipelineSpec.model_validate(document))
    tables = sources("JFK", DAY)
    assert build(tables, spec=spec).table.equals(build(tables).table)
    doubled = pa.concat_tables([tables["flights"], tables["flights"].slice(7, 1)])
    with pytest.raises(RefusedError, match="2 rows share their time_hour, carrier, flight, dep_"):
        build({**tables, "flights": doubled}, spec=spec)


# --- other specs --------------------------------------------------------------------------------


def test_a_regression_has_a_float_target() -> None:
    spec = changed(
        SPEC,
        model={"kind": "regression"},
        dataset={"target": {"name": "delay", "expression": "arr_delay"}, "relevance": None},
    )
    table = build(sources("JFK", DAY), spec=spec).table
    assert str(table.schema.field("delay").type) == "double"
    assert table.column_names[-1] == "delay"
    assert min(table["delay"].to_pylist()) < 0


def test_categories_are_text_and_constants_are_allowed() -> None:
    spec = changed(
        SPEC,
        dataset={
            "derive": {"hour": "sched_dep_time // 100", "one": "1"},
            "features": ["flight", "hour", "one", "distance"],
            "categories": ["flight", "hour"],
            "joins": [],
        },
    )
    table = build(sources("JFK", DAY), spec=spec).table
    assert set(table["hour"].to_pylist()) <= {str(hour) for hour in range(24)}
    assert str(table.schema.field("flight").type) == "string"
    assert set(table["one"].to_pylist()) == {1.0}
