"""Runs in the queue of a home, and what Dagster's daemon would start of them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import dagster as dg
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("signalbox"), "__repository__"), "job"
)


def submit(
    instance: dg.DagsterInstance,
    tags: Mapping[str, str],
    assets: Sequence[str] = ("flights/features",),
    run: DagsterRun | None = None,
) -> DagsterRun:
    """Launch a run as sensors, backfills and the UI do: create it, give it to the coordinator."""
    keys = {dg.AssetKey(asset.split("/")) for asset in assets}
    created = run or create_run_for_test(
        instance, tags=dict(tags), asset_selection=keys, remote_job_origin=ORIGIN
    )
    return instance.run_coordinator.submit_run(SubmitRunContext(created, cast(Any, None)))


def past_the_queue(instance: dg.DagsterInstance, **tags: str) -> DagsterRun:
    """As `dg launch` does: it makes a run, and executes it in its own process."""
    run = create_run_for_test(instance, tags={k.replace("__", "/"): v for k, v in tags.items()})
    event = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job_name=run.job_name)
    instance.report_dagster_event(event, run_id=run.run_id)
    return run


def backfill(name: str, n: int, **tags: str) -> list[dict[str, str]]:
    """The tags of a backfill's runs, of a day each and all airports."""
    return [
        {
            "dagster/backfill": name,
            "dagster/partition": f"{['JFK', 'LGA', 'EWR'][i % 3]}|2013-01-{i // 3 + 1:02}",
            **tags,
        }
        for i in range(n)
    ]


def next_to_start(instance: dg.DagsterInstance) -> list[DagsterRun]:
    """What the daemon would start now."""
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        config = instance.get_concurrency_config()
        return daemon._get_runs_to_dequeue(instance, config, fixed_iteration_time=None)


def start(instance: dg.DagsterInstance) -> list[DagsterRun]:
    """Start them: from here on they are in progress."""
    runs = next_to_start(instance)
    for run in runs:
        event = dg.DagsterEvent(dg.DagsterEventType.RUN_STARTING.value, job_name=run.job_name)
        instance.report_dagster_event(event, run_id=run.run_id)
    return runs


def lanes(runs: Sequence[DagsterRun]) -> list[str]:
    return sorted(run.tags.get("signalbox/lane", "none") for run in runs)
