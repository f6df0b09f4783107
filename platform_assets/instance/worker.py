"""A run in a process that was forked for it: executed, or reported as lost."""

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

NAME_LENGTH = 15
"""What the kernel keeps of a process's name."""

DEADLY = (signal.SIGINT, signal.SIGTERM)


def name_process(name: str) -> None:
    """Show a name in `ps` and `top`, where the system has a place for it."""
    with suppress(OSError), open("/proc/self/comm", "w") as file:  # noqa: PTH123 - no Path here
        file.write(name[:NAME_LENGTH])


def become_worker(run_id: str, instance_ref: str, go: int) -> NoReturn:
    """Execute a run in this forked process as soon as told to, and end the process.

    Args:
        run_id: of a run that the instance knows.
        instance_ref: the instance, as Dagster serializes it.
        go: a pipe; a byte of it starts the run. If it is closed without one, the launcher has
            made other arrangements, and nothing is done.
    """
    code = 1
    try:
        code = _wait_and_execute(run_id, instance_ref, go)
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's own code
        sys.excepthook(*sys.exc_info())
    finally:
        _end(code)


def _wait_and_execute(run_id: str, instance_ref: str, go: int) -> int:
    from dagster._utils.interrupts import capture_interrupts

    name_process(f"run-{run_id[:8]}")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with capture_interrupts():
        # A termination that came since the fork was held back; from here on it is remembered.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, DEADLY)
        told = os.read(go, 1)
        os.close(go)
        if not told:
            return 0
        _differ_from_siblings()
        return 0 if _execute(run_id, instance_ref) else 1


def _differ_from_siblings() -> None:
    """Python's own random numbers are seeded anew in each fork; numpy's are not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _execute(run_id: str, instance_ref: str) -> bool:
    """Execute; tells whether Dagster knows how the run ended."""
    from dagster import DagsterInstance
    from dagster._core.events import EngineEventData
    from dagster._core.instance import InstanceRef
    from dagster._grpc.impl import core_execute_run
    from dagster._serdes import deserialize_value
    from dagster._utils.hosted_user_process import recon_job_from_origin

    from platform_assets.instance.compute_logs import write_files_only
    from platform_assets.instance.connections import keep_connections
    from platform_assets.instance.scheduling import stand_back, step_aside

    write_files_only()
    keep_connections()
    with DagsterInstance.from_ref(deserialize_value(instance_ref, InstanceRef)) as instance:
        run = instance.get_run_by_id(run_id)
        if run is None or run.job_code_origin is None:
            raise LookupError(f"run {run_id} is not in the instance, or has no origin")
        instance.report_engine_event(
            f"Run forked into process {os.getpid()}.", run, EngineEventData.in_process(os.getpid())
        )
        stand_back(run.tags)
        step_aside(lambda said: instance.report_engine_event(f"It {said}.", run))
        ended = False
        with suppress(Exception):  # each was written into the event log before it was raised
            job = recon_job_from_origin(run.job_code_origin)
            for event in core_execute_run(job, run, instance, inject_env_vars=True):
                ended = ended or event.is_job_event
        return ended and _is_over(instance, run_id)


def _is_over(instance: "DagsterInstance", run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def become_reporter(run_id: str, instance_ref: str, status: int) -> NoReturn:
    """Say in this forked process that a run's own process has gone, and end it.

    Args:
        run_id: of the run.
        instance_ref: the instance, as Dagster serializes it.
        status: exit code of the run's process; below 0 the signal that killed it.
    """
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, DEADLY)
        from dagster import DagsterInstance
        from dagster._core.instance import InstanceRef
        from dagster._serdes import deserialize_value

        with DagsterInstance.from_ref(deserialize_value(instance_ref, InstanceRef)) as instance:
            run = instance.get_run_by_id(run_id)
            if run is not None:
                report_lost(instance, run, status)
        code = 0
    except BaseException:  # noqa: BLE001 - as above
        sys.excepthook(*sys.exc_info())
    finally:
        _end(code)


def report_lost(instance: "DagsterInstance", run: "DagsterRun", status: int) -> None:
    """End a run in Dagster's books whose process has ended without doing so."""
    from dagster import DagsterRunStatus
    from dagster._utils import get_run_crash_explanation

    if run.is_finished:
        return
    message = get_run_crash_explanation(f"The process of run {run.run_id}", status)
    if run.status is DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message)
    else:
        instance.report_run_failed(run, message)


def _end(code: int) -> NoReturn:
    """End without tearing the interpreter down, which costs more than many a partition."""
    with suppress(BaseException):
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
