"""Alerts: one each, none lost, and a receiver that is down holds nobody up."""

import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.cli.app import main
from platform_assets.cli.doctor import examine
from platform_assets.domain.alert import Alert, Findings, Kind, OpenAlert, Refusal
from platform_assets.domain.alerts import WAIVER_NOTICE, decide, next_attempt, wanted
from platform_assets.domain.clock import FixedClock
from platform_assets.domain.completeness import CompletenessReport, SourceReport, Verdict
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.freshness import AssetDue, DueReport, DueState
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.waiver import Shortage, Waiver
from platform_assets.line.alerting import (
    CLAIM,
    MOST_DELIVERED,
    deliver,
    gather,
    list_alerts,
    log_line,
    update,
)
from platform_assets.line.features import build_features
from platform_assets.line.landing import land_flights
from platform_assets.line.outcomes import noted
from platform_assets.line.services import Services
from resources.home import Home
from resources.landing import LandingZone
from resources.landing.hourfile import arrow_schema
from resources.ledger.alerts import LOGGED_ONLY, Alerts
from resources.ledger.records import (
    AlertRecord,
    QuarantineRecord,
    RestatementRecord,
    VersionRecord,
)
from resources.webhook import MOST_TEXT, URL_VARIABLE, Answer, Webhook, alert_id, payload
from tests.receiver import Receiver, closed_port, receiving
from tests.small import opened, small_spec

ROOT = Path(__file__).parents[1]
NEW_YORK = "America/New_York"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = timedelta(hours=2)
unhurried = settings(deadline=None)
fork = multiprocessing.get_context("fork")


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(NEW_YORK)).astimezone(UTC)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no receiver, and a machine that is busy does not cut a delivery short."""
    monkeypatch.setattr("platform_assets.line.alerting.TICK_SECONDS", 3600.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(URL_VARIABLE, raising=False)


# --- the decision -----------------------------------------------------------------------------

DAYS = [date(2013, 2, d) for d in (8, 9, 10, 11)]
KEYS = ("EWR", "JFK", "LGA")


def report(key: str, day: date, *, overdue: bool) -> CompletenessReport:
    source = SourceReport(
        source="weather",
        verdict=Verdict.LATE if overdue else Verdict.PARTIAL,
        expected=24,
        observed=23,
        rows=23,
        missing=(local_hours(day, NEW_YORK)[6],),
        overdue=overdue,
    )
    as_of = local_hours(DAYS[-1], NEW_YORK)[0]
    return CompletenessReport(
        partition=f"{key}|{day}", timezone=NEW_YORK, as_of=as_of, sources=(source,)
    )


def findings(
    held: Mapping[date, set[str]] | None = None,
    late: Mapping[date, set[str]] | None = None,
    refused: Mapping[date, set[str]] | None = None,
    stale: date | None = None,
    live: tuple[date, date] = (DAYS[1], DAYS[-1]),
    files: int = 1,
) -> Findings:
    reports = [
        report(key, day, overdue=overdue)
        for overdue, by_day in ((False, held), (True, late))
        for day, keys in (by_day or {}).items()
        for key in sorted(keys)
    ]
    as_of = local_hours(DAYS[-1], NEW_YORK)[0]
    due = AssetDue(
        asset="flights/model",
        state=DueState.STALE if stale else DueState.ON_TIME,
        due=stale or DAYS[1],
        since=as_of if stale else None,
    )
    return Findings(
        pipeline="flights",
        features="flights/features",
        model="flights/model",
        as_of=as_of,
        live_from=live[0],
        live_to=live[1],
        reports=tuple(reports),
        due=DueReport(pipeline="flights", timezone=NEW_YORK, as_of=as_of, assets=(due,)),
        refusals=tuple(
            Refusal(day=day, key=key, path=f"weather/{key}/{n}", reason="no Parquet")
            for day, keys in (refused or {}).items()
            for key in sorted(keys)
            for n in range(files)
        ),
    )


@dataclass
class Book:
    """The ledger's alerts, in memory: what a decision does to them."""

    open: list[OpenAlert] = field(default_factory=list)
    said: list[Alert] = field(default_factory=list)
    count: int = 0

    def apply(self, found: Findings) -> list[Alert]:
        decision = decide(found, self.open)
        said = [*decision.raised, *(a for a in decision.closed.values() if a is not None)]
        kept = []
        for known in self.open:
            if known.number in decision.closed:
                continue
            new = decision.retold.get(known.number)
            told = {"text": new.text, "advice": new.advice, "key": new.key} if new else {}
            kept.append(known.model_copy(update=told))
        for alert in decision.raised:
            self.count += 1
            values = alert.model_dump(include={"kind", "subject", "text", "advice"})
            kept.append(
                OpenAlert(number=self.count, key=alert.key, raised_at=found.as_of, **values)
            )
        self.open = kept
        self.said += said
        return said

    def topics(self) -> list[tuple[str, str]]:
        return sorted((o.kind, o.subject) for o in self.open)


def kinds(alerts: list[Alert]) -> list[str]:
    return [alert.kind.value for alert in alerts]


