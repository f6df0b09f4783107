"""What earlier runs say of durations: by shape, and of the runs that hold GPUs now."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from statistics import median

import dagster as dg
from dagster._core.execution.stats import StepEventStatus

from platform_assets.domain.gpu_planning import PLANNED_TAG
from platform_assets.domain.gpu_shapes import Shape, shape_of
from platform_assets.domain.gpu_waiting import ENOUGH_RUNS

MOST_RUNS = 20
"""Newest runs of a job that were given a shape, whose durations are looked at."""


def seconds_by_shape(instance: dg.DagsterInstance, job: str, step: str) -> dict[Shape, list[float]]:
    """Durations of a step in the newest successful runs of a job, by the shape that it had.

    Of the step and not of the run: a run's time has that of its waiting for GPUs in it. What is
    launched by hand has one job whatever it makes, mostly without GPUs: that is not looked at.
    """
    found: dict[Shape, list[float]] = {}
    planned = {value for _, values in instance.get_run_tags([PLANNED_TAG]) for value in values}
    if not planned:
        return found
    wanted = dg.RunsFilter(
        job_name=job,
        statuses=[dg.DagsterRunStatus.SUCCESS],
        tags={PLANNED_TAG: sorted(planned)},
    )
    for run in instance.get_runs(wanted, limit=MOST_RUNS):
        try:
            shape = shape_of(run.tags.get(PLANNED_TAG, ""))
        except ValueError:
            continue
        for one in instance.get_run_step_stats(run.run_id, [step]):
            if one.start_time and one.end_time and one.status is StepEventStatus.SUCCESS:
                found.setdefault(shape, []).append(one.end_time - one.start_time)
    return found


def ends_of_runs(
    instance: dg.DagsterInstance, run_ids: Iterable[str], now: datetime
) -> dict[str, datetime]:
    """When runs are expected to give their GPUs back: as long after the start of the step as its
    median of earlier runs in the same shape. What nobody can tell is left out, as is what is
    overdue.
    """
    found: dict[str, datetime] = {}
    for run_id in dict.fromkeys(filter(None, run_ids)):
        run = instance.get_run_by_id(run_id)
        shape = (run.tags.get(PLANNED_TAG) or "") if run is not None else ""
        if run is None or not shape:
            continue
        for step in instance.get_run_step_stats(run_id):
            if step.status is not StepEventStatus.IN_PROGRESS or not step.start_time:
                continue
            known = seconds_by_shape(instance, run.job_name, step.step_key)
            seconds = known.get(shape_of(shape), [])
            if len(seconds) >= ENOUGH_RUNS:
                started = datetime.fromtimestamp(step.start_time, UTC)
                end = started + timedelta(seconds=median(seconds))
                if end > now:
                    found[run_id] = max(end, found.get(run_id, end))
    return found
