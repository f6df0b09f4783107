"""Today's training while history is rebuilt, against the same on an idle system.

Two systems run side by side, each with a home, a daemon, a webserver and a code location of its
own. On one nothing is ever launched but what its sensors launch: idle. On the other, in turn, so
that whatever else the machine does meets all arms alike:

    paused   both of the below are paused: what waits of them may not start
    rebuilt  a backfill of 90 days of flights, with its models, has its slots and waits for more
    minutes  a backfill whose runs take a minute each, and no core, has them

Each time the next whole day lands, and is trained by the sensors; idle has the first day of each
turn, and the others land unmeasured, so that both systems hold the same days. Two times are
taken: from the last landed hour to the trained model, which has the look of the sensor in it, and
from the submission of the run that trains to its end; the latter also by its parts, until the run
starts (queue and launch) and from there on. What is queued all the while is held back by pausing
it, as `signalbox backfill pause` does; an arm begins when its runs are in progress and nothing
else is, on either system. A backfill that has ended is launched again, and a turn during which it
ended is played again. The median of an arm may be 1.1 times that of idle, by either time; 1 is
the exit code otherwise.

    python -m benchmarks.daily_lane [--turns 20] [--arms paused,rebuilt,minutes] [--json]
"""

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.backfill_cost import ROOT, tree_cpu
from benchmarks.daily_parts import minutes
from platform_assets.demo import conductor
from platform_assets.demo.play import ENDED
from platform_assets.demo.server import DagsterDev
from platform_assets.domain.lanes import Lane
from platform_assets.domain.partition import date_range
from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills import starvation
from platform_assets.drills.measure import Rows
from platform_assets.drills.starvation import Case, build_window, free_port, history_of, until
from platform_assets.factory.instance import make_home
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.home import QUIET, Home
from resources.ledger.backfills import PAUSED, RUNNING, Backfills
from resources.ledger.records import BackfillRecord

GOAL = 1.1
IDLE, PAUSED_ARM, REBUILT, MINUTES = ARMS = ("idle", "paused", "rebuilt", "minutes")
TIMES = ("landed_to_model", "submitted_to_done")
PARTS = ("submitted_to_start", "start_to_done")
"""Of the second."""
SENSOR_SECONDS = 5.0
QUIET_SECONDS = SENSOR_SECONDS + 1
"""What the sensors have to launch after a training they have launched."""
MOST_REPEATS = 5


@dataclass
class Turns:
    """Seconds by arm and by which time, and what else is known of the turns that count."""

    seconds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {arm: {name: [] for name in (*TIMES, *PARTS)} for arm in ARMS}
    )
    queued: dict[str, list[int]] = field(default_factory=lambda: {arm: [] for arm in ARMS[1:]})
    repeated: int = 0


class Lanes(DagsterDev):
    """Signalbox on a home, with one asset more."""

    def command(self) -> list[str]:
        workspace = self.home.root / "workspace.yaml"
        location = {"module_name": minutes.__name__, "location_name": "signalbox"}
        workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": location}]}))
        return [sys.executable, "-m", conductor.__name__, str(workspace), str(self.port)]

    def states(self, backfill: str) -> list[str]:
        runs = self.api.runs({"dagster/backfill": backfill}, limit=1000)
        return [run["status"] for run in runs]


class Backfill:
    """What is queued: launched at once, paused and let go as it is steered in the terminal."""

    def __init__(self, server: Lanes, services: Services, kind: str, days: tuple[date, date]):
        self.server, self.services, self.kind, self.days = server, services, kind, days
        self.awake = services.home.root / minutes.AWAKE
        self.store = Backfills(services.home.ledger_url)
        self.id = ""

    def ended(self) -> bool:
        return self.server.api.backfill(self.id)["status"] in ENDED

    def at_work(self) -> int:
        return sum(s in ("STARTING", "STARTED", "CANCELING") for s in self.server.states(self.id))

    def waiting(self) -> int:
        return self.server.states(self.id).count("QUEUED")

    def go(self) -> None:
        """Let it go on, or begin, until its runs have the slots of their lane."""
        self.awake.unlink(missing_ok=True)
        if not self.id or self.ended():
            self._launch()
        self.store.set_state(self.id, RUNNING, "bench")
        until(f"runs of {self.kind}", lambda: self.at_work() >= 2 or self.ended(), self.server)

    def hold(self) -> None:
        """Start none of its runs, and wait for those that work."""
        if not self.id:
            return
        self.store.set_state(self.id, PAUSED, "bench")
        self.awake.touch()
        until(f"the end of runs of {self.kind}", lambda: self.at_work() == 0, self.server)

    def _launch(self) -> None:
        spec, (first, last) = self.services.spec, self.days
        ranges: dict[str, Sequence[tuple[str, str]] | None] = (
            {minutes.ASSET: [(minutes.FIRST, minutes.LAST)]}
            if self.kind == MINUTES
            else history_of(spec, first, last)
        )
        tags = {"signalbox/restate": "true"}
        self.id = self.server.api.launch_backfill(ranges, title=self.kind, tags=tags)
        now = datetime.now(UTC)
        record = BackfillRecord(self.id, "", RUNNING, None, {}, "bench", now, now, "bench")
        self.store.put(record)


