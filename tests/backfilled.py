"""A native backfill, from its launch to the end of its runs, without a daemon's process.

Dagster's own backfill daemon evaluates it and submits its runs to the home's own queue; the queue's
daemon takes them out. Only the launcher is another: a run is executed here, where it would be
forked or given to a process.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.utils import make_new_backfill_id
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

MOST_TICKS = 20
"""Of the daemon, before a backfill that has not ended is given up."""

_log = logging.getLogger(__name__)


def backfill(
    instance: dg.DagsterInstance, module: str, asset: dg.AssetKey, partitions: Sequence[str]
) -> tuple[BulkActionStatus, list[dg.DagsterRun]]:
    """Launch a backfill of an asset's partitions and let the daemons carry it out.

    Args:
        instance: of the home.
        module: has the code location as `repository`.
        asset: to fill.
        partitions: Dagster's keys.

    Returns:
        how it ended, and its runs.
    """
    with _workspace(instance, module) as workspace, _launched_here(instance):
        launched = PartitionBackfill.from_asset_partitions(
            backfill_id=make_new_backfill_id(),
            asset_graph=workspace.create_request_context().asset_graph,
            partition_names=list(partitions),
            asset_selection=[asset],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
        instance.add_backfill(launched)
        name = launched.backfill_id
        with QueuedRunCoordinatorDaemon(interval_seconds=1) as queue:
            for _ in range(MOST_TICKS):
                list(execute_backfill_iteration(workspace, _log))
                list(queue.run_iteration(workspace))
                found = instance.get_backfill(name)
                assert found is not None
                if found.status is not BulkActionStatus.REQUESTED:
                    break
        runs = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": name}))
        return found.status, list(runs)


@contextmanager
def _workspace(instance: dg.DagsterInstance, module: str) -> Iterator[WorkspaceProcessContext]:
    origin = LoadableTargetOrigin(
        executable_path=None,
        module_name=module,
        attribute="repository",
        working_directory=str(Path(__file__).parent.parent),
    )
    target = InProcessTestWorkspaceLoadTarget(InProcessCodeLocationOrigin(origin))
    with WorkspaceProcessContext(instance, target) as workspace:
        yield workspace


@contextmanager
def _launched_here(instance: dg.DagsterInstance) -> Iterator[None]:
    launcher = SyncInMemoryRunLauncher()
    launcher.register_instance(instance)
    with patch.object(type(instance), "run_launcher", launcher):
        yield
