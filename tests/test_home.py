"""The home: made once, by whoever comes first; refused whenever it is not what is needed."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import resources.home
from platform_assets.domain.errors import HomeError, SignalboxError, TransientError
from resources.home import FORMAT, Home, initialise
from resources.ledger import open_ledger

INSTANT = datetime(2013, 1, 5, 12, tzinfo=UTC)
fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGNALBOX_HOME", "SIGNALBOX_LEDGER_URL", "SIGNALBOX_MLFLOW_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dagster_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text("telemetry:\n  enabled: false\n")
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.locate(tmp_path / "home")


def is_one_sentence(error: pytest.ExceptionInfo[SignalboxError]) -> bool:
    text = str(error.value)
    return "\n" not in text and "Traceback" not in text and text.strip() == text


# --- locating ---------------------------------------------------------------------------------


def test_a_home_is_located_from_the_argument_then_the_environment_then_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.locate().root == tmp_path / ".signalbox"
    monkeypatch.setenv("SIGNALBOX_HOME", "elsewhere")
    assert Home.locate().root == tmp_path / "elsewhere"
    assert Home.locate(Path("given")).root == tmp_path / "given"
    monkeypatch.setenv("SIGNALBOX_HOME", "")
    assert Home.locate().root == tmp_path / ".signalbox"
    assert list(tmp_path.iterdir()) == [], "locating touches nothing"


def test_everything_lies_under_the_root(home: Home) -> None:
    assert home.landing == home.root / "landing"
    assert home.lake == home.root / "lake"
    assert home.dagster == home.root / "dagster"
    assert home.ledger_url == f"sqlite:///{home.root}/ledger.db"
    assert home.mlflow_uri == f"sqlite:///{home.root}/mlflow/mlflow.db"
    assert home.mlflow_artifacts == home.root / "mlflow" / "artifacts"


@pytest.mark.parametrize("overridden", [False, True])
def test_a_child_process_finds_the_same_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overridden: bool
) -> None:
    if overridden:
        monkeypatch.setenv("SIGNALBOX_LEDGER_URL", "postgresql://ledger.example/signalbox")
        monkeypatch.setenv("SIGNALBOX_MLFLOW_URI", "http://mlflow.example:5000")
        monkeypatch.setenv("SIGNALBOX_DAGSTER_URL", "postgresql://dagster.example/dagster")
        monkeypatch.setenv("SIGNALBOX_LAKE_URL", "s3://lake/signalbox/")
    home = Home.locate(tmp_path / "home")
    variables = home.environment()
    elsewhere = {
        f"SIGNALBOX_{name}" for name in ("LEDGER_URL", "MLFLOW_URI", "DAGSTER_URL", "LAKE_URL")
    }
    for name in elsewhere:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir("/")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Home.locate() == home
    assert variables["DAGSTER_HOME"] == str(home.dagster)
    assert elsewhere & set(variables) == (elsewhere if overridden else set())
    table = (
        "s3://lake/signalbox/flights/features" if overridden else f"{home.lake}/flights/features"
    )
    assert home.dataset_path("flights") == table


@pytest.mark.parametrize("url", ["lake", "s3://", "https://lake.example/signalbox", "file:///lake"])
def test_a_lake_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SIGNALBOX_LAKE_URL", url)
    with pytest.raises(HomeError, match="allowed is the URL of a bucket") as error:
        Home.locate()
    assert is_one_sentence(error)


@pytest.mark.parametrize("name", ["what?", "a#b", "a%20b"])
def test_a_folder_whose_name_would_break_a_database_url_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(HomeError, match=r"none of \? # %") as error:
        Home.locate(tmp_path / name)
    assert is_one_sentence(error)


def test_a_folder_with_spaces_and_accents_works(tmp_path: Path, dagster_yaml: Path) -> None:
    home = Home.locate(tmp_path / "Maison d'été")
    initialise(home, dagster_yaml=dagster_yaml)
    open_ledger(home.ledger_url).advance_clock("landed", INSTANT)
    assert (home.root / "ledger.db").stat().st_size > 0


# --- making it, once --------------------------------------------------------------------------


def test_a_new_home_is_complete(home: Home, dagster_yaml: Path) -> None:
    seen: list[bool] = []

    def prepare(made: Home) -> None:
        assert made == home
        assert (home.dagster / "dagster.yaml").read_text() == dagster_yaml.read_text()
        assert home.mlflow_artifacts.is_dir()
        seen.append((home.root / "home.json").exists())

    initialise(home, dagster_yaml=dagster_yaml, prepare=prepare)
    home.require()
    assert seen == [False], "home.json is written last"
    marker = json.loads((home.root / "home.json").read_text())
    assert set(marker) == {"format", "created_by", "created_at", "root"}
    assert marker["root"] == str(home.root)
    assert marker["format"] == FORMAT
    assert datetime.fromisoformat(marker["created_at"]).tzinfo is not None
    assert home.landing.is_dir()
    assert home.lake.is_dir()
    assert open_ledger(home.ledger_url).clock("landed") is None


def test_a_second_call_changes_nothing(home: Home, dagster_yaml: Path) -> None:
    calls: list[Home] = []
    initialise(home, dagster_yaml=dagster_yaml, prepare=calls.append)
    marker = (home.root / "home.json").read_bytes()
    (home.dagster / "dagster.yaml").write_text("edited: by hand\n")
    open_ledger(home.ledger_url).advance_clock("landed", INSTANT)

    initialise(home, dagster_yaml=dagster_yaml, prepare=calls.append)
    assert len(calls) == 1
    assert (home.root / "home.json").read_bytes() == marker
    assert (home.dagster / "dagster.yaml").read_text() == "edited: by hand\n"
    assert open_ledger(home.ledger_url).clock("landed") == INSTANT


STARTER = """
import contextlib, os, sys, time
from datetime import UTC, datetime
from pathlib import Path
import resources.home
from resources.ledger import open_ledger

