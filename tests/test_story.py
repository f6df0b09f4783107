"""The story of a partition: who came, who decided, who built, who reads it; in order."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from platform_assets.domain.partition import local_hours
from platform_assets.domain.waiver import Shortage, Waiver
from platform_assets.line.explain import explain
from platform_assets.terminal import print_explanation
from resources.ledger.records import QuarantineRecord, RestatementRecord
from resources.nycflights import load_feed
from tests.nyc import with_cell
from tests.small import HELD, Line, Templates, copied

DONE = "JFK|2013-01-04"
LATER = timedelta(hours=30)


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        yield found


def told(line: Line, asset: str, partition: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = explain(line.services, asset, partition)["story"]
    return found


def kinds(story: list[dict[str, Any]]) -> list[str]:
    return [entry["kind"] for entry in story]


def texts(story: list[dict[str, Any]], kind: str) -> list[str]:
    return [entry["text"] for entry in story if entry["kind"] == kind]


def give(line: Line, *, hours: timedelta = LATER) -> Waiver:
    """A waiver of the hour that the held partition lacks, now."""
    now = line.services.clock.as_of()
    covers = {"weather": Shortage(hours=("2013-01-06T11Z",))}
    return line.services.waivers.give(
        Waiver(
            name="", pipeline="flights", partition=HELD, reason="the station was down", by="ann",
            given_at=now, until=now + hours, covers=covers,
        ),
    )  # fmt: skip


def test_a_built_partition_from_its_first_hour_to_the_models_on_it(line: Line) -> None:
    story = told(line, "features", DONE)
    assert kinds(story) == ["arrival", "arrival", "verdict", "version", "snapshot", "model"]
    assert story[0]["text"].startswith("flights: 24 of 24 hours arrived, 00:00-23:00; ")
    assert (story[0]["files"], story[0]["refused"]) == (24, 0)
    assert story[0]["first_hour"] == "2013-01-04T05:00:00+00:00"
    assert story[0]["first_seen_at"] <= story[0]["last_seen_at"]
    assert story[2]["text"].startswith("complete: flights 24 of 24 hours")
    (version,) = line.history("features", DONE)
    assert (story[3]["run_id"], story[3]["rows"]) == (version.run_id, version.rows)
    assert story[3]["data_version"] == version.data_version
    assert texts(story, "snapshot") == ["read by the snapshot(s) of 2013-01-04 to 2013-01-05"]
    assert texts(story, "model") == ["trained on: the model(s) of 2013-01-04 to 2013-01-05"]
    moments = [entry["at"] for entry in story]
    assert moments == sorted(moments)


def test_the_story_of_a_source_is_of_that_source_alone(line: Line) -> None:
    story = told(line, "flights/landed_weather", HELD)
    assert [t.split(":")[0] for t in texts(story, "arrival")] == ["weather"]
    assert "23 of 24 hours arrived, 00:00-05:00, 07:00-23:00" in story[0]["text"]
    assert "version" not in kinds(story)
    done = told(line, "flights/landed_weather", DONE)
    assert texts(done, "verdict") == ["verdict as recorded: complete: 24 of 24 hours"]


def test_judgement_and_champion_are_told_of_what_they_rest_on(line: Line) -> None:
    line.must("day", span=("2013-01-02", "2013-01-09"))
    line.must("evaluation", partition="2013-01-04")
    line.must("champion")
    trained_on, judged_on = told(line, "features", DONE), told(line, "features", "JFK|2013-01-05")
    assert texts(trained_on, "evaluation") == ["what rests on it was judged: 2013-01-04"]
    assert "judged on: the model(s) of 2013-01-04" in texts(judged_on, "evaluation")
    (champion,) = texts(trained_on, "champion")
    assert champion.startswith("flight-delay version")
    assert kinds(trained_on)[-1] == "champion"
    assert texts(told(line, "day", "2013-01-04"), "champion") == [champion]
    assert texts(told(line, "snapshot", "2013-01-04"), "champion") == [champion]
    assert kinds(told(line, "model", "2013-01-04")) == ["version", "evaluation", "champion"]
    assert kinds(told(line, "evaluation", "2013-01-04")) == ["version", "champion"]
    assert "champion" not in kinds(told(line, "features", "JFK|2013-01-09"))


def test_a_waiver_stands_before_what_was_built_under_it_and_its_end_after(line: Line) -> None:
    """In a replay a waiver's instants are years before the run's: by them alone it would be lost
    when it was given, and seem revoked before anything was built under it."""
    waiver = give(line)
    line.must("features", partition=HELD)
    line.services.waivers.revoke(
        "flights", waiver.name, "bob", "it was not down", line.services.clock.as_of()
    )
    story = told(line, "features", HELD)
    mine = [entry for entry in story if entry["kind"] in ("arrival", "waiver", "version")]
    assert kinds(mine) == ["arrival", "arrival", "waiver", "version", "waiver"]
    given, revoked = texts(story, "waiver")
    assert given.startswith(f"waiver given: {waiver.name} by ann until 2013-01-11")
    assert revoked == f"waiver {waiver.name} revoked by bob: it was not down"
    assert "short of: weather 23 of 24 hours, missing 06:00" in texts(story, "version")[0]
    assert {e["clock"] for e in mine if e["kind"] == "waiver"} == {"pipeline"}
    by_instant = sorted(mine, key=lambda entry: str(entry["at"]))
    assert kinds(by_instant)[:2] == ["waiver", "waiver"], "what the order would be without"


def test_an_expired_waiver_is_told(line: Line) -> None:
    waiver = give(line, hours=timedelta(hours=1))
    assert len(texts(told(line, "features", HELD), "waiver")) == 1
    line.land("2013-01-10")
    assert texts(told(line, "features", HELD), "waiver")[1] == f"waiver {waiver.name} expired"
    assert texts(told(line, "features", DONE), "waiver") == []


def test_files_that_were_replaced_after_the_build_are_told_apart(line: Line) -> None:
    hour = local_hours(date(2013, 1, 4), line.spec.partitions.timezone)[14]
    rows = load_feed("weather", line.spec.sources["weather"]).rows("JFK", hour)
    assert rows is not None
    line.services.zone.deliver("weather", "JFK", hour, with_cell(rows, "temp", 0, 99.0))
    story = told(line, "features", DONE)
    assert texts(story, "corrected") == [
        "weather: 1 of 24 hours came or were replaced after the first version was built, 14:00; "
        "1 rows"
    ]
    assert "weather: 23 of 24 hours arrived, 00:00-13:00, 15:00-23:00" in story[1]["text"]
    assert kinds(story).index("corrected") > kinds(story).index("version")


def test_quarantine_and_restatements_are_told_to_their_end(line: Line) -> None:
    services, now = line.services, datetime.now(UTC)
    hour = local_hours(date(2013, 1, 4), line.spec.partitions.timezone)[3]

    def refused(key: str, at: datetime) -> QuarantineRecord:
        return QuarantineRecord(
            pipeline="flights", source="weather", key=key, hour=at, path=f"x/{key}/{at}", size=1,
            digest="", reason="it is torn", kept="q/1", found_at=now,
        )  # fmt: skip

    services.quarantine.add(
        [refused("JFK", hour), refused("LGA", hour), refused("JFK", hour + timedelta(days=1))]
    )
    services.quarantine.end("flights", [f"x/JFK/{hour}"], "healed", now + timedelta(seconds=2))
    services.restatements.found(
        RestatementRecord(
            pipeline="flights", partition=DONE, used_version="a", now_version="b",
            changes={"weather": {"changed": ["2013-01-04T08Z"]}}, touches={}, decision="list",
            reason="past the lateness", state="open", found_at=now - timedelta(seconds=1),
        ),
    )  # fmt: skip
    services.restatements.approve("flights", [DONE], "ann")
    (open_one,) = services.restatements.all("flights", only_open=True)
    services.restatements.end(open_one.number, "done", "rebuilt", now + timedelta(hours=1))
    story = told(line, "features", DONE)
    assert texts(story, "quarantine") == [
        "weather 03:00 was refused into quarantine: it is torn",
        "weather 03:00 left quarantine: healed",
    ]
    # The approval stands between: its instant is the machine's own.
    found, *_, done = texts(story, "restatement")
    assert found == "its hours changed after they were used: list (past the lateness)"
    assert done == "restatement done: rebuilt"
    assert "restatement approved by ann" in texts(story, "restatement")
    assert texts(told(line, "landed_flights", DONE), "quarantine") == []


def test_a_snapshot_whose_manifest_is_gone_does_not_end_the_story(line: Line) -> None:
    for file in (line.home.lake / "flights" / "snapshots" / "2013-01-05").iterdir():
        file.unlink()
    story = told(line, "features", DONE)
    assert texts(story, "snapshot") == ["read by the snapshot(s) of 2013-01-04"]


def test_before_anything_has_come_there_is_no_story(line: Line) -> None:
    assert told(line, "features", "JFK|2013-01-15") == []


def test_on_the_terminal_it_is_a_line_each(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    give(line)
    print_explanation(explain(line.services, "features", HELD))
    lines = capsys.readouterr().out.splitlines()
    waiver = next(text for text in lines if "waiver given" in text)
    assert waiver.startswith(
        "  2013-01-10T05:00:00Z on the pipeline's clock waiver: waiver given: W-"
    )
    assert any(" arrival: weather: 23 of 24 hours arrived" in text for text in lines)
