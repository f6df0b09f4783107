"""Today's training while history is rebuilt, against the same on the idle system.

In turn, so that whatever else the machine does meets all arms alike:

    idle     both of the below are paused: what waits of them may not start
    rebuilt  a backfill of 90 days of flights, with its models, has its slots and waits for more
    minutes  a backfill whose runs take a minute each, and no core, has them

Each time the next whole day lands, and is trained by the sensors. Two times are taken: from the
last landed hour to the trained model, which has the look of the sensor in it, and from the
submission of the run that trains to its end. What is queued all the while is held back by pausing
it, as `signalbox backfill pause` does; an arm begins when its runs are in progress and nothing
else is. A backfill that has ended is launched again, and a turn during which it ended is played
again. The median of an arm may be 1.1 times that of idle, by either time; 1 is the exit code
otherwise. Ahead of all that come some turns before anything was launched: `empty`. They are not
in turn with the others, and tell what the paused ones, which the queue still looks at, cost.

    python -m benchmarks.daily_lane [--turns 20] [--empty 10] [--days 90] [--json]
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
from platform_assets.drills import starvation
from platform_assets.drills.measure import Rows
from platform_assets.drills.starvation import Case, build_window, free_port, history_of, until
from platform_assets.factory.instance import make_home
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.home import Home
from resources.ledger.backfills import PAUSED, RUNNING, Backfills
from resources.ledger.records import BackfillRecord

GOAL = 1.1
EMPTY = "empty"
IDLE, REBUILT, MINUTES = ARMS = ("idle", "rebuilt", "minutes")
TIMES = ("landed_to_model", "submitted_to_done")
SENSOR_SECONDS = 5.0
QUIET_SECONDS = SENSOR_SECONDS + 1
"""What the sensors have to launch after a training they have launched."""
MOST_REPEATS = 5


@dataclass
class Turns:
    """Seconds by arm and by which time, and what else is known of the turns that count."""

    seconds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {arm: {name: [] for name in TIMES} for arm in (EMPTY, *ARMS)}
    )
    queued: dict[str, list[int]] = field(default_factory=lambda: {REBUILT: [], MINUTES: []})
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


class Landing:
    """The days of the live year that are whole, one after the other."""

    def __init__(self, services: Services, server: Lanes) -> None:
        self.services, self.server = services, server
        self._days = self._whole()
        self._chance = random.Random(0)

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
        """The next day to land, when nothing is at work but what is queued on purpose."""
        day = next(self._days)
        quiet = time.monotonic()
        while time.monotonic() - quiet < QUIET_SECONDS:
            self.server.require_alive()
            if self._busy():
                quiet = time.monotonic()
            time.sleep(0.5)
        # Else a day would land where the wait before it leaves the sensors, each arm at its own.
        time.sleep(self._chance.uniform(0, SENSOR_SECONDS))
        return day

    def _busy(self) -> bool:
        return any(
            run["status"] not in ("SUCCESS", "FAILURE", "CANCELED")
            for lane in Lane
            if lane is not Lane.BACKFILL
            for run in self.server.api.runs({"signalbox/lane": lane.value}, limit=20)
        )

    def train(self, day: date) -> tuple[float, float]:
        """Land a day; seconds to its model, and those of the run that trained it."""
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
        return seconds, run["endTime"] - run["creationTime"]


def play(
    services: Services, server: Lanes, days: tuple[date, date], turns: int, empty: int
) -> Turns:
    """First the empty system, then the arms in turn; what is queued goes on from turn to turn."""
    landing, found = Landing(services, server), Turns()
    queued = {kind: Backfill(server, services, kind, days) for kind in (REBUILT, MINUTES)}
    landing.train(landing.next())  # the first one of all warms what the others find warm
    for turn in range(empty):
        _note(found, EMPTY, turn, landing.train(landing.next()))
    for turn in range(turns):
        for arm in ARMS:
            for repeat in range(MOST_REPEATS):
                for kind, backfill in queued.items():
                    if kind != arm:
                        backfill.hold()
                if arm in queued:
                    queued[arm].go()
                day = landing.next()
                ahead = queued[arm].waiting() if arm in queued else 0
                taken = landing.train(day)
                if arm == IDLE or not queued[arm].ended():
                    break
                found.repeated += 1
                if repeat == MOST_REPEATS - 1:
                    raise SystemExit(f"the backfill {arm} ended during each of {repeat + 1} turns")
            if arm in queued:
                found.queued[arm].append(ahead)
            _note(found, arm, turn, taken)
    for backfill in queued.values():
        backfill.hold()
        server.api.cancel_backfill(backfill.id)
    return found


def _note(found: Turns, arm: str, turn: int, taken: tuple[float, float]) -> None:
    for name, seconds in zip(TIMES, taken, strict=True):
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
            name: {"median": median(values), "p95": p95(values), "all": values}
            for name, values in times.items()
        }
        for arm, times in found.seconds.items()
        if times[TIMES[0]]
    }
    ratios = {
        f"{arm}_{name}": round(arms[arm][name]["median"] / arms[IDLE][name]["median"], 2)
        for arm in (REBUILT, MINUTES)
        for name in TIMES
    }
    if EMPTY in arms:
        to_empty = {
            name: round(arms[IDLE][name]["median"] / arms[EMPTY][name]["median"], 2)
            for name in TIMES
        }
    else:
        to_empty = {}
    missed = [name for name, ratio in ratios.items() if ratio > GOAL]
    return {
        "arms": arms,
        "runs_waiting": {arm: min(values) for arm, values in found.queued.items()},
        "repeated": found.repeated,
        "ratios": ratios,
        "idle_to_empty": to_empty,
        "goal": GOAL,
        "missed": missed,
    }


def measure(turns: int, days: int, empty: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="signalbox-") as folder:
        home = Home.locate(Path(folder) / "home")
        make_home(home)
        os.environ.update(home.environment())
        with starvation.live_catalog(Case(days=days)) as spec:
            services = Services.open(spec, home)
            last = spec.schedule.live_from - timedelta(days=1)
            first = max(spec.partitions.start, last - timedelta(days=days - 1))
            land_flights(services, spec.partitions.start, last, quiet=True)
            build_window(services, first, spec.schedule.live_from)
            with Lanes(home, free_port(), {"PYTHONPATH": str(ROOT)}) as server:
                server.wait_until_ready()
                used, started = tree_cpu(home), time.perf_counter()
                found = play(services, server, (first, last), turns, empty)
                wall, cpu = time.perf_counter() - started, tree_cpu(home) - used
    load = os.getloadavg()[2]
    took = {"wall": round(wall), "cpu": round(cpu), "load_15_minutes": round(load, 1)}
    return {"turns": turns, "days": days, **took, **summed_up(found)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--empty", type=int, default=10, help="turns before anything is queued")
    parser.add_argument("--days", type=int, default=90, help="of history that are rebuilt")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.turns, arguments.days, arguments.empty)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for arm, times in found["arms"].items():
            told = "; ".join(
                f"{name} median {of['median']:.1f} s, p95 {of['p95']:.1f} s"
                for name, of in times.items()
            )
            print(f"{arm:8s} {told}")
        print(", ".join(f"{name} {ratio}" for name, ratio in found["ratios"].items()))
        waiting = ", ".join(f"{n} beside {arm}" for arm, n in found["runs_waiting"].items())
        print(f"runs that waited when a day landed, at least: {waiting}")
        print(", ".join(f"idle to empty, {n} {r}" for n, r in found["idle_to_empty"].items()))
        print(f"{found['cpu']} CPU-s in {found['wall']} s, load {found['load_15_minutes']}")
    for name in found["missed"]:
        print(f"{name} is above {GOAL}", file=sys.stderr)
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
