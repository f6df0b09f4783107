"""From a model back to every partition version; what cannot be shown is said not to be."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from platform_assets.cli.app import main
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.model_ref import ModelRef
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.audit import _promoted, audit
from platform_assets.line.audit_page import audit_page
from platform_assets.line.crowning import decide_champion
from platform_assets.line.days import build_day, build_snapshot
from platform_assets.line.impact import read_impact
from platform_assets.line.judging import evaluate_model
from platform_assets.line.models import train_model
from platform_assets.line.registered import model_record
from platform_assets.line.waive import give_waiver, revoke_waiver, until_of
from resources.ledger.records import VersionRecord
from tests.promoting import verdict
from tests.small import HELD, Line, Templates, built_once, copied
from tests.test_reproduction import IN_WINDOW, command, correct, files_of

pytestmark = pytest.mark.heavy


def judge(line: Line) -> None:
    for day in ("2013-01-04", "2013-01-07"):
        evaluate_model(line.services, PartitionKey.parse(day), "by hand")
        decide_champion(line.services, "by hand")


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """Models of four days, two of them judged; one is champion."""
    models = Templates(shared_folder, home_template).models
    template = built_once(shared_folder, "small-crowned", models, judge)
    with copied(template, tmp_path) as found:
        yield found


def champion(line: Line) -> VersionRecord:
    return model_record(line.services, ModelRef.parse("flights"))


def failed(document: Mapping[str, Any]) -> list[str]:
    return [check["what"] for check in document["checks"] if not check["ok"]]


def found_by(document: Mapping[str, Any], what: str) -> str:
    (found,) = [c["found"] for c in document["checks"] if what in c["what"]]
    return str(found)


class Page(HTMLParser):
    """What a page would fetch, its anchors, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.leads: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action", "poster") or tag in ("link", "script"):
                self.fetched.append(value or tag)
            elif name == "href":
                (self.leads if str(value).startswith("#") else self.fetched).append(str(value))
            elif name == "id":
                self.anchors.add(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


# --- what is there ----------------------------------------------------------------------------


def test_every_link_of_the_chain_is_named_and_was_looked_at(line: Line) -> None:
    record = champion(line)
    document = audit(line.services, record)
    assert document["ok"]
    assert failed(document) == []
    assert document["role"] == "champion"
    assert json.loads(json.dumps(document)) == document

    snapshot = document["snapshot"]
    assert snapshot["digest"] == record.detail["snapshot"]
    assert sum(p["rows"] for p in snapshot["partitions"]) == document["training"]["rows"]
    built = line.versions("features")
    for p in snapshot["partitions"]:
        version = built[p["partition"]]
        assert p["data_version"] == version.data_version
        assert p["run_id"] == version.run_id
        assert p["verdict"] == "complete"
        assert set(p["hours"]) == {"flights", "weather"}
        assert not p["changed_since"]
    last = document["promotions"][-1]
    assert last["this"]
    assert last["version"] == document["version"]
    assert last["evaluation_id"] in [v["id"] for v in document["verdicts"]]
    assert document["judgements"][-1]["metrics"]["log_loss"] > 0
    assert document["training"]["environment"]["packages"]["lightgbm"]
    assert document["training"]["recipe"]["seed"] == 20130128


def test_late_data_is_told_and_takes_nothing_away(line: Line) -> None:
    record = model_record(line.services, ModelRef.parse("flights@1"))
    correct(line)
    document = audit(line.services, record)
    assert document["ok"]
    changed = [p["partition"] for p in document["snapshot"]["partitions"] if p["changed_since"]]
    assert changed == [IN_WINDOW]
    assert "1 of the 6 partitions" in "".join(Page(page(line, record, document)).words)


def page(line: Line, record: VersionRecord, document: Mapping[str, Any]) -> str:
    return audit_page(line.services, record, document)


# --- what cannot be shown ---------------------------------------------------------------------


def test_rows_that_are_gone_are_not_shown(line: Line) -> None:
    record = champion(line)
    day = audit(line.services, record)["snapshot"]["days"][0]
    for file in files_of(line, f"JFK|{day}"):
        file.unlink()
    document = audit(line.services, record)
    assert failed(document) == ["every row that it was trained on can be read as it was"]
    assert f"partition JFK|{day}" in found_by(document, "trained on can be read")
    text = page(line, record, document)
    assert "NOT shown" in text
    assert 'class="verdict off"' in text


def test_a_manifest_that_is_gone_is_not_shown_and_the_page_is_there_all_the_same(
    line: Line,
) -> None:
    record = champion(line)
    folder = line.home.lake / "flights" / "snapshots" / record.partition
    (folder / f"{record.detail['snapshot']}.json").unlink()
    document = audit(line.services, record)
    assert not document["ok"]
    assert len(failed(document)) == 2
    assert page(line, record, document)


def model_files(line: Line, record: VersionRecord) -> list[Path]:
    from mlflow import MlflowClient

    version = str(record.detail["model_version"])
    source = MlflowClient(line.home.mlflow_uri).get_model_version("flight-delay", version).source
    return [f for f in Path(source.removeprefix("file://")).rglob("*") if f.is_file()]


def test_model_files_that_were_changed_are_not_shown_and_not_loaded(
    line: Line, tmp_path: Path
) -> None:
    record = champion(line)
    changed = next(f for f in model_files(line, record) if f.name.startswith("model."))
    before = changed.read_bytes()
    changed.write_bytes(before + b"\n")
    try:
        document = audit(line.services, record)
        assert failed(document) == ["the files in the registry are those that were trained"]
        text = page(line, record, document)
    finally:
        changed.write_bytes(before)
    assert "A picture of the model is missing" in text
    assert "what the model looks at" not in text


def test_an_alias_that_somebody_moved_is_not_shown(line: Line) -> None:
    record = champion(line)
    other = 3 if record.detail["model_version"] != 3 else 2
    line.services.tracking.set_alias("flight-delay", "champion", other)
    document = audit(line.services, record)
    assert failed(document) == ["the registry's alias names the champion"]
    assert f"names version {other}" in found_by(document, "alias")


def test_a_pair_that_was_judged_again_takes_no_promotion_away(line: Line) -> None:
    record, services = champion(line), line.services
    version = int(record.detail["model_version"])
    change = services.ledger.promotions("flight-delay")[-1]
    again = verdict(services.ledger, version, change.previous, passed=False)
    newest = services.ledger.evaluation("flight-delay", version, change.previous)
    assert newest is not None
    assert newest.id == again.id != change.evaluation_id, "the newest is another one"
    document = audit(services, record)
    assert failed(document) == []
    assert f"verdict {change.evaluation_id} on version" in found_by(document, "its promotion")
    # A verdict on another pair does not count, nor one that is not there.
    for previous, evaluation in ((99, change.evaluation_id), (change.previous, 4711)):
        told = {"action": "promote", "previous": previous, "evaluation_id": evaluation}
        assert not _promoted(services, told, version)["ok"]


def test_a_revoked_waiver_is_not_shown(line: Line) -> None:
    services, reason = line.services, "the station was down <b>for good</b>"
    until = until_of(line.spec, "2013-01-20")
    waiver = give_waiver(services, HELD, reason, "ann", until)
    line.must("features", partition=HELD)
    line.must("day", partition="2013-01-06")
    line.must("snapshot", "model", partition="2013-01-06")
    record = line.versions("model")["2013-01-06"]
    assert record.detail["waivers"] == [waiver.name]
    under = audit(services, record)
    assert under["ok"], failed(under)
    assert "ann" in under["waivers"][waiver.name]
    text = page(line, record, under)
    assert "&lt;b&gt;for good" in text
    assert "<b>for good" not in text
    revoke_waiver(services, waiver.name, "bob", "it was not")
    assert failed(audit(services, record)) == ["no waiver that it rests on was revoked"]


def test_a_candidate_and_an_unjudged_one_have_a_page(line: Line) -> None:
    for version in (1, 2, 3, 4):
        record = model_record(line.services, ModelRef(name="flights", version=version))
        document = audit(line.services, record)
        assert document["ok"], failed(document)
        assert f"version {version}" in page(line, record, document)


def test_an_alias_is_what_the_ledger_projects_whatever_the_registry_says(line: Line) -> None:
    """Versions 1 and 3 are judged: one is champion, the other was it or may become it."""
    record = champion(line)
    (other,) = {1, 3} - {record.detail["model_version"]}
    line.services.tracking.set_alias("flight-delay", "champion", other)
    assert champion(line) == record
    found = []
    for alias in ("previous", "challenger"):
        with suppress(RefusedError):  # nobody has that one yet
            found.append(model_record(line.services, ModelRef.parse(f"flights@{alias}")))
    assert [r.detail["model_version"] for r in found] == [other]


# --- the page ---------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(line: Line) -> None:
    record = champion(line)
    text = page(line, record, audit(line.services, record))
    found = Page(text)
    assert found.fetched
    assert all(place.startswith("data:image/png;base64,") for place in found.fetched)
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text
    # Each box of the chain leads somewhere.
    assert len(found.leads) == 6
    assert set(found.leads) <= {f"#{anchor}" for anchor in found.anchors}
    said = " ".join(" ".join(found.words).split())
    partitions = audit(line.services, record)["snapshot"]["partitions"]
    every = f"Every partition version: {len(partitions)}"
    for told in ("All 7 things", "What was looked at", every, "Words"):
        assert told in said
    for p in partitions:
        assert p["data_version"] in text


def test_the_command(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "flights.yaml").write_text(yaml.safe_dump(line.spec.model_dump(mode="json")))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(folder))
    target = tmp_path / "audit.html"
    code, out, err = command(capsys, "audit", "flights", "--html", str(target), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["html"] == str(target)
    assert target.read_text().startswith("<!doctype html>")
    code, out, _ = command(capsys, "audit", "flight-delay@champion")
    assert code == 0
    assert "champion: " in out
    # Wrong use is refused before anything is read.
    code, out, err = command(capsys, "audit", "flights", "--html", str(tmp_path / "audit.txt"))
    assert (code, out) == (2, "")
    assert "ends in .html" in err
    line.services.tracking.set_alias("flight-delay", "champion", 4)
    code, out, _ = command(capsys, "audit", "flights", "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False
    assert main  # the same entry point as the console script's


# --- and the way forward ----------------------------------------------------------------------


def test_impact_names_every_registered_version_that_read_a_partition(line: Line) -> None:
    services, day = line.services, PartitionKey.parse("2013-01-05")
    first = line.versions("features")[IN_WINDOW].data_version
    before = read_impact(services, "features", IN_WINDOW)["registered"]
    assert [m["version"] for m in before] == [1, 2]
    assert all(m["current"] and m["read"] == {IN_WINDOW: first} for m in before)

    correct(line)
    build_day(services, PartitionKey.parse("2013-01-04"), "by hand")
    build_snapshot(services, day, "by hand")
    train_model(services, day, "by hand", lane="adhoc")
    second = line.versions("features")[IN_WINDOW].data_version
    after = read_impact(services, "features", IN_WINDOW)["registered"]
    # The date's current model is version 5; version 2 is still there, and may be rolled back to.
    assert [(m["version"], m["read"][IN_WINDOW], m["current"]) for m in after] == [
        (1, first, False),
        (2, first, False),
        (5, second, True),
    ]
    crowned = {c.version for c in services.ledger.promotions("flight-delay")}
    assert {m["version"] for m in after if m["was_champion"]} == crowned & {1, 2, 5}
    of_day = read_impact(services, "day", "2013-01-04")["registered"]
    assert [m["version"] for m in of_day] == [1, 2, 5]
    assert set(of_day[0]["read"]) == {"JFK|2013-01-04", "LGA|2013-01-04"}


def test_a_version_that_cannot_tell_is_named_as_such(line: Line) -> None:
    record = model_record(line.services, ModelRef.parse("flights@2"))
    folder = line.home.lake / "flights" / "snapshots" / record.partition
    (folder / f"{record.detail['snapshot']}.json").unlink()
    found = read_impact(line.services, "features", IN_WINDOW)["registered"]
    assert found[1]["read"] == {IN_WINDOW: "unknown"}
    assert not found[1]["current"]
