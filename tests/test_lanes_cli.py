"""`signalbox lanes`, `lanes write`, and what the doctor says of the queue."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from platform_assets.cli.app import main
from platform_assets.cli.doctor import Finding, examine
from platform_assets.cli.lanes import stale_daemons
from platform_assets.demo import conductor
from platform_assets.domain.lanes import Lane
from platform_assets.factory.instance import dagster_yaml
from platform_assets.instance.pools import pools_of
from resources.home import Home
from resources.lanes import load_lanes
from resources.slots import slot
from tests.test_cli import Shell
from tests.test_lane_queue import backfill, steer, submit
from tests.test_lanes import document

OLD = """
concurrency:
  runs:
    max_concurrent_runs: 4
    tag_concurrency_limits:
      - key: dagster/backfill
        limit: 2
      - key: signalbox/lane
        value: backfill
        limit: 2
      - key: signalbox/lane
        value: late
        limit: 1

run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
"""
"""What homes were made with before there was one declaration of the lanes."""


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def instance_finding(home: Home) -> Finding:
    (found,) = [finding for finding in examine(home) if finding.name == "instance"]
    return found


def make_old(home: Home) -> Path:
    """Put a home back to the dagster.yaml of before, with a storage of its owner's."""
    path = home.dagster / "dagster.yaml"
    document = yaml.safe_load(path.read_text())
    kept = {k: v for k, v in document.items() if k in ("telemetry", "nux", "run_monitoring")}
    storage = f"storage:\n  sqlite:\n    base_dir: {home.dagster}\n"
    path.write_text(f"# Mine.\n{yaml.safe_dump(kept)}\n{OLD}\n{storage}")
    return path


# --- what it shows ----------------------------------------------------------------------------


def test_it_shows_who_works_and_who_waits_in_which_lane(home: Home, shell: Shell) -> None:
    with dg.DagsterInstance.get() as instance:
        for tags in backfill("abc", 2):
            submit(instance, tags)
        submit(instance, {})
    steer(home, "abc", "paused", 1)
    with slot(home.ledger_url, load_lanes(), Lane.ADHOC, "some-run", limit=0):
        found = shell("lanes", "--json").document
        text = shell("lanes")
    assert found["slots"] == load_lanes().slots
    assert {name: lane["queued"] for name, lane in found["lanes"].items()} == {
        "daily": 0,
        "late": 0,
        "adhoc": 1,
        "backfill": 2,
    }
    assert found["lanes"]["adhoc"]["slots_held_by"] == [{"run_id": "some-run", "pid": os.getpid()}]
    assert found["lanes"]["daily"]["always_free"] >= 1
    assert found["steered"] == [{"id": "abc", "state": "paused", "max_runs": 1}]
    assert found["differences"] == []
    assert text.code == 0
    assert "backfill abc is paused, 1 run(s) at once" in text.out
    assert f"some-run (process {os.getpid()})" in re.sub(r"\s+", " ", text.out)


def test_without_a_home_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.setenv("SIGNALBOX_HOME", str(tmp_path / "nowhere"))
    shell("lanes").refused(1, "`signalbox init`")
    shell("lanes", "wright").refused(2, "'wright'", "write")


# --- what it writes ---------------------------------------------------------------------------


def test_an_older_home_is_told_how_to_be_renewed_and_is_well_afterwards(
    home: Home, shell: Shell
) -> None:
    path = make_old(home)
    before = path.read_text()
    with dg.DagsterInstance.get() as instance:  # the accident: its queue knows of no lanes
        assert submit(instance, {"dagster/backfill": "abc"}).tags.get("signalbox/lane") is None
    said = instance_finding(home)
    assert not said.ok
    for word in ("concurrency", "instance_class", "run_coordinator"):
        assert word in said.found
    assert "adhoc has no limit and could fill all 4 slots" in said.found
    assert "`signalbox lanes write`" in said.advice
    assert "start Dagster" in said.advice
    found = shell("lanes", "write", "--json").document
    assert found == {"written": [str(path)], "unchanged": [str(dagster_yaml())]}
    assert path.with_name("dagster.yaml.before").read_text() == before
    assert path.read_text().startswith("# Mine.\n")
    assert yaml.safe_load(path.read_text())["storage"] == yaml.safe_load(before)["storage"]
    assert instance_finding(home).ok
    with dg.DagsterInstance.get() as instance:
        tags = submit(instance, {"dagster/backfill": "abc"}).tags
    assert tags["signalbox/lane"] == "backfill"
    again = shell("lanes", "write")
    assert "is as declared" in again.out
    assert "wrote" not in again.out


