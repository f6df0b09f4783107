"""What the ledger keeps of aliases: their state, its changes, the verdicts and the holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from resources.ledger.records import utc

DIGESTS = "digests"
"""In the report of a verdict, beside what else it was asked on: whose files it is about."""


@dataclass(frozen=True, slots=True)
class AliasState:
    """What an alias points at, and how often that was changed."""

    model: str
    alias: str
    version: int
    counter: int
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class PromotionRecord:
    """One change of an alias; never altered.

    Attributes:
        model_date: the date that the version was trained for.
        previous: the version before; None for the first.
        counter: the alias's, after the change.
        evaluation_id: the verdict that it was promoted by; None for a roll back, and for what
            became champion before there were verdicts.
        by: a person, or what acted in nobody's name.
    """

    id: int
    pipeline: str
    model: str
    alias: str
    action: str
    version: int
    model_date: date
    previous: int | None
    counter: int
    evaluation_id: int | None
    reason: str
    by: str
    run_id: str
    decided_at: datetime

    def describe(self) -> str:
        """`version 7, promote by ann at 2013-02-09 14:00:00Z`."""
        return (
            f"version {self.version}, {self.action} by {self.by} at "
            f"{self.decided_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        )


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """The gate's verdict on one version against one champion; never altered.

    Attributes:
        id: 0 before it is recorded.
        champion: the version that was in force; None where there was none.
        judged_date: the later of the two models' dates: both are judged on the days after it.
        report: JSON of the gate's report.
    """

    pipeline: str
    model: str
    candidate: int
    champion: int | None
    judged_date: date
    rows_digest: str
    passed: bool
    report: Mapping[str, Any]
    recorded_at: datetime
    run_id: str
    id: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "recorded_at", utc(self.recorded_at))

    @property
    def digest(self) -> str | None:
        """Of the candidate's files; None where the verdict names none."""
        asked = self.report.get("asked")
        found = asked.get(DIGESTS) if isinstance(asked, Mapping) else None
        return found.get("candidate") if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """A version that may not be promoted: it was rolled back from.

    Attributes:
        since, until: on the pipeline's clock; None: until it is released.
        ended_at: when it was released.
    """

    id: int
    model: str
    version: int
    reason: str
    by: str
    since: datetime
    until: datetime | None
    ended_at: datetime | None

    def holds(self, at: datetime) -> bool:
        """Whether it does at an instant; one before it began counts, for a clock may jump back."""
        return self.ended_at is None and (self.until is None or at < self.until)

    def describe(self) -> str:
        """`held until 2013-02-10 05:00Z by ann: it was off by a quarter`."""
        until = f"until {self.until:%Y-%m-%d %H:%M}Z" if self.until else "until it is released"
        return f"held {until} by {self.by}: {self.reason}"
