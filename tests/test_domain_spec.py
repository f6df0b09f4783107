"""A wrong spec is refused at load: field, what was found, what is allowed, what would happen."""

import copy
from collections.abc import Callable
from datetime import date
from typing import Any

import pandas as pd
import pytest
import yaml
from pandas.core.computation.ops import MATHOPS
from pydantic import ValidationError

from platform_assets.domain.errors import SpecError, UsageError
from platform_assets.domain.expressions import ACCESSORS, FUNCTIONS, METHODS, names_in
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from resources.catalog import catalog_folder

FLIGHTS = yaml.safe_load((catalog_folder() / "flights.yaml").read_text(encoding="utf-8"))


def flights(**changes: object) -> dict[str, Any]:
    """The flights pipeline with some fields changed: `model__seed=-1`, `owners=[..]`."""
    document = copy.deepcopy(FLIGHTS)
    for place, value in changes.items():
        *parents, last = place.split("__")
        target = document
        for parent in parents:
            target = target[int(parent) if parent.isdigit() else parent]
        target[last] = value
    return document


def problems(document: object) -> dict[str, str]:
    with pytest.raises(SpecError) as error:
        parse_spec(document, "flights.yaml")
    text = str(error.value)
    assert text.startswith("flights.yaml is refused, no pipeline is loaded from it: ")
    assert all(f"{field}: {why}" in text for field, why in error.value.problems.items())
    return error.value.problems


