"""Attention that a change draws: to the days measured by it, and whoever dies meanwhile."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest

import platform_assets.line.clearance
import platform_assets.line.services
from platform_assets.domain.attention import with_weekdays
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.clearance import assess
from platform_assets.line.services import Services
from platform_assets.line.waive import give_waiver, revoke_waiver, until_of
from resources.home import Home
from resources.ledger import Ledger, store, upgrade
from resources.ledger.restatements import attend_in
from tests.landing_zone import weather
from tests.nyc import changed
from tests.small import small_spec
from tests.test_attention import FIRST, Looks, noon

CUT, NEXT, AFTER = (f"JFK|2013-01-{day}" for day in (17, 24, 31))
"""Three Thursdays after the first, which is whole; each is measured by the one before."""

pytestmark = pytest.mark.embedded


def measured() -> PipelineSpec:
    """One airport; the weather's rows of a day are at least half of those of the week before."""
    spec = small_spec(
        partitions={"values": ["JFK"], "end": "2013-12-31"},
        schedule={"live_from": FIRST.isoformat()},
    )
    rule = {"weeks": 1, "at_least": 1, "low": 0.5, "high": 100.0}
    sources = spec.model_dump()["sources"]
    for name, source in sources.items():
        source["contract"] |= {"lateness_hours": 24, "min_rows": 0}
        source["contract"]["weekday_rows"] = rule if name == "weather" else None
    return changed(spec, sources=sources)


def deliver(services: Services, partition: str, hours: int, observations: int = 24) -> None:
    """So many hours of a day, of which so many have an observation."""
    import pyarrow as pa

    from resources.landing.schema import arrow_schema

    spec, key = services.spec, PartitionKey.parse(partition)
    empty = {name: arrow_schema(source).empty_table() for name, source in spec.sources.items()}
    for n, hour in enumerate(local_hours(key.date, spec.partitions.timezone)[:hours]):
        services.zone.deliver("flights", "JFK", hour, empty["flights"])
        rows: pa.Table = weather(hour) if n < observations else empty["weather"]
        services.zone.deliver("weather", "JFK", hour, rows)


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    """The first of March; three of four Thursdays of January are suspicious, and settled."""
    home = Home.locate(tmp_path / "home")
    for folder in (home.landing, home.lake):
        folder.mkdir(parents=True)
    upgrade(home.ledger_url)
    services = Services(home, measured())
    for partition, observations in (("JFK|2013-01-10", 24), (CUT, 6), (NEXT, 24), (AFTER, 24)):
        deliver(services, partition, 24, observations)
    found = Looks(services).at(noon(date(2013, 3, 1)))
    some(found)
    verdicts = services.ledger.verdicts("flights", "flights/features")
    assert {verdicts[name].verdict for name in (CUT, NEXT, AFTER)} == {"suspicious"}
    assert {*found.attended} == {FIRST}, "it is whole, and nobody builds it"
    return found


def some(looks: Looks, count: int = 5) -> set[str]:
    """Look some times; the partitions whose features were requested at last."""
    for _ in range(count):
        tick = looks.look()
    return {r.partition for r in tick.plan.requests if r.job == "features"}


def waived(looks: Looks) -> str:
    services = looks.services
    until = until_of(services.spec, "2013-06-01")
    return give_waiver(services, CUT, "a strike", "ann", until).name


def test_a_waiver_of_a_day_draws_attention_to_the_days_that_are_measured_by_it(
    looks: Looks,
) -> None:
    name = waived(looks)
    # And that of the last to the one that was measured by a day that was suspicious itself.
    assert some(looks) == {"JFK|2013-01-10", CUT, NEXT, AFTER}
    revoke_waiver(looks.services, name, "bob", "there was none")
    assert some(looks) == {"JFK|2013-01-10"}


def test_without_it_they_stay_held_for_good(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    def only(spec: PipelineSpec, dates: Mapping[date, str]) -> dict[date, str]:
        return dict(dates) if spec is None else {}

    monkeypatch.setattr(platform_assets.line.services, "with_weekdays", only)
    waived(looks)
    assert some(looks, 12) == {"JFK|2013-01-10", CUT}


def test_who_is_killed_after_a_change_was_recorded_has_drawn_attention_to_it(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a settled day are corrected, a person's `explain` finds that, and is killed."""
    services, late = looks.services, "JFK|2013-02-05"
    recorded = Ledger.note_files

    def killed(self: Ledger, *what: object) -> None:
        recorded(self, *what)  # type: ignore[arg-type]
        if what[1] == "weather":
            raise KeyboardInterrupt

    deliver(services, late, 24)
    monkeypatch.setattr(Ledger, "note_files", killed)
    with pytest.raises(KeyboardInterrupt):
        assess(services, PartitionKey.parse(late))
    monkeypatch.setattr(Ledger, "note_files", recorded)
    assert date(2013, 2, 5) in looks.attended
    assert date(2013, 2, 12) in looks.attended, "its rows are measured by these"
    assert late in some(looks)


def test_whoever_attends_after_the_change_was_recorded_loses_it(looks: Looks) -> None:
    """In two steps: the first uses the change up, and then there is nobody to do the second."""
    services, late = looks.services, "JFK|2013-02-05"
    deliver(services, late, 24)
    day = PartitionKey.parse(late).date
    assert services.zone.refresh(day, day) == 48
    assert late not in some(looks, 12)
    assert platform_assets.line.clearance.refresh(services, day, day) == 0
    assert late not in some(looks, 12)


def test_a_change_is_not_recorded_where_its_attention_cannot_be(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, day = looks.services, date(2013, 2, 5)
    deliver(services, f"JFK|{day}", 24)
    before = services.ledger.arrivals("flights", "weather")

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(store, "attend_in", full)
    with pytest.raises(OSError, match="the disk is full"):
        assess(services, PartitionKey(day, "JFK"))
    assert services.ledger.arrivals("flights", "weather") == before
    monkeypatch.setattr(store, "attend_in", attend_in)
    assert f"JFK|{day}" in str(assess(services, PartitionKey(day, "JFK")))
    assert day in looks.attended


def test_the_weekdays_that_follow() -> None:
    day = date(2013, 1, 10)
    assert set(with_weekdays(measured(), {day: "why"})) == {day, date(2013, 1, 17)}
    assert with_weekdays(small_spec(), {}) == {}
