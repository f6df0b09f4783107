"""The GPUs of steps: planned when a step's Job is made, and explained while its pod waits."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
import kubernetes.client
from dagster._core.events import EngineEventData
from dagster._core.executor.step_delegating import StepHandlerContext

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.gpu_inventory import Inventory
from platform_assets.domain.gpu_placing import Policy, Request
from platform_assets.domain.gpu_planning import (
    PLANNED_TAG,
    SHAPE_TAG,
    WAITS_TAG,
    Plan,
    gpus_of_tag,
    plan,
    request_of,
    shapes_of,
)
from platform_assets.domain.gpu_pods import GpuAsk
from platform_assets.domain.gpu_shapes import GpusSpec, Shape
from platform_assets.domain.gpu_waiting import explain, speeds
from platform_assets.domain.lanes import Lane
from platform_assets.domain.processes import processes_of_tag
from platform_assets.instance.gpu_history import ends_of_runs, seconds_by_shape
from platform_assets.instance.kubernetes.nodes import cluster_inventory
from resources.gpus import CLUSTER, chosen_inventory, expected, read_inventory, reserve

_log = logging.getLogger(__name__)

_TIME = re.compile(r" in (?:about \d+ \w+|less than a minute)")
AGAIN = timedelta(minutes=2)
"""Between two looks at what a step waits for: it lists the pods of the whole cluster."""


@dataclass
class _Step:
    plan: Plan
    lane: Lane
    told: str = ""
    looked: datetime | None = None


class GpuPlanner:
    """Chooses shape and node for the steps of one run.

    Args:
        core: a client whose requests have an end.
    """

    def __init__(
        self,
        core: kubernetes.client.CoreV1Api,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._core, self._clock = core, clock
        self._steps: dict[str, _Step] = {}

    def ask(self, context: StepHandlerContext, key: str, lane: Lane) -> GpuAsk | None:
        """What the step's pod asks for; None where its asset names no shapes.

        Raises:
            UsageError: the run's tag asks for a shape that the model cannot be trained in.
        """
        gpus = gpus_of_tag(context.step_tags[key])
        if gpus is None:
            return None
        run = context.dagster_run
        chosen = run.tags.get(SHAPE_TAG)
        shapes = _shapes(context, key, gpus, chosen)
        request = self._request(context, key, gpus, shapes, lane)
        inventory, unknown = self._inventory()
        planned = plan(request, inventory, expected(), reserve=reserve(), unknown=unknown)
        self._steps[key] = _Step(planned, lane)
        tags = {PLANNED_TAG: str(planned.shape)}
        if WAITS_TAG in run.tags:  # of the run that is executed again
            tags[WAITS_TAG] = ""
        context.instance.add_run_tags(run.run_id, tags)
        context.instance.report_engine_event(
            f"step {key} {planned.words}",
            run,
            EngineEventData({PLANNED_TAG: str(planned.shape)}),
            step_key=key,
        )
        return planned.ask

    def tell(self, context: StepHandlerContext, key: str, lane: Lane, words: str) -> None:
        """Say on the run's page why the step waits: once, and again where it changes.

        Args:
            words: the cluster's own, which count where the GPUs would be there.

        What cannot be found out keeps no run from waiting on.
        """
        try:
            self._tell(context, key, lane, words)
        except Exception:  # noqa: BLE001 - of Dagster's storage, too
            _log.warning("why step %s waits was not found out", key, exc_info=True)

    def _tell(self, context: StepHandlerContext, key: str, lane: Lane, words: str) -> None:
        gpus = gpus_of_tag(context.step_tags[key])
        if gpus is None:
            return
        now, run = self._clock(), context.dagster_run
        step = self._steps.get(key) or self._resumed(context, key, gpus, lane)
        if step.looked is not None and now < step.looked + AGAIN:
            return
        step.looked = now
        inventory, unknown = self._inventory()
        if inventory is None:
            sentence = f"{step.plan.words} ({unknown})" if unknown else step.plan.words
        else:
            first = step.plan.shape
            others = [s for s in _shapes(context, key, gpus, None) if s != first]
            request = self._request(context, key, gpus, (first, *others), step.lane)
            runs = [h.run_id for h in inventory.holdings]
            ends = ends_of_runs(context.instance, runs, now)
            policy = Policy("ours", (*expected(), request), reserve=reserve())
            found = explain(inventory.ending(ends), request, policy, now)
            sentence = found.sentence
            if found.state == "fits":
                sentence += f"; the cluster has not put it there: {words}"
        if sentence == step.told:
            return
        before, step.told = step.told, sentence
        context.instance.add_run_tags(run.run_id, {WAITS_TAG: sentence})
        if _TIME.sub("", before) == _TIME.sub("", sentence):
            return  # only the minutes that are left are fewer
        context.instance.report_engine_event(
            f"step {key} waits for GPUs: {sentence}",
            run,
            EngineEventData({WAITS_TAG: dg.MetadataValue.text(sentence)}),
            step_key=key,
        )

    def well(self, context: StepHandlerContext, key: str) -> None:
        """The step waits no more: a tag cannot be taken away, so it says so."""
        step = self._steps.get(key)
        if step is not None and step.told:
            step.told, step.looked = "", None
            run_id = context.dagster_run.run_id
            context.instance.add_run_tags(run_id, {WAITS_TAG: f"no more: step {key} started"})

    def _request(
        self,
        context: StepHandlerContext,
        key: str,
        gpus: GpusSpec,
        shapes: tuple[Shape, ...],
        lane: Lane,
    ) -> Request:
        shown = seconds_by_shape(context.instance, context.dagster_run.job_name, key)
        return request_of(key, gpus, shapes, lane, speeds(gpus, shapes, shown))

    def _resumed(self, context: StepHandlerContext, key: str, gpus: GpusSpec, lane: Lane) -> _Step:
        """A step that another run worker has planned."""
        run = context.instance.get_run_by_id(context.dagster_run.run_id) or context.dagster_run
        shape = _shapes(context, key, gpus, run.tags.get(PLANNED_TAG))[0]
        planned = Plan(shape, GpuAsk(shape.gpus), None, f"asks for {shape}")
        self._steps[key] = _Step(planned, lane)
        return self._steps[key]

    def _inventory(self) -> tuple[Inventory | None, str]:
        source = chosen_inventory()
        if not source:
            return None, "SIGNALBOX_GPUS names no inventory"
        try:
            if source == CLUSTER:
                return cluster_inventory(self._core), ""
            return read_inventory(source), ""
        except SignalboxError as error:
            return None, str(error)


def _shapes(
    context: StepHandlerContext, key: str, gpus: GpusSpec, chosen: str | None
) -> tuple[Shape, ...]:
    ranks = processes_of_tag(context.step_tags[key])
    return shapes_of(gpus, chosen, one_pod=True, ranks=ranks)