def test_the_flights_pipeline_is_good_in_yaml_and_in_python() -> None:
    spec = parse_spec(flights(), "flights.yaml")
    assert PipelineSpec(**spec.model_dump()) == spec, "one path, whatever the door"
    assert spec.first_model_date == date(2013, 1, 28)
    assert spec.last_judged_date == date(2013, 12, 28)
    assert len(spec.dates()) == 365
    assert spec.keys_of(date(2013, 1, 5)) == ("EWR|2013-01-05", "JFK|2013-01-05", "LGA|2013-01-05")
    assert spec.judged_on(date(2013, 1, 31)) == (
        date(2013, 2, 1),
        date(2013, 2, 2),
        date(2013, 2, 3),
    )


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_spec(flights(), "flights.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        spec.model.seed = 5  # type: ignore[misc]


# --- leaks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", ["dep_delay", "arr_delay", "air_time"])
def test_a_feature_that_is_known_only_afterwards_is_refused(feature: str) -> None:
    found = problems(flights(dataset__features=["carrier", feature], dataset__categories=[]))
    assert list(found) == ["dataset.features.1"]
    why = found["dataset.features.1"]
    assert why.startswith(f"{feature!r} is known only after the event that it would predict")
    assert "the model would leak" in why
    allowed = why.partition("allowed are ")[2].split(", ")
    assert "distance" in allowed
    assert "weekday" in allowed
    assert not {"dep_delay", "arr_delay", "dep_time", "arr_time", "air_time"} & set(allowed)


@pytest.mark.parametrize(
    "derive",
    [
        {"late": "dep_delay > 0"},
        {"first": "distance + dep_time", "late": "first * 2"},
        {"late": "distance.where(dep_delay > 0, other=0)"},
        {"late": "temp.clip(lower=dep_delay)"},
    ],
)
def test_a_leak_does_not_hide_behind_a_derived_column(derive: dict[str, str]) -> None:
    document = flights(dataset__derive=derive, dataset__features=["late"], dataset__categories=[])
    assert "the model would leak" in problems(document)["dataset.features.0"]


def test_the_target_is_no_feature() -> None:
    document = flights(dataset__features=["carrier", "delayed"], dataset__categories=[])
    assert "neither a column nor derived" in problems(document)["dataset.features.1"]


# --- fields -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("colour", "pipeline"),
        ("model__colour", "window_days"),
        ("sources__flights__colour", "time_column"),
        ("sources__flights__columns__carrier__colour", "nullable"),
        ("dataset__joins__0__colour", "source"),
        ("dataset__target__colour", "expression"),
        ("limits__colour", "partitions_per_run"),
    ],
)
def test_an_unknown_field_is_named_with_those_that_are_allowed(place: str, allowed: str) -> None:
    found = problems(flights(**{place: "red"}))
    assert list(found) == [place.replace("__", ".")]
    why = found[place.replace("__", ".")]
    assert why.startswith("is no field here; allowed are ")
    assert allowed in why.partition("allowed are ")[2].split(", ")


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"partitions__timezone": "New York"}, "partitions.timezone", "found 'New York': allowed"),
        ({"partitions__timezone": "../zone"}, "partitions.timezone", "IANA timezone names"),
        ({"partitions__timezone": "Asia/Kolkata"}, "partitions", "whole number of hours"),
        ({"partitions__end": date(2012, 1, 1)}, "partitions", "end (2012-01-01) lies before"),
        ({"partitions__end": date(2013, 1, 20)}, "partitions", "too short for one window of 28"),
        ({"partitions__key": "date"}, "partitions.key", "called date already"),
        ({"partitions__key": "Air Port"}, "partitions.key", "lower-case letters"),
        ({"partitions__values": []}, "partitions.values", "at least 1"),
        ({"partitions__values": ["JFK", "JFK"]}, "partitions", "differ from each other"),
        ({"partitions__values": ["J|K"]}, "partitions.values.0", "found 'J|K': a key must be"),
        ({"partitions__values": [".."]}, "partitions.values.0", "a key must be"),
        ({"partitions__values": ["a/b"]}, "partitions.values.0", "a key must be"),
        ({"partitions__values": ["a\nb"]}, "partitions.values.0", "printable"),
        ({"partitions__values": ["2013-01-05"]}, "partitions.values.0", "look like a date"),
        ({"partitions__values": [True]}, "partitions.values.0", "found True"),
        ({"model__min_days": 29}, "model", "min_days is 29; allowed are 1 to window_days (28)"),
        ({"model__window_days": 0}, "model.window_days", "found 0"),
        ({"model__kind": "ranking"}, "model.kind", "'binary_classification' or 'regression'"),
        ({"model__trainer": "lightgbm"}, "model.trainer", "package.module:object"),
        ({"model__seed": -1}, "model.seed", "found -1"),
        ({"evaluation__days": 0}, "evaluation.days", "found 0"),
        ({"schedule__clock": "sun"}, "schedule.clock", "'wall' or 'landed'"),
        ({"freshness__warn_after_hours": 40}, "freshness", "(40) must be less than"),
        ({"owners": ["bob"]}, "owners", "an e-mail address or team:name"),
        ({"owners": ["bob@"]}, "owners", "'bob@': an owner is"),
        ({"owners": ["@example.com"]}, "owners", "'@example.com': an owner is"),
        ({"owners": ["bob@localhost"]}, "owners", "'bob@localhost': an owner is"),
        ({"owners": ["bob@example.|x"]}, "owners", "an owner is"),
        ({"owners": ["team:"]}, "owners", "'team:': an owner is"),
        ({"owners": ["team:a b"]}, "owners", "'team:a b': an owner is"),
        ({"pipeline": "Flights"}, "pipeline", "found 'Flights'"),
        ({"dataset__rows": "trains"}, "dataset.rows", "found 'trains'; declared sources are fl"),
        ({"dataset__joins__0__source": "sea"}, "dataset.joins.0.source", "are flights, weather"),
        ({"dataset__joins__0__columns": ["tmp"]}, "dataset.joins.0.columns", "of weather are dewp"),
        ({"dataset__joins__0__columns": ["time_hour"]}, "dataset.joins.0.columns", "there already"),
        ({"dataset__derive__temp": "dewp"}, "dataset.derive.temp", "there already"),
        ({"dataset__target__name": "temp"}, "dataset.target.name", "a column already"),
        ({"dataset__categories": ["tailnum"]}, "dataset.categories.0", "not among the features"),
        ({"dataset__relevance": "delay"}, "dataset.relevance", "reads delay, which no source"),
        ({"sources__weather__time_column": "temp"}, "sources.weather", "of type timestamp"),
        ({"sources__weather__time_column": "when"}, "sources.weather", "'when' is no column"),
        ({"sources__weather__unique": ["hour"]}, "sources.weather", "'hour' is no column"),
        (
            {"sources__weather__columns__date": {"type": "string"}},
            "sources.weather.columns.date",
            "leave it out",
        ),
        (
            {"sources__flights__columns__airport": {"type": "string"}},
            "sources.flights.columns.airport",
            "leave it out",
        ),
        (
            {"sources__flights__columns__carrier__type": "varchar"},
            "sources.flights.columns.carrier.type",
            "found 'varchar'",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    changes: dict[str, object], field: str, why: str
) -> None:
    found = problems(flights(**changes))
    assert field in found, found
    assert why in found[field]


