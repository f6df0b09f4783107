"""Alerts: what a person should know, said once, and once more when it is over.

One alert a kind and date, with its keys listed, however many hours or files it is about. It is
raised again only when a key joins that it did not name, or when the same thing comes back.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict

from platform_assets.domain.completeness import CompletenessReport
from platform_assets.domain.digests import digest_of
from platform_assets.domain.freshness import DueReport, DueState
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.waiver import Waiver

WAIVER_NOTICE = timedelta(hours=24)
"""How long before its end a waiver that is in use is named."""

MOST_REASONS = 1500
"""Characters of reasons in one text: a receiver has to be able to take it."""


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
    WAIVER = "waiver"
    """A waiver that is in use ends soon, or has ended."""
    MISPLACED = "misplaced"
    """Something was delivered to a folder that no source reads."""
    DRIFT = "drift"
    """An alias of MLflow or the serving slot is not as the ledger says."""
    ROLLED_BACK = "rolled_back"
    """A champion was rolled back from without a person; its version is held."""
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
        refusals: of live days.
        used: the waivers that partitions which were built rest on, and that still count.
        misplaced: folders of the landing zone that no source reads, each with what is expected.
        worded: alerts that others have put into words: of drift, of roll backs.
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
    refusals: tuple[Refusal, ...] = ()
    restatements: tuple[Restated, ...] = ()
    used: tuple[Waiver, ...] = ()
    failed: tuple[Failed, ...] = ()
    misplaced: tuple[str, ...] = ()
    worded: tuple[Alert, ...] = ()


def wanted(found: Findings) -> tuple[Alert, ...]:
    """The alerts that should be open."""
    return (
        *_held(found),
        *_failed(found),
        *_refused(found),
        *_stale(found),
        *_restatements(found),
        *_waivers(found),
        *_misplaced(found),
        *found.worded,
    )


def decide(found: Findings, open_alerts: Sequence[OpenAlert]) -> Decision:
    """Which alerts to raise, to retell and to close.

    Args:
        found: what there is now.
        open_alerts: of the pipeline.
    """
    raised: list[Alert] = []
    retold: dict[int, Alert] = {}
    kept: set[int] = set()
    by_topic: dict[tuple[str, str], list[OpenAlert]] = {}
    for opened in open_alerts:
        by_topic.setdefault((opened.kind, opened.subject), []).append(opened)
    now = wanted(found)
    for alert in now:
        topic = by_topic.get((alert.kind, alert.subject), [])
        covering = [o for o in topic if set(alert.concerns) <= set(o.concerns)]
        if not covering:
            raised.append(alert)
            continue
        opened = max(covering, key=lambda o: (o.key == alert.key, o.number))
        kept.add(opened.number)
        # With its key: what it names no more is news when it comes back.
        if (opened.text, opened.advice, opened.key) != (alert.text, alert.advice, alert.key):
            retold[opened.number] = alert
    closed = {
        opened.number: _healed(found, opened, now)
        for opened in open_alerts
        if opened.number not in kept
    }
    return Decision(raised=tuple(raised), retold=retold, closed=closed)


def _healed(found: Findings, opened: OpenAlert, now: Sequence[Alert]) -> Alert | None:
    """What to say when an alert is over; nothing if it is only told in other words, or unknown."""
    text = ""
    if opened.kind == Kind.STALE:
        due = found.due.of(found.model)
        if due.state in (DueState.ON_TIME, DueState.LATE):
            text = f"{due.asset} {due.due} is there"
    elif opened.kind == Kind.FAILED:
        text = f"{opened.subject}: it was made, is being made again, or has other inputs now"
    elif opened.kind == Kind.DRIFT:
        text = f"{opened.subject}: it is as the ledger says"
    elif opened.kind == Kind.ROLLED_BACK:
        text = f"{opened.subject}: it is held no more"
    elif opened.kind == Kind.MISPLACED and not found.misplaced:
        text = f"{opened.subject}: every folder is one that is looked at"
    elif opened.kind in (Kind.HELD, Kind.LATE, Kind.QUARANTINED):
        day = date.fromisoformat(opened.subject.rsplit(" ", 1)[1])
        same = {Kind.HELD, Kind.LATE} if opened.kind != Kind.QUARANTINED else {Kind.QUARANTINED}
        told = any(a.kind in same and a.subject == opened.subject for a in now)
        # A quarantine is of a day that may not be over yet.
        live = day >= found.live_from and (day <= found.live_to or opened.kind == Kind.QUARANTINED)
        if live and not told:
            over = "no refused file is left" if opened.kind == Kind.QUARANTINED else "it is clear"
            text = f"{opened.subject}: {over}"
    if not text:
        return None
    since = opened.raised_at.astimezone(UTC)
    return Alert(
        pipeline=found.pipeline,
        kind=Kind.HEALED,
        subject=opened.subject,
        concerns=(str(opened.number),),
        text=f"{text}. It was {opened.kind} since {since:%Y-%m-%d %H:%M}Z: {opened.text}"[
            : MOST_REASONS * 2
        ],
        advice="nothing to do; what waited for it goes on by itself",
    )


def _by_date(partitions: Iterable[str]) -> dict[date, list[str]]:
    found: dict[date, list[str]] = {}
    for partition in partitions:
        found.setdefault(PartitionKey.parse(partition).date, []).append(partition)
    return found


def _key(partition: str) -> str:
    return PartitionKey.parse(partition).key or ""


def _keys(partitions: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_key(partition) for partition in partitions}))


def shortened(reasons: Iterable[str]) -> str:
    text = "; ".join(reasons)
    return text if len(text) <= MOST_REASONS else text[: MOST_REASONS - 2] + " …"


def _held(found: Findings) -> Iterable[Alert]:
    reports = {
        report.partition: report
        for report in found.reports
        if not report.is_clear
        and found.live_from <= PartitionKey.parse(report.partition).date <= found.live_to
    }
    for day, partitions in sorted(_by_date(reports).items()):
        overdue = any(s.overdue and not s.is_clear for p in partitions for s in reports[p].sources)
        first = sorted(partitions)[0]
        reasons = (f"{_key(p)}: {reports[p].reason()}" for p in sorted(partitions))
        state = "is over, past its deadline and held" if overdue else "is over and held"
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.LATE if overdue else Kind.HELD,
            subject=f"{found.features} {day}",
            concerns=_keys(partitions),
            text=f"{found.features} {day} {state} for {', '.join(_keys(partitions))}: "
            f"{shortened(reasons)}",
            advice="have the missing hours delivered, the rest goes on by itself; "
            f'`signalbox explain {found.features} "{first}"` says what is missing'
            + (f", `{_waive(found, first)}` lets it leave without" if overdue else ""),
        )


def _failed(found: Findings) -> Iterable[Alert]:
    for failure in found.failed:
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.FAILED,
            subject=f"{failure.asset} {failure.partition}",
            text=f"{failure.asset} {failure.partition}: {failure.said}"[: MOST_REASONS * 2],
            advice=f"see run {failure.run_id} in Dagster, mend its cause, then re-execute it "
            f"there, or materialize {failure.asset} for {failure.partition}; "
            f'`signalbox explain {failure.asset} "{failure.partition}"` tells its story',
        )


def _refused(found: Findings) -> Iterable[Alert]:
    days: dict[date, list[Refusal]] = {}
    for refusal in found.refusals:
        if refusal.day >= found.live_from:
            days.setdefault(refusal.day, []).append(refusal)
    for day, refusals in sorted(days.items()):
        refusals.sort(key=lambda r: (r.key, r.path))
        keys = tuple(sorted({r.key for r in refusals}))
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.QUARANTINED,
            subject=f"{found.features} {day}",
            concerns=keys,
            text=f"{len(refusals)} delivered file(s) of {day} are quarantined for "
            f"{', '.join(keys)}: {shortened(f'{r.path}: {r.reason}' for r in refusals)}",
            advice="have them delivered again as they should be, the rest goes on by itself; "
            f"`signalbox quarantine --pipeline {found.pipeline}` lists them, "
            f'`signalbox explain {found.features} "{keys[0]}|{day}"` says what else is missing',
        )


def _stale(found: Findings) -> Iterable[Alert]:
    due = found.due.of(found.model)
    if due.state is DueState.STALE:
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.STALE,
            subject=f"{found.model} {due.due}",
            text=due.describe(found.due.timezone)[: MOST_REASONS * 2],
            advice=f"`signalbox explain {found.model} {due.due}` says what it waits for",
        )


def _restatements(found: Findings) -> Iterable[Alert]:
    restated = {r.partition: r for r in found.restatements}
    for day, partitions in sorted(_by_date(restated).items()):
        first = sorted(partitions)[0]
        reasons = (f"{_key(p)}: {restated[p].reason}" for p in sorted(partitions))
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.RESTATEMENT,
            subject=f"{found.features} {day}",
            concerns=_keys(partitions),
            text=f"hours of {day} have changed after they were used, for "
            f"{', '.join(_keys(partitions))}: {shortened(reasons)}",
            advice=f"look at `signalbox restatements --pipeline {found.pipeline}`, then let it be "
            f'built again: `signalbox restate "{first}" --by YOU --pipeline {found.pipeline}`',
        )


def _misplaced(found: Findings) -> Iterable[Alert]:
    if found.misplaced:
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.MISPLACED,
            subject=f"{found.pipeline}/landing",
            concerns=tuple(sorted(digest_of(place)[:8] for place in found.misplaced)),
            text=f"{len(found.misplaced)} folder(s) of the landing zone of {found.pipeline} are "
            f"not looked at: {shortened(found.misplaced)}",
            advice="have what lies there delivered where it belongs, and remove the folder, or let "
            f"its name start with a dot; `signalbox quarantine --pipeline {found.pipeline}` lists "
            "them",
        )


def _waive(found: Findings, partition: str) -> str:
    return (
        f'signalbox waive "{partition}" --reason WHY --by YOU --until DATE '
        f"--pipeline {found.pipeline}"
    )


def _waivers(found: Findings) -> Iterable[Alert]:
    for waiver in found.used:
        state = waiver.state(found.as_of)
        if state == "revoked" or (state == "active" and waiver.until - found.as_of > WAIVER_NOTICE):
            continue
        what = (
            "expires soon, then the partition is held again"
            if state == "active"
            else "has expired, the partition is held again"
        )
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.WAIVER,
            subject=f"{found.features} {waiver.partition}",
            concerns=(waiver.name, "expires" if state == "active" else "expired"),
            text=f"{found.features} {waiver.partition} rests on waiver {waiver.describe()}; "
            f"it {what}",
            advice="have the missing hours delivered, or give a new waiver: "
            f"`{_waive(found, waiver.partition)}`",
        )


def next_attempt(attempts: int, now: datetime, wanted_seconds: float | None = None) -> datetime:
    """When to try again after so many failed attempts: 30 s, doubled up to 15 minutes.

    Args:
        attempts: that failed, this one included.
        now: on the machine's clock.
        wanted_seconds: that the receiver asked to be left alone for; an hour at the most.
    """
    backoff = min(30.0 * 2 ** min(attempts - 1, 10), 900.0)
    return now + timedelta(seconds=max(backoff, min(wanted_seconds or 0.0, 3600.0)))
