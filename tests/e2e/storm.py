"""kill -9 of whatever works on a backfill, at random points, until it is whole all the same."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from platform_assets.demo import conductor
from platform_assets.domain.errors import RefusedError, SignalboxError
from platform_assets.line.services import Services
from resources.home import Home
from resources.lake import content_digest
from tests.e2e.conftest import server_on
from tests.e2e.station import ROOT, Station, processes_of, until

SIGNALBOX = str(Path(sys.executable).with_name("signalbox"))
WORKER, ZYGOTE, DAEMON, CODE, WEB = KINDS = (
    "run worker",
    "zygote",
    "daemon",
    "code server",
    "webserver",
)
ALL_STAGES = ("features", "day", "snapshot", "model", "evaluation")
ROUNDS = 6
"""So often the same command is typed, at the most, until nothing is left to do."""


def kind_of(process: psutil.Process) -> str | None:
    """Which of the processes of a running Dagster this one is."""
    name = process.name()
    if name == "signalbox-forks":
        return ZYGOTE
    parent = process.parent()
    if parent is not None and parent.name() == "signalbox-forks":
        return WORKER
    words = " ".join(process.cmdline())
    marks = {DAEMON: conductor.DAEMON, WEB: "dagster_webserver", CODE: "dagster api grpc"}
    return next((kind for kind, mark in marks.items() if mark in words), None)


def found_by_kind(home: Home) -> dict[str, list[psutil.Process]]:
    found: dict[str, list[psutil.Process]] = {}
    for process in processes_of(home):
        try:
            kind = kind_of(process)
        except psutil.Error:
            continue
        if kind is not None:
            found.setdefault(kind, []).append(process)
    return found


@dataclass
class Storm:
    """A home on which a backfill runs, and somebody who kills its processes."""

    home: Home
    catalog: Path
    first: date
    last: date
    seed: int
    killed: Counter[str] = field(default_factory=Counter)
    log: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self._due: list[str] = []

    # --- what a person does ---------------------------------------------------------------------

    def shell(self, *arguments: str) -> dict[str, Any]:
        """`signalbox backfill …`, as a person types it; what it prints."""
        done = subprocess.run(
            [SIGNALBOX, "backfill", *arguments, "--json"],
            env={
                **os.environ,
                **self.home.environment(),
                "SIGNALBOX_CATALOG": str(self.catalog),
                "PYTHONPATH": str(ROOT),
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode == 1:
            raise RefusedError(done.stderr)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @property
    def span(self) -> tuple[str, ...]:
        return ("flights", "--from", self.first.isoformat(), "--to", self.last.isoformat())

    # --- the storm ------------------------------------------------------------------------------

    def blow(self, points: int) -> None:
        """Kill so many processes, one at a time; start Dagster again whenever it has ended."""
        while self.killed.total() < points:
            with server_on(self.home, self.catalog) as server:
                server.wait_until_ready()
                while self.killed.total() < points:
                    try:
                        self._have_work(server.url)
                        kind = self._kill_one()
                    except SignalboxError as error:  # the webserver has just been killed
                        self.log(f"{error}")
                        break
                    self.log(f"{self.killed.total()}: killed the {kind}")
                    if kind in (DAEMON, WEB):
                        break

    def _have_work(self, url: str) -> None:
        """Launch, unless a backfill goes on; all over again where nothing is missing."""
        with dg.DagsterInstance.from_config(str(self.home.dagster)) as instance:
            active = [b for b in instance.get_backfills() if b.status.value in _ACTIVE]
        if active:
            return
        asked = (*self.span, "--url", url)
        deadline = time.monotonic() + 60
        while True:
            try:
                if not self.shell("launch", *asked)["backfill"]:
                    self.shell("launch", *asked, "--restate")
                return
            except RefusedError:  # a killed code server takes a moment to come back
                if time.monotonic() > deadline:
                    raise

    def _kill_one(self) -> str:
        if not self._due:
            self._due = list(KINDS)
            self.dice.shuffle(self._due)
        kind = self._due.pop()
        if kind in (WORKER, ZYGOTE):
            deadline = time.monotonic() + 20
            while WORKER not in found_by_kind(self.home) and time.monotonic() < deadline:
                time.sleep(0.02)
        time.sleep(self.dice.uniform(0.0, 0.6 if kind in (WORKER, ZYGOTE) else 4.0))
        there = found_by_kind(self.home)
        if kind not in there:
            kind = self.dice.choice(sorted(there))
        self.dice.choice(there[kind]).kill()
        self.killed[kind] += 1
        return kind

    # --- afterwards -----------------------------------------------------------------------------

    def calm(self, station: Station) -> int:
        """Type the same command until nothing is missing; how often it took."""
        for round_ in range(ROUNDS):
            until(
                lambda: not station.server.api.unfinished_backfills(),
                600,
                "what was launched to end",
                station.server,
            )
            if not self.shell("launch", *self.span, "--url", station.server.url)["backfill"]:
                return round_
        raise AssertionError(f"something is missing still after {ROUNDS} launches")


_ACTIVE = {"REQUESTED", "CANCELING", "FAILING"}


def tables_of(services: Services) -> dict[str, str]:
    """Each partition of the features as deltalake itself reads it: digest of its rows."""
    whole = services.dataset.newest_rows()
    import pyarrow.compute as pc

    found = {}
    for row in (
        whole.select(["airport", "date"]).group_by(["airport", "date"]).aggregate([]).to_pylist()
    ):
        own = whole.filter(
            pc.and_(
                pc.equal(whole["airport"], row["airport"]), pc.equal(whole["date"], row["date"])
            )
        )
        found[f"{row['airport']}|{row['date']}"] = f"{own.num_rows} {content_digest(own)}"
    return found


def versions_of(services: Services, stages: Iterable[str] = ALL_STAGES) -> dict[str, str]:
    """The data version in force of each partition of each stage."""
    found = {}
    for stage in stages:
        asset = services.spec.asset(stage)
        for name, record in services.ledger.current_versions(asset).items():
            found[f"{asset} {name}"] = record.data_version
    return found
