"""`signalbox lanes` and `signalbox lanes write`."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from platform_assets.domain.lane_limits import differences
from platform_assets.domain.lanes import LANE_TAG, OTHERS, Lane, Lanes
from platform_assets.terminal import print_json, print_table
from resources.home import Home
from resources.lanes import (
    lanes_file,
    load_lanes,
    read_instance_file,
    renewed,
    with_lanes,
    write_instance_file,
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

RENEW = "run `signalbox lanes write`, then end and start Dagster (`signalbox dev`)"

commands = typer.Typer(
    name="lanes",
    help="The lanes of the queue: what is declared, what is in force, who works in which.",
    invoke_without_command=True,
)


@commands.callback()
def show(context: typer.Context, as_json: AsJson = False) -> None:
    """The lanes of the queue: what is declared, what is in force, who works in which."""
    if context.invoked_subcommand is not None:
        return
    home = Home.locate()
    home.require()
    document = describe(home, load_lanes())
    if as_json:
        print_json(document)
        return
    rows = [
        (
            name,
            lane["limit"],
            lane["priority"],
            lane["in_progress"],
            lane["queued"],
            ", ".join(f"{h['run_id'][:8]} (process {h['pid']})" for h in lane["slots_held_by"]),
        )
        for name, lane in document["lanes"].items()
    ]
    columns = ("lane", "at most", "priority", "in progress", "queued", "at work")
    print_table(f"{document['slots']} slots, {document['file']}", columns, rows)
    limits = document["backfill"]
    print(
        f"of backfills at once: {limits['per_backfill']} run(s) of one backfill, "
        f"{limits['per_pipeline']} of one pipeline, {limits['per_key']} of one partition key"
    )
    for steered in document["steered"]:
        size = f", {steered['max_runs']} run(s) at once" if steered["max_runs"] is not None else ""
        print(f"backfill {steered['id']} is {steered['state']}{size}")
    for difference in document["differences"]:
        print(f"DIFFERS: {difference}; {RENEW}")


@commands.command()
def write(as_json: AsJson = False) -> None:
    """Bring dagster.yaml up to date with the declaration: the project's, and the home's."""
    from platform_assets.factory.instance import dagster_yaml

    lanes, home = load_lanes(), Home.locate()
    written: list[str] = []
    same: list[str] = []
    project = with_lanes(dagster_yaml().read_text(), lanes)
    files: list[tuple[Path, str]] = []
    if "SIGNALBOX_LANES" not in os.environ:
        files.append((dagster_yaml(), project))
    of_home = home.dagster / "dagster.yaml"
    if of_home.exists():
        read_instance_file(of_home)
        files.append((of_home, renewed(of_home.read_text(), project)))
    for path, text in files:
        (written if write_instance_file(path, text) else same).append(str(path))
    if as_json:
        print_json({"written": written, "unchanged": same})
        return
    for name in written:
        print(f"wrote {name}, the file before is {name}.before")
    for name in same:
        print(f"{name} is as declared")
    if str(of_home) in written:
        print("limits count from the next start of Dagster on: end `signalbox dev`, and start it")


def describe(home: Home, lanes: Lanes) -> dict[str, Any]:
    """The declaration, and what happens in the lanes now."""
    import dagster as dg

    from platform_assets.factory.backfills import ended_of
    from resources.ledger.backfills import Backfills
    from resources.slots import holders

    held = holders(home.ledger_url)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:

        def count(lane: Lane, statuses: list[dg.DagsterRunStatus]) -> int:
            return instance.get_runs_count(
                dg.RunsFilter(tags={LANE_TAG: lane.value}, statuses=statuses)
            )

        described = {
            lane.value: {
                "limit": lanes.limit(lane),
                "always_free": lanes.slots - sum(lanes.limit(other) for other in OTHERS)
                if lane is Lane.DAILY
                else 0,
                "priority": lanes.priority(lane),
                "in_progress": count(
                    lane,
                    [
                        dg.DagsterRunStatus.STARTING,
                        dg.DagsterRunStatus.STARTED,
                        dg.DagsterRunStatus.CANCELING,
                    ],
                ),
                "queued": count(lane, [dg.DagsterRunStatus.QUEUED]),
                "slots_held_by": [{"run_id": h.run_id, "pid": h.pid} for h in held[lane]],
            }
            for lane in Lane
        }
        wrong = live_differences(instance, lanes)
        steered = Backfills(home.ledger_url).steered()
        over = ended_of(instance, [record.id for record in steered])
    return {
        "file": str(lanes_file()),
        "slots": lanes.slots,
        "lanes": described,
        "backfill": lanes.backfill.model_dump(),
        "steered": [
            {"id": r.id, "state": r.state, "max_runs": r.max_runs}
            for r in steered
            if r.id not in over
        ],
        "differences": wrong,
    }


def live_differences(instance: Any, lanes: Lanes) -> list[str]:
    """How the limits of an instance differ from the declared ones."""
    from platform_assets.instance.steered import limits_in_force

    queue = limits_in_force(instance).run_queue_config
    if queue is None:
        return differences(lanes, None, ())
    return differences(lanes, queue.max_concurrent_runs, queue.tag_concurrency_limits)


def stale_daemons(home: Home) -> Iterator[int]:
    """The daemons of a home that started before its dagster.yaml was last written."""
    import psutil

    from platform_assets.demo.daemons import daemons_of

    changed = (home.dagster / "dagster.yaml").stat().st_mtime
    for process in daemons_of(home):
        with suppress(psutil.Error):  # ended meanwhile
            if process.create_time() < changed:
                yield process.pid
