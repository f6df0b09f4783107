"""Dagster's daemon, with backfills every two seconds, and sensors and queue without delay.

Dagster looks at backfills every 30 s, and every 5 s at which sensors are due: a sensor with an
interval of 10 s that is not quite due at the second look ticks after 15. Both are constants in its
source. And what a sensor submits waits for the queue's next look. Everything here goes through the
arguments of its own functions, and tests/test_own_daemon.py fails where a release of Dagster
changes what this leans on. (What is replaced is alembic's reading of Dagster's migrations, in
instance/migrations.py.) Dagster's own daemon does the same work, later. The command is
`signalbox daemon`.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.controller import create_daemon_of_type, daemon_controller_from_instance
from dagster._daemon.daemon import BackfillDaemon, DagsterDaemon, SensorDaemon, SpanMarker
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._daemon.utils import DaemonErrorCapture

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.ticks import FEW_QUEUED, Progress, can_wait, is_due
from platform_assets.instance.connections import SHARED, keep_connections
from platform_assets.instance.coordinator import HURRY, LaneRunCoordinator
from platform_assets.instance.forked import launcher_of
from platform_assets.instance.migrations import remember_migrations
from platform_assets.instance.nursery import CannotForkError
from resources.giving_way import Patience, Way
from resources.home import Home

if TYPE_CHECKING:
    from dagster._daemon.daemon import DaemonIterator

TICK_SECONDS = 2.0
"""How often backfills are looked at."""

SENSOR_SECONDS = 1.0
"""How often it is looked which sensors are due: a tick begins that much late at the most."""

GATHER_SECONDS = 0.1
"""Between a run that is submitted and the look of the queue: a sensor submits several at once, and
what comes during a look waits for it, and for the launches, before the next."""

SWITCH_SECONDS = 0.0005
"""After what time a thread that computes lets another one go on. By Python's 5 ms the queue, which
waits for the disk dozens of times a launch, is late by that much each time while a backfill is
evaluated."""

BEAT_SECONDS = 0.5
"""How often a daemon that waits says that it lives."""

WARMED = "are forked from process"
"""In the log once runs are launched without imports."""

WARM_SECONDS = 1.0
"""How long to wait for a code location that is not loaded yet, before looking again."""

ACTIVE = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
GOING_ON = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]

logger = logging.getLogger("dagster.daemon.signalbox")


def why_not_begin(patience: Patience) -> str | None:
    """Why runs that stand back are not to be started now: they would only step aside."""
    try:
        return Way(Home.locate().root).why_not(patience)
    except SignalboxError:
        return None  # no home, nobody in a hurry


def look(instance: DagsterInstance) -> dict[str, Progress]:
    """The backfills that are under way: a query, and two more for each of them."""
    found = {}
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=ACTIVE)):
        own = {"dagster/backfill": backfill.backfill_id}
        queued = instance.get_run_ids(
            RunsFilter(tags=own, statuses=[DagsterRunStatus.QUEUED]), limit=FEW_QUEUED + 1
        )
        going_on = instance.get_run_ids(RunsFilter(tags=own, statuses=GOING_ON))
        found[backfill.backfill_id] = Progress(
            status=backfill.status.value,
            queued=len(queued),
            unfinished=frozenset([*queued, *going_on]),
        )
    return found


class QuickBackfillDaemon(BackfillDaemon):
    """Dagster's, which evaluates as soon as there is news: see `domain.ticks.is_due`.

    What can wait waits while a run in a hurry is at work on this machine.
    """

    def core_loop(
        self,
        workspace_process_context: IWorkspaceProcessContext[Any],
        shutdown_event: threading.Event,
    ) -> "DaemonIterator":
        futures: dict[str, Future[Any]] = {}
        before: Mapping[str, Progress] = {}
        evaluated, patience = monotonic(), Patience()
        while not shutdown_event.is_set():
            try:
                if all(future.done() for future in futures.values()):
                    # Looked at first: what changes during the evaluation is news to the next.
                    now = look(workspace_process_context.instance)
                    due = is_due(before, now, monotonic() - evaluated)
                    if due is None or not can_wait(before, now):
                        patience.stands(False)
                    elif why_not_begin(patience):
                        due = None
                    if due is not None:
                        before, evaluated = now, monotonic()
                        yield SpanMarker.START_SPAN
                        yield from execute_backfill_iteration(
                            workspace_process_context,
                            self._logger,
                            threadpool_executor=self._threadpool_executor,
                            backfill_futures=futures,
                            submit_threadpool_executor=self._submit_threadpool_executor,
                        )
                        yield SpanMarker.END_SPAN
            except Exception:  # noqa: BLE001 - as in Dagster's own loop: told, and tried again
                yield DaemonErrorCapture.process_exception(
                    exc_info=sys.exc_info(),
                    logger=self._logger,
                    log_message="The backfill daemon caught an error",
                )
            shutdown_event.wait(TICK_SECONDS)
            yield None


class PunctualSensorDaemon(SensorDaemon):
    """Dagster's, which sees within a second that a sensor is due."""

    def core_loop(
        self,
        workspace_process_context: IWorkspaceProcessContext[Any],
        shutdown_event: threading.Event,
    ) -> "DaemonIterator":
        futures: dict[str, Future[Any]] = {}
        while not shutdown_event.is_set():
            began = monotonic()
            yield SpanMarker.START_SPAN
            try:
                yield from execute_sensor_iteration(
                    workspace_process_context,
                    self._logger,
                    threadpool_executor=self._threadpool_executor,
                    submit_threadpool_executor=self._submit_threadpool_executor,
                    sensor_tick_futures=futures,
                    instrument_elapsed=self.instrument_elapsed,
                )
            except Exception:  # noqa: BLE001 - as in Dagster's own loop: told, and tried again
                yield DaemonErrorCapture.process_exception(
                    exc_info=sys.exc_info(),
                    logger=self._logger,
                    log_message="The sensor daemon caught an error",
                )
            yield SpanMarker.END_SPAN
            shutdown_event.wait(max(0.0, SENSOR_SECONDS - (monotonic() - began)))
            yield None


