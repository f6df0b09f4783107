"""`signalbox drill backfill-starvation`: the last hour of today lands while history is rebuilt."""

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from statistics import median

import yaml

from platform_assets.demo.play import ENDED
from platform_assets.demo.server import DagsterDev
from platform_assets.domain.errors import RefusedError, SignalboxError
from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills import plain_location
from platform_assets.drills.harness import Scene
from platform_assets.drills.measure import Rows
from platform_assets.drills.report import DrillReport, Figure, Step
from platform_assets.factory import grid
from platform_assets.line.days import build_day
from platform_assets.line.features import build_features
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import catalog_folder, load_catalog
from resources.home import Home
from resources.ledger import upgrade

NAME = "backfill-starvation"
TITLE = "today's last hour lands while 90 days of history are rebuilt"
CATALOG = "SIGNALBOX_CATALOG"
WAIT_SECONDS = 1800.0
MOST_TIMES_IDLE = 4.0
"""What Signalbox's training may take beside a backfill, on a machine that does other work too: one
turn says no more. `benchmarks/daily_lane.py` takes it at its goal, in the median of many."""


@dataclass(frozen=True)
class Case:
    """What is played.

    Attributes:
        days: dates that the backfill rebuilds, one after the other from the first.
        idle: how often today's training is timed on the idle system.
        slots: runs at once on plain Dagster; Signalbox has those of its lanes.
    """

    days: int = 90
    idle: int = 3
    slots: int = 6


@dataclass(frozen=True)
class Timed:
    """Seconds from the last landed hour to the trained model.

    Attributes:
        ahead: how many runs of the backfill waited or ran when the hour landed.
        unfinished: whether the backfill still went on when the model was there.
    """

    idle: list[float]
    busy: float
    ahead: int
    unfinished: bool

    @property
    def times_idle(self) -> float:
        return self.busy / median(self.idle)


def play(scene: Scene) -> DrillReport:
    """The drill on the pipeline of the catalog."""
    return play_case(scene, Case())


def play_case(scene: Scene, case: Case) -> DrillReport:
    """Play it: first plain Dagster, then Signalbox, each with daemon, queue and webserver."""
    with live_catalog(case) as spec:
        services = Services.open(spec, scene.home)
        live = live_days(spec, case.idle + 1)
        first = live[0] - timedelta(days=case.days)
        with scene.part(f"landing {first} to {live[-1]}"):
            land_flights(services, first, live[0] - timedelta(days=1), quiet=True)
        with scene.part("plain Dagster"):
            plain = _on_plain(scene, services, case, first, live)
        with scene.part("the window before today, on Signalbox"):
            build_window(services, first, live[0])
        with scene.part("Signalbox"):
            box = _on_signalbox(scene, services, case, first, live)
    report = DrillReport(
        name=NAME,
        title=TITLE,
        question=f"A backfill rebuilds {case.days} days from {first} on. The last hour of "
        f"{live[-1]} lands. How long until that day's model is trained?",
        plain=_plain_steps(plain, case),
        signalbox=_signalbox_steps(box, plain),
        figures=_figures(plain, box),
        notes=(
            f"Idle is the median of {case.idle} days without a backfill, on the same running "
            "system. Of plain Dagster the run is launched the moment the hour lands, Signalbox's "
            "sensor has to see it first.",
            f"Plain Dagster has {case.slots} slots and no priorities, a run a partition, its "
            "default. Two cores: a run that has a slot also waits for a core.",
        ),
        verdict="",
    )
    return report.concluded(
        f"Today's model took {plain.times_idle:.1f} times as long as on an idle "
        f"system on plain Dagster, {box.times_idle:.1f} times on Signalbox."
    )


# --- what both have -----------------------------------------------------------------------------


