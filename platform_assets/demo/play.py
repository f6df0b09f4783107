"""`make demo`: history by a native backfill, then a day that is held and leaves by itself."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from platform_assets.demo.screen import Screen
from platform_assets.demo.server import DagsterDev, require_free_port, terminates
from platform_assets.domain.errors import RefusedError, SignalboxError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.backfills import ranges_of
from platform_assets.factory.instance import make_home
from platform_assets.line.history import HistoryPlan, plan_history
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from platform_assets.line.status import status
from resources.catalog import load_catalog
from resources.home import Home

FIRST = date(2013, 1, 1)
LAST_OF_HISTORY = date(2013, 2, 8)
TODAY = date(2013, 2, 9)
HELD_AT_HOUR = 18
BACKFILL_SECONDS = 1200.0
DAY_SECONDS = 300.0
ENDED = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}
FAILED = {"COMPLETED_FAILED", "FAILED", "CANCELED"}


@dataclass
class Summary:
    """What the demo did, for the last screen and for `--json`."""

    failures: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    backfill: str | None = None
    held: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Take a stage's wall seconds down."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 1)


def play(home: Home, port: int, *, stay: bool, quiet: bool = False) -> dict[str, Any]:
    """Play the demo; everything lies in the home, and no process outlives the call.

    Args:
        home: where; a home that has played before goes on where it stands.
        port: of Dagster's webserver on 127.0.0.1.
        stay: keep the UI up until Ctrl-C.
        quiet: nothing on the terminal.

    Returns:
        The summary as a document; `ok` tells whether everything went well.

    Raises:
        RefusedError: the port is taken.
        HomeError: the home cannot be used.
    """
    require_free_port(port)
    summary, screen = Summary(), Screen(quiet)
    with terminates():
        with summary.stage("home"):
            make_home(home)
        services = Services.open(load_catalog()["flights"], home)
        with DagsterDev(home, port) as server:
            try:
                _acts(services, server, summary, screen)
            except SignalboxError as error:
                summary.failures.append(str(error))
            document = _document(services, server, summary)
            screen.summary(document)
            if stay and not summary.failures:
                screen.say(f"The Dagster UI stays on {server.url} until Ctrl-C.")
                try:
                    server.wait()
                except KeyboardInterrupt:
                    screen.say("Ending.")
    return document


def _acts(services: Services, server: DagsterDev, summary: Summary, screen: Screen) -> None:
    with summary.stage("landing the history"):
        screen.say(f"Landing {FIRST} to {LAST_OF_HISTORY}, hour by hour …")
        land_flights(services, FIRST, LAST_OF_HISTORY, quiet=screen.quiet)
    with summary.stage("starting Dagster"):
        screen.say(f"Starting Dagster on {server.url} …")
        server.wait_until_ready()
    with summary.stage("backfill of the history"):
        _backfill(services, server, summary, screen)
    with summary.stage("today, hour by hour"):
        _today(services, server, summary, screen)


def backfill_ranges(
    spec: PipelineSpec, plan: HistoryPlan
) -> dict[str, Sequence[tuple[str, str]] | None]:
    """What a plan builds, as `DagsterApi.launch_backfill` takes it."""
    found: dict[str, Sequence[tuple[str, str]] | None] = dict(ranges_of(spec, plan.build))
    if plan.judges:
        found[spec.asset("champion")] = None
    return found


def _backfill(services: Services, server: DagsterDev, summary: Summary, screen: Screen) -> None:
    spec = services.spec
    for left_over in server.api.unfinished_backfills():
        screen.say(f"Going on with backfill {left_over}, which was interrupted.")
        _follow(server, left_over, screen)
    plan = plan_history(services, FIRST, LAST_OF_HISTORY)
    summary.held = dict(plan.held["features"])
    partitions = backfill_ranges(spec, plan)
    if not partitions:
        screen.say("The history is built already.")
        return
    for name, why in summary.held.items():
        screen.say(f"  held, left out: {name}: {why}")
    summary.backfill = server.api.launch_backfill(
        partitions,
        title=f"history {FIRST} to {LAST_OF_HISTORY}",
        tags={"signalbox/lane": "backfill", "signalbox/pipeline": spec.pipeline},
    )
    screen.say(f"Native backfill {summary.backfill}: {server.url}/runs/b/{summary.backfill}")
    found = _follow(server, summary.backfill, screen)
    failed = {asset: n for asset, (_, n, _) in found["assets"].items() if n}
    if found["status"] in FAILED or failed:
        raise RefusedError(
            f"backfill {summary.backfill} ended as {found['status']}: {failed} "
            f"{found['error'] or ''}"
        )


def _follow(server: DagsterDev, backfill: str, screen: Screen) -> dict[str, Any]:
    """Show a backfill's progress until it has ended; its last state."""
    deadline = time.monotonic() + BACKFILL_SECONDS
    with screen.bars() as update:
        while True:
            server.require_alive()
            found = server.api.backfill(backfill)
            update(found["assets"])
            if found["status"] in ENDED:
                return found
            if time.monotonic() > deadline:
                raise RefusedError(
                    f"backfill {backfill} has not ended after {BACKFILL_SECONDS:.0f} s; see "
                    f"{server.url}/runs/b/{backfill}"
                )
            time.sleep(1)


