"""Drills: the harness removes its home however a drill ends, and partial-day shows what it says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest

import platform_assets.drills.registry
from platform_assets.cli.app import main
from platform_assets.domain.errors import UsageError
from platform_assets.drills import duplicate_cities, starvation
from platform_assets.drills.crowd import overlapping
from platform_assets.drills.harness import Drill, Scene, run_drill, temporary_home
from platform_assets.drills.measure import Rows, chosen_dates, partial_against_whole
from platform_assets.drills.partial_day import Case, play_case
from platform_assets.drills.report import DrillReport, Measurement, Step
from platform_assets.line.services import Services
from resources.dataset import build_rows
from resources.home import Home
from tests.nyc import sources
from tests.small import small_spec
from tests.test_status_html import HOSTILE, Page

pytestmark = pytest.mark.embedded

Play = Callable[[Scene], DrillReport]


def report(*, ok: bool = True, text: str = "it trained") -> DrillReport:
    return DrillReport(
        name="toy",
        title="a toy",
        question=text,
        plain=(Step(did="asked", found=text),),
        signalbox=(Step(did="asked", found=text, ok=ok),),
        measurements=(
            Measurement(
                what=text, metric="log_loss", better="lower", mean=0.2, low=0.1, high=0.3, n=4,
                reference=0.5,
            ),
        ),
        verdict=text,
    )  # fmt: skip


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def made(home_template: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Homes of drills are copies of one, which is faster than making them."""

    def copy(home: Home) -> None:
        shutil.copytree(home_template, home.root)

    monkeypatch.setattr("platform_assets.factory.instance.make_home", copy)
    return temporary


def toy(play: Play) -> Drill:
    return Drill("toy", "a toy", play)


# --- the home goes ----------------------------------------------------------------------------