class PromptQueueDaemon(QueuedRunCoordinatorDaemon):
    """Dagster's, which looks at once when a run that is in a hurry was submitted beside it.

    While one is at work on this machine it starts none of those that would only step aside.
    """

    def __init__(self, interval_seconds: float) -> None:
        super().__init__(interval_seconds)
        self._patience = Patience()
        self._stands_back: Callable[[DagsterRun], bool] | None = None

    def core_loop(
        self,
        workspace_process_context: IWorkspaceProcessContext[Any],
        shutdown_event: threading.Event,
    ) -> "DaemonIterator":
        while not shutdown_event.is_set():
            began = monotonic()
            HURRY.clear()  # what comes during the look is seen by the next
            yield SpanMarker.START_SPAN
            try:
                yield from self.run_iteration(workspace_process_context)
            except Exception:  # noqa: BLE001 - as in Dagster's own loop: told, and tried again
                yield DaemonErrorCapture.process_exception(
                    exc_info=sys.exc_info(),
                    logger=self._logger,
                    log_message="The queue's daemon caught an error",
                )
            yield SpanMarker.END_SPAN
            while not shutdown_event.is_set():
                left = self.interval_seconds - (monotonic() - began)
                if left <= 0 or HURRY.wait(min(left, BEAT_SECONDS)):
                    break
                yield None
            shutdown_event.wait(GATHER_SECONDS)
            yield None

    def _get_runs_to_dequeue(
        self, instance: DagsterInstance, *args: Any, **more: Any
    ) -> list[DagsterRun]:
        queue = instance.run_coordinator
        self._stands_back = None
        if isinstance(queue, LaneRunCoordinator) and why_not_begin(self._patience):
            self._stands_back = queue.stands_back
        return super()._get_runs_to_dequeue(instance, *args, **more)

    def _priority_sort(self, runs: Iterable[DagsterRun]) -> list[DagsterRun]:
        # Here, before the free slots are dealt out: one that is left out takes none of them.
        back = self._stands_back
        return super()._priority_sort(run for run in runs if back is None or not back(run))


def own_daemons(instance: DagsterInstance) -> Sequence["DagsterDaemon[Any]"]:
    """The daemons that the instance asks for, with the three quick ones among them."""
    quick: dict[str, Callable[[], DagsterDaemon[Any]]] = {
        BackfillDaemon.daemon_type(): lambda: QuickBackfillDaemon(instance.get_backfill_settings()),
        SensorDaemon.daemon_type(): lambda: PunctualSensorDaemon(instance.get_sensor_settings()),
        QueuedRunCoordinatorDaemon.daemon_type(): lambda: PromptQueueDaemon(
            interval_seconds=_queue_of(instance).dequeue_interval_seconds
        ),
    }
    return [
        quick[kind]() if kind in quick else create_daemon_of_type(kind, instance)
        for kind in instance.get_required_daemon_types()
    ]


def _queue_of(instance: DagsterInstance) -> QueuedRunCoordinator[Any]:
    queue = instance.run_coordinator
    assert isinstance(queue, QueuedRunCoordinator), queue  # else no daemon of it is asked for
    return queue


def warm(
    instance: DagsterInstance, context: IWorkspaceProcessContext[Any], ended: threading.Event
) -> None:
    """Have everything imported before the first run is launched; a failure is only logged."""
    launcher = launcher_of(instance)
    if launcher is None:
        return
    locations = context.create_request_context().code_locations
    while not locations and not ended.wait(WARM_SECONDS):
        locations = context.create_request_context().code_locations
    for location in locations:
        for name in location.get_repositories():
            origin = location.get_repository_python_origin(name)
            try:
                if origin is not None:
                    pid = launcher.warm(origin)
                    logger.info("runs of %s %s %d", location.name, WARMED, pid)
            except CannotForkError as error:
                logger.warning("runs of %s will not be forked: %s", location.name, error)


def run_daemon(instance: DagsterInstance, workspace: str, log_level: str = "info") -> None:
    """Run until interrupted.

    Args:
        instance: whose runs, sensors, schedules and backfills are looked after.
        workspace: a workspace.yaml with the code locations.
        log_level: of Dagster's loggers.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    remember_migrations()  # the daemon makes a SQLite file for each run that it submits
    keep_connections(SHARED)
    ended = threading.Event()
    with daemon_controller_from_instance(
        instance,
        WorkspaceFileTarget([workspace]),
        gen_daemons=own_daemons,
        log_level=log_level,
        code_server_log_level="warning",
    ) as controller:
        context = controller._workspace_process_context
        threading.Thread(
            target=warm, args=(instance, context, ended), name="warm", daemon=True
        ).start()
        try:
            controller.check_daemon_loop()
        finally:
            ended.set()