def test_a_feature_that_is_listed_twice_is_refused() -> None:
    document = flights(dataset__features=["carrier", "temp", "carrier"], dataset__categories=[])
    assert list(problems(document)) == ["dataset.features.2"]


def test_a_missing_part_is_named() -> None:
    document = flights()
    del document["model"]
    del document["sources"]["weather"]["columns"]["temp"]["type"]
    assert problems(document) == {
        "model": "is missing",
        "sources.weather.columns.temp.type": "is missing",
    }


def test_several_problems_come_in_one_message() -> None:
    found = problems(
        flights(
            model__min_days=50,
            model__window_days=30,
            partitions__timezone="New York",
            evaluation__ndcg_at=0,
            extra=1,
        )
    )
    assert set(found) == {"model", "partitions.timezone", "evaluation.ndcg_at", "extra"}


def test_several_wrong_references_come_in_one_message() -> None:
    document = flights(
        dataset__features=["carrier", "dep_delay", "nope"],
        dataset__categories=["dest"],
        dataset__exclude={"far": "distnce > 1000"},
        dataset__relevance="open('x')",
    )
    assert set(problems(document)) == {
        "dataset.features.1",
        "dataset.features.2",
        "dataset.categories.0",
        "dataset.exclude.far",
        "dataset.relevance",
    }


def test_one_wrong_source_does_not_make_every_column_unknown() -> None:
    assert list(problems(flights(dataset__rows="trains"))) == ["dataset.rows"]


@pytest.mark.parametrize("document", [None, [], "flights", 7])
def test_a_document_that_is_no_mapping_is_refused(document: object) -> None:
    assert "a mapping with the fields of" in problems(document)["(file)"]


def test_python_gets_the_same_sentences() -> None:
    with pytest.raises(ValidationError, match=r"dataset.features.0: 'nope' is neither"):
        PipelineSpec(**flights(dataset__features=["nope"], dataset__categories=[]))


# --- expressions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        ("arr_delay >= 15", {"arr_delay"}),
        ("  a + b * 2  ", {"a", "b"}),
        ("a.clip(lower=b)", {"a", "b"}),
        ("abs(a) > 1 and b == 'x' or not c", {"a", "b", "c"}),
        ("carrier in ['AA', 'UA']", {"carrier"}),
        ("carrier.isin(['AA', 'UA'])", {"carrier"}),
        ("a.str.lower().str.len() > b.fillna(0).round()", {"a", "b"}),
        ("a.where(b.notnull(), c)", {"a", "b", "c"}),
        ("-log1p(a) ** 2 // 1 % 3", {"a"}),
        ("(a > 1) & ~(b < 2) | (c != 3)", {"a", "b", "c"}),
        ('time_hour.dt.tz_convert("America/New_York").dt.dayofweek', {"time_hour"}),
    ],
)
def test_the_columns_that_an_expression_reads(expression: str, read: set[str]) -> None:
    assert names_in(expression) == read


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("a.__class__", "uses .__class__; allowed are .dt, .str and abs, "),
        ("a._values", "uses ._values"),
        ("a.dt._get_values()", "uses ._get_values; allowed after .dt are ceil, day, "),
        # What other rows know must not enter a row.
        ("a.mean()", "uses .mean"),
        ("a - a.shift(1)", "uses .shift"),
        ("a.rank() > 3", "uses .rank"),
        ("a.size", "uses .size"),
        ("a.str.cat()", "uses .cat; allowed after .str are capitalize, "),
        ("a.str.dt.hour", "uses .dt; allowed after .str"),
        ("a in b", "searches in b; allowed is a list of constants"),
        ("'x' not in a", "searches in a"),
        ("a.isin(b)", "searches in b"),
        ("a.isin(values=[b])", "searches in [b]"),
        ("a.fillna(method='ffill')", "passes method="),
        ("a.clip(0, inplace=True)", "passes inplace="),
        ("a.to_csv('file')", "uses .to_csv"),
        ("a.apply(b)", "uses .apply"),
        ("__import__('os')", "calls '__import__'"),
        ("__import__('os').system('true')", "uses .system"),
        ("open('x')", "calls 'open'; allowed are methods of a column and abs, "),
        ("(lambda: a)()", "calls 'lambda: a'"),
        ("[b for b in a]", "contains ListComp"),
        ("(b := a)", "contains NamedExpr"),
        ("a if b else c", "contains IfExp"),
        ("f'{a}'", "contains JoinedStr"),
        ("a[0]", "contains Subscript"),
        ("a is None", "contains Is"),
        ("a @ b", "contains MatMult"),
        ("a >=", "is not an expression"),
        ("a = 1", "is not an expression"),
        ("", "is not an expression"),
        ("a\0", "is not an expression"),
        ("(a +\n b)", "has several lines"),
    ],
)
def test_an_expression_beyond_its_columns_is_refused(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"^.") as error:
        names_in(expression)
    assert why in str(error.value)
    found = problems(flights(dataset__target__expression=expression))
    assert why in found["dataset.target.expression"]


