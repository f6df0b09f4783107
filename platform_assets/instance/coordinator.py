"""The queue's door: each run is given its lane before it is enqueued, whoever launched it."""

import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import dagster as dg
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.dagster_run import DagsterRun

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.lane_limits import size_of
from platform_assets.domain.lanes import (
    AUTO_RETRY_TAG,
    BACKFILL_TAG,
    LANE_TAG,
    PARENT_TAG,
    PIPELINE_TAG,
    Lane,
    Lanes,
    Parent,
    lane_given,
    lane_of,
    tags_of_lane,
)
from resources.giving_way import Way
from resources.home import Home
from resources.lanes import load_lanes
from resources.ledger.backfills import RUNNING, Backfills
from resources.ledger.records import BackfillRecord

HURRY = threading.Event()
"""Set when this process has enqueued a run, but one of a backfill: the queue looks at once.

The daemon's sensors submit in its own process. Those of a backfill come by the hundred and wait for
a slot of their lane anyway.
"""


class LaneRunCoordinator(QueuedRunCoordinator[Any]):
    """Dagster's queue, whose runs cannot be in no lane, or in one that is not theirs.

    `dagster.yaml` names it as run_coordinator. Sensors, schedules, native backfills, retries and
    a person's click all submit here; what executes without being submitted (`dg launch`) is given
    its lane when it executes.
    """

    @cached_property
    def lanes(self) -> Lanes:
        """As declared when this process first asked: like dagster.yaml, read anew on a restart."""
        return load_lanes()

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Put the tags of its lane onto a run, then enqueue it."""
        run = context.dagster_run
        self._record_size(run)
        wanted = wanted_tags(self._instance, self.lanes, run)
        if wanted and run.status is dg.DagsterRunStatus.NOT_STARTED:
            self._instance.add_run_tags(run.run_id, wanted)
            tagged = self._instance.get_run_by_id(run.run_id)
            assert tagged is not None, run.run_id
            run = tagged
        if not self.stands_back(run):
            with suppress(SignalboxError):
                Way(Home.locate().root).announce()
        submitted = super().submit_run(SubmitRunContext(run, context.workspace))
        if run.tags.get(LANE_TAG) != Lane.BACKFILL:
            HURRY.set()
        return submitted

    def stands_back(self, run: DagsterRun) -> bool:
        """Whether it is in a lane whose runs let others go first on their machine."""
        try:
            return self.lanes.nice(lane_given(run.tags)) > 0
        except SignalboxError:
            return False  # the lanes cannot be read; where it claims its slot that is said

    def _record_size(self, run: DagsterRun) -> None:
        """Have the queue know the size of a backfill before the first of its runs is in it.

        Whoever launches it learns its id only once Dagster has it, and may be stopped there.

        Raises:
            SignalboxError: the ledger does not take it; the run is not enqueued.
        """
        backfill, size = run.tags.get(BACKFILL_TAG), size_of(run.tags)
        if backfill is None or size is None or backfill in self._sized:
            return
        now, by = datetime.now(UTC), run.tags.get("dagster/user", "Dagster")
        record = BackfillRecord(
            id=backfill,
            pipeline=run.tags.get(PIPELINE_TAG, ""),
            state=RUNNING,
            max_runs=size,
            selection={},
            launched_by=by,
            launched_at=now,
            changed_at=now,
            changed_by=by,
        )
        Backfills(Home.locate().ledger_url).add(record)
        self._sized.add(backfill)

    @cached_property
    def _sized(self) -> set[str]:
        """Backfills whose size this process has recorded."""
        return set()


def wanted_tags(instance: dg.DagsterInstance, lanes: Lanes, run: DagsterRun) -> dict[str, str]:
    """The tags by which a run's differ from what its lane asks for."""
    assets = [key.to_user_string() for key in run.asset_selection or ()]
    return tags_of_lane(lanes, run.tags, assets, parent_of(instance, run))


def parent_of(instance: dg.DagsterInstance, run: DagsterRun) -> Parent | None:
    """The run that this one is a retry or re-execution of; None if it is none.

    Whether Dagster itself has launched it, the parent says, which names its retry before that is
    submitted. The number of the retry among its own tags is copied by who executes it once more.
    """
    parent_id = run.tags.get(PARENT_TAG) or run.parent_run_id
    if not parent_id:
        return None
    parent = instance.get_run_by_id(parent_id)
    if parent is None:
        return Parent(None)
    # Its own tag was given by the queue, which knew its parent.
    given = parent.tags.get(LANE_TAG)
    lane = Lane(given) if given in list(Lane) else lane_of(parent.tags, parent_of(instance, parent))
    return Parent(lane, parent.tags.get(AUTO_RETRY_TAG) == run.run_id)
