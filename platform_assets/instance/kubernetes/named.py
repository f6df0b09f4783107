"""dagster-k8s's handler of steps, as the pinned executor uses it: one for each image."""

from dagster._core.executor.step_delegating import StepHandlerContext
from dagster_k8s.executor import K8sStepHandler

from platform_assets.instance.kubernetes.recovering import Attempt


class Named(K8sStepHandler):
    """dagster-k8s's handler, whose Jobs are named by all attempts, whoever caused them."""

    def job_name(self, context: StepHandlerContext) -> str:
        """The Job of the step's present attempt."""
        return str(self._get_k8s_step_job_name(context))

    def namespace(self, context: StepHandlerContext) -> str:
        """Where the step's Jobs are."""
        return str(self._get_container_context(context).namespace)

    def _get_k8s_step_job_name(self, step_handler_context: StepHandlerContext) -> str:
        context = step_handler_context
        original = context.original if isinstance(context, Attempt) else context
        return str(super()._get_k8s_step_job_name(original))