def test_an_airport_that_breaks_again_is_told_again() -> None:
    book, day = Book(), DAYS[1]
    assert kinds(book.apply(findings(refused={day: {"JFK", "LGA"}}))) == ["quarantined"]
    assert book.apply(findings(refused={day: {"JFK"}})) == []
    (said,) = book.apply(findings(refused={day: {"JFK", "LGA"}}))
    assert said.concerns == ("JFK", "LGA")
    assert [o.concerns for o in book.open] == [("JFK", "LGA")]
    assert book.apply(findings(refused={day: {"JFK", "LGA"}})) == []
    assert kinds(book.apply(findings())) == ["healed"]


def test_one_alert_a_date_and_kind_with_its_airports() -> None:
    book = Book()
    day = DAYS[1]
    (said,) = book.apply(findings(held={day: {"JFK", "LGA"}}))
    assert said.key == "flights|held|flights/features 2013-02-09|JFK,LGA"
    assert "JFK: weather 23 of 24 hours, missing 06:00; LGA: weather 23 of 24" in said.text
    assert '`signalbox explain flights/features "JFK|2013-02-09"`' in said.advice
    assert book.apply(findings(held={day: {"JFK", "LGA"}})) == []
    # Without the key it would be said at every look.
    assert len(wanted(findings(held={day: {"JFK", "LGA"}}))) == 1


def test_twenty_four_files_are_one_alert_and_another_airport_is_news() -> None:
    book = Book()
    day = DAYS[1]
    for files in range(1, 25):
        book.apply(findings(refused={day: {"JFK"}}, files=files))
    assert kinds(book.said) == ["quarantined"]
    assert book.open[0].text.startswith("24 delivered file(s)"), "the list says what is now"
    assert kinds(book.apply(findings(refused={day: {"JFK", "LGA"}}))) == ["quarantined"]
    assert len(book.open) == 1
    # One of two is whole again: no news, but the text says so.
    assert book.apply(findings(refused={day: {"LGA"}})) == []
    assert "for LGA:" in book.open[0].text
    (healed,) = book.apply(findings())
    assert healed.kind is Kind.HEALED
    assert "no refused file is left" in healed.text
    assert book.open == []


def test_held_becomes_late_and_then_heals_once() -> None:
    book = Book()
    day = DAYS[1]
    assert kinds(book.apply(findings(held={day: {"JFK"}}))) == ["held"]
    assert kinds(book.apply(findings(late={day: {"JFK"}}))) == ["late"]
    assert book.topics() == [("late", "flights/features 2013-02-09")]
    (healed,) = book.apply(findings())
    assert (healed.kind, healed.subject) == (Kind.HEALED, "flights/features 2013-02-09")
    assert "It was late since" in healed.text
    assert book.apply(findings()) == []
    # The same thing again is a new one.
    assert kinds(book.apply(findings(held={day: {"JFK"}}))) == ["held"]


def test_a_stale_model_is_one_alert_a_date_and_heals_when_one_that_is_due_is_there() -> None:
    book = Book()
    assert kinds(book.apply(findings(stale=DAYS[1]))) == ["stale"]
    assert kinds(book.apply(findings(stale=DAYS[2]))) == ["stale"]
    assert book.topics() == [("stale", "flights/model 2013-02-10")]
    assert kinds(book.apply(findings())) == ["healed"]


def test_only_live_days_that_are_over_are_spoken_of() -> None:
    everything = {day: {"JFK"} for day in DAYS}
    live = (DAYS[1], DAYS[2])
    found = wanted(findings(held=everything, refused=everything, live=live))
    held = [a.subject[-10:] for a in found if a.kind is Kind.HELD]
    refused = [a.subject[-10:] for a in found if a.kind is Kind.QUARANTINED]
    assert held == ["2013-02-09", "2013-02-10"]
    assert refused == ["2013-02-09", "2013-02-10", "2013-02-11"], "today's files matter at once"
    # A day that is no longer live is forgotten without a word: nobody knows that it is clear.
    book = Book()
    book.apply(findings(held={DAYS[1]: {"JFK"}}))
    assert book.apply(findings(live=(DAYS[2], DAYS[3]))) == []
    assert book.open == []


def test_texts_stay_short_enough_for_a_receiver() -> None:
    alerts = wanted(findings(refused={DAYS[1]: set(KEYS)}, files=500))
    assert all(len(a.text) < 2 * MOST_TEXT for a in alerts)
    assert "1500 delivered file(s)" in alerts[0].text


days = st.dictionaries(st.sampled_from(DAYS), st.sets(st.sampled_from(KEYS), min_size=1))
some_findings = st.builds(
    findings, held=days, late=days, refused=days, stale=st.none() | st.sampled_from(DAYS)
)


@unhurried
@given(st.lists(some_findings, max_size=8))
@pytest.mark.heavy
def test_whatever_happens_what_is_wanted_is_open_once_and_said_once(
    looks: list[Findings],
) -> None:
    book = Book()
    for found in looks:
        before = {(o.kind, o.subject) for o in book.open}
        named = {(o.kind, o.subject): set(o.concerns) for o in book.open}
        said = book.apply(found)
        now = wanted(found)
        assert book.topics() == sorted((a.kind, a.subject) for a in now)
        assert {o.text for o in book.open} == {a.text for a in now}
        for alert in said:
            topic = (alert.kind.value, alert.subject)
            if alert.kind is Kind.HEALED:
                assert any(subject == alert.subject for _, subject in before) or (
                    alert.subject.startswith("flights/model")
                )
            elif topic in before:
                assert set(alert.concerns) - named[topic], "only a key that joins is news"
        assert book.apply(found) == [], "the same look again says nothing"