def test_an_expression_that_reads_an_unknown_column_is_refused() -> None:
    found = problems(flights(dataset__target__expression="arr_dely >= 15"))
    why = found["dataset.target.expression"]
    assert "'arr_dely >= 15' reads arr_dely, which no source declares; allowed are " in why
    assert "arr_delay" in why


def test_a_derived_column_reads_only_those_before_it() -> None:
    found = problems(flights(dataset__derive={"later": "earlier + 1", "earlier": "distance"}))
    assert "reads earlier" in found["dataset.derive.later"]


def test_the_allowed_functions_are_those_that_pandas_can_evaluate() -> None:
    assert set(MATHOPS) == FUNCTIONS


@pytest.mark.parametrize("accessor", ACCESSORS)
def test_what_follows_an_accessor_is_there_in_pandas(accessor: str) -> None:
    values = {
        "dt": (pd.Series(pd.to_datetime(["2013-01-01"])), pd.Series(pd.to_timedelta([1], "h"))),
        "str": (pd.Series(["a"]),),
    }
    there = set().union(*(dir(getattr(series, accessor)) for series in values[accessor]))
    assert there >= ACCESSORS[accessor]


def test_the_allowed_methods_look_at_one_row_at_a_time() -> None:
    """A row's value stays the same when all other rows change."""
    arguments = {
        "astype": ("float64",), "between": (1, 3), "clip": (1, 3), "fillna": (0,),
        "isin": ([1, 2],), "mask": (pd.Series([True, False, False]), 0), "round": (1,),
        "where": (pd.Series([True, False, False]), 0),
    }  # fmt: skip
    with_number = {"add", "div", "eq", "floordiv", "ge", "gt", "le", "lt", "mod", "mul", "ne"}
    with_number |= {"pow", "sub", "truediv"}
    before = pd.Series([1.25, 2.5, None])
    after = pd.Series([1.25, -7.0, 9.0])
    for method in METHODS:
        given = arguments.get(method, (2,) if method in with_number else ())
        first, second = (getattr(column, method)(*given) for column in (before, after))
        assert first.iloc[0] == second.iloc[0], method
        assert len(first) == len(before), method


# --- partitions of a spec ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keyed", "why"),
    [
        ("BOS|2013-01-05", True, "airport BOS; allowed are EWR, JFK, LGA, as in EWR|2013-01-01"),
        ("2013-01-05", True, "airport is missing; allowed are EWR, JFK, LGA"),
        ("JFK|2013-01-05", False, "one partition a date, as in 2013-01-01"),
        ("JFK|2014-01-01", True, "allowed are dates from 2013-01-01 to 2013-12-31"),
        ("2012-12-31", False, "allowed are dates from 2013-01-01 to 2013-12-31"),
    ],
)
def test_a_partition_that_the_pipeline_does_not_have_is_refused(
    text: str, keyed: bool, why: str
) -> None:
    spec = parse_spec(flights(), "flights.yaml")
    with pytest.raises(UsageError) as error:
        spec.require_partition(PartitionKey.parse(text), keyed=keyed)
    assert why in str(error.value)


@pytest.mark.parametrize(("text", "keyed"), [("LGA|2013-12-31", True), ("2013-01-01", False)])
def test_a_partition_that_the_pipeline_has_passes(text: str, keyed: bool) -> None:
    spec = parse_spec(flights(), "flights.yaml")
    key = PartitionKey.parse(text)
    require: Callable[..., PartitionKey] = spec.require_partition
    assert require(key, keyed=keyed) == key
