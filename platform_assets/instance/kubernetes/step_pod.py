"""The executor as the pod of a step sees it: a name, without the client of the cluster.

A step's pod loads the code location to find its step, and the run's config is held against the
executor's once more. Nothing of that needs dagster-k8s, whose import is a third of the pod's start.
"""

import dagster as dg
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext

from platform_assets.domain.errors import UsageError

STEP_KEY = "DAGSTER_RUN_STEP_KEY"
"""Variable that dagster-k8s gives to the pods of steps, and to no others."""

NAME = "pinned_k8s"


def step_pod_executor() -> dg.ExecutorDefinition:
    """The executor of `executor.py`, by its name, of which nothing can be started."""

    @dg.executor(name=NAME, config_schema=dg.Permissive())
    def inside_a_step(_: InitExecutorContext) -> Executor:
        raise UsageError(
            f"{STEP_KEY} is set, as in the pod of a step, and a run was to be executed here; "
            "a step launches runs by the instance, or unset the variable"
        )

    return inside_a_step
