"""Which days a look takes: the recent ones, and what left them or changed, until it is settled."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.attention import (
    Standing,
    in_turn,
    recent_days,
    rules_version,
    stays,
)
from platform_assets.domain.clock import FixedClock
from platform_assets.domain.manifest import Day, DayState
from platform_assets.domain.partition import PartitionKey, date_range, local_hours
from platform_assets.line import live
from platform_assets.line.alerting import update
from platform_assets.line.days import build_day
from platform_assets.line.features import told_key
from platform_assets.line.live import MOST_ATTENDED, Tick, look
from platform_assets.line.services import Services
from platform_assets.line.sweep import sweep
from resources.home import Home
from resources.ledger import upgrade
from tests.landing_zone import weather
from tests.small import HELD, Templates, copied, small_spec
from tests.test_sensor import Box

pytestmark = pytest.mark.heavy

FIRST = date(2013, 1, 10)
YEAR = {"start": "2013-01-02", "end": "2013-12-31"}
DAYS = st.dates(date(2013, 1, 1), date(2013, 12, 31))


# --- the decision -----------------------------------------------------------------------------


def standing(state: DayState = DayState.WHOLE, **fields: object) -> Standing:
    """A day of June of a pipeline that trains from February on and is judged until November."""
    day = Day(date=date(2013, 6, 1), state=state, reasons={"JFK|2013-06-01": "an hour is missing"})
    known: dict[str, object] = {
        "finished": False,
        "day": day,
        "trained": False,
        "first_model_date": date(2013, 2, 1),
        "last_judged_date": date(2013, 11, 30),
    }
    return Standing.model_validate({**known, **fields})


HELD_AFTER = {date(2013, 6, 2): DayState.WHOLE, date(2013, 6, 3): DayState.HELD}
CLIPPED, NEVER_JUDGED = {"first_model_date": "2013-06-02"}, {"last_judged_date": "2013-05-31"}


@pytest.mark.parametrize(
    ("found", "expected", "reason"),
    [
        (standing(finished=True), False, "its model is judged"),
        (standing(DayState.HELD), False, "held: JFK|2013-06-01: an hour is missing"),
        (standing(DayState.UNBUILT), True, "waiting for JFK|2013-06-01"),
        (standing(), True, "waiting for the other days of its window"),
        (standing(**CLIPPED), False, "the first date that can train is 2013-06-02"),
        (standing(trained=True), True, "waiting for the days that its model is judged on"),
        (
            standing(trained=True, following=HELD_AFTER),
            False,
            "its model is judged when 2013-06-03 is whole",
        ),
        (
            standing(trained=True, **NEVER_JUDGED),
            False,
            "no days follow that its model could be judged on",
        ),
        (
            standing(DayState.HELD, waiting=("day 2013-06-01",)),
            True,
            "waiting for day 2013-06-01",
        ),
        (standing(finished=True, untold=2), True, "2 change(s) of its sources have to be told"),
    ],
)
def test_a_day_in_motion_stays_and_a_settled_one_does_not(
    found: Standing, expected: bool, reason: str
) -> None:
    assert stays(found) == (expected, reason)


@given(
    state=st.sampled_from(DayState),
    trained=st.booleans(),
    finished=st.booleans(),
    waiting=st.lists(st.just("day 2013-06-01"), max_size=2),
    untold=st.integers(0, 3),
    following=st.dictionaries(DAYS, st.sampled_from(DayState), max_size=3),
)
def test_nothing_that_was_requested_or_has_to_be_told_is_forgotten(
    state: DayState,
    trained: bool,
    finished: bool,
    waiting: list[str],
    untold: int,
    following: dict[date, DayState],
) -> None:
    found = standing(
        state,
        trained=trained,
        finished=finished,
        waiting=tuple(waiting),
        untold=untold,
        following=following,
    )
    kept, reason = stays(found)
    assert reason
    if waiting or untold:
        assert kept
    elif finished:
        assert not kept
    elif state is DayState.UNBUILT and not trained:
        assert kept


@given(dates=st.sets(DAYS, min_size=1), after=st.none() | DAYS, most=st.integers(1, 50))
def test_every_date_has_its_turn(dates: set[date], after: date | None, most: int) -> None:
    """Whatever date the last turn ended with, also one that is not listed any more."""
    ordered = sorted(dates)
    seen: list[date] = []
    for _ in range(2 * (len(ordered) // most + 2)):
        turn = in_turn(ordered, after, most)
        assert 0 < len(turn) <= most
        seen.extend(turn)
        after = turn[-1]
    assert set(seen) == dates


def test_a_day_is_recent_until_nothing_of_it_is_late_by_itself() -> None:
    spec = small_spec(evaluation={"days": 3})
    assert recent_days(spec) == 3 + 3 + 2
    flights, lax = spec.sources["flights"], spec.sources["weather"]
    later = lax.contract.model_copy(update={"lateness_hours": 73})
    sources = {"flights": flights, "weather": lax.model_copy(update={"contract": later})}
    assert recent_days(spec.model_copy(update={"sources": sources})) == 4 + 3 + 2


def test_rules_are_what_decides_about_a_day_and_no_more() -> None:
    spec = small_spec()
    assert rules_version(spec) == rules_version(small_spec(schedule={"live_from": "2013-01-09"}))
    assert rules_version(spec) == rules_version(small_spec(model={"seed": 9}))
    for changed in (
        small_spec(model={"min_days": 3}),
        small_spec(partitions={"end": "2013-01-21"}),
        small_spec(evaluation={"days": 2}),
    ):
        assert rules_version(spec) != rules_version(changed)


# --- looks over a ledger and a landing zone ---------------------------------------------------


@dataclass
class Looks:
    """Look after look, each with what the last one left; roll-ups run at once, no others do."""

    services: Services
    last: Tick | None = None
    seen: list[Tick] = field(default_factory=list)

    def at(self, moment: datetime) -> "Looks":
        self.services = replace(self.services, fixed_clock=FixedClock(moment))
        return self

    def look(self) -> Tick:
        last = self.last
        tick = look(
            self.services,
            last.open_from if last else None,
            last.told if last else None,
            looked_to=last.looked_to if last else None,
            attended_to=last.attended_to if last else None,
        )
        for request in tick.plan.requests:
            if request.job == "day":
                build_day(self.services, PartitionKey.parse(request.partition), "by hand")
        self.last = tick
        self.seen.append(tick)
        return tick

    def until_quiet(self) -> "Looks":
        """Look until nothing is attended any more."""
        for _ in range(60):
            tick = self.look()
            if not tick.plan.requests and not self.attended:
                return self
        raise AssertionError(f"still attended: {self.attended}")

    @property
    def attended(self) -> dict[date, str]:
        return self.services.watch.attended("flights")

    def judged(self) -> set[date]:
        """The dates that have a verdict: those that were looked at."""
        found = self.services.ledger.verdicts("flights", "flights/features")
        return {PartitionKey.parse(name).date for name in found}


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    """Live from 2013-01-10, nothing has landed."""
    home = Home.locate(tmp_path / "home")
    for folder in (home.landing, home.lake):
        folder.mkdir(parents=True)
    upgrade(home.ledger_url)
    spec = small_spec(partitions=YEAR, schedule={"live_from": FIRST.isoformat()})
    return Looks(Services(home, spec))


def noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 17, tzinfo=UTC)


def deliver(services: Services, day: date, hour: int = 10) -> None:
    moment = local_hours(day, services.spec.partitions.timezone)[hour]
    services.zone.deliver("weather", "JFK", moment, weather(moment))


APRIL = date(2013, 4, 20)


def test_the_first_tick_ever_looks_at_the_whole_history_in_portions(looks: Looks) -> None:
    deliver(looks.services, date(2013, 2, 1))
    looks.at(noon(APRIL)).until_quiet()
    assert looks.judged() == {*date_range(FIRST, APRIL)}
    assert max(tick.looked for tick in looks.seen) <= MOST_ATTENDED + recent_days(
        looks.services.spec
    )
    told = [change for tick in looks.seen for change in tick.changes]
    assert [(c.asset, c.partition) for c in told] == [("flights/landed_weather", "JFK|2013-02-01")]
    # Held for good, all of them: from now on the recent days alone cost anything.
    tick = looks.look()
    assert tick.looked == recent_days(looks.services.spec)
    assert len(tick.told) == 0


def test_an_outage_of_three_months_is_caught_up_once(looks: Looks) -> None:
    looks.at(noon(date(2013, 1, 20))).until_quiet()
    before = looks.judged()
    assert max(before) == date(2013, 1, 20)
    # Nobody ticks until April; hours land all the while.
    deliver(looks.services, date(2013, 2, 14))
    looks.seen.clear()
    looks.at(noon(APRIL)).until_quiet()
    assert looks.judged() == {*date_range(FIRST, APRIL)}
    assert "JFK|2013-02-14" in {c.partition for t in looks.seen for c in t.changes}
    # What had been settled before the outage was not looked at again.
    held = {PartitionKey.parse(name).date for tick in looks.seen for name in tick.plan.held}
    length = recent_days(looks.services.spec)
    assert min(held) == date(2013, 1, 20) - timedelta(days=length - 1)


def test_a_cursor_of_an_older_version_says_where_days_may_be_open(looks: Looks) -> None:
    services = looks.at(noon(APRIL)).services
    look(services, date(2013, 3, 1), {})
    assert min(services.watch.attended("flights")) == date(2013, 3, 1)


def test_a_held_day_that_left_the_recent_ones_is_looked_at_when_it_is_attended(
    looks: Looks,
) -> None:
    """A waiver for an old day, or its hours: both attend it."""
    looks.at(noon(APRIL)).until_quiet()
    old = date(2013, 2, 1)
    deliver(looks.services, old)
    tick = looks.look()
    assert f"JFK|{old}" not in tick.plan.held
    assert tick.changes == ()
    looks.services.attend([old], "W-0001 was given")
    tick = looks.look()
    assert "weather 1 of 24 hours" in tick.plan.held[f"JFK|{old}"]
    looks.until_quiet()
    assert tick.looked - looks.look().looked == 1


def test_the_sweep_brings_back_an_old_day(looks: Looks) -> None:
    looks.at(noon(APRIL)).until_quiet()
    services, position = looks.services, 0
    while (position := sweep(services, position).position) != 0:
        pass
    looks.until_quiet()
    old = date(2013, 2, 1)
    deliver(services, old)
    assert f"JFK|{old}" not in looks.look().plan.held
    while (position := sweep(services, position).position) != 0:
        pass
    assert "weather 1 of 24 hours" in looks.look().plan.held[f"JFK|{old}"]


def test_a_day_is_kept_until_all_its_changes_have_been_told(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = date(2013, 2, 1)
    deliver(looks.services, old)
    hour = local_hours(old, looks.services.spec.partitions.timezone)[5]
    looks.services.zone.deliver("weather", "LGA", hour, weather(hour))
    monkeypatch.setattr(live, "MOST_CHANGES", 1)
    monkeypatch.setattr(live, "LEAST_CHANGES", 1)
    looks.at(noon(APRIL)).until_quiet()
    told = [told_key(c.asset, c.partition) for tick in looks.seen for c in tick.changes]
    assert told == [f"flights/landed_weather {key}|{old}" for key in ("JFK", "LGA")]


def test_what_is_attended_while_a_look_goes_on_is_not_settled_by_it(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hour lands after the look has read the day's files, and before it settles the day."""
    looks.at(noon(APRIL)).until_quiet()
    services, old = looks.services, date(2013, 2, 1)
    services.attend([old], "a first reason")
    record = live.record_completeness

    def meanwhile(*arguments: object) -> None:
        deliver(services, old)
        services.attend([old], "files changed in weather/JFK/2013-02-01")
        record(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(live, "record_completeness", meanwhile)
        looks.look()
    assert old in looks.attended
    assert "weather 1 of 24 hours" in looks.look().plan.held[f"JFK|{old}"]
    # Without the instant of the look's beginning it would be gone.
    services.attend([old], "again")
    services.watch.settle("flights", [old])
    assert old not in looks.attended


# --- the sensor -------------------------------------------------------------------------------


@pytest.fixture
def templates(shared_folder: Path, home_template: Path) -> Templates:
    return Templates(shared_folder, home_template)


@pytest.fixture
def box(templates: Templates, tmp_path: Path) -> Iterator[Box]:
    """Live from 2013-01-06, of which one weather hour is missing; features until the 9th."""
    spec = small_spec(partitions=YEAR, schedule={"live_from": "2013-01-06"})
    with copied(templates.features, tmp_path, spec) as line:
        yield Box(line)


def test_an_old_held_day_that_is_healed_100_days_later_trains_by_itself(box: Box) -> None:
    line, services = box.line, box.line.services
    old = date(2013, 1, 6)
    jobs = [job for _ in range(3) for job, _ in box.tick().launched]
    assert jobs.count("train") == 3  # of the 7th, 8th and 9th
    assert box.open_from == "2013-01-06"

    # April. Nothing has landed since; the roll-ups of the empty days are not what this is about.
    services.ledger.advance_clock("flights", noon(APRIL))
    for day in date_range(date(2013, 1, 10), APRIL - timedelta(days=1)):
        build_day(services, PartitionKey(day), "by hand")
    ticks = [box.tick() for _ in range(4)]
    assert [tick.launched for tick in ticks] == [[], [], [], []]
    assert HELD in ticks[0].said
    assert HELD not in ticks[-1].said
    assert services.watch.attended("flights") == {}
    # It is not looked at any more, and still said to be held: by the check, and by an alert.
    assert HELD in json.loads(box.cursor or "{}")["held"]
    update(services)
    alert = f"flights/features {old}"
    assert alert in {record.subject for record in services.alerts.all("flights", only_open=True)}
    position = sweep(services, 0, 10_000).position
    while position:
        position = sweep(services, position, 10_000).position
    box.tick()

    # The hour that was missing comes. Without the sweep nobody would know.
    (missing,) = [
        hour
        for hour in local_hours(old, "America/New_York")
        if not (
            line.home.landing / f"flights/weather/LGA/{hour:%Y-%m-%d/%Y-%m-%dT%H}Z.parquet"
        ).exists()
    ]
    services.zone.deliver("weather", "LGA", missing, weather(missing))
    assert box.tick().requested == []
    assert sweep(services, 0, 10_000).changed == (old,)
    assert box.tick().launched == [("features", HELD)]
    assert box.tick().launched == [("day", "2013-01-06"), ("train", "2013-01-06")]
    assert box.tick().launched == [("judge", "2013-01-06")]
    box.tick()
    assert services.watch.attended("flights") == {}
    assert box.tick().requested == []
    assert HELD not in json.loads(box.cursor or "{}")["held"]
    assert ("healed", alert) in [(record.kind, record.subject) for record in update(services)]


def test_other_rules_have_all_days_looked_at_once(box: Box) -> None:
    """A day that an older contract held may be clear by the new one."""
    services = box.line.services
    services.ledger.advance_clock("flights", noon(APRIL))
    for day in date_range(date(2013, 1, 10), APRIL - timedelta(days=1)):
        build_day(services, PartitionKey(day), "by hand")
    for _ in range(5):
        box.cursor = box.tick(launch=False).data.cursor
    settled, kept = date(2013, 3, 1), json.loads(box.cursor or "{}")
    box.tick(launch=False)
    assert settled not in services.watch.attended("flights")
    box.cursor = json.dumps({**kept, "rules": "others"})
    box.tick(launch=False)
    assert settled in services.watch.attended("flights")
    # As a version wrote it that knew neither rules nor attention: from where days were open.
    services.watch.settle("flights", services.watch.attended("flights"))
    older = {name: kept[name] for name in ("live_from", "told")}
    box.cursor = json.dumps({**older, "open_from": "2013-02-20"})
    box.tick(launch=False)
    attended = set(services.watch.attended("flights"))
    assert date(2013, 4, 10) in attended
    assert min(attended) > date(2013, 2, 20) + timedelta(days=MOST_ATTENDED - 1)


def test_a_look_that_takes_in_many_files_leaves_changes_to_the_next(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telling Dagster of them is what costs most beside; nothing is lost by it."""
    monkeypatch.setattr(live, "MOST_CHANGES", 3)
    monkeypatch.setattr(live, "LEAST_CHANGES", 1)
    monkeypatch.setattr(live, "FILES_A_CHANGE", 2)
    days = [date(2013, 4, day) for day in (15, 16, 17, 18)]
    for day in days:
        deliver(looks.services, day)
    told = [len(looks.at(noon(APRIL)).look().changes) for _ in range(4)]
    assert told == [1, 3, 0, 0], "four files are worth two changes"
