"""What the ledger keeps, one frozen record a row.

Instants must be timezone-aware; they are kept and given back in UTC, to the microsecond.
Mappings must be JSON: text keys; text, finite numbers, booleans, null, lists and objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any


def utc(moment: datetime) -> datetime:
    """The same instant in UTC.

    Raises:
        ValueError: it is naive, so that nobody knows which instant is meant.
    """
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"the ledger needs timezone-aware instants, got {moment!r}")
    return moment.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class ArrivalRecord:
    """One file of the landing zone as it was when it was last looked at.

    Attributes:
        zone: name of the pipeline.
        path: relative to the landing zone; identifies the arrival within zone and source.
        size: bytes.
        mtime_ns: the file's modification time, nanoseconds since the epoch.
        rejected: why the file is not accepted; None if it is.
        digest: SHA-256 of an accepted file, 64 hexadecimal digits; of a rejected one the version of
            the rules that it was refused by, empty where nobody knows.
    """

    zone: str
    source: str
    key: str
    hour: datetime
    path: str
    size: int
    mtime_ns: int
    rows: int
    rejected: str | None
    seen_at: datetime
    digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hour", utc(self.hour))
        object.__setattr__(self, "seen_at", utc(self.seen_at))


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """The latest verdict on a partition: complete, partial or absent, with its report."""

    pipeline: str
    asset: str
    partition: str
    verdict: str
    report: Mapping[str, Any]
    as_of: datetime
    recorded_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "as_of", utc(self.as_of))
        object.__setattr__(self, "recorded_at", utc(self.recorded_at))


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One committed version of a partition. Asset names are unique: `flights/features`."""

    asset: str
    partition: str
    data_version: str
    table_version: int | None
    rows: int
    detail: Mapping[str, Any]
    run_id: str
    committed_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "committed_at", utc(self.committed_at))


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """How a model version did on the rows of one judged date.

    Attributes:
        model_date: the date D that the model was trained for.
        judged_date: one of D+1 .. D+k.
        rows_digest: digest of the very rows it was scored on.
        metrics: may hold NaN, such as the AUC of a day with one class only.
    """

    pipeline: str
    model_version: int
    model_date: date
    judged_date: date
    rows_digest: str
    rows: int
    metrics: Mapping[str, float]
    recorded_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "recorded_at", utc(self.recorded_at))


@dataclass(frozen=True, slots=True)
class ChampionRecord:
    """A model version that became champion, and why."""

    pipeline: str
    model: str
    version: int
    model_date: date
    reason: str
    decided_at: datetime
    run_id: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "decided_at", utc(self.decided_at))


@dataclass(frozen=True, slots=True)
class QuarantineRecord:
    """A file of the landing zone that was refused.

    Attributes:
        number: of the row; 0 before it is recorded.
        path: where it lay, relative to the landing zone.
        digest: SHA-256 of what was kept, 64 hexadecimal digits; empty where nothing was.
        kept: where its bytes were set aside, relative to the home; empty where they could not be.
        ended_at: when another file came in its place, or it vanished.
        ended_by: `healed`, `replaced` by another bad one, or `vanished`.
    """

    pipeline: str
    source: str
    key: str
    hour: datetime
    path: str
    size: int
    digest: str
    reason: str
    kept: str
    found_at: datetime
    ended_at: datetime | None = None
    ended_by: str | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class RestatementRecord:
    """A partition whose landed hours changed after they had been used.

    Attributes:
        used_version: of the sources, as the partition was built from them.
        now_version: of the sources as they are now.
        changes: by source, which hours were added, changed or have vanished; under `blocked` what
            it needs and is held, by job and date why.
        touches: the snapshots, models and evaluations that read the partition.
        decision: `restate` by itself, or `list` for a person.
        reason: of the decision.
        state: `open`, `approved`, `done`, or `superseded` by a later change.
    """

    pipeline: str
    partition: str
    used_version: str
    now_version: str
    changes: Mapping[str, Any]
    touches: Mapping[str, Any]
    decision: str
    reason: str
    state: str
    found_at: datetime
    approved_at: datetime | None = None
    approved_by: str | None = None
    ended_at: datetime | None = None
    outcome: str | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """Something that a person should know; `key` tells which alerts are the same one.

    Attributes:
        kind: such as held, late, stale, failed, blocked, or healed.
        subject: asset and partition, `flights/features JFK|2013-02-09`.
        advice: what to do.
        closed_at: when it was over.
        delivered_at: when the receiver took it; None while it waits.
        next_attempt_at: on the machine's clock, as is `delivered_at`.
        told_at: when it was logged, on the machine's clock; None until then.
    """

    pipeline: str
    kind: str
    subject: str
    key: str
    text: str
    advice: str
    raised_at: datetime
    next_attempt_at: datetime
    attempts: int = 0
    closed_at: datetime | None = None
    delivered_at: datetime | None = None
    last_error: str | None = None
    told_at: datetime | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class FolderRecord:
    """A day folder of the landing zone as the sweep saw it; `path` is relative to the zone."""

    pipeline: str
    path: str
    mtime_ns: int
    looked_at: datetime


@dataclass(frozen=True, slots=True)
class BackfillRecord:
    """A backfill that can be steered while it runs; Dagster has the rest under the same id.

    Attributes:
        id: Dagster's.
        state: `running`, or `paused`: none of its queued runs starts.
        max_runs: how many of its runs may be in progress at once; None leaves it to its lane.
        selection: the partitions that were asked for, by asset.
        changed_by: who paused, resumed or resized it last.
    """

    id: str
    pipeline: str
    state: str
    max_runs: int | None
    selection: Mapping[str, Any]
    launched_by: str
    launched_at: datetime
    changed_at: datetime
    changed_by: str


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A run that the daily lane asks for and whose last attempt ended badly.

    Attributes:
        job: features, day, train or judge; or live_metric and past_bound, which make no asset.
        run_key: of the first attempt: the same inputs have the same.
        run_id: of the newest attempt.
        state: Dagster's, FAILURE or CANCELED.
        attempts: how many there were.
        step: `wait` for another attempt, `give up` after the last, or `left` to a person.
        cause: why the run ended as it did.
        reason: of the step.
        ended_at: of the run, on the machine's clock.
    """

    pipeline: str
    job: str
    partition: str
    run_key: str
    run_id: str
    state: str
    attempts: int
    step: str
    cause: str
    reason: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class TransitionRecord:
    """One step in the life of a partition: a verdict, or how a run on it ended.

    Attributes:
        verdict: of completeness, or `refused`, `held`, `failed` by a run.
        run_id: of the run that said so; None if a look did.
    """

    pipeline: str
    asset: str
    partition: str
    verdict: str
    reason: str
    as_of: datetime
    recorded_at: datetime
    run_id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "as_of", utc(self.as_of))
        object.__setattr__(self, "recorded_at", utc(self.recorded_at))
