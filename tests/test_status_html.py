"""`signalbox status --html`: one page with everything on it, escaped, and written whole."""

import errno
import json
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from platform_assets.cli.app import main
from platform_assets.domain.errors import TransientError, UsageError
from platform_assets.domain.waiver import Waiver
from resources.ledger.records import AlertRecord, QuarantineRecord, RestatementRecord
from resources.pages import check_page, write_page
from tests.small import HELD, Line, Templates, copied, small_spec

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> & {{ 7 * 7 }}"
AT = datetime(2013, 1, 9, 12, tzinfo=UTC)
Run = Callable[..., tuple[int, str, str]]


class Page(HTMLParser):
    """What a browser would make of a page: its elements, attributes, tooltips and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.links: list[str] = []
        self.tooltips: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.handlers.append(name)
            if name in ("src", "href"):
                self.links.append(value or "")
            if name == "title":
                self.tooltips.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def line(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Line]:
    """The small line with its features; its catalog has a hostile description."""
    spec = small_spec().model_copy(update={"description": HOSTILE})
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    (catalog / "flights.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(catalog))
    with copied(Templates(shared_folder, home_template).features, tmp_path, spec) as found:
        yield found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def give_everything(line: Line, text: str) -> None:
    """A waiver, a quarantined file, a restatement and an alert, all with this text."""
    services = line.services
    services.waivers.give(
        Waiver(
            name="",
            pipeline="flights",
            partition=HELD,
            reason=text,
            by=text,
            given_at=AT,
            until=AT + timedelta(days=1),
            covers={},
        )
    )
    services.quarantine.add(
        [
            QuarantineRecord(
                pipeline="flights",
                source="weather",
                key="LGA",
                hour=AT + timedelta(days=9),  # no look ends what it has not come to
                path=f"a/{text}",
                size=3,
                digest="",
                reason=text,
                kept=text,
                found_at=AT,
            )
        ]
    )
    services.restatements.found(
        RestatementRecord(
            pipeline="flights",
            partition="JFK|2013-01-03",
            used_version="a",
            now_version="b",
            changes={},
            touches={},
            decision="list",
            reason=text,
            state="open",
            found_at=AT,
        )
    )
    services.alerts.raise_all(
        [
            AlertRecord(
                pipeline="flights",
                kind="held",
                subject=text,
                key="k",
                text=text,
                advice=text,
                raised_at=AT,
                next_attempt_at=AT,
            )
        ]
    )


def test_the_page_shows_what_is_there_and_what_is_held(
    line: Line, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "status.html"
    assert run("status", "--html", str(file)) == (0, f"wrote {file}\n", "")
    page = Page(file.read_text())
    assert any(
        tip.startswith("LGA 2013-01-06: weather 23 of 24 hours, missing 06:00")
        for tip in page.tooltips
    )
    assert len(page.tooltips) == 16, "two airports, eight days"
    assert sum("complete, 24 of 24 hours" in tip for tip in page.tooltips) == 15
    for words in ("Held partitions: 1", "late 1", "complete 15", "2013-01-07 11:00Z"):
        assert words in page.text
    for words in ("None was given.", "No file is in quarantine.", "None is open."):
        assert words in page.text
    assert page.links == [], "nothing is fetched: the page stands alone"

    give_everything(line, "the station was down")
    run("status", "--html", str(file))
    text = Page(file.read_text()).text
    for words in ("Waivers: 1", "Quarantined files: 1", "Open restatements: 1", "Open alerts: 1"):
        assert words in text
    assert "W-0001" in text


def test_text_of_others_stays_text(line: Line, run: Run, tmp_path: Path) -> None:
    give_everything(line, HOSTILE)
    file = tmp_path / "status.html"
    assert run("status", "--html", str(file))[0] == 0
    page = Page(file.read_text())
    assert page.text.count(HOSTILE) >= 8
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.handlers == []
    assert "Content-Security-Policy" in file.read_text()


def test_a_page_without_escaping_would_be_noticed(
    line: Line, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jinja2

    class Careless(jinja2.Environment):
        def __init__(self, **settings: object) -> None:
            super().__init__(**{**settings, "autoescape": False})  # type: ignore[arg-type]

    give_everything(line, HOSTILE)
    monkeypatch.setattr(jinja2, "Environment", Careless)
    file = tmp_path / "status.html"
    run("status", "--html", str(file))
    page = Page(file.read_text())
    assert "script" in page.tags
    assert "onerror" in page.handlers


def test_with_json_it_says_where_the_page_is(line: Line, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "status.HTML"
    code, out, err = run("status", "--pipeline", "flights", "--html", str(file), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"html": str(file), "pipelines": ["flights"]}
    assert file.read_text().startswith("<!doctype html>")


@pytest.mark.embedded
def test_before_the_first_day_there_is_a_page_too(line: Line, run: Run, tmp_path: Path) -> None:
    with sqlite3.connect(line.home.root / "ledger.db") as database:
        database.execute("delete from clocks")
    file = tmp_path / "early.html"
    assert run("status", "--html", str(file))[0] == 0
    assert "No day has begun." in Page(file.read_text()).text


# --- where it may be written ------------------------------------------------------------------


def refused(run: Run, path: Path, *words: str) -> None:
    code, out, err = run("status", "--html", str(path))
    assert (code, out) == (2, "")
    assert err.startswith("signalbox: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.embedded
def test_a_page_replaces_a_file_of_its_kind_alone(line: Line, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "folder.html"
    folder.mkdir()
    refused(run, folder, "is a folder", "name another place")
    target = tmp_path / "precious.html"
    target.write_text("kept")
    link = tmp_path / "link.html"
    link.symlink_to(target)
    refused(run, link, "is a symbolic link")
    assert target.read_text() == "kept"
    precious = line.home.root / "ledger.db"
    before = precious.stat()
    refused(run, precious, "ends in .html or .htm")
    assert precious.stat().st_size == before.st_size
    refused(run, tmp_path / "nowhere" / "x.html", "there is no folder", "make it first")
    assert not (tmp_path / "nowhere").exists()
    code, _, err = run("status", "features", "--html", str(tmp_path / "x.html"))
    assert code == 2
    assert "shows whole pipelines" in err


def test_a_page_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.html"
    write_page(file, "first")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(TransientError, match=r"No space left on device.*nothing was left"):
            write_page(file, "second")
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]
    write_page(file, "second")
    assert file.read_text() == "second"
    with pytest.raises(UsageError, match="ends in"):
        check_page(tmp_path / "page")
