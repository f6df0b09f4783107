"""dagster-k8s's executor and the pinned one, which look at their steps more often, or never."""

from typing import Any

import dagster as dg
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext
from dagster_k8s import k8s_job_executor

from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor


def _often(
    definition: dg.ExecutorDefinition, name: str = "often", seconds: int = 0
) -> dg.ExecutorDefinition:
    @dg.executor(
        name=f"{definition.name}_{name}",
        config_schema=definition.config_schema,
        requirements=definition._requirements_fn,
    )
    def often(init_context: InitExecutorContext) -> Executor:
        make = definition.executor_creation_fn
        assert make is not None
        executor: Any = make(init_context)
        executor._check_step_health_interval_seconds = seconds
        executor._sleep_seconds = 0.2
        return executor  # type: ignore[no-any-return]

    return often


stock, pinned = _often(k8s_job_executor), _often(pinned_k8s_job_executor)
never = _often(pinned_k8s_job_executor, "never", 3600)
