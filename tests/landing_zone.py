"""A landing zone in a folder, for the tests."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from platform_assets.domain.parse import parse_spec
from platform_assets.domain.spec import PipelineSpec
from resources.landing import LandingZone
from resources.ledger import ArrivalRecord, open_ledger, upgrade

CATALOG = Path(__file__).parent.parent / "platform_assets" / "catalog"
DAY = date(2013, 2, 9)
HOUR = datetime(2013, 2, 9, 15, tzinfo=UTC)
"""10:00 in New York."""
LATER = datetime(2014, 1, 2, tzinfo=UTC)


@cache
def flights_spec() -> PipelineSpec:
    document = yaml.safe_load((CATALOG / "flights.yaml").read_text())
    return parse_spec(document, "flights.yaml")


def respecify(spec: PipelineSpec, **sections: Mapping[str, Any]) -> PipelineSpec:
    """The same pipeline with some fields of its sections set otherwise."""
    document = spec.model_dump(mode="json")
    for section, fields in sections.items():
        document[section] = {**document[section], **fields}
    return parse_spec(document, "changed")


def without_rules(spec: PipelineSpec) -> PipelineSpec:
    """The same pipeline, with sources that have no rules for values."""
    sources = spec.model_dump(mode="json")["sources"]
    rules = {"minimum": None, "maximum": None, "allowed": [], "max_null_fraction": None}
    for source in sources.values():
        source["unique"] = []
        source["columns"] = {name: {**c, **rules} for name, c in source["columns"].items()}
    return respecify(spec, sources=sources)


def make_zone(folder: Path, spec: PipelineSpec | None = None) -> LandingZone:
    url = f"sqlite:///{folder}/ledger.db"
    upgrade(url)
    return LandingZone(folder / "landing", spec or flights_spec(), open_ledger(url))


def weather(hour: datetime = HOUR, temp: Any = 30.5) -> pa.Table:
    """One row of weather at an hour."""
    values = ("dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    return pa.table(
        {
            "time_hour": pa.array([hour], pa.timestamp("us", tz="UTC")),
            "temp": pa.array([temp]),
            **{name: pa.array([1.0]) for name in values},
        }
    )


def hours_of(table: pa.Table) -> list[datetime]:
    return [hour.astimezone(UTC) for hour in table["time_hour"].to_pylist()]


def arrivals(zone: LandingZone, source: str = "weather", key: str = "JFK") -> list[ArrivalRecord]:
    return zone.ledger.arrivals(zone.spec.pipeline, source, key)
