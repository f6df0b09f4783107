"""The commands of the docs' tours, typed as they stand there, on a fresh home."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from platform_assets.demo.server import DagsterDev
from resources.home import Home
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = ("source ", "export ", "signalbox ", "dg ")

pytestmark = [pytest.mark.heavy, pytest.mark.embedded, pytest.mark.timeout(900)]


def typed(page: str, begin: str, end: str, home: str) -> list[str]:
    """The commands of a page between two of its words, with a home of the test's own."""
    text = (ROOT / "docs" / page).read_text()
    part = text[text.index(begin) : text.index(end)]
    lines = [
        line
        for block in BLOCK.findall(part)
        if block.startswith(COMMANDS)
        for line in block.splitlines()
    ]
    (named,) = {line.partition("=")[2] for line in lines if "export SIGNALBOX_HOME=" in line}

    def moved(place: re.Match[str]) -> str:
        return home if place[0] == named else f"{home}-{place[1]}"

    found = [re.sub(r"/tmp/([\w.-]+)", moved, line) for line in lines]
    return [line for line in found if not line.startswith("source ")]


def run(commands: list[str]) -> str:
    """Type them into one shell, which ends at the first that fails; what was printed."""
    foreign = ("SIGNALBOX_", "DAGSTER_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = "\n".join(["set -ex", *commands])
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tour_of_completeness(tmp_path: Path) -> None:
    commands = typed("completeness.md", "## See it", "**The heat map**", str(tmp_path / "home"))
    assert len(commands) == 9
    said = run(commands)
    assert "weather 23 of 24 hours, missing 06:00" in said
    assert "18 of 24 hours" in said
    assert "LGA|2013-01-06 is waived: W-0001 by you@example.com" in said
    assert "under waiver W-0001" in said
    page = (tmp_path / "home-status.html").read_text()
    assert "LGA 2013-01-06" in page


def test_the_tour_of_waivers(tmp_path: Path) -> None:
    commands = typed("waivers.md", "## Two days", "## What a waiver covers", str(tmp_path / "home"))
    assert len(commands) == 10
    said = run(commands)
    assert "weather 20 of 24 hours, missing 20:00-23:00, past the deadline" in said
    assert "JFK|2013-10-25 is waived: W-0001 by ann until 2013-11-30" in said
    assert "flights/features JFK|2013-10-25: done" in said
    assert "waiver W-0001 was revoked by bob" in said


def test_the_tour_of_backfills(tmp_path: Path) -> None:
    """With Dagster beside it, as in the second terminal; the port is the test's own."""
    home, port = tmp_path / "home", free_port()
    commands = typed("backfills.md", "## Try it", "## 1. Plan", str(home))
    (at,) = (i for i, line in enumerate(commands) if line.startswith("signalbox dev "))
    run(commands[:at])
    with DagsterDev(Home.locate(home), port) as server:
        server.wait_until_ready()
        second = [
            f"{line} --url {server.url}" if line.split()[2] in ("launch", "cancel") else line
            for line in commands[at + 1 :]
            if line.startswith("signalbox ")
        ]
        assert len(second) == 9
        said = run([f"export SIGNALBOX_HOME={home}", *second])
    assert said.count("is launched: ") == 2
    assert "is paused, at most 1 run(s) at once" in said
    assert "is running, at most 2 run(s) at once" in said
    assert "is being cancelled" in said
    assert "elsewhere" in said


def test_what_the_page_of_backfills_says_to_type(tmp_path: Path) -> None:
    """Its sections 1 to 5, with the three weeks landed that its tour lands, and the ID put in."""
    home, port = tmp_path / "home", free_port()
    text = (ROOT / "docs" / "backfills.md").read_text()
    sections = text[text.index("## 1. Plan") : text.index("## When something failed")]
    plan, launch, look, steer, cancel = (
        [line for block in BLOCK.findall(section) for line in block.splitlines()]
        for section in sections.split("\n## ")
    )
    assert (len(plan), len(launch), len(look), len(steer), len(cancel)) == (5, 1, 3, 4, 1)
    here = f"export SIGNALBOX_HOME={home}"
    run([here, "signalbox land --from 2013-01-01 --to 2013-01-21"])
    with DagsterDev(Home.locate(home), port) as server:
        server.wait_until_ready()
        at = f" --url {server.url}"
        planned = run([here, *plan])
        assert planned.count("runs") >= 4
        said = run([here, launch[0] + at + " --detach"])
        (began,) = re.findall(r"backfill (\S+) is launched", said)
        steered = run([here, *(line.replace(" ID", f" {began}") for line in steer)])
        assert "at most 1 run(s) at once" in steered
        assert "is paused" in steered
        run([here, cancel[0].replace(" ID", f" {began}") + at])
        said = run([here, launch[0] + at])
        (again,) = re.findall(r"backfill (\S+) is launched", said)
        looked = run([here, *(line.replace(" ID", f" {again}") for line in look)])
        assert looked.count(again) >= 3
        assert "nothing to launch" in run([here, launch[0] + at])


def test_the_tour_of_quarantine(tmp_path: Path) -> None:
    commands = typed("quarantine.md", "## See it", "## What is refused", str(tmp_path / "home"))
    assert len(commands) == 8
    said = run(commands)
    assert "weather 23 of 24 hours, rejected 2013-01-02T15Z: the file has 0 bytes" in said
    assert "1 refused file" in said
    assert "flights/features JFK|2013-01-02: ready" in said
    assert "healed" in said


def test_the_tour_of_alerts(tmp_path: Path) -> None:
    commands = typed("alerts.md", "## See it", "## A webhook", str(tmp_path / "home"))
    assert len(commands) == 6
    said = run(commands)
    assert "late flights/features 2013-10-25" in said
    assert "weather 20 of 24 hours, missing 20:00-23:00, past the deadline" in said
    assert "alert" in said.rpartition("JFK|2013-10-25: held")[2]


def test_the_tour_of_late_data(tmp_path: Path) -> None:
    commands = typed("late-data.md", "## See it", "## The policy", str(tmp_path / "home"))
    assert len(commands) == 12
    said = run(commands)
    assert "JFK|2013-01-02: open, weather: corrected 10:00" in said
    assert "the lateness is 72 of weather" in said
    assert "JFK|2013-01-02: done" in said


def test_the_tour_of_gpus(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "gpus.md").read_text()
    part = text[text.index("## See it") : text.index("## Shapes in the catalog")]
    commands = [line for line in part.splitlines() if line.startswith("signalbox ")]
    assert len(commands) == 6
    plots = str(tmp_path / "plots")
    said = run([line.replace("/tmp/gpu-plots", plots) for line in commands])
    for block in BLOCK.findall(part):
        if not block.startswith(COMMANDS):
            assert block.strip() in said, "the page shows what is not printed"
    assert "it is being repaired" in said
    assert '"fits": true' in said
    assert '"policy": "ours"' in said
    assert "one that insists is told why" in said
    assert (tmp_path / "plots" / "queue.png").exists()
