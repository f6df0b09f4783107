"""What `signalbox backfill` shows on the terminal."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from platform_assets.domain.backfill_progress import describe_seconds
from platform_assets.terminal import print_table

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOK_SECONDS = 2.0
LINE_SECONDS = 15.0
"""Between two lines of progress where there is no terminal, unless the backfill ends."""

MOST_REASONS = 12
"""Reasons on a screen; `--json` has all of them."""

STATES = ("missing", "again", "complete", "held", "elsewhere")
COLUMNS = ("done", "wanted", "failed", "held", "behind", "in_progress", "waiting")


def print_plan(document: Mapping[str, Any]) -> None:
    """A plan: the partitions by state, why some are held, the runs, and what they will take."""
    dates = ", ".join(a if a == b else f"{a} to {b}" for a, b in document["dates"][:6])
    more = f" and {len(document['dates']) - 6} more" if len(document["dates"]) > 6 else ""
    mode = "recompute all of it" if document["restate"] else "fill what is missing"
    print_table(
        f"{document['pipeline']}: {mode}, {dates}{more}, {' '.join(document['keys'])}",
        ("asset", *STATES),
        [
            (asset, *(counts[state] for state in STATES))
            for asset, counts in document["assets"].items()
        ],
    )
    for state in ("held", "elsewhere"):
        reasons = {
            f"{asset} {name}": why
            for asset, found in document["partitions"].items()
            for name, why in found[state].items()
        }
        _print_reasons(state if state == "held" else "in work elsewhere", reasons)
    if not document["runs"]:
        print("there is nothing to launch")
        return
    rows = [
        (
            ", ".join(b["assets"]),
            b["partitions"],
            b["runs"],
            b["partitions_per_run"],
            b["runs_at_once"],
        )
        for b in document["batches"]
    ]
    print_table("runs", ("assets", "partitions", "runs", "at most a run", "runs at once"), rows)
    expected = document["expected"]
    if expected["unmeasured"]:
        print(
            f"time: unknown, {', '.join(expected['unmeasured'])} was never measured here; a "
            "backfill of a few days first will tell"
        )
    else:
        print(
            f"time: about {describe_seconds(expected['seconds'])} with at most "
            f"{expected['runs_at_once']} run(s) at once, {expected['cpu_seconds']:.0f} CPU "
            "seconds, by the medians of what is there"
        )
    print(f"daily lane: {document['daily_lane']['text']}")
    for advice in document["advice"]:
        print(
            f"advice: {advice['field']} {advice['advised']} in place of {advice['now']}; "
            f"{advice['why']}"
        )


def _print_reasons(title: str, reasons: Mapping[str, str]) -> None:
    """Reasons, partitions with the same one together."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in list(by_reason.items())[:MOST_REASONS]:
        several = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"{title}: {names[0]}{several}: {why}")
    if len(by_reason) > MOST_REASONS:
        print(f"{title}: {len(by_reason) - MOST_REASONS} more reasons, all with --json")


def print_view(document: Mapping[str, Any]) -> None:
    """How far a backfill is, and why partitions are held or failed."""
    _console().print(progress_table(document))
    for state in document["assets"].items():
        asset, found = state
        _print_reasons("not built", {f"{asset} {k}": why for k, why in found["reasons"].items()})
    if document["error"]:
        print(f"error: {' '.join(document['error'].split())[:300]}")


def state_of(document: Mapping[str, Any]) -> str:
    """`paused`, `running` where Dagster has nothing left to do for its runs, or Dagster's status.

    Of `dagster job backfill` the status is `completed` as soon as its runs are queued.
    """
    status = str(document["status"])
    if document["ended"]:
        return status
    if document["paused"]:
        return "paused"
    return status if status in ("requested", "canceling", "failing") else "running"


def headline(document: Mapping[str, Any]) -> str:
    """State, size, runs and the time that is left, in one line."""
    runs = document["runs"]
    parts = [
        f"backfill {document['backfill']} {state_of(document)}",
        f"{runs['in_progress']} run(s) in progress, {runs['queued']} queued, "
        f"{runs['succeeded']} succeeded, {runs['failed']} failed, {runs['canceled']} canceled",
    ]
    if document["max_runs"]:
        parts.insert(1, f"at most {document['max_runs']} at once")
    if not document["ended"] and not document["paused"]:
        parts.append(f"time left: {describe_seconds(document['seconds_left'])}")
    return "; ".join(parts)


def progress_table(document: Mapping[str, Any]) -> "RenderableType":
    """A row a stage."""
    from rich.table import Table

    table = Table(title=headline(document), title_justify="left", header_style="bold")
    table.add_column("asset", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace("_", " "), justify="right")
    for asset, found in document["assets"].items():
        table.add_row(asset, *(str(found[column]) for column in COLUMNS))
    return table


def follow(look: Callable[[], dict[str, Any]], *, quiet: bool = False) -> dict[str, Any]:
    """Show a backfill's progress until it has ended; its last state.

    A table that is drawn anew on a terminal, a line from time to time elsewhere; nothing if quiet.
    """
    if quiet:
        while not (found := look())["ended"]:
            time.sleep(LOOK_SECONDS)
        return found
    if not sys.stdout.isatty():
        return _follow_by_lines(look)
    from rich.live import Live

    found = look()
    with Live(progress_table(found), console=_console(), auto_refresh=False) as live:
        while not found["ended"]:
            time.sleep(LOOK_SECONDS)
            found = look()
            live.update(progress_table(found), refresh=True)
    return found


def _follow_by_lines(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    told_at, told = -LINE_SECONDS, ""
    while True:
        found = look()
        stages = ", ".join(
            f"{asset.split('/')[-1]} {s['done']}/{s['wanted']}"
            for asset, s in found["assets"].items()
        )
        line = f"{headline(found)}; {stages}"
        due = time.monotonic() - told_at >= LINE_SECONDS and line != told
        if due or found["ended"]:
            print(line, flush=True)
            told_at, told = time.monotonic(), line
        if found["ended"]:
            return found
        time.sleep(LOOK_SECONDS)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.width >= 110 else Console(width=110)
