"""Late and changed files of any day are found, each folder once a round, and nothing else is."""

import os
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.attention import next_position, portion
from platform_assets.domain.clock import FixedClock
from platform_assets.domain.partition import local_hours
from platform_assets.line.services import Services
from platform_assets.line.sweep import Swept, sweep
from resources.home import Home
from resources.ledger import upgrade
from tests.landing_zone import weather
from tests.small import small_spec

OLD = date(2013, 1, 5)
AN_HOUR_AGO = -3600


@given(
    total=st.integers(1, 500),
    portions=st.lists(st.integers(-3, 60), min_size=1),
    position=st.integers(-5, 600),
)
def test_a_rotation_passes_every_place_once_a_round(
    total: int, portions: list[int], position: int
) -> None:
    """Whatever each portion's size is, and wherever the rotation began."""
    seen: list[int] = []
    position = next_position(0, total) if not 0 <= position < total else position
    start, turn = position, 0
    while True:
        places = portion(position, portions[turn % len(portions)], total)
        assert len(places) > 0
        seen.extend(places)
        position = next_position(places.stop, total)
        turn += 1
        if position == 0:
            break
    assert seen == list(range(start, total))


@given(position=st.integers(-5, 5), most=st.integers(-5, 5))
def test_a_rotation_over_nothing_stays_where_it_is(position: int, most: int) -> None:
    assert list(portion(position, most, 0)) == []
    assert next_position(0, 0) == 0


@pytest.fixture
def services(tmp_path: Path) -> Services:
    """100 days on, with a ledger and nothing else."""
    home = Home.locate(tmp_path / "home")
    home.landing.mkdir(parents=True)
    upgrade(home.ledger_url)
    spec = small_spec(
        partitions={"start": "2013-01-02", "end": "2013-12-31"},
        schedule={"live_from": "2013-01-04"},
    )
    return Services(home, spec, FixedClock(datetime(2013, 4, 15, 12, tzinfo=UTC)))


def put(services: Services, day: date = OLD, hour: int = 10, temp: float = 30.5) -> Path:
    """Land one hour of weather at JFK."""
    moment = local_hours(day, services.spec.partitions.timezone)[hour]
    return services.zone.deliver("weather", "JFK", moment, weather(moment, temp))


def age(services: Services, seconds: int = AN_HOUR_AGO) -> None:
    """Let all folders have changed an hour ago: what changed just now is looked at again."""
    for folder in services.home.landing.glob("flights/*/*/*"):
        then = folder.stat().st_mtime_ns + seconds * 1_000_000_000
        os.utime(folder, ns=(then, then))


def rounds(services: Services, most: int = 400) -> Iterator[Swept]:
    """The sweeps of one round."""
    position = 0
    while True:
        swept = sweep(services, position, most)
        yield swept
        position = swept.position
        if position == 0:
            return


def changed(services: Services, most: int = 400) -> list[date]:
    return [day for swept in rounds(services, most) for day in swept.changed]


def test_a_history_that_the_ledger_knows_is_no_news(services: Services) -> None:
    for day in (date(2013, 1, 3), OLD, date(2013, 3, 10)):
        put(services, day)
    services.zone.refresh(date(2013, 1, 2), date(2013, 4, 15))
    assert changed(services) == []
    assert services.watch.attended("flights") == {}


def test_an_hour_that_lands_in_an_old_day_is_found(services: Services) -> None:
    put(services, hour=3)
    age(services)
    changed(services)
    put(services, hour=10)
    assert changed(services) == [OLD]
    assert services.watch.attended("flights")[OLD] == "files changed in weather/JFK/2013-01-05"
    age(services)
    changed(services)
    assert changed(services) == []
