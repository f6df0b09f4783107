"""The runs that a sensor has launched, as Dagster knows them."""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from platform_assets.domain.attempts import PastRun
from platform_assets.line.launching import Undecided

REQUEST_TAG = "signalbox/request"
"""On every run of the lanes: the run key of the first attempt, which all attempts share."""

RUN_KEY_TAG = "dagster/run_key"


class LaunchedRuns:
    """The runs of an instance, by the request that they were launched for.

    Dagster keeps both tags on a run that is executed again, by itself or by a person.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def of(self, run_key: str) -> Sequence[PastRun]:
        # One key a query: several at once make Dagster's join of runs and tags slow.
        found = {r.dagster_run.run_id: r for r in self._tagged(RUN_KEY_TAG, run_key)}
        if found:  # there is no later attempt without the first
            found |= {r.dagster_run.run_id: r for r in self._tagged(REQUEST_TAG, run_key)}
        newest = sorted(found.values(), key=lambda r: r.storage_id, reverse=True)
        return [_past(record, run_key) for record in newest]

    def _tagged(self, tag: str, value: str) -> Sequence[dg.RunRecord]:
        return self.instance.get_run_records(dg.RunsFilter(tags={tag: value}))

    def cause(self, run_id: str) -> str:
        """What the last failed step says, or else the run itself."""
        steps = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        for entry in reversed(steps):
            event = entry.dagster_event
            if event is None or not event.is_step_failure:
                continue
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            error = data.error
            while error is not None and error.cause is not None:
                error = error.cause
            if error is not None:
                return str(error.message)
        ends = {dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED}
        for entry in reversed(self.instance.all_logs(run_id, of_type=ends)):
            if entry.dagster_event is not None and entry.dagster_event.message:
                return str(entry.dagster_event.message)
        return ""


def _past(record: dg.RunRecord, run_key: str) -> PastRun:
    run = record.dagster_run
    suffix = run.tags.get(RUN_KEY_TAG, "").removeprefix(run_key).lstrip("/")
    waits = run.is_complete_and_waiting_to_retry
    return PastRun(
        run_id=run.run_id,
        state=dg.DagsterRunStatus.QUEUED.value if waits else run.status.value,
        attempt=int(suffix) if suffix.isdecimal() else 1,
        ended_at=datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None,
    )


def undecided(instance: dg.DagsterInstance, job: str) -> Undecided | None:
    """The judgement that was run last, if its run failed."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job), limit=1)
    if not runs or runs[0].status is not dg.DagsterRunStatus.FAILURE:
        return None
    run = runs[0]
    # A re-execution, and another attempt, go on with what the run before them has written.
    ids = {run.run_id, run.parent_run_id, run.root_run_id}
    request = run.tags.get(REQUEST_TAG)
    if request:
        ids |= {past.run_id for past in LaunchedRuns(instance).of(request)}
    return Undecided(run.tags.get("dagster/partition", ""), frozenset(filter(None, ids)))
