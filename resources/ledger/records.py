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
        digest: SHA-256 of an accepted file, 64 hexadecimal digits; empty for a rejected one.
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
