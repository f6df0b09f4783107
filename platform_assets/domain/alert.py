"""What alerts are: their kinds, what they say, and what they are made of."""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict

from platform_assets.domain.completeness import CompletenessReport
from platform_assets.domain.freshness import DueReport
from platform_assets.domain.waiver import Waiver


class Kind(StrEnum):
    HELD = "held"
    """A live day is over, and something of it is missing."""
    LATE = "late"
    """It still is, and a source's deadline is over."""
    STALE = "stale"
    """The model that is due is not there."""
    FAILED = "failed"
    """A run that the line needs ended badly, and is not launched again by itself."""
    QUARANTINED = "quarantined"
    """Delivered files were refused."""
    RESTATEMENT = "restatement"
    """Hours changed after they had been used, and a person has to decide."""
    BLOCKED = "blocked"
    """A restatement may go, and something that it needs is held: what it replaces stays in use."""
    WAIVER = "waiver"
    """A waiver that is in use ends soon, or has ended."""
    MISPLACED = "misplaced"
    """Something was delivered to a folder that no source reads."""
    DRIFT = "drift"
    """An alias of MLflow or the serving slot is not as the ledger says."""
    ROLLED_BACK = "rolled_back"
    """A champion was rolled back from without a person; its version is held."""
    PAST_BOUND = "past_bound"
    """A champion does worse than its bound, and nobody is there to roll back to."""
    STRAGGLER = "straggler"
    """A rank of a training keeps the others waiting."""
    HEALED = "healed"
    """What was alerted is over."""


class Alert(BaseModel):
    """One alert as it should be now.

    Attributes:
        subject: asset and date, or asset and partition: `flights/features 2013-02-09`.
        concerns: the keys (airports) that it names, or a name; part of its identity.
        text: what was found.
        advice: what to do, with the command.
    """

    model_config = ConfigDict(frozen=True)

    pipeline: str
    kind: Kind
    subject: str
    concerns: tuple[str, ...] = ()
    text: str
    advice: str

    @property
    def key(self) -> str:
        """The same key is the same alert."""
        return "|".join((self.pipeline, self.kind, self.subject, ",".join(self.concerns)))


class OpenAlert(BaseModel):
    """An alert of the ledger that is not closed."""

    model_config = ConfigDict(frozen=True)

    number: int
    kind: str
    subject: str
    key: str
    text: str
    advice: str
    raised_at: AwareDatetime

    @property
    def concerns(self) -> tuple[str, ...]:
        listed = self.key.rsplit("|", 1)[1]
        return tuple(listed.split(",")) if listed else ()


class Decision(BaseModel):
    """What to do about the alerts.

    Attributes:
        raised: to be raised: the ledger ignores those whose key is open.
        retold: open alerts whose text and key are to follow what is found now, by number; that is
            not said again.
        closed: open alerts that are over, by number with what is said of it; none: nothing, as
            another alert says it, or nobody can tell.
    """

    model_config = ConfigDict(frozen=True)

    raised: tuple[Alert, ...] = ()
    retold: Mapping[int, Alert] = {}
    closed: Mapping[int, Alert | None] = {}


class Refusal(BaseModel):
    """A refused file that nothing has come in the place of."""

    model_config = ConfigDict(frozen=True)

    day: date
    key: str
    path: str
    reason: str


class Restated(BaseModel):
    """A change of used hours that waits for a person."""

    model_config = ConfigDict(frozen=True)

    partition: str
    reason: str


class Blocked(BaseModel):
    """A change of used hours that may be restated, and cannot be.

    Attributes:
        why: by job and date (`train 2013-01-08`) what is held, and what stays in use.
    """

    model_config = ConfigDict(frozen=True)

    partition: str
    why: Mapping[str, str]


class Failed(BaseModel):
    """A run that ended badly and is left to a person.

    Attributes:
        asset, partition: what it was to make.
        run_id: of the last attempt.
        said: how it ended, why, and why it is not launched again.
    """

    model_config = ConfigDict(frozen=True)

    asset: str
    partition: str
    run_id: str
    said: str


class Findings(BaseModel):
    """All that alerts are made of.

    Attributes:
        features, model: asset keys.
        live_from, live_to: the live days that are over; of no other day anything is said.
        reports: of those days the partitions that are neither clear nor built.
        unfit: why a run has refused the rows of partitions that are clear by their hours.
        refusals: of live days.
        used: the waivers that partitions which were built rest on, and that still count.
        misplaced: folders of the landing zone that no source reads, each with what is expected.
        worded: alerts that others have put into words: of what is served, and of the champion.
    """

    model_config = ConfigDict(frozen=True)

    pipeline: str
    features: str
    model: str
    as_of: AwareDatetime
    live_from: date
    live_to: date
    reports: tuple[CompletenessReport, ...]
    due: DueReport
    unfit: Mapping[str, str] = {}
    refusals: tuple[Refusal, ...] = ()
    restatements: tuple[Restated, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    used: tuple[Waiver, ...] = ()
    failed: tuple[Failed, ...] = ()
    misplaced: tuple[str, ...] = ()
    worded: tuple[Alert, ...] = ()