def _today(services: Services, server: DagsterDev, summary: Summary, screen: Screen) -> None:
    spec, started = services.spec, time.time()
    ledger, name = services.ledger, TODAY.isoformat()
    if ledger.current_version(spec.asset("model"), name) is None:
        screen.say(f"Landing {TODAY} until {HELD_AT_HOUR}:00 …")
        land_flights(services, TODAY, TODAY, HELD_AT_HOUR, quiet=True)

        def held() -> bool:
            verdicts = [
                ledger.verdict(spec.pipeline, spec.asset("features"), key)
                for key in spec.keys_of(TODAY)
            ]
            observed = [
                min(source["observed"] for source in v.report["sources"]) for v in verdicts if v
            ]
            return len(observed) == len(verdicts) and min(observed) >= HELD_AT_HOUR

        _wait(server, held, f"the sensor to look at {TODAY}")
        for key in spec.keys_of(TODAY):
            verdict = ledger.verdict(spec.pipeline, spec.asset("features"), key)
            assert verdict is not None
            hours = ", ".join(
                f"{s['source']} {s['observed']} of {s['expected']}"
                for s in verdict.report["sources"]
            )
            screen.say(f"  held: {key}: {hours} hours")
        if ledger.current_version(spec.asset("model"), name) is not None:
            raise RefusedError(f"a model of {TODAY} was trained on a day that is not whole")
        for hour in range(HELD_AT_HOUR + 1, 25):
            land_flights(services, TODAY, TODAY, hour, quiet=True)
            screen.say(f"  landed {TODAY} until {hour}:00")
    _wait(
        server,
        lambda: ledger.current_version(spec.asset("model"), name) is not None,
        f"the model of {TODAY}",
    )
    screen.say(f"All hours are there: {spec.asset('model')} {TODAY} trained by itself.")
    ripe = [day for day in spec.dates() if spec.judged_on(day)[-1] == TODAY]

    def judged() -> bool:
        names = [day.isoformat() for day in ripe]
        return len(ledger.current_versions(spec.asset("evaluation"), names)) == len(names)

    _wait(server, judged, f"the judgement of the model of {ripe[0]}, which waited for {TODAY}")
    _wait(server, lambda: _settled(server, started), "the last runs to end")


def _settled(server: DagsterDev, since: float) -> bool:
    every = server.api.runs({"signalbox/lane": "daily"})
    runs = [run for run in every if run["creationTime"] >= since]
    failed = [run["runId"] for run in runs if run["status"] in ("FAILURE", "CANCELED")]
    if failed:
        raise RefusedError(f"run(s) {', '.join(failed)} of the daily lane failed")
    return all(run["status"] == "SUCCESS" for run in runs)


def _wait(server: DagsterDev, done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DAY_SECONDS
    while not done():
        server.require_alive()
        if time.monotonic() > deadline:
            raise RefusedError(f"waited {DAY_SECONDS:.0f} s in vain for {what}; see {server.log}")
        time.sleep(0.5)


def _document(services: Services, server: DagsterDev, summary: Summary) -> dict[str, Any]:
    found = status(services)
    return {
        "ok": not summary.failures,
        "failures": summary.failures,
        "home": str(services.home.root),
        "as_of": found["as_of"],
        "backfill": summary.backfill,
        "held": summary.held,
        "assets": found["assets"],
        "champion": found["champion"],
        "seconds": summary.seconds,
        "urls": {
            "dagster": server.url,
            "lineage": f"{server.url}/asset-groups",
            "champion": f"{server.url}/assets/{services.spec.asset('champion')}",
        },
    }
