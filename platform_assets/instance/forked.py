"""Runs forked from a process that has imported everything: `ForkedRunLauncher` in dagster.yaml.

Dagster's own launcher starts an interpreter for each run, and most of what a run costs then is
importing. This one forks it (docs/performance.md, docs/adr/0012-forked-runs.md). Where it cannot
fork it launches as Dagster does, and says why in the run's log.
"""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.dagster_run import DagsterRun, DagsterRunStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import serialize_value

from platform_assets.domain.lease import Holder
from platform_assets.instance.nursery import CannotForkError, Fork, Nursery
from platform_assets.instance.whereabouts import Silence, name_of, tag_of, worker_of
from resources.home import Home
from resources.ledger.leases import Leases
from resources.processes import is_dead, machine

if TYPE_CHECKING:
    from dagster._core.origin import RepositoryPythonOrigin
    from dagster._serdes import ConfigurableClassData

FORKED = "SIGNALBOX_FORKED_RUNS"
"""Set to 0, runs are launched by Dagster's own launcher."""

logger = logging.getLogger(__name__)


class ForkedRunLauncher(DefaultRunLauncher):
    """Forks each run from a zygote that has the definitions and the trainers imported."""

    def __init__(self, inst_data: "ConfigurableClassData | None" = None) -> None:
        super().__init__(inst_data)
        self._nursery = Nursery()
        self._silence = Silence()

    # --- launching ----------------------------------------------------------------------------

    def warm(self, origin: "RepositoryPythonOrigin") -> int:
        """Start the zygote of a code location before it is needed; its process id.

        Raises:
            CannotForkError: it cannot be had.
        """
        why = self._why_not(origin)
        if why is not None:
            raise CannotForkError(why)
        return self._nursery.warm(serialize_value(origin))

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        try:
            fork = self._fork(run)
            try:
                self._start(run, fork)
            finally:
                fork.abandon()
        except CannotForkError as error:
            # A fork that was not told to start does nothing: the run has no other worker.
            self._say(run, f"This run gets an interpreter of its own, it was not forked: {error}")
            super().launch_run(context)

    def _fork(self, run: DagsterRun) -> Fork:
        origin = run.job_code_origin.repository_origin if run.job_code_origin else None
        why = self._why_not(origin)
        if why is not None or origin is None:
            raise CannotForkError(str(why))
        return self._nursery.fork(
            serialize_value(origin),
            run.run_id,
            serialize_value(self._instance.get_ref()),
            lambda message: self._say(run, message),
        )

    def _why_not(self, origin: "RepositoryPythonOrigin | None") -> str | None:
        if os.environ.get(FORKED) == "0":
            return f"{FORKED} is 0"
        if sys.platform != "linux":
            return f"processes are not forked on {sys.platform}"
        if origin is None:
            return "the run does not say where its code is"
        if origin.executable_path != sys.executable:
            return f"its code is run by {origin.executable_path}, not by {sys.executable}"
        if origin.container_image:
            return f"its code is in the image {origin.container_image}"
        return None

    def _start(self, run: DagsterRun, fork: Fork) -> None:
        worker = fork.holder
        # Before it starts: nobody else writes the run's row yet, and who terminates it finds it.
        self._instance.add_run_tags(run.run_id, tag_of(worker))
        found = self._instance.get_run_by_id(run.run_id)
        if found is None or found.is_finished:
            return
        if found.status is DagsterRunStatus.CANCELING:
            self._instance.report_run_canceled(found, "The run was terminated before it began.")
            return
        fork.start()
        self._run_ids.add(run.run_id)

    def _say(self, run: DagsterRun, message: str) -> None:
        logger.warning("run %s: %s", run.run_id, message)
        self._instance.report_engine_event(message, run, cls=self.__class__)

    # --- terminating and watching -------------------------------------------------------------

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished:
            return False
        if GRPC_INFO_TAG in run.tags:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        # Read again: a launch that is under way looks for CANCELING once it has set the tag.
        run = self._instance.get_run_by_id(run_id)
        worker = worker_of(run) if run else None
        if run is None or worker is None:
            return run is not None
        if worker.machine != machine():
            self._say(run, f"It cannot be terminated from here: it is in {name_of(worker)}.")
            return False
        if not _interrupt(worker):
            self._instance.report_run_canceled(run, f"Its process {worker.pid} had gone.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        worker = worker_of(run)
        if worker is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its code server looks after it")
        if is_dead(worker):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"process {worker.pid} has gone")
        why = self._why_gone(worker) if worker.machine != machine() else None
        if why is not None:
            return CheckRunHealthResult(WorkerStatus.FAILED, why)
        return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(worker.pid))

    def _why_gone(self, worker: Holder) -> str | None:
        """Why a process of another machine has gone, as far as its leases tell."""
        held = Leases(Home.locate().ledger_url).held()
        own = [one for one in held if one.holder.run_id == worker.run_id]
        return self._silence.why_gone(worker, own)

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        worker = worker_of(run)
        return f"It is in {name_of(worker)}." if worker else None

    def dispose(self) -> None:
        self._nursery.close()
        super().dispose()


def _interrupt(worker: Holder) -> bool:
    """Send SIGTERM to exactly this process; False if it has gone."""
    try:
        handle = os.pidfd_open(worker.pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        # The handle is of the process that has this number now: is it still the one?
        if is_dead(worker):
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def launcher_of(instance: Any) -> ForkedRunLauncher | None:
    """The instance's launcher, if it forks."""
    found = instance.run_launcher
    return found if isinstance(found, ForkedRunLauncher) else None