def test_a_declaration_of_ones_own_goes_into_the_home_alone(
    home: Home, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lanes.yaml"
    file.write_text(yaml.safe_dump(document(slots=9)))
    monkeypatch.setenv("SIGNALBOX_LANES", str(file))
    said = instance_finding(home)
    assert "max_concurrent_runs is 6, declared are 9 slots" in said.found
    project = dagster_yaml().read_text()
    path = home.dagster / "dagster.yaml"
    assert shell("lanes", "write", "--json").document["written"] == [str(path)]
    assert dagster_yaml().read_text() == project
    with dg.DagsterInstance.get() as instance:
        queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert queue.max_concurrent_runs == 9
    assert instance_finding(home).ok


def test_a_declaration_that_starves_the_daily_lane_is_written_nowhere(
    home: Home, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lanes.yaml"
    file.write_text(yaml.safe_dump(document(lanes__backfill__limit=3)))
    monkeypatch.setenv("SIGNALBOX_LANES", str(file))
    before = (home.dagster / "dagster.yaml").read_text()
    shell("lanes", "write").refused(2, "could fill all 6 slots", "allowed are 5")
    assert (home.dagster / "dagster.yaml").read_text() == before


# --- the doctor -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_concurrent_runs": 5}, "late 1 + adhoc 2 + backfill 2 could fill all 5 slots"),
        ({"tag_concurrency_limits": []}, "late, adhoc, backfill has no limit"),
    ],
)
def test_the_doctor_refuses_limits_that_leave_the_daily_lane_no_slot(
    home: Home, change: dict[str, Any], said: str
) -> None:
    assert instance_finding(home).ok
    path = home.dagster / "dagster.yaml"
    live = yaml.safe_load(path.read_text())
    live["concurrency"]["runs"] |= change
    path.write_text(yaml.safe_dump(live))
    found = instance_finding(home)
    assert not found.ok
    assert said in found.found


@pytest.mark.parametrize(
    "words",
    [
        ["-m", conductor.DAEMON, "workspace.yaml"],
        ["-m", "dagster._daemon", "run"],
        ["/opt/bin/dagster-daemon", "run"],
    ],
)
def test_the_doctor_sees_a_daemon_that_goes_by_older_limits(home: Home, words: list[str]) -> None:
    def waits(words: list[str], at: Path) -> "subprocess.Popen[bytes]":
        """A process with these words on its command line, that only waits."""
        code = "print(flush=True); import time; time.sleep(60)"
        command = [sys.executable, "-c", code, *words]
        environment = {"DAGSTER_HOME": str(at)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    others = (["-m", "dagster_webserver", "-w", "workspace.yaml"], [f"{conductor.DAEMON}.txt"])
    started = [waits(words, home.dagster)]
    started += [waits(other, home.dagster) for other in others]
    started += [waits(words, home.root / "another")]
    try:
        assert list(stale_daemons(home)) == []
        assert instance_finding(home).ok
        later = time.time() + 60
        os.utime(home.dagster / "dagster.yaml", (later, later))
        assert list(stale_daemons(home)) == [started[0].pid]
        said = instance_finding(home)
        assert not said.ok
        assert f"daemon {started[0].pid} started before" in said.found
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_the_doctor_names_what_is_in_a_pool(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    @dg.asset(pool="theirs")
    def greedy() -> None: ...

    careless = dg.Definitions([greedy])
    assert pools_of(careless) == {"theirs": ["greedy"]}
    monkeypatch.setattr("platform_assets.definitions.assemble", lambda: careless)
    (found,) = [finding for finding in examine(home) if finding.name == "pools"]
    assert not found.ok
    assert "theirs (greedy)" in found.found
    monkeypatch.undo()
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    (found,) = [finding for finding in examine(home) if finding.name == "pools"]
    assert found.ok, found


def test_the_command_is_there_for_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lanes", "--help"])
    assert ended.value.code == 0
    assert "write" in capsys.readouterr().out
