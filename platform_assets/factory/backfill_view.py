"""A backfill as it stands, read from Dagster's storage: any, also one of the Dagster UI.

Dagster itself only counts at the ticks of its daemon; here each partition counts as soon as its
event is there. Why one is held or failed stands in the asset check `clear` of its run.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import DagsterRun, DagsterRunStatus

from platform_assets.domain.backfill_progress import StageFacts, StageProgress, stage_progress
from platform_assets.domain.errors import UsageError
from platform_assets.factory.backfills import (
    PARTITION_TAG,
    names_of,
    pipeline_of_backfill,
    targets_of_job,
)
from platform_assets.factory.events import HELD_CHECK
from platform_assets.factory.lanes import BACKFILL_TAG

ALL = "all"
"""The one partition of an asset without any."""

QUEUED = {DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.MANAGED}
IN_PROGRESS = {
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
}
CANCELED = {BulkActionStatus.CANCELING, BulkActionStatus.CANCELED}
CHECKS = 500
"""Results of an asset check that are read at once."""

CLOCK_SECONDS = 60.0
"""By how much the clock of a run may be behind that of who launched the backfill."""

EVENTS = 500

Reasons = tuple[dict[str, str], dict[str, str]]
"""Why partitions are held, and why they failed."""


@dataclass(frozen=True)
class BackfillView:
    """What is known of a backfill now.

    Attributes:
        status: Dagster's, lower case: requested, canceling, completed_success, and so on.
        ended: it requests no more runs, and has none that has not ended. One of `dagster job
            backfill` has the status completed from the start.
        stages: progress by asset key; empty for the backfill of a job that is none of a pipeline's.
        runs: how many are queued, in_progress, succeeded, failed, canceled.
        error: why Dagster gave it up.
    """

    id: str
    pipeline: str | None
    title: str
    status: str
    ended: bool
    launched_at: datetime
    stages: Mapping[str, StageProgress] = field(default_factory=dict)
    runs: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Watcher:
    """Looks at one backfill again and again; each look reads only the events that are new."""

    instance: dg.DagsterInstance
    backfill_id: str
    _done: dict[str, set[str]] = field(default_factory=dict)
    _cursor: dict[str, int] = field(default_factory=dict)
    _said: dict[dg.AssetKey, tuple[set[str], Reasons]] = field(default_factory=dict)

    def look(self) -> BackfillView:
        """How the backfill stands.

        Raises:
            UsageError: the instance has no such backfill.
        """
        backfill = require_backfill(self.instance, self.backfill_id)
        tagged = dg.RunsFilter(tags={BACKFILL_TAG: self.backfill_id})
        runs = self.instance.get_runs(tagged)
        data = backfill.asset_backfill_data
        stages = (
            self._stages_of_job(backfill, runs)
            if data is None
            else self._stages(backfill, data, runs)
        )
        return BackfillView(
            id=backfill.backfill_id,
            pipeline=pipeline_of_backfill(backfill),
            title=backfill.title or "",
            status=backfill.status.value.lower(),
            ended=backfill.status in BULK_ACTION_TERMINAL_STATUSES
            and all(run.is_finished for run in runs),
            launched_at=datetime.fromtimestamp(backfill.backfill_timestamp, UTC),
            stages=stages,
            runs=count_runs(runs),
            error=backfill.error.message if backfill.error else None,
        )

    def _stages(
        self, backfill: PartitionBackfill, data: AssetBackfillData, runs: Sequence[DagsterRun]
    ) -> dict[str, StageProgress]:
        failed_runs = {r.run_id for r in runs if r.status is DagsterRunStatus.FAILURE}
        found = {}
        for key in backfill.asset_selection or ():
            if key not in data.target_subset.asset_keys:
                continue
            self._read_events(key, backfill)
            refused, errors = self._reasons(key, failed_runs, backfill)
            name = "/".join(key.path)
            found[name] = stage_progress(
                StageFacts(
                    wanted=_keys(data.target_subset, key),
                    done=_keys(data.materialized_subset, key) | self._done.get(name, set()),
                    refused=refused,
                    errors=errors,
                    lost=_keys(data.failed_and_downstream_subset, key),
                    started=_keys(data.requested_subset, key),
                    canceled=backfill.status in CANCELED,
                )
            )
        return found

    def _stages_of_job(
        self, backfill: PartitionBackfill, runs: Sequence[DagsterRun]
    ) -> dict[str, StageProgress]:
        """Of a job's backfill Dagster keeps no progress but its runs, each of one partition."""

        def of(wanted: Callable[[DagsterRun], bool]) -> set[str]:
            return names_of(r.tags[PARTITION_TAG] for r in runs if wanted(r) and _has_one(r))

        failed_runs = {r.run_id for r in runs if r.status is DagsterRunStatus.FAILURE}
        found = {}
        for name, wanted in targets_of_job(backfill).items():
            key = dg.AssetKey(name.split("/"))
            self._read_events(key, backfill)
            refused, errors = self._reasons(key, failed_runs, backfill)
            found[name] = stage_progress(
                StageFacts(
                    wanted=wanted,
                    done=self._done[name],
                    refused=refused,
                    errors=errors,
                    # A retry that is under way may still build it.
                    lost=of(lambda r: r.is_finished) - of(lambda r: not r.is_finished),
                    started=of(lambda r: True),
                    canceled=backfill.status in CANCELED,
                )
            )
        return found

    def _read_events(self, key: dg.AssetKey, backfill: PartitionBackfill) -> None:
        """Note the partitions of the events that were written since the last look."""
        name = "/".join(key.path)
        done = self._done.setdefault(name, set())
        while True:
            found = self.instance.fetch_materializations(
                dg.AssetRecordsFilter(
                    key,
                    after_timestamp=backfill.backfill_timestamp,
                    after_storage_id=self._cursor.get(name),
                ),
                limit=EVENTS,
                ascending=True,
            )
            for record in found.records:
                self._cursor[name] = record.storage_id
                event = record.asset_materialization
                if event is None or (event.tags or {}).get(BACKFILL_TAG) != backfill.backfill_id:
                    continue
                done |= names_of([event.partition]) if event.partition else {ALL}
            if not found.has_more:
                return

    def _reasons(
        self, key: dg.AssetKey, failed_runs: set[str], backfill: PartitionBackfill
    ) -> Reasons:
        """What the failed runs said of their partitions: held and why, failed and why."""
        known, found = self._said.get(key, (set(), ({}, {})))
        if known == failed_runs:  # what a run says it says before it fails
            return found
        held: dict[str, str] = {}
        failed: dict[str, str] = {}
        since = backfill.backfill_timestamp - CLOCK_SECONDS
        said = [metadata for run_id, metadata in self._results(key, since) if run_id in failed_runs]
        for metadata in reversed(said):  # the newest outweighs
            held |= _reasons_in(metadata, "held")
            failed |= _reasons_in(metadata, "failed")
        self._said[key] = failed_runs, (held, failed)
        return held, failed

    def _results(self, key: dg.AssetKey, since: float) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Run and metadata of each failed result of the check since an instant, newest first.

        The results of all runs stand in one order, numbered as they were begun: those of a
        backfill lie behind whatever ran after it, and none behind the first that is older.
        """
        cursor: int | None = None
        while True:
            records = self.instance.event_log_storage.get_asset_check_execution_history(
                dg.AssetCheckKey(key, HELD_CHECK),
                limit=CHECKS,
                cursor=cursor,
                status={AssetCheckExecutionRecordStatus.FAILED},
            )
            for record in records:
                event = record.event.dagster_event if record.event else None
                if record.event is None or event is None:
                    continue
                if record.event.timestamp < since:
                    return
                yield record.run_id, event.asset_check_evaluation_data.metadata
            if len(records) < CHECKS:
                return
            cursor = records[-1].id


def _has_one(run: DagsterRun) -> bool:
    return PARTITION_TAG in run.tags


def _reasons_in(metadata: Mapping[str, Any], name: str) -> dict[str, str]:
    value = getattr(metadata.get(name), "value", None)
    if not isinstance(value, Mapping):
        return {}
    return {next(iter(names_of([key]))): str(why) for key, why in value.items()}


def _keys(subset: Any, key: dg.AssetKey) -> set[str]:
    if key in subset.non_partitioned_asset_keys:
        return {ALL}
    found = subset.partitions_subsets_by_asset_key.get(key)
    return names_of(found.get_partition_keys()) if found is not None else set()


def require_backfill(instance: dg.DagsterInstance, backfill_id: str) -> PartitionBackfill:
    """A backfill of this home.

    Raises:
        UsageError: there is none of that id.
    """
    found = instance.get_backfill(backfill_id)
    if found is None:
        known = [backfill.backfill_id for backfill in instance.get_backfills(limit=5)]
        raise UsageError(
            f"no backfill {backfill_id!r} is known; the newest are {', '.join(known) or 'none'}, "
            "see `signalbox backfill status`"
        )
    return found


def count_runs(runs: Sequence[DagsterRun]) -> dict[str, int]:
    """Runs by what they are at, in few words."""
    found = Counter(
        "queued"
        if run.status in QUEUED
        else "in_progress"
        if run.status in IN_PROGRESS
        else {"SUCCESS": "succeeded", "FAILURE": "failed"}.get(run.status.value, "canceled")
        for run in runs
    )
    states = ("queued", "in_progress", "succeeded", "failed", "canceled")
    return {state: found[state] for state in states}
