"""Late and changed files of any day are found, each folder once a round, and nothing else is."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.attention import next_position, portion
from platform_assets.domain.clock import FixedClock
from platform_assets.domain.partition import local_hours
from platform_assets.line.alerting import update
from platform_assets.line.quarantine import misplaced_folders
from platform_assets.line.services import Services
from platform_assets.line.sweep import (
    MOST_LISTED,
    MOST_LISTED_UNCHANGED,
    Folder,
    Swept,
    _cause,
    sweep,
)
from resources.home import Home
from resources.landing import misplaced
from resources.landing.layout import hour_path
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


def known_history(services: Services, *days: date) -> None:
    """Some days with an hour each, known to the ledger and to the sweep, changed long ago."""
    for day in days:
        put(services, day, hour=3)
    services.zone.refresh(services.spec.partitions.start, date(2013, 4, 15))
    age(services)
    changed(services)
    assert changed(services) == []
    services.watch.settle("flights", services.watch.attended("flights"))


def test_an_hour_that_lands_in_an_old_day_is_found(services: Services) -> None:
    known_history(services, OLD)
    put(services)
    assert changed(services) == [OLD]
    assert services.watch.attended("flights")[OLD] == "files changed in weather/JFK/2013-01-05"
    age(services)
    changed(services)
    assert changed(services) == []


def test_days_whose_rows_are_judged_against_it_are_attended_too(services: Services) -> None:
    """4 weeks of the same weekday, as the contract of the flights says."""
    known_history(services, OLD)
    put(services)
    assert changed(services) == [OLD]
    weeks = [OLD + timedelta(days=7 * week) for week in range(5)]
    assert list(services.watch.attended("flights")) == weeks


def test_a_change_before_the_live_days_is_told_but_not_attended(services: Services) -> None:
    day = date(2013, 1, 3)
    known_history(services, day)
    put(services, day)
    assert changed(services) == [day]
    assert day not in services.watch.attended("flights")


def test_a_change_that_another_look_told_the_ledger_of_still_counts(services: Services) -> None:
    """A training's window and a person's `explain` bring the ledger up to date as well."""
    known_history(services, OLD)
    put(services)
    assert services.zone.refresh(OLD, OLD) == 1
    assert changed(services) == [OLD]


def test_a_vanished_file_and_a_vanished_folder_are_found(services: Services) -> None:
    other = date(2013, 2, 5)
    known_history(services, OLD, other)
    put(services, other)
    age(services)
    changed(services)
    put(services, other).unlink()
    shutil.rmtree(put(services, OLD, hour=3).parent)
    touched = [day for day in changed(services) if day in (OLD, other)]
    assert touched == [OLD, other]
    assert [r.hour.date() for r in services.ledger.arrivals("flights", "weather")] == [other]
    age(services)
    changed(services)
    assert changed(services) == []


def in_place(path: Path, moment: datetime) -> None:
    """Write another content into a file: its folder's time of change stays as it is."""
    folder = path.parent.stat()
    with path.open("r+b") as handle:
        handle.truncate()
        sink = pa.BufferOutputStream()
        pq.write_table(weather(moment, temp=-40.0), sink)
        handle.write(bytes(sink.getvalue()))
    assert path.parent.stat().st_mtime_ns == folder.st_mtime_ns


def rounds_until(services: Services, day: date, most: int) -> int:
    """How many rounds it takes to find a change; `most` + 1 if they do not find it."""
    for count in range(1, most + 1):
        if day in changed(services):
            return count
    return most + 1