@contextmanager
def live_catalog(case: Case) -> Iterator[PipelineSpec]:
    """The catalog's flights, live only after the days of the backfill; for all processes."""
    document = yaml.safe_load((catalog_folder() / "flights.yaml").read_text())
    start = date.fromisoformat(str(document["partitions"]["start"]))
    document["schedule"]["live_from"] = start + timedelta(days=case.days + 4)
    document["schedule"]["sensor_interval_seconds"] = 5
    before = os.environ.get(CATALOG)
    with tempfile.TemporaryDirectory(prefix="signalbox-drill-") as folder:
        Path(folder, "flights.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        os.environ[CATALOG] = folder
        try:
            yield load_catalog()["flights"]
        finally:
            if before is None:
                os.environ.pop(CATALOG, None)
            else:
                os.environ[CATALOG] = before


def live_days(spec: PipelineSpec, count: int) -> tuple[date, ...]:
    """The first live dates in a row that are whole."""
    rows = Rows(spec)
    found: list[date] = []
    for day in date_range(spec.schedule.live_from, spec.partitions.end):
        found = [*found, day] if rows.is_whole(day) else []
        if len(found) == count:
            return tuple(found)
    raise RefusedError(f"drill {NAME} could not be played: no {count} live days are whole")


def until(what: str, done: Callable[[], bool], server: DagsterDev) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        server.require_alive()
        if time.monotonic() > deadline:
            raise RefusedError(f"drill {NAME}: waited {WAIT_SECONDS:.0f} s in vain for {what}")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _in_queue(server: DagsterDev, backfill: str) -> int:
    """How many runs of a backfill wait or run."""
    runs = server.api.runs({"dagster/backfill": backfill}, limit=1000)
    return sum(run["status"] not in ("SUCCESS", "FAILURE", "CANCELED") for run in runs)


# --- plain Dagster ------------------------------------------------------------------------------


class PlainDev(DagsterDev):
    """`dagster dev` on the plain project."""

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "dagster", "dev", "-m", plain_location.__name__),
            *("-h", "127.0.0.1", "-p", str(self.port)),
        ]


