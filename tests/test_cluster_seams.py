"""Insides of Dagster and dagster-k8s that failures of the cluster are handled through."""

import inspect
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster._core.test_utils import instance_for_test
from dagster._daemon.monitoring import run_monitoring
from dagster._grpc.types import ExecuteStepArgs
from dagster_k8s.executor import K8sStepHandler
from dagster_k8s.job import DEFAULT_JOB_SPEC_CONFIG, construct_dagster_k8s_job
from kubernetes.client import ApiClient

from benchmarks import step_start
from platform_assets.domain.errors import UsageError
from platform_assets.factory.events import MAIN_CONTAINER
from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor
from platform_assets.instance.kubernetes.step_pod import NAME, STEP_KEY, step_pod_executor


def test_an_unhealthy_step_and_all_events_go_through_what_is_overridden() -> None:
    source = inspect.getsource(StepDelegatingExecutor.execute)
    assert "self.log_failure_or_retry_event_after_error(" in source
    assert source.count("self._pop_events(") == 2
    assert list(inspect.signature(StepDelegatingExecutor._pop_events).parameters) == [
        *("self", "instance", "run_id", "seen_storage_ids")
    ]
    # What is written is not handled until it is read back.
    assert "list(\n                                self._step_handler.launch_step(" in source


def test_a_resumed_run_takes_a_step_without_an_end_up_as_running() -> None:
    source = inspect.getsource(StepDelegatingExecutor.execute)
    order = (
        "prior_events = self._pop_events(",
        "active_execution.rebuild_from_events(prior_events)",
        "self._step_handler.check_step_health(",
        "running_steps[step.key] = step",
        "while not active_execution.is_complete",
        "for dagster_event in self._pop_events(",
    )
    places = [source.index(part) for part in order]
    assert places == sorted(places)
    # A launch by a run worker, and by nobody else, is told so.
    assert "DagsterEvent.step_worker_starting(" in inspect.getsource(K8sStepHandler.launch_step)


def test_a_job_is_named_and_placed_by_what_is_overridden() -> None:
    for method in (K8sStepHandler.launch_step, K8sStepHandler.terminate_step):
        assert "self._get_k8s_step_job_name(step_handler_context)" in inspect.getsource(method)
    name = inspect.getsource(K8sStepHandler._get_k8s_step_job_name)
    assert "execute_step_args.known_state" in name
    assert DEFAULT_JOB_SPEC_CONFIG["backoff_limit"] == 0


def test_a_steps_container_is_named() -> None:
    source = inspect.getsource(construct_dagster_k8s_job)
    assert f'container_config.pop("name", "{MAIN_CONTAINER}")' in source


def test_a_pod_is_told_its_attempt_and_its_step() -> None:
    fields = {"known_state", "should_verify_step", "run_id"}
    assert fields <= set(inspect.signature(ExecuteStepArgs.__new__).parameters)
    assert "previous_retry_attempts" in KnownExecutionState._fields
    assert STEP_KEY in inspect.getsource(K8sStepHandler.launch_step)


def test_an_interruption_is_told_as_one() -> None:
    assert ErrorSource.INTERRUPT.value == "INTERRUPT"


def test_a_worker_that_is_not_known_of_counts_as_lost() -> None:
    source = inspect.getsource(run_monitoring.monitor_started_run)
    assert "not in [WorkerStatus.RUNNING, WorkerStatus.SUCCESS]" in source


def test_requests_are_sent_by_what_the_benchmark_replaces() -> None:
    assert callable(ApiClient._ApiClient__call_api)


# --- the pod of a step ----------------------------------------------------------------------------


def test_inside_a_step_the_executor_is_a_name() -> None:
    assert step_pod_executor().name == NAME == pinned_k8s_job_executor.name
    with (
        instance_for_test() as instance,
        pytest.raises(UsageError, match=f"{STEP_KEY} is set, as in the pod of a step"),
    ):
        dg.execute_job(dg.reconstructable(_job), instance)


@dg.op
def _one() -> int:
    return 1


@dg.job(executor_def=step_pod_executor())
def _job() -> None:
    _one()


PLAN = """
import sys
import platform_assets.definitions as location
from dagster._core.execution.api import create_execution_plan

job = location.defs.get_repository_def().get_job("__ASSET_JOB")
config = {"execution": {"config": {"job_namespace": "lane", "retries": {"disabled": {}}}}}
create_execution_plan(job, run_config=config)
print(location.defs.executor.name, "kubernetes" in sys.modules)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("key", ["", "features"])
def test_a_step_of_a_configured_run_starts_without_the_clusters_client(
    tmp_path: Path, key: str
) -> None:
    step_start.write_lock(tmp_path / "images.lock.yaml")
    done = subprocess.run(
        [sys.executable, "-c", PLAN],
        env=step_start.environment(tmp_path, "k8s") | {STEP_KEY: key},
        capture_output=True,
        text=True,
        check=False,
    )
    # Without the variable, as in a run worker, it is the executor itself.
    assert done.stdout.split() == [NAME, str(not key)], done.stderr
