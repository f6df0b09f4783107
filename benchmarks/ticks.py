"""What the sensors' ticks cost: over ten years of history against one, and with 1,000 new hours.

Signalbox: every sensor of the pipeline (readiness, late data, due, alerts, their delivery, the
truth of MLflow's runs) as Dagster's code server evaluates it, with the events that it reports, on a
home with a real instance. The history is live from its first day; of each 15 days one is held for
good.
Three airports, two sources, one file an hour.

Beside it Dagster's own: an AutomationConditionSensorDefinition over the same graph and partitions
(airport x date of both sources, features, day, model) with `AutomationCondition.eager()`, all of
them materialized. It knows no hours and no landing zone: new hours are source partitions that were
materialized again.

State is written in bulk: rows straight into the ledger and into Dagster's event log, files as hard
links to one empty Parquet file a source, which the ledger has with rows and nothing opens; the new
hours are real files with 13 flights, or one observation. Not in it: runs of the years before in
Dagster's run storage. Counted is the CPU of this process and its children, the least of several
ticks. Exit code 1 if a goal is missed.

    python -m benchmarks.ticks [--ticks 7] [--years 10] [--million] [--no-dagster] [--json]
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOAL, GOAL_NEW_SECONDS = 1.2, 1.0
NEW_HOURS = 1_000


def measure(folder: Path, years: int, ticks: int, dagster: bool, million: bool) -> dict[str, Any]:
    """Ticks of the short and the long history in turn; CPU milliseconds by arm, and the goals."""
    from benchmarks.tick_parts.eager import Automation
    from benchmarks.tick_parts.history import forget_hours, make_history
    from benchmarks.tick_parts.sensors import Sensors, timed

    spans = [1, years, *([20] if million else [])]
    lines = {n: Sensors(make_history(folder, n)) for n in spans}
    for line in lines.values():
        line.settle()
    own = {n: Automation(n, folder / f"dagster-{n}") for n in (1, years)} if dagster else {}
    arms: dict[tuple[str, str], Callable[[], object]] = {
        (f"{n} years", name): lambda line=line, name=name: line.tick(name)  # type: ignore[misc]
        for n, line in lines.items()
        for name in line.names
    }
    arms |= {(f"{n} years", "eager"): automation.tick for n, automation in own.items()}
    for action in arms.values():
        action()
    quiet: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
    order = list(arms)
    for turn in range(ticks):
        for arm in order if turn % 2 else reversed(order):
            quiet[arm].append(timed(arms[arm]))
    new = {f"{n} years": forget_hours(line.history, NEW_HOURS) for n, line in lines.items()}
    for automation in own.values():
        automation.land(NEW_HOURS // 144 + 1)
    # The readiness sensor first: whoever takes the new files in spares the others that.
    first = sorted(arms, key=lambda arm: not arm[1].endswith("_readiness"))
    news = {arm: timed(arms[arm]) for arm in first}
    return _result(years, lines, own, quiet, news, new, million)


def _result(
    years: int,
    lines: dict[int, Any],
    own: dict[int, Any],
    quiet: dict[tuple[str, str], list[float]],
    news: dict[tuple[str, str], float],
    new: dict[str, int],
    million: bool,
) -> dict[str, Any]:
    least = {arm: 1000 * min(found) for arm, found in quiet.items()}
    median = {arm: 1000 * statistics.median(found) for arm, found in quiet.items()}

    def table(values: dict[tuple[str, str], float]) -> dict[str, dict[str, float]]:
        spans = dict.fromkeys(span for span, _ in values)
        found = {s: {name: round(v, 1) for (t, name), v in values.items() if t == s} for s in spans}
        for own in found.values():
            own["all sensors"] = round(sum(v for name, v in own.items() if name != "eager"), 1)
        return found

    calm, busy = table(least), table({arm: 1000 * used for arm, used in news.items()})
    short, long = "1 years", f"{years} years"
    # Old files cost the first look at them, whoever looks: the dearest single tick counts.
    dearest = max(
        v / 1000
        for span in (short, long)
        for name, v in busy[span].items()
        if name not in ("all sensors", "eager")
    )
    goals = [
        (
            f"quiet, all sensors, {years} years against 1",
            round(calm[long]["all sensors"] / calm[short]["all sensors"], 2),
            GOAL,
        ),
        (f"{NEW_HOURS} new hours with rows, CPU s of the dearest tick", dearest, GOAL_NEW_SECONDS),
    ]
    if million:
        ratio = round(calm["20 years"]["all sensors"] / calm[short]["all sensors"], 2)
        goals.append(("quiet, all sensors, a million files against 1 year", ratio, GOAL))
    compared = {}
    if own:
        compared = {
            f"eager(), {years} years against 1": round(
                calm[long]["eager"] / calm[short]["eager"], 2
            ),
            f"readiness sensor against eager(), {years} years": round(
                calm[long]["flights_readiness"] / calm[long]["eager"], 2
            ),
        }
    return {
        "files": {f"{n} years": line.history.files() for n, line in lines.items()},
        "cpu_ms_quiet": calm,
        "cpu_ms_quiet_median": table(median),
        "cpu_ms_with_news": busy,
        "new_hours": new,
        "requested_with_news": {f"{n} years": line.requested for n, line in lines.items()}
        | {f"{n} years, eager": automation.requested for n, automation in own.items()},
        "compared": compared,
        "goals": [
            {"what": what, "found": found, "at_most": most, "reached": found <= most}
            for what, found, most in goals
        ],
    }


def print_result(result: dict[str, Any]) -> None:
    """The figures as tables."""
    calm, busy = result["cpu_ms_quiet"], result["cpu_ms_with_news"]
    print("files in the landing zone:", result["files"])
    spans = list(calm)
    print(f"\n{'CPU ms of a tick':<28}" + "".join(f"{'quiet, ' + s:>18}" for s in spans), end="")
    print("".join(f"{'news, ' + s:>18}" for s in spans))
    for name in max(calm.values(), key=len):
        cells = [table[span].get(name) for table in (calm, busy) for span in spans]
        print(f"  {name:<26}" + "".join(f"{'-' if v is None else v:>18}" for v in cells))
    print("\nrequested with news:", result["requested_with_news"])
    for what, found in result["compared"].items():
        print(f"{what}: {found}")
    for goal in result["goals"]:
        state = "reached" if goal["reached"] else "MISSED"
        print(f"{goal['what']}: {goal['found']:.2f}, goal at most {goal['at_most']}: {state}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=7, help="ticks without news, of each sensor")
    parser.add_argument("--years", type=int, default=10, help="of the long history")
    parser.add_argument("--million", action="store_true", help="also a zone of a million files")
    parser.add_argument("--no-dagster", action="store_true", help="leave Dagster's own out")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if arguments.ticks < 1 or arguments.years < 2:
        parser.error("at least 1 tick and 2 years are needed")
    # Partition mappings and parts of automation are beta in Dagster, and say so at each call.
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder),
            arguments.years,
            arguments.ticks,
            not arguments.no_dagster,
            arguments.million,
        )
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_result(result)
    sys.exit(0 if all(goal["reached"] for goal in result["goals"]) else 1)


if __name__ == "__main__":
    main()
