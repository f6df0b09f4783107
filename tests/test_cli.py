"""The commands as a person or a script calls them: what they print, and how they end."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import yaml

from platform_assets.cli.app import main
from platform_assets.demo.server import require_free_port
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.crowning import CHAMPION_ALIAS, decide_champion
from platform_assets.line.judging import evaluate_model
from resources.catalog import load_catalog
from resources.home import FORMAT, Home
from resources.tracking.spool import Spool
from tests.nyc import source_schema
from tests.small import Line, Templates, copied, opened, small_spec

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that stdout holds."""
        return json.loads(self.out)

    def refused(self, code: int, *words: str) -> None:
        """One sentence on one line of stderr, nothing on stdout, the right code."""
        assert self.code == code, self
        assert self.out == ""
        assert self.err.startswith("signalbox: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err


class Shell:
    """Calls commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def __call__(self, *arguments: str) -> Said:
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = self.capture.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, out, err)


@pytest.fixture
def signalbox(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def script(*arguments: str) -> Said:
    """The installed console script, in a process of its own."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("signalbox")), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that was never made."""
    root = tmp_path / "nowhere"
    monkeypatch.setenv("SIGNALBOX_HOME", str(root))
    return root


def write_catalog(folder: Path, *specs: PipelineSpec) -> Path:
    folder.mkdir()
    for spec in specs:
        document = spec.model_dump(mode="json")
        (folder / f"{spec.pipeline}.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture
def small(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Line]:
    """The small line with its models, and a catalog that holds it."""
    catalog = write_catalog(tmp_path / "catalog", small_spec())
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(catalog))
    with copied(Templates(shared_folder, home_template).models, tmp_path) as line:
        yield line


@pytest.fixture
def empty(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A fresh home, and the catalog of the small line."""
    catalog = write_catalog(tmp_path / "catalog", small_spec())
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(catalog))
    return home


# --- JSON, and nothing else -------------------------------------------------------------------


@pytest.mark.heavy
def test_every_command_prints_one_json_document(small: Line, signalbox: Shell) -> None:
    home = str(small.home.root)
    assert signalbox("init", "--json").document == {"home": home}

    landed = signalbox("land", "--from", "2013-01-10", "--to", "2013-01-10", "--json")
    assert (landed.code, landed.err) == (0, "")
    assert landed.document["as_of"] == "2013-01-11T05:00:00+00:00"
    assert landed.document["airports"] == ["JFK", "LGA"]

    said = signalbox("status", "--json")
    assert (said.code, said.err) == (0, "")
    assets = said.document["pipelines"]["flights"]["assets"]
    assert assets["flights/model"]["complete"] == 4
    assert assets["flights/features"]["ready"] == 2

    said = signalbox("status", "model", "--json")
    assert list(said.document["pipelines"]["flights"]["assets"]) == ["flights/model"]

    said = signalbox("explain", "flights/features", "LGA|2013-01-06", "--json")
    assert (said.code, said.err) == (0, "")
    assert said.document["state"] == "held"
    by_option = signalbox("status", "flights/features", "--partition", "LGA|2013-01-06", "--json")
    assert by_option.document == said.document

    said = signalbox("doctor", "--json")
    assert (said.code, said.err) == (0, "")
    assert said.document["healthy"] is True


def test_without_json_they_speak_to_people(small: Line, signalbox: Shell) -> None:
    assert signalbox("init").out == f"home {small.home.root} is ready\n"
    said = signalbox("land", "--from", "2013-01-10", "--to", "2013-01-10", "--airport", "JFK")
    assert said.out.startswith("landed 2013-01-10 to 2013-01-10 for JFK; as_of is 2013-01-11T05")
    said = signalbox("status")
    assert said.code == 0
    assert "flights/features" in said.out
    assert "champion: none yet" in said.out
    said = signalbox("explain", "features", "LGA|2013-01-06")
    assert said.out.startswith("flights/features LGA|2013-01-06: held\n")
    assert "weather: 23 of 24 hours, missing 06:00 (local time)" in said.out
    for text in (said.out, signalbox("explain", "model", "2013-01-04").out):
        assert not text.lstrip().startswith("{")
    said = signalbox("doctor")
    assert said.code == 0
    assert "OFF" not in said.out


@pytest.mark.heavy
def test_the_console_script(small: Line) -> None:
    """The real thing: nothing that a library prints on the way gets between."""
    said = script("status", "--json")
    assert (said.code, said.err) == (0, "")
    assert said.document["pipelines"]["flights"]["assets"]["flights/model"]["complete"] == 4
    said = script("doctor", "--json")
    assert (said.code, said.err) == (0, "")
    assert said.document["healthy"] is True
    said = script("explain", "features", "SFO|2013-01-06", "--json")
    said.refused(2, "airport SFO", "allowed are JFK, LGA")


# --- wrong use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "flights/feature", "JFK|2013-01-05"], ["'flights/feature'", "flights/day"]),
        (["status", "nonsense"], ["'nonsense' is no asset of pipeline flights", "allowed are"]),
        (["explain", "trains/features", "x"], ["'trains' is no pipeline", "allowed are flights"]),
        (["status", "--pipeline", "trains"], ["'trains' is no pipeline", "allowed are flights"]),
        (["explain", "features", "JFK"], ["'JFK' is no partition key", "such as JFK|2013-01-05"]),
        (["explain", "features", "SFO|2013-01-05"], ["airport SFO; allowed are JFK, LGA"]),
        (["explain", "features", "JFK|2014-01-05"], ["2013-01-02 to 2013-01-20"]),
        (["explain", "day", "JFK|2013-01-05"], ["one partition a date, as in 2013-01-02"]),
        (["explain", "model", "2013-01-02"], ["allowed are 2013-01-04 to 2013-01-20"]),
        (["explain", "champion", "2013-01-05"], ["`signalbox status`"]),
        (["status", "--partition", "2013-01-05"], ["needs an ASSET before it"]),
        (["land", "--from", "2013-01-5", "--to", "2013-01-06"], ["'2013-01-5' is no date"]),
        (["land", "--from", "yesterday", "--to", "2013-01-06"], ["write it as in 2013-01-05"]),
        (["land", "--from", "2013-02-30", "--to", "2013-03-01"], ["'2013-02-30' is no date"]),
        (["land", "--from", "2012-12-31", "--to", "2013-01-06"], ["2013-01-02 to 2013-01-20"]),
        (["land", "--from", "2013-01-09", "--to", "2013-01-08"], ["lies before --from 2013-01-09"]),
        (["land", "--from", "2013-01-09", "--to", "2013-01-21"], ["leaves the data"]),
        (
            ["land", "--from", "2013-01-09", "--to", "2013-01-09", "--until-hour", "0"],
            ["--until-hour 0: allowed are 1 to 24", "exclusive"],
        ),
        (
            ["land", "--from", "2013-01-09", "--to", "2013-01-09", "--until-hour", "25"],
            ["--until-hour 25: allowed are 1 to 24"],
        ),
        (
            ["land", "--from", "2013-01-09", "--to", "2013-01-09", "--until-hour", "noon"],
            ["'--until-hour'", "valid integer", "found 'noon'", "`signalbox land --help`"],
        ),
        (
            ["land", "--from", "2013-01-09", "--to", "2013-01-09", "--airport", "SFO"],
            ["--airport SFO: allowed are JFK, LGA"],
        ),
        (["land", "--from", "2013-01-09"], ["--to", "`signalbox land --help`"]),
        (["status", "--bogus"], ["No such option: --bogus", "allowed are --partition, --pipeline"]),
        (["bogus"], ["No such command 'bogus'", "allowed are init, land, status, explain"]),
        (["explain", "features"], ["partition", "`signalbox explain --help`"]),
        (["explain", "features", "a", "b"], ["b"]),
        (["dev", "--port", "70000"], ["--port", "65535", "found '70000'"]),
        (["demo", "--port", "x"], ["--port", "found 'x'"]),
    ],
)
def test_wrong_use_is_one_sentence_and_code_2(
    empty: Home, signalbox: Shell, arguments: list[str], words: list[str]
) -> None:
    signalbox(*arguments).refused(2, *words)
    if "--json" not in arguments and arguments[0] not in ("land", "dev", "demo", "bogus"):
        signalbox(*arguments, "--json").refused(2, *words)
    assert landed_files(empty) == 0


def landed_files(home: Home) -> int:
    return sum(1 for path in home.landing.rglob("*") if path.is_file())


def test_no_command_shows_what_there_is(signalbox: Shell) -> None:
    said = signalbox()
    assert said.code == 2
    assert "explain" in said.out
    assert said.err.startswith("signalbox: no command was given, allowed are init, land")
    assert signalbox("--help").code == 0
    assert signalbox("land", "--help").code == 0


def test_wrong_use_makes_no_home(nowhere: Path, signalbox: Shell) -> None:
    signalbox("land", "--from", "x", "--to", "2013-01-02").refused(2, "'x' is no date")
    signalbox("land", "--from", "2012-01-01", "--to", "2013-01-02").refused(2, "leaves the data")
    assert not nowhere.exists()


# --- homes and catalogs -----------------------------------------------------------------------


def test_no_home(nowhere: Path, signalbox: Shell) -> None:
    for arguments in (
        ["status"],
        ["status", "--json"],
        ["explain", "features", "JFK|2013-01-05"],
        ["mlflow"],
    ):
        signalbox(*arguments).refused(1, f"{nowhere}, which does not exist", "`signalbox init`")
    assert not nowhere.exists()


def test_a_home_of_another_version(home: Home, signalbox: Shell) -> None:
    marker = home.root / "home.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": FORMAT + 1}))
    for arguments in (["status"], ["init"], ["land", "--from", "2013-01-01", "--to", "2013-01-01"]):
        signalbox(*arguments).refused(1, f"a home of format {FORMAT + 1}", "needs format")
    assert landed_files(home) == 0


def test_a_file_in_the_place_of_the_home(nowhere: Path, signalbox: Shell) -> None:
    nowhere.write_text("")
    signalbox("init").refused(1, "which is a file", "a folder is needed")
    signalbox("status").refused(1, "which is a file", "a folder is needed")


def test_a_malformed_catalog(
    home: Home, tmp_path: Path, signalbox: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_catalog(tmp_path / "catalog", small_spec())
    path = folder / "flights.yaml"
    good = path.read_text()
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(folder))
    path.write_text(good.replace("window_days: 3", "window_days: many"))
    signalbox("status").refused(2, str(path), "model.window_days: found 'many'")
    path.write_text(good.replace("window_days:", "window_dayz:"))
    signalbox("status").refused(2, "model.window_dayz: is no field here; allowed are", "min_days")
    path.write_text("pipeline: [flights\n")
    signalbox("status").refused(2, str(path), "line 2", "valid YAML is needed")
    path.unlink()
    signalbox("status").refused(2, "holds no *.yaml", "SIGNALBOX_CATALOG")
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(tmp_path / "none"))
    signalbox("status").refused(2, "is no folder", "SIGNALBOX_CATALOG")


def test_two_pipelines(
    home: Home, tmp_path: Path, signalbox: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small_spec(model={"name": "other"}).model_copy(update={"pipeline": "trains"})
    folder = write_catalog(tmp_path / "catalog", small_spec(), other)
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(folder))
    for arguments in (["explain", "features", "JFK|2013-01-05"], ["status", "features"]):
        signalbox(*arguments).refused(
            2, "the catalog has 2 pipelines; name one with --pipeline: flights, trains"
        )
    said = signalbox("explain", "features", "JFK|2013-01-05", "--pipeline", "trains", "--json")
    assert said.document["asset"] == "trains/features"
    said = signalbox("explain", "trains/features", "JFK|2013-01-05", "--json")
    assert said.document["asset"] == "trains/features"
    assert set(signalbox("status", "--json").document["pipelines"]) == {"flights", "trains"}
    signalbox("status", "trains/features", "--pipeline", "flights").refused(
        2, "'trains/features' is no asset of pipeline flights"
    )


# --- doctor -----------------------------------------------------------------------------------


def off(said: Said) -> dict[str, dict[str, str]]:
    """The checks that are off, by name."""
    assert said.code == 1
    assert said.err.startswith("signalbox: something is off: ")
    assert said.err.count("\n") == 1
    assert said.document["healthy"] is False
    found = {check["name"]: check for check in said.document["checks"] if not check["ok"]}
    for check in found.values():
        assert check["name"] in said.err
        assert check["advice"]
    return found


def test_the_doctor_finds_a_fresh_home_healthy(home: Home, signalbox: Shell) -> None:
    said = signalbox("doctor", "--json")
    assert (said.code, said.err) == (0, "")
    checks = {check["name"] for check in said.document["checks"]}
    assert checks >= {"python", "versions", "home", "disk", "instance", "catalog"}
    assert {"ledger of flights", "mlflow of flights"} <= checks


def test_the_doctor_without_a_home(nowhere: Path, signalbox: Shell) -> None:
    found = off(signalbox("doctor", "--json"))
    assert "home" in found
    assert "`signalbox init`" in found["home"]["found"]
    assert not nowhere.exists()
    said = signalbox("doctor")
    assert said.code == 1
    assert "OFF" in said.out


def test_the_doctor_sees_a_changed_configuration(home: Home, signalbox: Shell) -> None:
    """The limits that keep a slot for the daily lane are in that file."""
    path = home.dagster / "dagster.yaml"
    document = yaml.safe_load(path.read_text())
    document["concurrency"]["runs"]["max_concurrent_runs"] = 99
    path.write_text(yaml.safe_dump(document))
    found = off(signalbox("doctor", "--json"))
    assert list(found) == ["instance"]
    assert "differs from the project's in concurrency" in found["instance"]["found"]
    path.write_text("- no mapping\n")
    found = off(signalbox("doctor", "--json"))
    assert "holds a list, a mapping is needed" in found["instance"]["found"]
    path.write_text("a: [\n")
    assert "\n" not in off(signalbox("doctor", "--json"))["instance"]["found"]
    path.unlink()
    assert "is missing" in off(signalbox("doctor", "--json"))["instance"]["found"]


def test_the_doctor_names_what_mlflow_refused(home: Home, signalbox: Shell) -> None:
    entry = Spool(home.root / "tracking").open("k")
    entry.keep({}, [])
    entry.set_aside("the run was deleted")
    found = off(signalbox("doctor", "--json"))
    assert list(found) == ["tracking"]
    assert found["tracking"]["found"].endswith("entry k had to tell: the run was deleted")


def test_the_doctor_sees_an_alias_that_was_moved(small: Line, signalbox: Shell) -> None:
    services = small.services
    evaluate_model(services, PartitionKey(date(2013, 1, 4)), "by hand")
    decide_champion(services, "by hand")
    assert signalbox("doctor").code == 0
    services.tracking.set_alias("flight-delay", CHAMPION_ALIAS, 3)
    found = off(signalbox("doctor", "--json"))
    assert list(found) == ["serving of flights"]  # one finding, of one judge
    check = found["serving of flights"]
    assert "alias champion is version 3, the ledger says version 1" in check["found"]
    assert check["advice"].startswith("`signalbox reconcile flights --mend`")
    assert signalbox("reconcile", "flights", "--mend").code == 0
    assert signalbox("doctor").code == 0


@pytest.mark.embedded
def test_the_doctor_names_what_is_broken(
    home: Home, signalbox: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.root / "ledger.db").write_text("this is no database, " * 100)
    found = off(signalbox("doctor", "--json"))
    assert any("ledger" in name for name in found)
    folder = write_catalog(tmp_path / "catalog", small_spec(model={"trainer": "no.such:Trainer"}))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(folder))
    found = off(signalbox("doctor", "--json"))
    assert "no module 'no.such'" in found["catalog"]["found"]


# --- the demo's port --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["demo", "dev"])
def test_a_port_that_is_taken(nowhere: Path, signalbox: Shell, command: str) -> None:
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        signalbox(command, "--port", str(port)).refused(
            1, f"port {port} of 127.0.0.1 is taken", "choose another with --port"
        )
    assert not nowhere.exists()
    assert {child.pid for child in psutil.Process().children(recursive=True)} == children


def test_a_port_that_a_killed_process_lets_go_of_a_moment_later() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(RefusedError, match=f"port {port}"):
            require_free_port(port, 0)
        closing = threading.Timer(0.3, listener.close)
        closing.start()
        require_free_port(port)
        closing.join()


# --- a full disk ------------------------------------------------------------------------------


def large_day(line: Line, day: date, rows_an_hour: int) -> None:
    """JFK's day with so many flights that their features take megabytes."""
    source = line.spec.sources["flights"]
    random = np.random.default_rng(7)
    for hour in local_hours(day, line.spec.partitions.timezone):
        n = rows_an_hour
        values: dict[str, Sequence[Any]] = {
            "time_hour": [hour] * n,
            "carrier": ["UA"] * n,
            "flight": list(range(1, n + 1)),
            "tailnum": ["N1"] * n,
            "dest": ["BOS"] * n,
            **{
                name: 1 + random.random(n)
                for name, column in source.columns.items()
                if column.type == "float"
            },
            "sched_dep_time": [1000] * n,
            "sched_arr_time": [1200] * n,
        }
        table = pa.table(values, schema=source_schema(source))
        line.services.zone.deliver("flights", "JFK", hour, table)


def test_a_disk_that_is_full_while_features_are_committed(home: Home) -> None:
    """No file may grow over 0.9 MB, as if the disk ended there: the rows are larger."""
    with opened(home) as line:
        line.land("2013-01-03", "2013-01-04", airports=["JFK"])
        line.must("features", partition="JFK|2013-01-03")
        version = line.services.dataset.versions()
        large_day(line, date(2013, 1, 4), 3000)
        there = subprocess.run(
            [sys.executable, "-m", "tests.small", "--disk-full", "JFK|2013-01-04"],
            cwd=ROOT,
            env={**os.environ, **home.environment()},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "the disk under " in there.stdout
        assert "is full, nothing was committed and the older versions stand" in there.stdout
        assert "free some space and try again" in there.stdout
        run = line.instance.get_runs(limit=1)[0]
        assert run.status.value == "FAILURE"
        assert line.services.dataset.versions() == version
        assert set(line.versions("features")) == {"JFK|2013-01-03"}
        assert line.dagster_key("JFK|2013-01-04") not in (
            line.instance.get_materialized_partitions(line.key("features"))
        )
        # There is space again.
        line.must("features", partition="JFK|2013-01-04")
        assert line.versions("features")["JFK|2013-01-04"].rows > 50_000


# --- the whole year ---------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_the_whole_year(home: Home, signalbox: Shell, record_property: Any) -> None:
    """1,043 of the 1,095 airport-days of 2013 have whole weather."""
    said = signalbox("land", "--from", "2013-01-01", "--to", "2013-12-31", "--json")
    assert said.code == 0, said.err
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        said = signalbox("status", "--json")
        seconds.append(time.monotonic() - start)
        assert (said.code, said.err) == (0, "")
    record_property("seconds of status", seconds)
    print(f"status took {seconds[0]:.1f} s, then {seconds[1]:.1f} s", file=sys.stderr)
    found = said.document["pipelines"]["flights"]
    assert found["as_of"] == "2014-01-01T05:00:00+00:00"
    assets = {name.removeprefix("flights/"): count for name, count in found["assets"].items()}
    for name, count in assets.items():
        parts = count["complete"] + count["ready"] + count["held"] + count["missing"]
        assert parts == count["partitions"], name
    flights, weather = assets["landed_flights"], assets["landed_weather"]
    assert (flights["complete"], flights["partitions"]) == (1095, 1095)
    assert (weather["complete"], weather["partitions"]) == (1043, 1095)
    assert (weather["held"], weather["missing"]) == (49, 3)
    features = assets["features"]
    assert (features["complete"], features["ready"], features["held"]) == (0, 1043, 52)
    # Nothing is built, so all that needs the features is held.
    assert assets["day"]["whole"] == assets["day"]["ready"] == 0
    assert assets["day"]["held"] == 365
    spec = load_catalog()["flights"]
    models = (spec.partitions.end - spec.first_model_date) // timedelta(days=1) + 1
    assert assets["model"]["partitions"] == models == 338
    assert assets["model"]["ready"] == assets["snapshot"]["ready"]
    assert assets["model"]["held"] == 338 - assets["model"]["ready"]
