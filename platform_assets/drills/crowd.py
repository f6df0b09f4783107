"""Backfills that run at the same time: each run in a process of its own, as Dagster has it.

The processes come from a fork server that has imported everything, so that they overlap.
"""

import logging
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.grid import asset_key, dagster_key, keyed
from platform_assets.line.services import Services
from resources.home import Home

WAIT_SECONDS = 900.0


@dataclass(frozen=True)
class Job:
    """One backfill's run: a key, and the dates from first to last."""

    number: int
    key: str
    first: date
    last: date

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    @property
    def partitions(self) -> tuple[PartitionKey, ...]:
        return tuple(PartitionKey(day, self.key) for day in date_range(self.first, self.last))


@dataclass(frozen=True)
class Done:
    """What came of a run."""

    number: int
    ok: bool
    said: str


def overlapping(keys: Sequence[str], first: date, days: int, count: int) -> tuple[Job, ...]:
    """Runs over the same keys and dates, each about half of the dates of one key."""
    span = max(1, days // 2)
    found = []
    for number in range(count):
        begin = first + timedelta(days=(number // len(keys)) % (days - span + 1))
        key = keys[number % len(keys)]
        found.append(Job(number, key, begin, begin + timedelta(days=span - 1)))
    return tuple(found)


def run_together(side: str, spec: PipelineSpec, home: Home, jobs: Sequence[Job]) -> list[Done]:
    """Run all of them at once, and wait for all.

    Args:
        side: `plain`, the appending asset; or `signalbox`, the features as they are.
        spec: the pipeline.
        home: whose landing zone is read; its Dagster instance has the runs.
        jobs: what each run is to do.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "platform_assets.component", "resources.dataset"])
    barrier = context.Barrier(len(jobs))
    results: Any = context.Queue()
    processes = [
        context.Process(
            target=_work, args=(side, spec, home.root, job, barrier, results), daemon=True
        )
        for job in jobs
    ]
    for process in processes:
        process.start()
    try:
        return sorted((results.get(timeout=WAIT_SECONDS) for _ in jobs), key=lambda d: d.number)
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def naive_definitions(spec: PipelineSpec, services: Services, lake: Path) -> dg.Definitions:
    """The same rows by an asset as one writes it first: it appends what it has computed."""

    @dg.asset(
        name="naive_features",
        partitions_def=keyed(spec),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def naive_features(context: dg.AssetExecutionContext) -> None:
        from deltalake import write_deltalake

        from resources.dataset import build_rows

        for text in context.partition_keys:
            partition = PartitionKey.parse(text)
            assert partition.key is not None
            tables = {
                source: services.zone.read(source, partition.key, partition.date)
                for source in spec.read_sources
            }
            rows = build_rows(spec, partition.key, partition.date, tables).table
            write_deltalake(lake, rows, mode="append")

    return dg.Definitions(assets=[naive_features], executor=dg.in_process_executor)


def naive_lake(home: Home) -> Path:
    return home.root / "naive" / "features"


def _work(side: str, spec: PipelineSpec, root: Path, job: Job, barrier: Any, results: Any) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", dg.BetaWarning)
    try:
        done = _run(side, spec, Home.locate(root), job, barrier)
    except BaseException as error:  # noqa: BLE001 - told to whoever waits
        done = Done(job.number, False, "".join(traceback.format_exception(error))[-2000:])
    results.put(done)
    results.close()
    results.join_thread()
    os._exit(0)


def _run(side: str, spec: PipelineSpec, home: Home, job: Job, barrier: Any) -> Done:
    from platform_assets.drills.signalbox_side import failure_of

    services = Services.open(spec, home)
    if side == "plain":
        defs = naive_definitions(spec, services, naive_lake(home))
        asset = dg.AssetKey("naive_features")
    else:
        from platform_assets.component import pipeline_definitions

        defs = dg.Definitions.merge(
            pipeline_definitions(spec), dg.Definitions(executor=dg.in_process_executor)
        )
        asset = asset_key(spec.asset("features"))
    definition = defs.resolve_implicit_global_asset_job_def()
    ends = (dagster_key(spec, job.partitions[0]), dagster_key(spec, job.partitions[-1]))
    tags = {
        "dagster/asset_partition_range_start": ends[0],
        "dagster/asset_partition_range_end": ends[1],
        "dagster/backfill": f"drill{job.number:02}",
    }
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        barrier.wait(WAIT_SECONDS)
        result = definition.execute_in_process(
            instance=instance, asset_selection=[asset], tags=tags, raise_on_error=False
        )
    return Done(job.number, result.success, "" if result.success else failure_of(result))