def test_backoff_doubles_up_to_a_quarter_of_an_hour_and_heeds_the_receiver() -> None:
    waits = [(next_attempt(n, NOW) - NOW).total_seconds() for n in range(1, 9)]
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]
    assert next_attempt(1, NOW, 120.0) == NOW + timedelta(seconds=120)
    assert next_attempt(1, NOW, 1e9) == NOW + timedelta(hours=1)
    assert next_attempt(10_000, NOW) == NOW + timedelta(minutes=15)


# --- found on the line ------------------------------------------------------------------------


def line(home: Home, as_of: datetime | None = None, live_from: str = "2013-01-05") -> Services:
    """The small line: LGA's weather of 2013-01-06 lacks 06:00."""
    spec = small_spec(schedule={"live_from": live_from})
    return Services(home, spec, FixedClock(as_of) if as_of else None)


def land(services: Services, first: str, last: str, until_hour: int | None = None) -> None:
    land_flights(
        services, date.fromisoformat(first), date.fromisoformat(last), until_hour, quiet=True
    )


def built(services: Services, stage: str, partition: str, **detail: Any) -> None:
    """As if a run had built it."""
    services.ledger.record_version(
        VersionRecord(
            asset=services.spec.asset(stage),
            partition=partition,
            data_version=f"{stage} {partition}",
            table_version=1,
            rows=1,
            detail=detail,
            run_id="test",
            committed_at=NOW,
        )
    )


def told(records: list[AlertRecord]) -> list[tuple[str, str]]:
    return [(record.kind, record.subject) for record in records]


HELD_DAY = "flights/features 2013-01-06"


def test_from_held_to_late_to_healed_on_real_hours(home: Home) -> None:
    services = line(home)
    land(services, "2013-01-05", "2013-01-06", until_hour=23)
    logged: list[AlertRecord] = []
    # 23:00. The day is not over: not a word of it. The model of the 5th is due since 8:00.
    assert told(update(services, logged.append)) == [("stale", "flights/model 2013-01-05")]
    land(services, "2013-01-06", "2013-01-06")
    raised = update(services, logged.append)
    assert told(raised) == [("held", HELD_DAY)]
    assert "LGA: flights 24 of 24 hours; weather 23 of 24 hours, missing 06:00" in raised[0].text
    assert raised[0].raised_at == local("2013-01-07T00:00:00")
    assert update(services, logged.append) == []

    # 9:00. The deadline is over; and another date is due.
    land(services, "2013-01-07", "2013-01-07", until_hour=9)
    raised = update(services, logged.append)
    assert told(raised) == [("late", HELD_DAY), ("stale", "flights/model 2013-01-06")]
    assert 'signalbox waive "LGA|2013-01-06" --reason WHY' in raised[0].advice

    # The hour comes after all. It heals although nothing has been built yet.
    source = services.spec.sources["weather"]
    hour = local_hours(date(2013, 1, 6), NEW_YORK)[6]
    services.zone.deliver("weather", "LGA", hour, arrow_schema(source).empty_table())
    raised = update(services, logged.append)
    assert told(raised) == [("healed", HELD_DAY)]
    assert told(services.alerts.all("flights", only_open=True)) == [
        ("stale", "flights/model 2013-01-06")
    ]
    # The model that was due, and the log heard of everything once.
    for key in ("JFK", "LGA"):
        built(services, "features", f"{key}|2013-01-06")
    built(services, "model", "2013-01-06")
    assert told(update(services, logged.append)) == [("healed", "flights/model 2013-01-06")]
    assert services.alerts.all("flights", only_open=True) == []
    assert len(logged) == len(services.alerts.all("flights")) == 6
    assert log_line(logged[0]).startswith("stale flights/model 2013-01-05: flights/model")