@pytest.mark.parametrize("absorbed", [False, True])
def test_a_file_written_in_place_is_found_in_turn(
    services: Services, monkeypatch: pytest.MonkeyPatch, absorbed: bool
) -> None:
    """50 folders, of which a sweep lists a few that look unchanged, those listed longest ago."""
    days = [date(2013, 1, 4) + timedelta(days=n) for n in range(50)]
    known_history(services, *days)
    hour = local_hours(OLD, services.spec.partitions.timezone)[3]
    in_place(services.home.landing / "flights" / hour_path("weather", "JFK", hour), hour)
    if absorbed:
        assert services.zone.refresh(OLD, OLD) == 1
    monkeypatch.setattr("platform_assets.line.sweep.MOST_LISTED_UNCHANGED", 0)
    assert rounds_until(services, OLD, 10) == 11, "the folder's time of change does not tell"
    monkeypatch.undo()
    period = -(-50 // MOST_LISTED_UNCHANGED)
    assert rounds_until(services, OLD, period) <= period


def test_two_changes_within_the_clocks_granularity_are_both_found(services: Services) -> None:
    known_history(services, OLD)
    folder = put(services, hour=10).parent
    stamp = folder.stat().st_mtime_ns
    assert changed(services) == [OLD]
    # The file system stamps this one with the same time of change.
    put(services, hour=11)
    os.utime(folder, ns=(stamp, stamp))
    assert changed(services) == [OLD]
    # Of a folder that had changed long before it was looked at nobody would expect it.
    age(services)
    changed(services)
    stamp = folder.stat().st_mtime_ns
    put(services, hour=12)
    os.utime(folder, ns=(stamp, stamp))
    record = services.watch.folders("flights", [f"weather/JFK/{OLD}"])[f"weather/JFK/{OLD}"]
    assert _cause(record, stamp) is None


@pytest.mark.parametrize(
    ("utc", "local"),
    [
        ("2013-03-10T04", "2013-03-09"),  # 23:00, the day before
        ("2013-03-11T03", "2013-03-10"),  # 23:00 of the day of 23 hours
        ("2013-03-11T04", "2013-03-11"),
    ],
)
def test_the_hour_of_a_clock_change_belongs_to_its_local_day(
    services: Services, utc: str, local: str
) -> None:
    known_history(services, date(2013, 3, 9))
    hour = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    services.zone.deliver("weather", "JFK", hour, weather(hour))
    assert changed(services) == [date.fromisoformat(local)]


def test_the_last_hour_of_a_day_of_25_is_found(services: Services) -> None:
    late = replace(services, fixed_clock=FixedClock(datetime(2013, 11, 20, 12, tzinfo=UTC)))
    known_history(late, date(2013, 11, 2))
    changed(late)
    hour = datetime(2013, 11, 4, 4, tzinfo=UTC)
    late.zone.deliver("weather", "JFK", hour, weather(hour))
    assert changed(late) == [date(2013, 11, 3)]


# --- cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 96, 400, 10_000])
def test_a_round_looks_at_every_folder_once_whatever_a_portion_is(
    services: Services, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Folder] = []

    def stamp(_: Services, folder: Folder) -> int:
        seen.append(folder)
        return 0

    short = replace(services, fixed_clock=FixedClock(datetime(2013, 2, 10, 12, tzinfo=UTC)))
    swept = list(rounds(short, most))
    assert sum(part.looked for part in swept) == 41 * 4  # to the UTC date where the day ends
    assert max(part.looked for part in swept) <= most
    assert max(part.listed for part in swept) <= MOST_LISTED
    monkeypatch.setattr("platform_assets.line.sweep._changed_at", stamp)
    assert list(rounds(short, most))
    assert sorted(map(str, seen)) == sorted(set(map(str, seen)))
    assert len(seen) == 41 * 4


def test_a_history_ten_times_as_long_costs_a_sweep_the_same(services: Services) -> None:
    """Looked at and listed are all that a sweep does."""
    costs = []
    for now in (datetime(2013, 1, 20, tzinfo=UTC), datetime(2013, 7, 15, tzinfo=UTC)):
        grown = replace(services, fixed_clock=FixedClock(now))
        for day in (date(2013, 1, 5), date(2013, 1, 12), date(2013, 1, 14)):
            put(grown, day)
        list(rounds(grown, 40))
        age(grown)
        list(rounds(grown, 40))
        swept = sweep(grown, 0, 40)
        costs.append((swept.looked, swept.listed, swept.changed))
    assert costs[0] == costs[1] == (40, 1, ())


def test_a_sweep_that_died_before_it_could_say_so_finds_it_again(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder that it had never seen: by then the ledger knows all of its files."""
    put(services)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Services, "attend", die)
        with pytest.raises(KeyboardInterrupt):
            changed(services)
    assert services.watch.attended("flights") == {}
    assert OLD in changed(services)
    assert OLD in services.watch.attended("flights")


def test_the_rotation_goes_on_where_it_was_while_days_are_added(services: Services) -> None:
    short = replace(services, fixed_clock=FixedClock(datetime(2013, 1, 20, tzinfo=UTC)))
    position = sweep(short, 0, 30).position
    later = replace(services, fixed_clock=FixedClock(datetime(2013, 1, 21, 12, tzinfo=UTC)))
    looked = 30
    while position:
        swept = sweep(later, position, 30)
        position, looked = swept.position, looked + swept.looked
    assert looked == 21 * 4
    assert sweep(later, 10_000_000, 30).looked == 30, "a place that is not there is the first one"


def test_folders_that_no_source_reads_are_told_of_once_and_alerted(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    services = Services.open(small_spec(), home)
    services.ledger.advance_clock("flights", datetime(2013, 1, 12, tzinfo=UTC))
    root = home.landing / "flights"
    for place in ("wether/JFK", "weather/jfk", "weather/JFK/2013-2-9", "weather/JFK/2013-02-09"):
        (root / place).mkdir(parents=True)
    (root / ".incoming").mkdir()
    with caplog.at_level(logging.WARNING):
        sweep(services, 0)
        sweep(services, 0)
    assert services.zone.misplaced.known() == misplaced_folders(services)
    assert [place.split(" ")[0] for place in misplaced_folders(services)] == [
        "weather/JFK/2013-2-9",
        "weather/jfk",
        "wether",
    ]
    said = [line for line in caplog.messages if "is not looked at" in line]
    assert len(said) == 3
    assert said[2] == "flights/wether (sources are flights, weather) is not looked at"
    (alert,) = [a for a in update(services) if a.kind == "misplaced"]
    assert "weather/jfk (airport is one of JFK, LGA)" in alert.text
    assert not [a for a in update(services) if a.kind == "misplaced"]
    for place in ("wether", "weather/jfk", "weather/JFK/2013-2-9"):
        shutil.rmtree(root / place)
    sweep(services, 0)
    (healed,) = [a for a in update(services) if a.subject == "flights/landing"]
    assert healed.kind == "healed"
    # In the middle of a round nothing is listed for it.
    (root / "wether").mkdir()
    sweep(services, 3)
    assert services.zone.misplaced.known() == []


def test_looking_for_misplaced_folders_costs_what_is_new_and_not_the_history(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are the names that are read: those of all dates once, later of what has changed."""
    services = Services.open(small_spec(), home)
    root = home.landing / "flights"
    hour_ago = time.time() - 3_600
    for source in ("flights", "weather"):
        for key in ("JFK", "LGA"):
            for day in range(1, 29):
                for month in range(1, 13):
                    (root / source / key / f"2012-{month:02}-{day:02}").mkdir(parents=True)
            os.utime(root / source / key, (hour_ago, hour_ago))
    (root / "weather" / "JFK" / "2012-2-9").mkdir()
    os.utime(root / "weather" / "JFK", (hour_ago, hour_ago))
    read: list[int] = []
    real = os.listdir

    def counted(path: Path) -> list[str]:
        found = real(path)
        read.append(len(found))
        return found

    monkeypatch.setattr(misplaced.os, "listdir", counted)

    def look() -> tuple[int, list[str]]:
        read.clear()
        services.zone.note_misplaced(datetime(2013, 1, 12, tzinfo=UTC))
        return sum(read), services.zone.misplaced.known()

    dates, structure = 12 * 28, 2 + 2 * 2
    wrong = "weather/JFK/2012-2-9 (dates in UTC are written as in 2013-02-09)"
    assert look() == (4 * dates + 1 + structure, [wrong])
    for _ in range(3):
        assert look() == (structure, [wrong]), "what is known is kept, and not read again"

    # One folder gets a new date, and a wrong one: it alone is listed, and once more while its
    # time of change is younger than the grain of the file system's clock.
    (root / "flights" / "LGA" / "2013-01-1").mkdir()
    also = "flights/LGA/2013-01-1 (dates in UTC are written as in 2013-02-09)"
    for _ in range(2):
        assert look() == (dates + 1 + structure, [also, wrong])
    os.utime(root / "flights" / "LGA", (hour_ago + 9, hour_ago + 9))
    assert look()[0] == dates + 1 + structure
    assert look() == (structure, [also, wrong])

    shutil.rmtree(root / "flights" / "LGA" / "2013-01-1")
    assert look()[1] == [wrong]
    (root / "weather").rename(root / ".away")
    assert look()[1] == []
    (root / ".away").rename(root / "weather")
    assert look()[1] == [wrong], "it is back, as it was"


def test_more_misplaced_folders_than_are_named_are_looked_for_again(home: Home) -> None:
    services = Services.open(small_spec(), home)
    root = home.landing / "flights" / "weather" / "JFK"
    for number in range(103):
        (root / f"x{number:03}").mkdir(parents=True)
    hour_ago = time.time() - 3_600
    os.utime(root, (hour_ago, hour_ago))
    for _ in range(2):
        services.zone.note_misplaced(datetime(2013, 1, 12, tzinfo=UTC))
        known = services.zone.misplaced.known()
        assert len(known) == 101
        assert known[-1] == "more than 100 places"
    for number in range(100):
        (root / f"x{number:03}").rmdir()
    os.utime(root, (hour_ago, hour_ago))  # nothing tells of it
    services.zone.note_misplaced(datetime(2013, 1, 12, tzinfo=UTC))
    assert [place.split(" ")[0] for place in services.zone.misplaced.known()] == [
        "weather/JFK/x100",
        "weather/JFK/x101",
        "weather/JFK/x102",
    ]