class System:
    """One of the two, and the days of the live year that are whole, one after the other."""

    def __init__(self, services: Services, server: Lanes) -> None:
        self.services, self.server = services, server
        self._days = self._whole()

    def _whole(self) -> Iterator[date]:
        spec, rows = self.services.spec, Rows(self.services.spec)
        skipped: list[date] = []
        for day in date_range(spec.schedule.live_from, spec.partitions.end):
            if not rows.is_whole(day):
                skipped.append(day)
                continue
            if skipped:  # they are held, or not: nobody measures them
                land_flights(self.services, skipped[0], skipped[-1], quiet=True)
                skipped = []
            yield day

    def next(self) -> date:
        """The next day to land."""
        return next(self._days)

    def busy(self) -> bool:
        """Whether anything is at work but what is queued on purpose."""
        self.server.require_alive()
        return any(
            run["status"] not in ("SUCCESS", "FAILURE", "CANCELED")
            for lane in Lane
            if lane is not Lane.BACKFILL
            for run in self.server.api.runs({"signalbox/lane": lane.value}, limit=20)
        )

    def train(self, day: date) -> list[float]:
        """Land a day; the seconds to its model, those of the run that trained it, and its parts."""
        ledger, asset = self.services.ledger, self.services.spec.asset("model")
        land_flights(self.services, day, day, quiet=True)
        began = time.monotonic()
        until(
            f"the model of {day}",
            lambda: ledger.current_version(asset, day.isoformat()) is not None,
            self.server,
        )
        seconds = time.monotonic() - began
        run: dict[str, Any] = {}

        def done() -> bool:
            tags = {"signalbox/lane": "daily", "dagster/partition": day.isoformat()}
            job = f"{self.services.spec.pipeline}_train"
            found = [r for r in self.server.api.runs(tags) if r["jobName"] == job]
            run.update(found[0] if found else {})
            return run.get("status") == "SUCCESS"

        until(f"the end of the run of {day}", done, self.server)
        submitted, started, ended = run["creationTime"], run["startTime"], run["endTime"]
        return [seconds, ended - submitted, started - submitted, ended - started]


def wait_until_quiet(systems: Sequence[System], chance: random.Random) -> None:
    """Until nothing is at work on either, and then a part of the sensors' interval.

    Without that a day would land where the wait before it leaves the sensors, each arm at its own.
    """
    quiet = time.monotonic()
    while time.monotonic() - quiet < QUIET_SECONDS:
        if any(system.busy() for system in systems):
            quiet = time.monotonic()
        time.sleep(0.5)
    time.sleep(chance.uniform(0, SENSOR_SECONDS))


def play(
    idle: System, loaded: System, days: tuple[date, date], turns: int, beside: Sequence[str]
) -> Turns:
    """Idle and these arms in turn; what is queued goes on from turn to turn."""
    found, chance = Turns(), random.Random(0)
    services, server = loaded.services, loaded.server
    queued = {kind: Backfill(server, services, kind, days) for kind in (REBUILT, MINUTES)}
    for system in (idle, loaded):  # the first one of all warms what the others find warm
        system.train(system.next())
    for backfill in queued.values():
        backfill.go()
        backfill.hold()
    for turn in range(turns):
        _hold(queued)
        wait_until_quiet((idle, loaded), chance)
        _note(found, IDLE, turn, idle.train(idle.next()))
        for _ in beside[1:]:
            idle.train(idle.next())
        for arm in beside:
            _note(found, arm, turn, _beside(found, idle, loaded, queued, arm, chance))
    for backfill in queued.values():
        backfill.hold()
        server.api.cancel_backfill(backfill.id)
    return found


def _beside(
    found: Turns,
    idle: System,
    loaded: System,
    queued: dict[str, Backfill],
    arm: str,
    chance: random.Random,
) -> list[float]:
    """A day beside what the arm has queued."""
    for _ in range(MOST_REPEATS):
        _hold(queued, but=arm)
        if arm in queued:
            queued[arm].go()
        wait_until_quiet((idle, loaded), chance)
        waiting = [queued[arm]] if arm in queued else queued.values()
        ahead = sum(backfill.waiting() for backfill in waiting)
        taken = loaded.train(loaded.next())
        if arm not in queued or not queued[arm].ended():
            found.queued[arm].append(ahead)
            return taken
        found.repeated += 1
        idle.train(idle.next())
    raise SystemExit(f"the backfill {arm} ended during each of {MOST_REPEATS} turns")