def test_a_day_whose_rows_a_run_refused_is_held_and_told_at_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hours are all there, and the attempts go on for half an hour before `failed` is told."""
    services, partition = line(home), PartitionKey.parse("JFK|2013-01-05")
    land(services, "2013-01-05", "2013-01-05")
    assert "held" not in dict(told(update(services)))

    def unfit(*_: object) -> None:
        raise RefusedError("a delay of a year")

    def make() -> None:
        noted(
            services, "features", partition, "r1", lambda: build_features(services, partition, "r1")
        )

    with monkeypatch.context() as patch:
        patch.setattr(LandingZone, "read", unfit)
        with pytest.raises(RefusedError):
            make()
    (raised,) = update(services)
    assert (raised.kind, raised.subject) == ("held", "flights/features 2013-01-05")
    assert "held for JFK: JFK: refused by run r1: a delay of a year" in raised.text
    assert "missing hours" not in raised.advice
    assert "the rows of JFK: have the files delivered again" in raised.advice
    assert update(services) == []
    make()
    assert told(update(services)) == [("healed", "flights/features 2013-01-05")]


def test_a_first_start_over_a_history_speaks_of_live_days_alone(home: Home) -> None:
    services = line(home, live_from="2013-01-08")
    land(services, "2013-01-02", "2013-01-07")
    add_refused(services, 3, "JFK", date(2013, 1, 6))
    assert update(services) == []
    # Without that rule the held day and the refused files of the past would be alerted.
    assert told(update(line(home))) != []


def test_on_the_wall_clock_a_day_that_ended_just_now_is_not_held(home: Home) -> None:
    land(line(home), "2013-01-05", "2013-01-06")
    spec = small_spec(schedule={"live_from": "2013-01-05", "clock": "wall"})
    at = local("2013-01-07T00:30:00")
    assert "held" not in dict(told(update(Services(home, spec, FixedClock(at)))))
    at = local("2013-01-07T01:00:00")
    assert told(update(Services(home, spec, FixedClock(at)))) == [("held", HELD_DAY)]


def add_refused(services: Services, count: int, key: str, day: date) -> None:
    services.quarantine.add(
        [
            QuarantineRecord(
                pipeline="flights",
                source="weather",
                key=key,
                hour=hour,
                path=f"weather/{key}/{hour:%Y-%m-%dT%H}Z.parquet",
                size=3,
                digest=f"{n:064}",
                reason="no Parquet file",
                kept="",
                found_at=hour,
            )
            for n, hour in enumerate(local_hours(day, NEW_YORK)[:count])
        ]
    )


def test_refused_files_of_a_live_day_are_one_alert_that_heals(home: Home) -> None:
    services = line(home, local("2013-01-05T12:00:00"))
    add_refused(services, 12, "JFK", date(2013, 1, 5))
    (raised,) = update(services)
    assert (raised.kind, raised.subject) == ("quarantined", "flights/features 2013-01-05")
    assert raised.text.startswith("12 delivered file(s) of 2013-01-05 are quarantined for JFK")
    paths = [r.path for r in services.quarantine.all("flights")]
    services.quarantine.end("flights", paths[:11], "healed", NOW)
    assert update(services) == []
    services.quarantine.end("flights", paths[11:], "healed", NOW)
    assert told(update(services)) == [("healed", "flights/features 2013-01-05")]


def test_a_damaged_file_in_the_landing_zone_is_alerted_at_once_and_heals(home: Home) -> None:
    """From the bytes on: the day is not over yet, the sensor of readiness has seen the file."""
    services = line(home)
    day = date(2013, 1, 5)
    land(services, "2013-01-05", "2013-01-05", until_hour=9)
    hour = local_hours(day, NEW_YORK)[3]
    good = services.zone.deliver(
        "weather", "JFK", hour, arrow_schema(services.spec.sources["weather"]).empty_table()
    )
    content = good.read_bytes()
    good.write_bytes(content[:-20])
    services.zone.refresh(day, day)
    (raised,) = update(services)
    assert (raised.kind, raised.subject) == ("quarantined", "flights/features 2013-01-05")
    assert "1 delivered file(s) of 2013-01-05 are quarantined for JFK" in raised.text
    good.write_bytes(content)
    services.zone.refresh(day, day)
    assert told(update(services)) == [("healed", "flights/features 2013-01-05")]


def test_a_listed_restatement_waits_for_a_person(home: Home) -> None:
    services = line(home, local("2013-01-05T12:00:00"))

    def change(partition: str, decision: str, version: str) -> None:
        services.restatements.found(
            RestatementRecord(
                pipeline="flights",
                partition=partition,
                used_version="a",
                now_version=version,
                changes={},
                touches={},
                decision=decision,
                reason="two hours were corrected 80 h after the day",
                state="open",
                found_at=NOW,
            )
        )

    change("JFK|2013-01-02", "list", "b")
    change("LGA|2013-01-02", "restate", "b")
    (raised,) = update(services)
    assert (raised.kind, raised.subject) == ("restatement", "flights/features 2013-01-02")
    assert "for JFK: JFK: two hours were corrected" in raised.text
    assert '`signalbox restate "JFK|2013-01-02" --by YOU' in raised.advice
    change("JFK|2013-01-02", "list", "c")
    assert update(services) == [], "a person is asked already"
    services.restatements.approve("flights", ["JFK|2013-01-02"], "ann")
    assert update(services) == []
    assert services.alerts.all("flights", only_open=True) == []


def test_a_waiver_in_use_is_named_before_it_ends_and_when_it_has(home: Home) -> None:
    until = local("2013-01-10T12:00:00")
    services = line(home)

    def give(partition: str) -> str:
        waiver = Waiver(
            name="",
            pipeline="flights",
            partition=partition,
            reason="the station was down",
            by="ann",
            given_at=until - timedelta(days=5),
            until=until,
            covers={"weather": Shortage(hours=("2013-01-09T11Z",))},
        )
        return services.waivers.give(waiver).name

    used, old = give("LGA|2013-01-09"), give("LGA|2013-01-02")
    give("JFK|2013-01-09")  # nothing rests on it
    built(services, "features", "LGA|2013-01-09", waivers=[used])
    built(services, "features", "LGA|2013-01-02", waivers=[old])  # no training to come reads it
    live_from = "2013-01-20"
    before = line(home, until - WAIVER_NOTICE - timedelta(seconds=1), live_from)
    assert update(before) == []
    (raised,) = update(line(home, until - WAIVER_NOTICE, live_from))
    assert (raised.kind, raised.subject) == ("waiver", "flights/features LGA|2013-01-09")
    assert "W-0001 by ann until 2013-01-10 17:00Z: the station was down" in raised.text
    assert "expires soon" in raised.text
    ended = line(home, until, live_from)
    (raised,) = update(ended)
    assert "has expired, the partition is held again" in raised.text
    assert update(ended) == []
    assert len(ended.alerts.all("flights", only_open=True)) == 1


# --- once, whoever looks ----------------------------------------------------------------------


def _update_in_child(home: Home, barrier: Any) -> None:
    services = line(home)
    barrier.wait()
    for _ in range(3):
        update(services)


def test_two_processes_raise_and_close_each_alert_once(home: Home) -> None:
    services = line(home)
    land(services, "2013-01-05", "2013-01-06")
    in_two_processes(_update_in_child, home)
    expected = [("held", HELD_DAY), ("stale", "flights/model 2013-01-05")]
    assert told(services.alerts.all("flights")) == expected
    hour = local_hours(date(2013, 1, 6), NEW_YORK)[6]
    table = arrow_schema(services.spec.sources["weather"]).empty_table()
    services.zone.deliver("weather", "LGA", hour, table)
    in_two_processes(_update_in_child, home)
    assert told(services.alerts.all("flights")) == [*expected, ("healed", HELD_DAY)]


def in_two_processes(work: Any, *arguments: Any) -> None:
    barrier = fork.Barrier(2)
    children = [fork.Process(target=work, args=(*arguments, barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0


def test_what_dies_between_raising_and_closing_is_made_up_for(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = line(home)
    land(services, "2013-01-05", "2013-01-06")
    update(services)
    land(services, "2013-01-07", "2013-01-07", until_hour=9)
    with monkeypatch.context() as patch:
        patch.setattr(Alerts, "settle", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            update(services)
    assert len(services.alerts.all("flights", only_open=True)) == 4
    assert len(update(line(home))) == 2, "whoever died had not come to say it"
    assert len(services.alerts.all("flights")) == 4, "what was raised is not raised again"
    assert sorted(told(services.alerts.all("flights", only_open=True))) == [
        ("late", HELD_DAY),
        ("stale", "flights/model 2013-01-06"),
    ]


# --- delivered --------------------------------------------------------------------------------


def raised(
    services: Services, *subjects: str, kind: str = "held", now: datetime = NOW
) -> list[AlertRecord]:
    """Alerts in the ledger, whatever the line is like."""
    records = [
        AlertRecord(
            pipeline="flights",
            kind=kind,
            subject=subject,
            key=f"flights|{kind}|{subject}|JFK",
            text=f"{subject} is over & held <JFK>",
            advice="`signalbox explain`",
            raised_at=NOW,
            next_attempt_at=now,
        )
        for subject in subjects
    ]
    return services.alerts.raise_all(records)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def hook(receiver: Receiver, seconds: float = 20.0) -> Webhook:
    return Webhook(receiver.url, seconds)


def test_each_is_delivered_once(home: Home, receiver: Receiver) -> None:
    services = line(home)
    raised(services, "a 2013-01-05", "a 2013-01-06")
    assert deliver(services, hook(receiver), NOW) == (2, "")
    assert deliver(services, hook(receiver), NOW + LATER) == (0, "")
    records = services.alerts.all("flights")
    assert receiver.ids() == [alert_id(record) for record in records]
    assert len(set(receiver.ids())) == 2
    assert all(record.delivered_at for record in records)


def test_the_document_is_slacks_with_fields_for_programs(home: Home, receiver: Receiver) -> None:
    services = line(home)
    raised(services, "flights/features 2013-01-06")
    deliver(services, hook(receiver), NOW)
    (document,) = receiver.taken
    assert document["text"].startswith("[flights] held: flights/features 2013-01-06 - ")
    section, context = document["blocks"]
    assert section["type"] == "section"
    assert section["text"]["type"] == "mrkdwn"
    # What would be a link or a mention in Slack is text.
    assert "held &lt;JFK&gt;" in document["text"]
    assert "is over &amp; held &lt;JFK&gt;" in section["text"]["text"]
    assert context["type"] == "context"
    assert context["elements"] == [{"type": "mrkdwn", "text": "`signalbox explain`"}]
    assert document["kind"] == "held"
    assert document["pipeline"] == "flights"
    assert document["subject"] == "flights/features 2013-01-06"
    assert document["key"] == "flights|held|flights/features 2013-01-06|JFK"
    assert document["raised_at"] == NOW.isoformat()
    record = services.alerts.all("flights")[0]
    long = AlertRecord(**{**_fields(record), "text": "<" * 10_000})
    assert len(payload(long)["blocks"][0]["text"]["text"]) <= 3000, "Slack refuses more"


def _fields(record: AlertRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in AlertRecord.__slots__}


def test_an_alert_of_the_same_number_in_another_ledger_has_another_id(home: Home) -> None:
    services = line(home)
    raised(services, "a 2013-01-05")
    record = services.alerts.all("flights")[0]
    other = AlertRecord(**{**_fields(record), "raised_at": NOW + LATER})
    assert alert_id(record) != alert_id(other)


def _hang(_: object) -> None:
    return None


BAD = {
    "refused": (None, "ConnectError"),
    "never answers": (_hang, "no answer within 0.5 s"),
    "500": (lambda _: 500, "HTTP 500"),
    "429": (lambda _: 429, "HTTP 429"),
    "302": (lambda _: 302, "HTTP 302"),
    "404": (lambda _: 404, "HTTP 404"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_receiver_that_is_down_loses_nothing_and_the_tick_ends(home: Home, how: str) -> None:
    answer, error = BAD[how]
    services = line(home)
    raised(services, "a 2013-01-05", "b 2013-01-06", "c 2013-01-07")
    with receiving(answer=answer or (lambda _: 200)) as receiver:
        url = receiver.url if answer else f"http://127.0.0.1:{closed_port()}/services/SECRET"
        # Nothing here ends the hanging request but the time-out: without it this would not return.
        taken, wrong = deliver(services, Webhook(url, 0.5), NOW)
        assert taken == 0
        assert error in wrong
        assert receiver.taken == []
        # Where the receiver is down one was tried; a refusal may concern one alert alone.
        if answer:
            assert len(receiver.asked) == (3 if how in ("302", "404") else 1)
        records = services.alerts.all("flights")
        assert all(record.delivered_at is None for record in records)
        assert error in str(records[0].last_error)
        assert "SECRET" not in "".join(str(record.last_error) for record in records)
        assert all(record.next_attempt_at >= NOW + timedelta(seconds=30) for record in records)
        # Until then it is left alone.
        asked = len(receiver.asked)
        assert deliver(services, Webhook(url, 0.5), NOW + timedelta(seconds=29)) == (0, "")
        assert len(receiver.asked) == asked
    with receiving() as back:
        # A process of its own, later: what was not taken is, in the order in which it came.
        again = line(home)
        assert deliver(again, hook(back), NOW + LATER) == (3, "")
        assert [d["subject"][0] for d in back.taken] == ["a", "b", "c"]
        assert deliver(again, hook(back), NOW + 2 * LATER) == (0, "")


def test_a_receiver_that_drips_is_cut_off_where_httpx_alone_would_wait(home: Home) -> None:
    with receiving(drip=20) as receiver:
        # Without the guard: each byte comes within the time-out, so it is never met.
        assert httpx.post(receiver.url, json={}, timeout=1.0, trust_env=False).status_code == 200
    with receiving(drip=10_000) as receiver:
        answer = Webhook(receiver.url, 1.0).post({})
        assert answer == Answer(False, "no answer within 1 s", down=True)


def test_the_receiver_says_how_long_it_wants_to_be_left_alone(home: Home) -> None:
    services = line(home)
    raised(services, "a 2013-01-05")
    with receiving(answer=lambda _: 429, headers={"Retry-After": "300"}) as receiver:
        deliver(services, hook(receiver), NOW)
    assert services.alerts.all("flights")[0].next_attempt_at == NOW + timedelta(seconds=300)


def test_backoff_grows_with_each_attempt(home: Home) -> None:
    services = line(home)
    raised(services, "a 2013-01-05")
    waits, now = [], NOW
    with receiving(answer=lambda _: 500) as receiver:
        for _ in range(3):
            deliver(services, hook(receiver), now)
            record = services.alerts.all("flights")[0]
            waits.append((record.next_attempt_at - now).total_seconds())
            now = record.next_attempt_at
    assert waits == [30, 60, 120]
    assert record.attempts == 3


def test_an_alert_that_is_refused_holds_up_its_own_subject_alone(home: Home) -> None:
    services = line(home)
    raised(services, "a 2013-01-05")
    raised(services, "a 2013-01-05", kind="healed")
    raised(services, "b 2013-01-05")
    refuses = {"held": 400}
    answers = lambda d: refuses.get(d["kind"], 200) if d["subject"][0] == "a" else 200  # noqa: E731
    with receiving(answer=answers) as receiver:
        assert deliver(services, hook(receiver), NOW)[0] == 1
        # Healed does not overtake what it heals.
        assert [d["subject"] for d in receiver.taken] == ["b 2013-01-05"]
        assert deliver(services, hook(receiver), NOW)[0] == 0
        refuses.clear()
        assert deliver(services, hook(receiver), NOW + LATER)[0] == 2
        assert receiver.kinds() == ["held", "held", "healed"]


def test_a_tick_delivers_a_bounded_number(home: Home, receiver: Receiver) -> None:
    services = line(home)
    raised(services, *(f"a{n} 2013-01-05" for n in range(MOST_DELIVERED + 5)))
    assert deliver(services, hook(receiver), NOW)[0] == MOST_DELIVERED
    assert deliver(services, hook(receiver), NOW)[0] == 5


def test_a_tick_begins_no_delivery_once_its_time_is_over(
    home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = line(home)
    raised(services, *(f"a{n} 2013-01-05" for n in range(5)))
    seconds = iter([100.0, 100.0, 103.0, 105.9, 106.0])
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("platform_assets.line.alerting.TICK_SECONDS", 6.0)
    monkeypatch.setattr("platform_assets.line.alerting.time", clock)
    assert deliver(services, hook(receiver), NOW) == (3, "")
    assert len(receiver.taken) == 3


def test_an_alert_that_was_over_before_it_could_be_delivered_is_delivered(home: Home) -> None:
    services = line(home)
    land(services, "2013-01-05", "2013-01-06")
    now = datetime.now(UTC) + timedelta(minutes=1)
    with receiving(answer=lambda _: 503) as down:
        update(services)
        deliver(services, hook(down), now)
        hour = local_hours(date(2013, 1, 6), NEW_YORK)[6]
        table = arrow_schema(services.spec.sources["weather"]).empty_table()
        services.zone.deliver("weather", "LGA", hour, table)
        update(services)
    with receiving() as receiver:
        deliver(services, hook(receiver), now + LATER)
        assert receiver.kinds() == ["held", "stale", "healed"]


@pytest.mark.parametrize("guarded", [True, False])
def test_two_that_deliver_at_once_deliver_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """While one waits for the receiver another one looks: the claim keeps it off."""
    if not guarded:
        monkeypatch.setattr(Alerts, "claim", lambda *_: True)
    services = line(home)
    raised(services, "a 2013-01-05")
    with receiving() as receiver:
        inner: list[tuple[int, str]] = []

        def meanwhile() -> None:
            receiver.on_post = lambda: None
            inner.append(deliver(line(home), hook(receiver), NOW))

        receiver.on_post = meanwhile
        assert deliver(services, hook(receiver), NOW) == (1, "")
        assert inner == [(0, "") if guarded else (1, "")]
        assert len(receiver.taken) == (1 if guarded else 2)


def _deliver_in_child(home: Home, url: str, barrier: Any) -> None:
    services = line(home)
    barrier.wait()
    for _ in range(6):
        deliver(services, Webhook(url, 20.0), NOW)


def test_two_processes_deliver_each_once(home: Home, receiver: Receiver) -> None:
    services = line(home)
    raised(services, *(f"a{n} 2013-01-05" for n in range(12)))
    in_two_processes(_deliver_in_child, home, receiver.url)
    assert sorted(receiver.ids()) == sorted(alert_id(r) for r in services.alerts.all("flights"))


def test_what_dies_after_the_receiver_took_it_is_sent_again_with_the_same_id(
    home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = line(home)
    raised(services, "a 2013-01-05")
    with monkeypatch.context() as patch:
        patch.setattr(Alerts, "delivered", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            deliver(services, hook(receiver), NOW)
    assert deliver(line(home), hook(receiver), NOW + CLAIM / 2) == (0, "")
    assert deliver(line(home), hook(receiver), NOW + CLAIM) == (1, "")
    first, second = receiver.ids()
    assert first == second, "at least once; the receiver can tell"


@pytest.mark.heavy
def test_a_process_that_is_killed_while_it_delivers_loses_nothing(home: Home) -> None:
    services = line(home)
    raised(services, "a 2013-01-05")
    asked = threading.Event()
    code = (
        "import sys; from datetime import datetime, UTC; from tests.test_alerts import *;"
        "deliver(line(Home.locate(Path(sys.argv[1]))), Webhook(sys.argv[2], 300.0), NOW)"
    )
    with receiving(answer=_hang, on_post=asked.set) as receiver:
        child = subprocess.Popen([sys.executable, "-c", code, home.root, receiver.url], cwd=ROOT)
        assert asked.wait(120)
        child.kill()
        child.wait()
    with receiving() as back:
        assert deliver(line(home), hook(back), NOW + CLAIM) == (1, "")


@pytest.mark.parametrize("url", ["ftp://here", "here", "http://", "http://[", "http://a:port/"])
def test_a_url_that_is_none_waits_and_says_so(home: Home, url: str) -> None:
    services = line(home)
    raised(services, "a 2013-01-05", "b 2013-01-05")
    taken, wrong = deliver(services, Webhook(url), NOW)
    assert taken == 0
    assert wrong.startswith(f"{URL_VARIABLE} cannot be used: ")
    assert len(services.alerts.undelivered("flights")) == 2


def test_without_a_receiver_they_are_logged_and_listed_and_the_open_ones_sent_later(
    home: Home, receiver: Receiver
) -> None:
    services = line(home)
    raised(services, "a 2013-01-05", "b 2013-01-05")
    assert deliver(services, None, NOW) == (0, "")
    assert {d["delivery"] for d in list_alerts(services)} == {LOGGED_ONLY}
    over, still = services.alerts.all("flights")
    services.alerts.close([over.key], NOW)
    # A receiver is set. What was over before is no news; what is open still is.
    assert deliver(services, hook(receiver), NOW) == (1, "")
    assert receiver.ids() == [alert_id(still)]


def test_taking_the_url_away_for_a_while_loses_nothing_that_was_tried(
    home: Home, receiver: Receiver
) -> None:
    services = line(home)
    raised(services, "a 2013-01-05", "b 2013-01-05")
    deliver(services, Webhook(f"http://127.0.0.1:{closed_port()}"), NOW)
    services.alerts.close([r.key for r in services.alerts.all("flights")], NOW)
    deliver(services, None, NOW)
    assert deliver(services, hook(receiver), NOW + LATER) == (2, "")


# --- in Dagster and for people ----------------------------------------------------------------


def tick(home: Home, instance: dg.DagsterInstance, defs: dg.Definitions, name: str) -> str:
    sensor = defs.resolve_sensor_def(name)
    repository = defs.get_repository_def()
    with dg.build_sensor_context(
        instance=instance, repository_def=repository, sensor_name=name
    ) as context:
        data = sensor.evaluate_tick(context)
    assert not data.run_requests
    return str(data.skip_message)


def test_the_sensors_raise_and_deliver(
    home: Home,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with opened(home, small_spec(schedule={"live_from": "2013-01-05"})) as small:
        small.land("2013-01-05", "2013-01-06")

        def look(name: str) -> str:
            return tick(home, small.instance, small.defs, name)

        said = look("flights_alerts")
        assert said == f"raised: held {HELD_DAY}; stale flights/model 2013-01-05"
        assert look("flights_alerts") == "no new alert"
        lines = [text for text in capfd.readouterr().err.splitlines() if "What to do: " in text]
        assert len(lines) == 2, "each alert is logged once"
        assert f"held {HELD_DAY}: " in lines[0]
        assert look("flights_alert_delivery").startswith(f"{URL_VARIABLE} is not set")
        monkeypatch.setenv(URL_VARIABLE, f"http://127.0.0.1:{closed_port()}")
        assert "the rest waits: ConnectError" in look("flights_alert_delivery")
        records = small.services.alerts.all("flights")
        assert all(record.last_error for record in records)
        for record in records:
            small.services.alerts.failed(record.number, "as if time had passed", NOW - 50 * LATER)
        monkeypatch.setenv(URL_VARIABLE, receiver.url)
        due = datetime.now(UTC) - timedelta(seconds=1)
        for record in records:
            small.services.alerts.failed(record.number, "as if time had passed", due)
        assert look("flights_alert_delivery") == "delivered 2"
        assert receiver.kinds() == ["held", "stale"]


def test_the_command_lists_them(
    home: Home, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    services = line(home)
    raised(services, "flights/features 2013-01-05", "flights/features 2013-01-06")
    first, second = services.alerts.all("flights")
    services.alerts.delivered(first.number, NOW)
    services.alerts.failed(second.number, "it answered HTTP 503", NOW)

    def said(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0
        return capsys.readouterr().out

    document = json.loads(said("alerts", "--json"))
    found = document["pipelines"]["flights"]
    assert [a["id"] for a in found] == [alert_id(first), alert_id(second)]
    assert found[0]["delivery"] == "delivered 2030-01-01 00:00Z"
    assert found[1]["delivery"].startswith("waits, tried 1 time(s), next at 00:00:00Z: it answered")
    assert found[0]["advice"] == "`signalbox explain`"
    text = " ".join(said("alerts", "--pipeline", "flights").split())
    assert "open alerts of flights" in text
    services.alerts.close([first.key, second.key], NOW)
    assert said("alerts") == "flights: no alert is open\n"
    assert len(json.loads(said("alerts", "--all", "--json"))["pipelines"]["flights"]) == 2


def test_the_doctor_says_when_alerts_wait(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding() -> Any:
        return next(f for f in examine(home) if f.name == "alerts of flights")

    services = line(home)
    assert finding().ok
    raised(services, "a 2013-01-05")
    assert finding().ok
    assert "1 open" in finding().found
    url = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv(URL_VARIABLE, url)
    assert deliver(services, Webhook(url), NOW)[0] == 0
    off = finding()
    assert not off.ok
    assert "1 open, 1 wait for the receiver: ConnectError" in off.found
    assert "signalbox alerts" in off.advice


def test_a_look_at_many_days_stays_within_few_queries(home: Home) -> None:
    """A day that was built is not looked at again."""
    services = line(home)
    land(services, "2013-01-05", "2013-01-06")
    for key in ("JFK", "LGA"):
        built(services, "features", f"{key}|2013-01-05")
    assert [r.partition for r in gather(services).reports] == ["JFK|2013-01-06", "LGA|2013-01-06"]


# --- nothing is lost, nothing waits for what is refused ---------------------------------------


def numbered(n: int) -> AlertRecord:
    return AlertRecord(
        pipeline="flights", kind="held", subject=f"flights/features {n}", key=f"key-{n}",
        text=f"alert {n}", advice="wait", raised_at=NOW, next_attempt_at=NOW,
    )  # fmt: skip


def test_alerts_that_the_receiver_refuses_do_not_starve_the_others(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform_assets.line.alerting.MOST_DELIVERED", 200)
    with opened(home, small_spec()) as line:
        alerts = line.services.alerts
        alerts.raise_all([numbered(n) for n in range(520)])
        alerts.raise_all([numbered(1000)])
        assert "key-1000" not in {r.key for r in alerts.undelivered("flights")}, "what was read"
        a_tick = timedelta(seconds=15)
        with receiving(answer=lambda d: 200 if d["key"] == "key-1000" else 400) as receiver:
            for tick in range(3):
                assert receiver.taken == []
                now = NOW + tick * a_tick
                _, wrong = deliver(line.services, Webhook(receiver.url, seconds=60), now)
                assert "400" in wrong
        assert [d["key"] for d in receiver.taken] == ["key-1000"]


def test_an_alert_that_was_raised_by_one_who_died_is_logged_by_the_next(home: Home) -> None:
    with opened(home, small_spec()) as line:
        services = line.services
        mine = replace(numbered(1), kind="restatement")
        services.alerts.raise_all([mine])  # and no word of it
        heard: list[str] = []

        def die(_: AlertRecord) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            update(services, die)
        update(services, lambda record: heard.append(record.key))
        update(services, lambda record: heard.append(record.key))
        assert heard[0] == "key-1"
        assert heard.count("key-1") == 1