root, dagster_yaml, together, guarded = Path(sys.argv[1]), *map(Path, sys.argv[2:4]), sys.argv[4]

def prepare(home):
    with (home.root / "prepared.log").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(0.5)

if guarded == "no":
    resources.home._locked = lambda _: contextlib.nullcontext()
home = resources.home.Home.locate(root)
(together / str(os.getpid())).touch()
while not (together / "go").exists():
    time.sleep(0.005)
resources.home.initialise(home, dagster_yaml=dagster_yaml, prepare=prepare)
home.require()
open_ledger(home.ledger_url).advance_clock(f"clock-{os.getpid()}", datetime.now(UTC))
"""


def _start_together(
    processes: int, root: Path, dagster_yaml: Path, guarded: str
) -> list[subprocess.CompletedProcess[str]]:
    together = root.parent / "together"
    together.mkdir()
    args = [sys.executable, "-c", STARTER, root, dagster_yaml, together, guarded]
    environment = os.environ | {"PYTHONPATH": str(Path(resources.home.__file__).parents[1])}
    children = [
        subprocess.Popen(args, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    deadline = time.monotonic() + 60
    while len(list(together.iterdir())) < processes and time.monotonic() < deadline:
        time.sleep(0.02)
    (together / "go").touch()
    ended = []
    for child in children:
        _, errors = child.communicate(timeout=60)
        ended.append(subprocess.CompletedProcess(args, child.returncode, "", errors))
    return ended


def test_eight_processes_at_once_make_one_good_home(home: Home, dagster_yaml: Path) -> None:
    ended = _start_together(8, home.root, dagster_yaml, guarded="yes")
    assert [(child.returncode, child.stderr) for child in ended] == [(0, "")] * 8
    assert len((home.root / "prepared.log").read_text().splitlines()) == 1
    home.require()
    with contextlib.closing(sqlite3.connect(home.root / "ledger.db")) as ledger:
        assert ledger.execute("SELECT version_num FROM alembic_version").fetchall() == [("0007",)]
        assert ledger.execute("SELECT count(*) FROM clocks").fetchone() == (8,)


def test_without_the_lock_the_home_is_prepared_more_than_once(
    home: Home, dagster_yaml: Path
) -> None:
    _start_together(3, home.root, dagster_yaml, guarded="no")
    assert len((home.root / "prepared.log").read_text().splitlines()) > 1


def _kill_while_preparing(root: Path, dagster_yaml: Path) -> None:
    def prepare(home: Home) -> None:
        (home.dagster / "half").write_text("made")
        os.kill(os.getpid(), signal.SIGKILL)

    initialise(Home.locate(root), dagster_yaml=dagster_yaml, prepare=prepare)


def test_a_home_that_was_killed_in_the_making_is_completed_by_the_next_call(
    home: Home, dagster_yaml: Path
) -> None:
    child = fork.Process(target=_kill_while_preparing, args=(home.root, dagster_yaml))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(HomeError, match="never finished; run `signalbox init`") as error:
        home.require()
    assert is_one_sentence(error)

    calls: list[Home] = []
    initialise(home, dagster_yaml=dagster_yaml, prepare=calls.append)
    home.require()
    assert calls == [home]


def test_a_failing_prepare_leaves_the_home_unfinished_and_its_error_is_seen(
    home: Home, dagster_yaml: Path
) -> None:
    def prepare(_: Home) -> None:
        raise ValueError("Dagster says no")

    with pytest.raises(ValueError, match="Dagster says no"):
        initialise(home, dagster_yaml=dagster_yaml, prepare=prepare)
    with pytest.raises(HomeError, match="never finished"):
        home.require()


def test_a_server_that_does_not_answer_is_not_blamed_on_the_folder(
    home: Home, dagster_yaml: Path
) -> None:
    def prepare(_: Home) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(ConnectionRefusedError):
        initialise(home, dagster_yaml=dagster_yaml, prepare=prepare)


def test_waiting_for_the_lock_ends(
    home: Home, dagster_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.home, "LOCK_SECONDS", 0.2)
    home.root.mkdir()
    with (home.root / "init.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TransientError, match="another process has been initialising") as error:
            initialise(home, dagster_yaml=dagster_yaml)
    assert is_one_sentence(error)
    initialise(home, dagster_yaml=dagster_yaml)


# --- refusals ---------------------------------------------------------------------------------


def both_ways(home: Home, dagster_yaml: Path) -> dict[str, Callable[[], None]]:
    return {
        "initialise": lambda: initialise(home, dagster_yaml=dagster_yaml),
        "require": home.require,
    }


@pytest.mark.parametrize("way", ["initialise", "require"])
@pytest.mark.parametrize("found", [0, 2, 17, "1", None])
def test_a_home_of_another_format_is_refused_and_left_alone(
    home: Home, dagster_yaml: Path, way: str, found: object
) -> None:
    initialise(home, dagster_yaml=dagster_yaml)
    text = json.dumps({"format": found, "created_by": "9.4.1", "created_at": "2031-01-01T00:00Z"})
    (home.root / "home.json").write_text(text)
    before = {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()}
    with pytest.raises(HomeError) as error:
        both_ways(home, dagster_yaml)[way]()
    text = str(error.value)
    assert f"format {found!r}" in text
    assert "made by version 9.4.1" in text
    assert f"needs format {FORMAT}" in text
    assert "use the version that made it, or set SIGNALBOX_HOME to a new folder" in text
    assert is_one_sentence(error)
    assert before == {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("way", ["initialise", "require"])
@pytest.mark.parametrize("content", ["", "{", "[]", "17"])
def test_a_damaged_home_json_is_refused(
    home: Home, dagster_yaml: Path, way: str, content: str
) -> None:
    initialise(home, dagster_yaml=dagster_yaml)
    (home.root / "home.json").write_text(content)
    with pytest.raises(HomeError, match=r"home\.json") as error:
        both_ways(home, dagster_yaml)[way]()
    assert is_one_sentence(error)


def test_a_home_json_that_is_no_text_is_refused(home: Home, dagster_yaml: Path) -> None:
    initialise(home, dagster_yaml=dagster_yaml)
    (home.root / "home.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HomeError, match=r"home\.json"):
        home.require()


def test_a_missing_home_is_refused(home: Home) -> None:
    with pytest.raises(HomeError, match="does not exist; run `signalbox init`") as error:
        home.require()
    assert is_one_sentence(error)
    assert not home.root.exists()


def test_an_empty_folder_is_no_home(home: Home) -> None:
    home.root.mkdir()
    with pytest.raises(HomeError, match="never finished"):
        home.require()


@pytest.mark.parametrize("way", ["initialise", "require"])
def test_a_file_in_the_way_is_named(home: Home, dagster_yaml: Path, way: str) -> None:
    home.root.write_text("not a folder")
    with pytest.raises(HomeError, match="which is a file; a folder is needed") as error:
        both_ways(home, dagster_yaml)[way]()
    assert is_one_sentence(error)
    assert home.root.read_text() == "not a folder"


@pytest.mark.parametrize("way", ["initialise", "require"])
def test_a_home_below_a_file_is_refused(tmp_path: Path, dagster_yaml: Path, way: str) -> None:
    (tmp_path / "file").write_text("")
    home = Home.locate(tmp_path / "file" / "home")
    with pytest.raises(HomeError, match=r"Not a directory|does not exist") as error:
        both_ways(home, dagster_yaml)[way]()
    assert is_one_sentence(error)


@pytest.mark.parametrize("inside", ["landing", "lake", "dagster", "mlflow"])
def test_a_file_in_the_place_of_one_of_its_folders_is_named(
    home: Home, dagster_yaml: Path, inside: str
) -> None:
    home.root.mkdir()
    (home.root / inside).write_text("")
    with pytest.raises(HomeError, match=f"{home.root}/{inside}") as error:
        initialise(home, dagster_yaml=dagster_yaml)
    assert is_one_sentence(error)
    assert not (home.root / "home.json").exists()


def test_a_place_where_nobody_may_write_is_refused(dagster_yaml: Path) -> None:
    """Nobody makes a folder in /proc, not even root, whom permission bits do not stop."""
    with pytest.raises(HomeError, match=r"cannot be used .*can be written is needed") as error:
        initialise(Home.locate(Path("/proc/signalbox")), dagster_yaml=dagster_yaml)
    assert is_one_sentence(error)


def test_a_missing_dagster_yaml_is_an_error_of_ours(home: Home, tmp_path: Path) -> None:
    with pytest.raises(HomeError, match=r"absent\.yaml"):
        initialise(home, dagster_yaml=tmp_path / "absent.yaml")
    with pytest.raises(HomeError, match="never finished"):
        home.require()


# --- a full disk ------------------------------------------------------------------------------


def _fill_a_database(home: Home) -> None:
    with contextlib.closing(sqlite3.connect(home.dagster / "runs.db")) as database, database:
        database.execute("CREATE TABLE t (x BLOB)")
        database.execute("INSERT INTO t VALUES (zeroblob(1000000))")


def _initialise_on_a_full_disk(root: Path, dagster_yaml: Path, limit: int, report: Path) -> None:
    """No file may grow beyond the limit: the kernel refuses the write, as on a full disk."""
    home = Home.locate(root)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        initialise(home, dagster_yaml=dagster_yaml, prepare=_fill_a_database)
        text = "no error"
    except BaseException as error:
        text = f"{type(error).__name__} {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report.write_text(text)


@pytest.mark.parametrize(
    ("limit", "where"),
    [(0, "ledger"), (8192, "ledger"), (500_000, "a database in SIGNALBOX_HOME")],
)
def test_a_full_disk_is_transient_and_the_home_is_completed_later(
    home: Home, dagster_yaml: Path, tmp_path: Path, limit: int, where: str
) -> None:
    report = tmp_path / "report"
    args = (home.root, dagster_yaml, limit, report)
    child = fork.Process(target=_initialise_on_a_full_disk, args=args)
    child.start()
    child.join(60)
    text = report.read_text()
    assert text.startswith("TransientError")
    assert where in text
    assert "free some disk space and try again" in text
    assert "\n" not in text
    with pytest.raises(HomeError, match="never finished"):
        home.require()

    initialise(home, dagster_yaml=dagster_yaml, prepare=lambda _: None)
    home.require()
    assert open_ledger(home.ledger_url).clock("landed") is None


def test_a_full_disk_below_the_yaml_is_transient(home: Home, tmp_path: Path) -> None:
    """The copy of dagster.yaml fails, with an error of the file system rather than of SQLite."""
    big = tmp_path / "big.yaml"
    big.write_text("# " + "x" * 2_000_000)
    report = tmp_path / "report"
    args = (home.root, big, 1_000_000, report)
    child = fork.Process(target=_initialise_on_a_full_disk, args=args)
    child.start()
    child.join(60)
    assert report.read_text().startswith("TransientError the disk of SIGNALBOX_HOME")
    assert not (home.root / "home.json").exists()