def _hold(queued: dict[str, Backfill], but: str = "") -> None:
    for kind, backfill in queued.items():
        if kind != but:
            backfill.hold()


def _note(found: Turns, arm: str, turn: int, taken: Sequence[float]) -> None:
    for name, seconds in zip((*TIMES, *PARTS), taken, strict=True):
        found.seconds[arm][name].append(round(seconds, 2))
    told = f"turn {turn + 1}, {arm}: {taken[0]:.1f} s, its run {taken[1]:.1f} s"
    print(told, file=sys.stderr)


def p95(values: Sequence[float]) -> float:
    """The least that at most one in twenty is above."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def summed_up(found: Turns) -> dict[str, Any]:
    """Median and p95 by arm, and ratios of the medians to idle."""
    arms = {
        arm: {
            name: {"median": round(median(values), 2), "p95": p95(values), "all": values}
            for name, values in times.items()
        }
        for arm, times in found.seconds.items()
        if times[TIMES[0]]
    }
    ratios = {
        f"{arm}_{name}": round(arms[arm][name]["median"] / arms[IDLE][name]["median"], 2)
        for arm in arms
        if arm != IDLE
        for name in (*TIMES, *PARTS)
    }
    missed = [name for name, ratio in ratios.items() if ratio > GOAL and name.endswith(TIMES)]
    return {
        "arms": arms,
        "runs_waiting": {arm: min(values) for arm, values in found.queued.items() if values},
        "repeated": found.repeated,
        "ratios": ratios,
        "goal": GOAL,
        "missed": missed,
    }


@contextmanager
def system(
    folder: Path, spec: PipelineSpec, first: date, variables: dict[str, str]
) -> Iterator[System]:
    """A home with the days before the live ones, and Dagster running on it."""
    home = Home.locate(folder)
    make_home(home)
    services = Services.open(spec, home)
    live = spec.schedule.live_from
    land_flights(services, spec.partitions.start, live - timedelta(days=1), quiet=True)
    build_window(services, first, live)
    with Lanes(home, free_port(), variables) as server:
        server.wait_until_ready()
        yield System(services, server)


def measure(turns: int, days: int, arms: Sequence[str]) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signalbox-")))
        spec = stack.enter_context(starvation.live_catalog(Case(days=days)))
        os.environ.update(QUIET)
        last = spec.schedule.live_from - timedelta(days=1)
        first = max(spec.partitions.start, last - timedelta(days=days - 1))
        idle, loaded = (
            stack.enter_context(system(folder / name, spec, first, {"PYTHONPATH": str(ROOT)}))
            for name in ("idle", "loaded")
        )
        homes = (idle.services.home, loaded.services.home)
        used, started = sum(map(tree_cpu, homes)), time.perf_counter()
        found = play(idle, loaded, (first, last), turns, arms)
        wall, cpu = time.perf_counter() - started, sum(map(tree_cpu, homes)) - used
    load = os.getloadavg()[2]
    took = {"wall": round(wall), "cpu": round(cpu), "load_15_minutes": round(load, 1)}
    return {"turns": turns, "days": days, **took, **summed_up(found)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--days", type=int, default=90, help="of history that are rebuilt")
    parser.add_argument("--arms", default=",".join(ARMS[1:]), help="beside idle")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chosen = arguments.arms.split(",")
    if unknown := set(chosen) - set(ARMS[1:]):
        parser.error(f"--arms names {', '.join(sorted(unknown))}; allowed are {ARMS[1:]}")
    found = measure(arguments.turns, arguments.days, chosen)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for arm, times in found["arms"].items():
            told = "; ".join(
                f"{name} median {of['median']:.2f} s, p95 {of['p95']:.2f} s"
                for name, of in times.items()
            )
            print(f"{arm:8s} {told}")
        print(", ".join(f"{name} {ratio}" for name, ratio in found["ratios"].items()))
        waiting = ", ".join(f"{n} beside {arm}" for arm, n in found["runs_waiting"].items())
        print(f"runs that waited when a day landed, at least: {waiting}")
        print(f"{found['cpu']} CPU-s in {found['wall']} s, load {found['load_15_minutes']}")
    for name in found["missed"]:
        print(f"{name} is above {GOAL}", file=sys.stderr)
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
