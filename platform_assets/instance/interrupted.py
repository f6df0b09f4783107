"""Whether Dagster launches a run again whose process was ended from outside."""

import logging
from typing import Any

from dagster import DagsterInstance, DagsterRun
from dagster._core.errors import DagsterRunNotFoundError

from platform_assets.domain.cluster_budgets import Budgets
from platform_assets.domain.cluster_causes import Cause
from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.interruptions import PREEMPTED_TAG, REASON_TAG, Ended, again
from resources.failures import load_budgets

logger = logging.getLogger("dagster.signalbox")


def launched_again(instance: DagsterInstance, run: DagsterRun, reason: Any) -> bool | None:
    """Whether an interrupted run is; None where it was not interrupted, or was canceled.

    Its log says why, and a run that was preempted carries a tag.

    Args:
        reason: Dagster's `RunFailureReason`, or None.
    """
    ended = Ended(run.run_id, run.tags, reason.value if reason is not None else "")
    if ended.kind is None:
        return None
    found = again(ended, _group(instance, run), _budgets().of(Cause.PREEMPTED).retries)
    if found is None:
        return None
    instance.report_engine_event(f"This run was {found.kind}: {found.reason}.", run)
    if found.kind == "preempted":
        instance.add_run_tags(run.run_id, {PREEMPTED_TAG: str(found.count)})
    return found.launch


def _group(instance: DagsterInstance, run: DagsterRun) -> list[Ended]:
    try:
        found = instance.get_run_group(run.run_id)
    except DagsterRunNotFoundError:
        return []
    runs = found[1] if found is not None else ()
    return [
        Ended(other.run_id, other.tags, other.tags.get(REASON_TAG, ""))
        for other in runs
        if other.status.value == "FAILURE"
    ]


def _budgets() -> Budgets:
    try:
        return load_budgets()
    except SignalboxError as error:
        logger.warning("the budgets of failures cannot be read, the defaults hold: %s", error)
        return Budgets()
