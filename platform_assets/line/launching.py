"""What became of the runs that were asked for, and which are asked for again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from platform_assets.domain.attempts import Attempt, PastRun, next_step
from platform_assets.domain.readiness import Plan, Request
from platform_assets.line.services import Services
from resources.ledger.records import FailureRecord

MOST_CHARACTERS = 600
"""Of a cause: what a run says may be pages."""

STAGE_OF_JOB = {"features": "features", "day": "day", "train": "model", "judge": "evaluation"}
UNSCORED = "live_metric"
"""A job whose failures are kept beside those: it makes no asset (line/unscored.py)."""
PAST_BOUND = "past_bound"
"""That job has found the champion past its bound, and nobody to roll back to: kept there too."""
STRAGGLER = "straggler"
"""Job of a record of a rank that was slow."""

WITHOUT_ASSET = (UNSCORED, PAST_BOUND, STRAGGLER)


class Runs(Protocol):
    """The orchestrator's runs, as far as a decision needs them."""

    def of(self, run_key: str) -> Sequence[PastRun]:
        """The runs of all attempts of a request, newest first."""
        ...

    def cause(self, run_id: str) -> str:
        """Why a run ended badly, in words."""
        ...


@dataclass(frozen=True)
class Undecided:
    """A judgement whose run failed.

    Attributes:
        partition: the date of the model.
        run_ids: of the run, and of those that it re-executed.
    """

    partition: str
    run_ids: frozenset[str]


class NoRuns:
    """Nothing was ever launched."""

    def of(self, run_key: str) -> Sequence[PastRun]:
        return ()

    def cause(self, run_id: str) -> str:
        return ""


def launchable(
    services: Services,
    plan: Plan,
    runs: Runs,
    now: datetime,
    most: int,
    covered: Callable[[FailureRecord], bool],
) -> Plan:
    """Of a plan what is launched now; what waits after a failure, or is given up, is held.

    What ended badly is written down, and forgotten once it is no longer wanted: it was built, its
    inputs are others, or it may not leave any more.

    Args:
        services: of the pipeline.
        plan: what is wanted, in the order of its turn.
        runs: of the orchestrator.
        now: on the machine's clock.
        most: so many are launched at the most; what comes after them is not asked about.
        covered: whether what failed would be in the plan if it was still wanted.
    """
    pipeline = services.spec.pipeline
    known = {r.run_key: r for r in services.failures.all(pipeline) if r.job not in WITHOUT_ASSET}
    wanted = {request.run_key for request in plan.requests}
    over = {key: r for key, r in known.items() if key not in wanted and covered(r)}
    failing: list[FailureRecord] = []
    requests: list[Request] = []
    held = dict(plan.held)
    for request in plan.requests:
        if len(requests) >= most:
            break
        found = next_step(runs.of(request.run_key), now)
        before = known.get(request.run_key)
        if found.step == "request":
            requests.append(request.model_copy(update={"attempt": found.number}))
        if found.step not in ("wait", "give up", "left"):
            # While another attempt is under way nobody can tell that it fails.
            if before is not None and before.step != "wait":
                over[request.run_key] = before
            continue
        record = _failure(pipeline, request, found, before, runs, now)
        if record != before:
            failing.append(record)
        said = f"{request.job}: {describe(record)}"
        held[request.partition] = "; ".join(filter(None, (held.get(request.partition), said)))
    services.failures.note(failing, list(over.values()))
    return Plan(requests=tuple(requests), held=held)


def _failure(
    pipeline: str,
    request: Request,
    found: Attempt,
    before: FailureRecord | None,
    runs: Runs,
    now: datetime,
) -> FailureRecord:
    run = found.failed
    assert run is not None
    same = before is not None and before.run_id == run.run_id
    cause = before.cause if same and before else shortened(runs.cause(run.run_id))
    return FailureRecord(
        pipeline=pipeline,
        job=request.job,
        partition=request.partition,
        run_key=request.run_key,
        run_id=run.run_id,
        state=run.state,
        attempts=found.attempts,
        step=found.step,
        cause=cause,
        reason=found.reason,
        ended_at=(run.ended_at or (before.ended_at if same and before else now)).astimezone(UTC),
    )


def shortened(cause: str) -> str:
    """A cause on one line, of bounded length."""
    text = " ".join(cause.split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 2]} …"


def describe(record: FailureRecord) -> str:
    """`run 1f3a… ended as FAILURE (the disk is full): attempt 2 of 4 failed, …`."""
    cause = f" ({record.cause})" if record.cause else ""
    return f"run {record.run_id} ended as {record.state}{cause}: {record.reason}"


def asset_of(services: Services, record: FailureRecord) -> str:
    """The asset that a failed run was to make."""
    return services.spec.asset(STAGE_OF_JOB[record.job])


def open_failures(services: Services) -> list[FailureRecord]:
    """What ended badly and was not made since, by whomever."""
    found = []
    for record in services.failures.all(services.spec.pipeline):
        if record.job in WITHOUT_ASSET:
            continue
        made = services.ledger.current_version(asset_of(services, record), record.partition)
        if made is None or made.committed_at < record.ended_at:
            found.append(record)
    return found
