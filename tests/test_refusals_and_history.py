"""What a run refuses is no longer clear, and a partition's story keeps every verdict on it."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import platform_assets.line.live
import platform_assets.line.waive as waive_module
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.line.alerting import update
from platform_assets.line.clearance import still_held
from platform_assets.line.days import days_of
from platform_assets.line.explain import explain
from platform_assets.line.history import read_grid
from platform_assets.line.live import look
from platform_assets.line.status import status
from platform_assets.line.sweep import sweep
from platform_assets.line.waive import give_waiver, until_of
from platform_assets.terminal import print_explanation
from tests.small import HELD, Line, Templates, copied, small_spec
from tests.test_sensor import Box, hour_file

DAY = "2013-01-10"
JFK = f"JFK|{DAY}"
SIXTH = date(2013, 1, 6)


def opened_from(live_from: str, shared: Path, empty: Path, folder: Path) -> Any:
    spec = small_spec(schedule={"live_from": live_from})
    return copied(Templates(shared, empty).features, folder, spec)


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """Live from the 10th; nothing of it has landed."""
    with opened_from(DAY, shared_folder, home_template, tmp_path) as found:
        yield found


@pytest.fixture
def held(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """Live from the 6th, which is held for LGA."""
    with opened_from("2013-01-06", shared_folder, home_template, tmp_path) as found:
        yield found


def verdict(line: Line, partition: str) -> str | None:
    record = line.services.ledger.verdict("flights", "flights/features", partition)
    return record.verdict if record else None


def texts(line: Line, kind: str, partition: str = JFK) -> list[str]:
    story = explain(line.services, "features", partition)["story"]
    return [entry["text"] for entry in story if entry["kind"] == kind]


# --- refused by a run -------------------------------------------------------------------------


def test_refused_rows_are_a_verdict_until_they_are_built(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    services = line.services
    line.land(DAY)
    look(services)
    assert verdict(line, JFK) == "complete"

    def unfit(*_: object, **__: object) -> None:
        raise RefusedError("these rows cannot be joined")

    with monkeypatch.context() as patch:
        patch.setattr("platform_assets.line.features.build_rows", unfit)
        ran = line.run("features", partition=JFK)
    assert not ran.success
    assert verdict(line, JFK) == "refused"
    found = explain(services, "features", JFK)
    assert (found["state"], found["verdict"]) == ("refused", "refused")
    assert found["reason"] == f"refused by run {ran.run_id}: these rows cannot be joined"
    assert f"run {ran.run_id} ended, refused: these rows cannot be joined" in texts(line, "run")
    assert status(services)["assets"]["flights/features"]["ready"] == 1  # LGA alone
    # It holds its day, so that the days after it are not kept waiting for it.
    line.must("features", partition=f"LGA|{DAY}")
    day = date.fromisoformat(DAY)
    assert days_of(services, [day])[day].state == "held"
    # A look at the same files does not make it clear, and says why it is held.
    plan = look(services).plan
    assert verdict(line, JFK) == "refused"
    assert "these rows cannot be joined" in plan.held[JFK]
    print_explanation(explain(services, "features", JFK))
    assert "flights/features JFK|2013-01-10: refused" in capsys.readouterr().out
    # A run that builds it ends that, and the story keeps both.
    line.must("features", partition=JFK)
    assert verdict(line, JFK) == "complete"
    assert explain(services, "features", JFK)["state"] == "done"
    assert [t.split(":")[0] for t in texts(line, "verdict")] == ["complete", "complete"]
    assert len(texts(line, "run")) == 1


def test_a_green_run_of_another_partition_does_not_hide_a_refused_one(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(line)
    line.land(DAY)
    with monkeypatch.context() as patch:

        def unfit(*_: object, **__: object) -> None:
            raise RefusedError("these rows cannot be joined")

        patch.setattr("platform_assets.line.features.build_rows", unfit)
        ran = line.run("features", partition=JFK)
    line.must("features", partition=f"LGA|{DAY}")
    assert line.check("features").passed, "the check speaks of the last run alone"
    # The partition has an event of its own,
    filters = dg.AssetRecordsFilter(
        asset_key=line.key("features"), asset_partitions=[line.dagster_key(JFK)]
    )
    (record,) = line.instance.fetch_observations(filters, limit=10).records
    seen = record.asset_observation
    assert seen is not None
    assert {name: value.value for name, value in seen.metadata.items()} == {
        "verdict": "refused",
        "reason": "these rows cannot be joined",
        "run": ran.run_id,
    }
    # and the next look has the check say again what is held among the live days.
    for event in box.tick(launch=False).data.asset_events:
        line.instance.report_runless_asset_event(event)
    clear = line.check("features")
    assert not clear.passed
    held_now: Any = clear.metadata["held"].value
    assert "these rows cannot be joined" in held_now[JFK]


def test_other_files_end_a_refusal(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.land(DAY)
    with monkeypatch.context() as patch:

        def unfit(*_: object, **__: object) -> None:
            raise RefusedError("these rows cannot be joined")

        patch.setattr("platform_assets.line.features.build_rows", unfit)
        assert not line.run("features", partition=JFK).success
    folder = line.home.landing / "flights" / "weather" / "JFK" / DAY
    next(folder.glob("*.parquet")).unlink()
    look(line.services)
    assert verdict(line, JFK) in ("partial", "late")
    assert explain(line.services, "features", JFK)["state"] == "held"


# --- unknown is held --------------------------------------------------------------------------


def test_a_partition_without_a_verdict_stays_held_and_is_looked_at(line: Line) -> None:
    services, name = line.services, "JFK|2013-01-15"
    assert verdict(line, name) is None
    assert "no verdict" in still_held(services, [name], {})[name]
    assert date(2013, 1, 15) in services.watch.attended("flights")
    # What is clear is not, and neither is what the pipeline does not have (any more).
    line.land(DAY)
    look(services)
    gone = [JFK, "EWR|2013-01-15", "JFK|2013-01-02"]
    assert still_held(services, gone, {}) == {}


# --- waivers that lapse, and a person that is interrupted -------------------------------------


def test_a_waiver_that_lapses_is_taken_up_on_old_days_too(
    held: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = held.services
    give_waiver(services, HELD, "the station was down", "ann", until_of(held.spec, "2013-01-25"))
    assert verdict(held, HELD) == "waived"
    # Weeks later the day is none of the recent ones, and nobody attends it.
    services.ledger.advance_clock("flights", datetime(2013, 1, 22, tzinfo=UTC))
    looked_to = look(services).looked_to
    services.watch.settle("flights", services.watch.attended("flights"))
    assert verdict(held, HELD) == "waived"
    services.ledger.advance_clock("flights", datetime(2013, 1, 31, tzinfo=UTC))
    with monkeypatch.context() as patch:
        patch.setattr(platform_assets.line.live, "take_up_lapsed", lambda _: None)
        look(services, looked_to=looked_to)
        assert verdict(held, HELD) == "waived", "what was recorded without"
    look(services, looked_to=looked_to)
    assert verdict(held, HELD) == "late"


@pytest.mark.parametrize("ended", [False, True])
def test_whoever_gives_or_revokes_a_waiver_and_dies_has_the_date_attended(
    held: Line, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    services = held.services
    until = until_of(held.spec, "2013-01-25")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def act() -> None:
        if ended:
            waive_module.revoke_waiver(services, "W-0001", "bob", "it was not")
        else:
            give_waiver(services, HELD, "the station was down", "ann", until)

    if ended:
        give_waiver(services, HELD, "the station was down", "ann", until)
        services.watch.settle("flights", services.watch.attended("flights"))
    with monkeypatch.context() as patch:
        patch.setattr(waive_module, "_take_up", killed)
        with pytest.raises(KeyboardInterrupt):
            act()
    assert SIXTH in services.watch.attended("flights")
    if not ended:
        assert verdict(held, HELD) != "waived"
        with pytest.raises(RefusedError, match="under W-0001"):
            give_waiver(services, HELD, "the station was down", "ann", until)
        assert verdict(held, HELD) == "waived"


# --- a look by somebody else ------------------------------------------------------------------


@pytest.mark.parametrize("absorbed", [False, True])
def test_a_status_does_not_take_a_change_from_the_sweeps_first_round(
    held: Line, monkeypatch: pytest.MonkeyPatch, absorbed: bool
) -> None:
    """The sweep has not come to the day yet: to it, a file that the ledger knows is no news."""
    services = held.services
    services.watch.settle("flights", services.watch.attended("flights"))
    folder = held.home.landing / "flights" / "weather" / "JFK" / "2013-01-07"
    next(folder.glob("*.parquet")).unlink()
    with monkeypatch.context() as patch:
        if absorbed:
            patch.setattr(type(services), "live", lambda *_: {})
        read_grid(services, held.spec.partitions.start, date(2013, 1, 9))
    position, found = 0, set()
    while True:
        swept = sweep(services, position)
        found |= set(swept.changed)
        position = swept.position
        if position == 0:
            break
    known = found | services.watch.attended("flights").keys()
    assert (date(2013, 1, 7) in known) is not absorbed


def test_a_look_at_all_days_attends_those_that_changed_alone(held: Line) -> None:
    services = held.services
    services.watch.settle("flights", services.watch.attended("flights"))
    hour = local_hours(date(2013, 1, 8), held.spec.partitions.timezone)[3]
    path = hour_file(held, "weather", "JFK", hour)
    content = path.read_bytes()
    path.write_bytes(content)  # another time of change
    read_grid(services, held.spec.partitions.start, date(2013, 1, 9))
    # And the same weekday after it, whose number of rows is judged against it.
    assert services.watch.attended("flights").keys() == {date(2013, 1, 8), date(2013, 1, 15)}


# --- the whole story --------------------------------------------------------------------------


@pytest.mark.heavy
def test_18_of_24_then_late_then_whole_then_trained_is_all_in_the_story(line: Line) -> None:
    box, services = Box(line), line.services
    for until_hour in (6, 18):
        line.land(DAY, until_hour=until_hour)
        box.tick()
    update(services)
    refused = line.run("features", partition=JFK)
    assert not refused.success
    services.ledger.advance_clock("flights", datetime(2013, 1, 11, 12, tzinfo=UTC))
    box.tick(must=False)
    assert [r.kind for r in update(services) if r.subject == f"flights/features {DAY}"] == ["late"]
    line.land(DAY)
    box.tick()
    update(services)
    box.tick()
    story = explain(services, "features", JFK)["story"]
    told = [(e["kind"], e["text"]) for e in story if e["kind"] != "arrival"]
    expected = [
        ("verdict", "partial: flights 18 of 24 hours"),
        ("run", f"run {refused.run_id} ended, held: flights 18 of 24 hours"),
        ("verdict", "late: flights 18 of 24 hours"),
        ("alert", f"alert late: flights/features {DAY} is over, past its deadline"),
        ("verdict", "complete: flights 24 of 24 hours"),
        ("version", "version "),
        ("alert", f"alert healed: flights/features {DAY}: it is clear"),
        ("model", f"trained on: the model(s) of {DAY}"),
    ]
    position = 0
    for kind, text in expected:
        while position < len(told) and not (
            told[position][0] == kind and told[position][1].startswith(text)
        ):
            position += 1
        assert position < len(told), (kind, text, told)
    (partial,) = [e for e in story if e["text"].startswith("partial")]
    assert partial["changes"] == 2  # at 6 hours and at 18: one line, of the last


def test_a_history_is_kept_of_what_changes_and_not_of_each_look(line: Line) -> None:
    services = line.services
    line.land(DAY, until_hour=18)
    for _ in range(3):
        look(services)
    services.ledger.advance_clock("flights", services.clock.as_of() + timedelta(minutes=30))
    look(services)
    found = services.ledger.transitions("flights", "flights/features", JFK)
    assert [t.verdict for t in found] == ["partial"]
    key = PartitionKey.parse(JFK)
    assert services.ledger.transitions("flights", "flights/features", f"LGA|{key.date}") != []