def _plain_home(home: Home, slots: int) -> Home:
    """A home of its own: what lands there moves no clock of the other's."""
    root = home.root / "plain-home"
    shutil.copytree(home.landing, root / "landing", copy_function=os.link)
    mine = Home.locate(root)
    upgrade(mine.ledger_url)
    folder = mine.dagster
    folder.mkdir()
    settings = {
        "telemetry": {"enabled": False},
        "concurrency": {"runs": {"max_concurrent_runs": slots}},
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"dequeue_interval_seconds": 1},
        },
    }
    (folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return mine


def _on_plain(
    scene: Scene, services: Services, case: Case, first: date, live: tuple[date, ...]
) -> Timed:
    home = _plain_home(scene.home, case.slots)
    variables = {
        plain_location.LANDING: str(home.landing / services.spec.pipeline),
        plain_location.STORE: str(home.root / "rows"),
    }
    own = Services(home, services.spec)
    with PlainDev(home, free_port(), variables) as server:
        server.wait_until_ready()

        def train(day: date) -> float:
            land_flights(own, day, day, quiet=True)
            began = time.monotonic()
            run = server.api.launch_job(
                plain_location.JOB,
                location=plain_location.__name__,
                tags={"dagster/partition": day.isoformat()},
            )
            until(
                f"the run of {day}",
                lambda: server.api.run_status(run) in ("SUCCESS", "FAILURE", "CANCELED"),
                server,
            )
            if server.api.run_status(run) != "SUCCESS":
                raise RefusedError(f"drill {NAME}: the plain training of {day} failed")
            return time.monotonic() - began

        idle = [train(day) for day in live[:-1]]
        last = live[0] - timedelta(days=1)
        backfill = server.api.launch_backfill(
            {"features": [(first.isoformat(), last.isoformat())]}, title="90 days", tags={}
        )
        until(
            "the backfill's runs",
            lambda: _in_queue(server, backfill) >= min(case.days // 2, 25),
            server,
        )
        ahead = _in_queue(server, backfill)
        busy = train(live[-1])
        return Timed(idle, busy, ahead, server.api.backfill(backfill)["status"] not in ENDED)


def _plain_steps(found: Timed, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            did=f"on the idle system, the training of {case.idle} days is launched as each lands",
            found=f"done after {', '.join(f'{s:.1f}' for s in found.idle)} s",
        ),
        Step(
            did=f"a backfill of {case.days} days is launched, then the next day lands and its "
            "training is launched",
            found=f"{found.ahead} runs of the backfill were in the queue or running; the training "
            f"was done after {found.busy:.1f} s",
            ok=found.busy > 2 * median(found.idle),
        ),
    )


# --- Signalbox ----------------------------------------------------------------------------------


def build_window(services: Services, first: date, before: date) -> None:
    """Features and roll-ups of the days that today's training reads; held ones stay held."""
    begin = max(first, before - timedelta(days=services.spec.model.window_days))
    services.zone.refresh(begin, before)
    for day in date_range(begin, before - timedelta(days=1)):
        for key in services.spec.partitions.values:
            _built(lambda k=key, d=day: build_features(services, PartitionKey(d, k), NAME))  # type: ignore[misc]
        _built(lambda d=day: build_day(services, PartitionKey(d, None), NAME))  # type: ignore[misc]


def _built(build: Callable[[], object]) -> None:
    try:
        build()
    except SignalboxError:
        return  # held: its day is left out of the windows


def _on_signalbox(
    scene: Scene, services: Services, case: Case, first: date, live: tuple[date, ...]
) -> Timed:
    spec, ledger = services.spec, services.ledger
    model = spec.asset("model")
    with DagsterDev(scene.home, free_port()) as server:
        server.wait_until_ready()

        def train(day: date) -> float:
            land_flights(services, day, day, quiet=True)
            began = time.monotonic()
            until(
                f"the model of {day}",
                lambda: ledger.current_version(model, day.isoformat()) is not None,
                server,
            )
            return time.monotonic() - began

        idle = [train(day) for day in live[:-1]]
        backfill = server.api.launch_backfill(
            history_of(spec, first, live[0] - timedelta(days=1)),
            title=f"{case.days} days",
            tags={"signalbox/restate": "true"},
        )
        until("the backfill's runs", lambda: _in_queue(server, backfill) >= 1, server)
        ahead = _in_queue(server, backfill)
        busy = train(live[-1])
        return Timed(idle, busy, ahead, server.api.backfill(backfill)["status"] not in ENDED)


def history_of(
    spec: PipelineSpec, first: date, last: date
) -> dict[str, Sequence[tuple[str, str]] | None]:
    """Features, roll-ups, snapshots and models of the dates, as a backfill takes them."""
    models = max(first, spec.first_model_date).isoformat()
    found: dict[str, Sequence[tuple[str, str]] | None] = {
        spec.asset("features"): [
            (
                grid.dagster_key(spec, PartitionKey(first, key)),
                grid.dagster_key(spec, PartitionKey(last, key)),
            )
            for key in spec.partitions.values
        ],
        spec.asset("day"): [(first.isoformat(), last.isoformat())],
    }
    if models <= last.isoformat():
        for stage in ("snapshot", "model"):
            found[spec.asset(stage)] = [(models, last.isoformat())]
    return found


def _signalbox_steps(found: Timed, plain: Timed) -> tuple[Step, ...]:
    return (
        Step(
            did="on the idle system, the last hour of each of these days lands",
            found=f"trained by itself after {', '.join(f'{s:.1f}' for s in found.idle)} s",
        ),
        Step(
            did="the same backfill is launched, with its models, then the next day lands",
            found=f"{found.ahead} runs of the backfill were in the queue or running; the model was "
            f"there after {found.busy:.1f} s, "
            + ("while the backfill went on" if found.unfinished else "when the backfill had ended"),
            ok=found.unfinished and found.times_idle < min(MOST_TIMES_IDLE, plain.times_idle),
        ),
    )


def _figures(plain: Timed, box: Timed) -> tuple[Figure, ...]:
    return (
        Figure(
            what="from the last hour to the model, idle",
            unit="s",
            plain=median(plain.idle),
            signalbox=median(box.idle),
        ),
        Figure(
            what="from the last hour to the model, while the backfill runs",
            unit="s",
            plain=plain.busy,
            signalbox=box.busy,
        ),
        Figure(
            what="times idle",
            ideal=1,
            plain=plain.times_idle,
            signalbox=box.times_idle,
        ),
    )
