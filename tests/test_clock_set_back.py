"""The machine's clock is set back by a day in the middle: nothing is lost, doubled or stuck."""

import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from platform_assets.domain.alerts import MOST_WAIT, next_attempt
from platform_assets.domain.attempts import AFTER_SUCCESS, SKEW, WAITS, PastRun, next_step
from platform_assets.line.alerting import deliver, update
from platform_assets.line.services import Services
from resources.ledger.records import AlertRecord
from tests.small import Line, Templates, copied

NOW = datetime(2013, 1, 9, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DATE = date(2013, 1, 5)


class Clock:
    """The machine's clock, as every module of the project reads it, and how far it was set."""

    def __init__(self) -> None:
        self.offset = timedelta(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + found.offset

    for name, module in list(sys.modules.items()):
        own = name.split(".")[0] in ("platform_assets", "resources", "sensors")
        if own and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Shifted)
    return found


# --- runs that are launched again -------------------------------------------------------------


def ended(state: str, at: datetime) -> list[PastRun]:
    return [PastRun(run_id="r1", state=state, attempt=1, ended_at=at)]


@pytest.mark.parametrize(("state", "wait"), [("FAILURE", WAITS[0]), ("SUCCESS", AFTER_SUCCESS)])
def test_a_run_that_ended_in_the_future_keeps_nothing_waiting_for_a_day(
    state: str, wait: timedelta
) -> None:
    tomorrow = NOW + DAY
    assert tomorrow + wait > NOW, "by its times alone it would be waited for until then"
    found = next_step(ended(state, tomorrow), NOW)
    assert (found.step, found.number) == ("request", 2)
    # What another machine's clock may differ by is no clock set back.
    assert next_step(ended(state, NOW + SKEW), NOW).step in ("wait", "under way")


# --- alerts -----------------------------------------------------------------------------------


class Receiver:
    """Takes alerts, or does not."""

    def __init__(self, *, takes: bool) -> None:
        self.takes, self.had = takes, []  # type: ignore[var-annotated]

    def post(self, body: Any) -> Any:
        from types import SimpleNamespace

        self.had.append(body)
        return SimpleNamespace(taken=self.takes, error="503", retry_after=None, down=not self.takes)


def test_an_alert_that_was_put_off_before_is_delivered_once_and_not_a_day_later(
    services: Services,
) -> None:
    services.alerts.raise_all(
        [
            AlertRecord(
                pipeline="flights",
                kind="held",
                subject="2013-01-05",
                key="flights|held|2013-01-05",
                text="it is held",
                advice="wait",
                raised_at=NOW + DAY,
                next_attempt_at=NOW + DAY,
            )
        ]
    )
    refuses, takes = Receiver(takes=False), Receiver(takes=True)
    assert deliver(services, refuses, NOW + DAY) == (0, "503")  # type: ignore[arg-type]
    (record,) = services.alerts.all("flights")
    assert record.next_attempt_at > NOW + MOST_WAIT, "by its time alone it would wait until then"
    assert deliver(services, takes, NOW) == (1, "")  # type: ignore[arg-type]
    assert deliver(services, takes, NOW) == (0, "")  # type: ignore[arg-type]
    assert (len(refuses.had), len(takes.had)) == (1, 1)


@pytest.mark.parametrize("attempts", [1, 5, 40])
def test_no_attempt_is_put_off_so_far_that_it_looks_like_a_clock_set_back(attempts: int) -> None:
    assert next_attempt(attempts, NOW, 10.0**9) - NOW <= MOST_WAIT


# --- dates that need another look -------------------------------------------------------------


def settled_by_time(services: Services, began: datetime) -> set[date]:
    """What a look that began then would settle if it went by the clock."""
    return {day for day, at in services.watch.attended_since("flights").items() if at <= began}


def test_what_comes_up_during_a_look_stays_though_the_clock_was_set_back_meanwhile(
    services: Services, clock: Clock
) -> None:
    watch = services.watch
    watch.attend("flights", {DATE: "an hour arrived"})
    began, seen = datetime.now(UTC), watch.attended_since("flights")
    clock.offset = -DAY
    watch.attend("flights", {DATE: "another hour arrived"})
    assert settled_by_time(services, began) == {DATE}, "by the clock it was there before the look"
    watch.settle("flights", [DATE], seen)
    assert DATE in watch.attended("flights")
    # The next look has seen it, and settles it; so it does what stands in the future.
    watch.settle("flights", [DATE], watch.attended_since("flights"))
    assert watch.attended("flights") == {}
    clock.offset = DAY
    watch.attend("flights", {DATE: "an hour arrived"})
    clock.offset = timedelta(0)
    watch.settle("flights", [DATE], watch.attended_since("flights"))
    assert watch.attended("flights") == {}


# --- the whole line ---------------------------------------------------------------------------


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).features, tmp_path) as found:
        yield found


@pytest.mark.heavy
def test_the_line_goes_on_as_if_nobody_had_touched_the_clock(line: Line, clock: Clock) -> None:
    """Models of before and after: the newest by the order of the records, each made once."""
    clock.offset = DAY
    line.must("snapshot", "model", partition="2013-01-04")
    first = [record.key for record in update(line.services)]
    clock.offset = timedelta(0)

    line.must("snapshot", "model", partition="2013-01-04")
    assert len(line.history("model", "2013-01-04")) == 1, (
        "who comes second does nothing, whatever the clock says"
    )
    line.must("features", partition="JFK|2013-01-04", tags={"signalbox/restate": "true"})
    line.must("snapshot", "model", partition="2013-01-05")
    line.must("snapshot", "model", partition="2013-01-04", tags={"signalbox/restate": "true"})
    made = line.history("model", "2013-01-04")
    assert len(made) == 2
    assert made[-1].committed_at < made[0].committed_at, "its clock says that it is the older one"
    assert line.versions("model")["2013-01-04"] == made[-1]
    assert set(line.versions("model")) == {"2013-01-04", "2013-01-05"}
    again = [record.key for record in update(line.services)]
    assert not set(first) & set(again), "no alert is raised a second time"
    assert line.services.leases.held() == []