def test_after_a_drill_nothing_is_left_and_the_environment_is_as_before(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALBOX_HOME", "/somewhere/else")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    before = dict(os.environ)
    seen: list[Path] = []

    def play(scene: Scene) -> DrillReport:
        seen.append(scene.home.root)
        assert Home.locate() == scene.home
        scene.home.require()
        with scene.part("a part"):
            pass
        return report()

    found = run_drill(toy(play), days=3)
    assert seen[0].is_relative_to(made)
    assert list(made.iterdir()) == []
    assert dict(os.environ) == before
    assert found.home is None
    assert list(found.seconds) == ["making a home", "a part"]


@pytest.fixture
def hangup_ends() -> Iterator[None]:
    """Signals as in a terminal, also where the tests themselves run under nohup.

    Dagster's commands, called in this process by other tests, leave SIGTERM a handler.
    """
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_drill_under_nohup_goes_on_when_the_terminal_is_closed(
    made: Path, hangup_ends: None
) -> None:
    def play(scene: Scene) -> DrillReport:
        os.kill(os.getpid(), signal.SIGHUP)
        return report()

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run_drill(toy(play), days=3).ok
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("hangup_ends")
@pytest.mark.parametrize("how", ["failure", "interrupt", "terminated", "hangup"])
def test_it_goes_too_when_the_drill_fails_or_is_interrupted(made: Path, how: str) -> None:
    def play(scene: Scene) -> DrillReport:
        assert scene.home.root.exists()
        if how == "failure":
            raise RuntimeError("the drill broke")
        if how == "interrupt":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGHUP if how == "hangup" else signal.SIGTERM)
        raise AssertionError("unreachable")

    expected = RuntimeError if how == "failure" else KeyboardInterrupt
    with pytest.raises(expected):
        run_drill(toy(play), days=3)
    assert list(made.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


KILLED = """
import os, signal
from platform_assets.drills.harness import temporary_home
with temporary_home(keep=False, say=print) as home:
    print(home.root.parent, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_home_of_a_killed_drill_goes_with_the_next_one(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert left.parent == temporary
    assert left.exists(), "nobody could have removed it"
    said: list[str] = []
    with temporary_home(keep=True, say=said.append) as kept:
        assert not left.exists()
        assert said == [f"the home of a drill that was killed is removed: {left}"]
        # Neither one that is at work nor one that was kept is taken away.
        with temporary_home(keep=False, say=said.append):
            assert kept.root.parent.exists()
    with temporary_home(keep=False, say=said.append):
        assert kept.root.parent.exists()
    assert len([line for line in said if "was killed" in line]) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_with_keep_it_stays_and_is_named(made: Path, fails: bool) -> None:
    said: list[str] = []

    def play(scene: Scene) -> DrillReport:
        if fails:
            raise RuntimeError
        return report()

    if fails:
        with pytest.raises(RuntimeError):
            run_drill(toy(play), days=3, keep=True, say=said.append)
    else:
        found = run_drill(toy(play), days=3, keep=True, say=said.append)
        assert found.home is not None
        Home.locate(Path(found.home)).require()
    kept = next(made.iterdir()) / "home"
    assert f"the drill's home is kept: {kept}" in said


def test_a_drill_never_meets_the_stores_of_its_caller(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = f"sqlite:///{tmp_path / 'production.db'}"
    monkeypatch.setenv("SIGNALBOX_LEDGER_URL", foreign)
    monkeypatch.setenv("SIGNALBOX_MLFLOW_URI", foreign)
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(tmp_path / "catalog"))
    assert Home.locate(tmp_path).ledger_url == foreign, "else the drill would write there"
    with temporary_home(keep=False, say=print) as home:
        assert str(temporary) in home.ledger_url
        assert str(temporary) in home.mlflow_uri
        assert Home.locate() == home
        assert "SIGNALBOX_CATALOG" not in os.environ
    assert os.environ["SIGNALBOX_LEDGER_URL"] == foreign
    assert os.environ["SIGNALBOX_CATALOG"] == str(tmp_path / "catalog")


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["drill", *arguments])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


@pytest.fixture
def registered(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Drill]]:
    drills: dict[str, Drill] = {}
    monkeypatch.setattr(platform_assets.drills.registry, "DRILLS", drills)
    return drills


Run = Callable[..., tuple[int, str, str]]


def test_without_a_name_the_drills_are_listed(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert "partial-day" in out
    code, out, err = run("--json")
    assert (code, err) == (0, "")
    assert "partial-day" in json.loads(out)["drills"]


def test_an_unknown_drill_is_a_sentence(run: Run) -> None:
    code, out, err = run("power-cut")
    assert (code, out) == (2, "")
    drills = "backfill-starvation, duplicate-cities, gpu-fragmentation, image-drift, partial-day, "
    drills += "preemption, promotion-race"
    assert err == f"signalbox: 'power-cut' is no drill; allowed are {drills}\n"
    code, out, err = run("partial-day", "--days", "1")
    assert code == 2
    assert "--days" in err


def test_a_drill_that_shows_what_it_should_ends_with_0(
    run: Run, registered: dict[str, Drill], tmp_path: Path
) -> None:
    registered["toy"] = toy(lambda scene: report())
    code, out, _ = run("toy")
    assert code == 0
    for words in ("plain Dagster", "Signalbox", "it trained", "+0.10000 to +0.30000", "worse"):
        assert words in out
    file = tmp_path / "drill.html"
    code, out, _ = run("toy", "--json", "--html", str(file))
    document = json.loads(out)
    assert (code, document["ok"], document["home"]) == (0, True, None)
    assert document["measurements"][0]["conclusion"] == "worse"
    assert "it trained" in Page(file.read_text()).text


def test_one_that_does_not_ends_with_1(run: Run, registered: dict[str, Drill]) -> None:
    registered["toy"] = toy(lambda scene: report(ok=False))
    code, out, err = run("toy", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)
    assert err.splitlines()[-1] == "signalbox: drill toy: it trained"


def test_its_page_is_escaped_and_refused_before_the_drill(
    run: Run, registered: dict[str, Drill], tmp_path: Path
) -> None:
    registered["toy"] = toy(lambda scene: report(text=HOSTILE))
    file = tmp_path / "drill.html"
    assert run("toy", "--html", str(file))[0] == 0
    page = Page(file.read_text())
    assert HOSTILE in page.text
    assert not {"script", "img"} & set(page.tags)
    played: list[Scene] = []
    registered["toy"] = toy(lambda scene: played.append(scene) or report())  # type: ignore[func-returns-value]
    assert run("toy", "--html", str(tmp_path))[0] == 2
    assert played == []


def test_what_a_measurement_says_follows_its_interval() -> None:
    base = report().measurements[0]
    assert base.conclusion == "worse"
    assert base.model_copy(update={"better": "higher"}).conclusion == "better"
    assert base.model_copy(update={"low": -0.1}).conclusion == "cannot be told from chance"
    below = {"mean": -0.2, "low": -0.3, "high": -0.1}
    assert base.model_copy(update=below).conclusion == "better"


# --- partial-day ------------------------------------------------------------------------------

SPEC = small_spec(schedule={"live_from": "2013-01-09"})


def test_partial_rows_are_the_whole_ones_before_the_hour() -> None:
    rows, day = Rows(SPEC), date(2013, 1, 9)
    whole, partial = rows.of(day), rows.of(day, 18)
    assert 0 < partial.num_rows < whole.num_rows
    hours = [moment.astimezone(SPEC.zone).hour for moment in partial["time_hour"].to_pylist()]
    assert max(hours) == 17
    expected = [build_rows(SPEC, key, day, sources(key, day, SPEC)) for key in ("JFK", "LGA")]
    built = pd.concat([one.table.to_pandas() for one in expected], ignore_index=True)
    pd.testing.assert_frame_equal(whole.to_pandas(), built)
    assert not rows.is_whole(date(2013, 1, 6)), "LGA's weather lacks an hour"


@pytest.mark.heavy
def test_a_whole_day_against_itself_differs_by_nothing() -> None:
    """What is held equal is equal: the partial day is the only cause of a difference."""
    rows = Rows(SPEC)
    dates = chosen_dates(rows, 3)
    assert partial_against_whole(rows, dates, 24, 3, "the same")[0].by_day == dict.fromkeys(
        [day.isoformat() for day in dates], 0.0
    )
    found = partial_against_whole(rows, dates, 12, 3, "half a day")[0]
    assert any(found.by_day.values())
    assert found.low <= found.mean <= found.high


def test_dates_are_spread_and_are_refused_where_there_are_not_so_many() -> None:
    rows = Rows(SPEC)
    chosen = chosen_dates(rows, 5)
    assert list(chosen) == sorted(set(chosen))
    assert chosen[0] == date(2013, 1, 4)
    assert all(rows.is_whole(day) and rows.is_whole(day + timedelta(days=1)) for day in chosen)
    assert not {date(2013, 1, 5), date(2013, 1, 6)} & set(chosen_dates(rows, 14))
    with pytest.raises(UsageError, match="--days 60: allowed are 2 to 14"):
        chosen_dates(rows, 60)


def played(template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> Scene:
    shutil.copytree(template, folder / "home")
    home = Home.locate(folder / "home")
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    return Scene(home, days=2, say=lambda _: None)


@pytest.mark.heavy
def test_the_small_line_is_held_where_plain_dagster_trains(
    home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = played(home_template, tmp_path, monkeypatch, 18)
    found = play_case(scene, Case(SPEC, date(2013, 1, 9), 18))
    assert found.ok, found.verdict
    assert "Plain Dagster trained on 18 of 24 hours" in found.verdict
    assert "missing 18:00-23:00" in found.signalbox[1].found
    assert "refused" in found.signalbox[2].found
    assert [m.n for m in found.measurements] == [2] * 6
    ledger = Services.open(SPEC, scene.home).ledger
    assert len(ledger.history("flights/model", "2013-01-09")) == 1


@pytest.mark.heavy
def test_the_drill_says_so_when_it_did_not_show_it(
    home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole day landed nothing is held: the drill must not call that a success."""
    scene = played(home_template, tmp_path, monkeypatch, 24)
    found = play_case(scene, Case(SPEC, date(2013, 1, 9), 24))
    assert not found.ok
    assert found.verdict.startswith("The drill did not show what it should")
    assert not found.signalbox[2].ok, "a person's materialization was not refused"


@pytest.mark.heavy
def test_partial_day_on_the_real_pipeline(run: Run, temporary: Path, tmp_path: Path) -> None:
    file = tmp_path / "drill.html"
    code, out, err = run("partial-day", "--days", "3", "--json", "--html", str(file))
    assert code == 0, err
    document = json.loads(out)
    assert document["ok"] is True
    assert [m["n"] for m in document["measurements"]] == [3] * 6
    assert "Plain Dagster trained on 18 of 24 hours" in Page(file.read_text()).text
    assert list(temporary.iterdir()) == []


# --- duplicate-cities -----------------------------------------------------------------------------


@pytest.mark.heavy
def test_backfills_at_once_double_rows_in_an_appending_table_and_not_here() -> None:
    case = duplicate_cities.Case(small_spec(), days=4, backfills=6)
    found = run_drill(toy(lambda scene: duplicate_cities.play_case(scene, case)), days=2)
    assert found.ok, found.verdict
    rows, twice, trained, after = found.figures
    assert rows.ideal == rows.signalbox
    assert rows.plain > rows.signalbox
    assert (twice.plain, twice.signalbox) == (rows.plain - rows.signalbox, 0)
    assert trained.signalbox == trained.ideal != trained.plain
    assert after.signalbox == after.ideal != after.plain


def test_runs_overlap_and_each_is_of_one_city() -> None:
    jobs = overlapping(("EWR", "JFK"), date(2013, 1, 7), days=4, count=6)
    asked = Counter(partition for job in jobs for partition in job.partitions)
    assert len(asked) == 8
    assert min(asked.values()) >= 1
    assert max(asked.values()) > 1
    assert {job.days for job in jobs} == {2}


# --- backfill-starvation --------------------------------------------------------------------------


def test_a_side_shows_what_it_should_only_if_it_starved_or_did_not() -> None:
    case = starvation.Case(idle=3)
    starved = starvation.Timed([10.0, 12.0, 11.0], busy=23.0, ahead=25, unfinished=True)
    spared = starvation.Timed([10.0, 12.0, 11.0], busy=21.0, ahead=25, unfinished=False)
    assert all(step.ok for step in starvation._plain_steps(starved, case))
    assert not starvation._plain_steps(spared, case)[-1].ok
    long = starvation.Timed([10.0, 12.0, 11.0], busy=200.0, ahead=25, unfinished=True)
    assert all(step.ok for step in starvation._signalbox_steps(starved, long))
    # The model that came when nothing was left to wait for shows nothing.
    assert not starvation._signalbox_steps(spared, long)[-1].ok
    # Nor does one that waited as long as on plain Dagster, or for long in any case.
    assert not starvation._signalbox_steps(starved, starved)[-1].ok
    slow = starvation.Timed([10.0, 12.0, 11.0], busy=45.0, ahead=25, unfinished=True)
    assert not starvation._signalbox_steps(slow, long)[-1].ok


def test_what_did_not_show_what_it_should_takes_the_verdicts_place() -> None:
    assert report().concluded("as it should").verdict == "as it should"
    assert "did not show what it should: asked" in report(ok=False).concluded("fine").verdict
