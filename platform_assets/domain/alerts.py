"""Alerts: what a person should know, said once, and once more when it is over.

One alert a kind and date, with its keys listed, however many hours or files it is about. It is
raised again only when a key joins that it did not name, or when the same thing comes back.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

from platform_assets.domain.alert import Alert, Decision, Findings, Kind, OpenAlert, Refusal
from platform_assets.domain.digests import digest_of
from platform_assets.domain.freshness import DueState
from platform_assets.domain.partition import PartitionKey

WAIVER_NOTICE = timedelta(hours=24)
"""How long before its end a waiver that is in use is named."""

MOST_REASONS = 1500
"""Characters of reasons in one text: a receiver has to be able to take it."""


def wanted(found: Findings) -> tuple[Alert, ...]:
    """The alerts that should be open."""
    return (
        *_held(found),
        *_failed(found),
        *_refused(found),
        *_stale(found),
        *_restatements(found),
        *_blocked(found),
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
    elif opened.kind == Kind.PAST_BOUND:
        text = f"{opened.subject}: it is within its bound, or not champion any more"
    elif opened.kind == Kind.STRAGGLER:
        text = f"{opened.subject}: a later training had no rank that was slow"
    elif opened.kind == Kind.BLOCKED:
        if not any(a.kind == opened.kind and a.subject == opened.subject for a in now):
            text = f"{opened.subject}: what was held is not any more, or has other hours now"
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
        if (not report.is_clear or report.partition in found.unfit)
        and found.live_from <= PartitionKey.parse(report.partition).date <= found.live_to
    }
    for day, partitions in sorted(_by_date(reports).items()):
        overdue = any(s.overdue and not s.is_clear for p in partitions for s in reports[p].sources)
        lacking = sorted(p for p in partitions if not reports[p].is_clear)
        unfit = sorted(set(partitions) - set(lacking))
        first = [*lacking, *unfit][0]
        reasons = (
            f"{_key(p)}: {found.unfit[p] if p in unfit else reports[p].reason()}"
            for p in sorted(partitions)
        )
        advice = [
            *(["have the missing hours delivered, the rest goes on by itself"] if lacking else []),
            *([_mend(unfit)] if unfit else []),
            f'`signalbox explain {found.features} "{first}"` says what is '
            + ("missing" if lacking else "wrong")
            + (f", `{_waive(found, first)}` lets it leave without" if overdue else ""),
        ]
        state = "is over, past its deadline and held" if overdue else "is over and held"
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.LATE if overdue else Kind.HELD,
            subject=f"{found.features} {day}",
            concerns=_keys(partitions),
            text=f"{found.features} {day} {state} for {', '.join(_keys(partitions))}: "
            f"{shortened(reasons)}",
            advice="; ".join(advice),
        )


def _mend(unfit: Iterable[str]) -> str:
    return (
        f"a run refused the rows of {', '.join(_keys(unfit))}: have the files delivered again as "
        "they should be, or correct the catalog's rules"
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


def _blocked(found: Findings) -> Iterable[Alert]:
    blocked = {b.partition: b.why for b in found.blocked}
    for day, partitions in sorted(_by_date(blocked).items()):
        first = sorted(partitions)[0]
        reasons = (
            f"{_key(p)}: {job} is held: {why}"
            for p in sorted(partitions)
            for job, why in sorted(blocked[p].items())
        )
        yield Alert(
            pipeline=found.pipeline,
            kind=Kind.BLOCKED,
            subject=f"{found.features} {day}",
            concerns=_keys(partitions),
            text=f"hours of {day} have changed after they were used, and cannot be restated, for "
            f"{', '.join(_keys(partitions))}: {shortened(reasons)}",
            advice="have the missing hours of what is held delivered, or let it leave without: "
            "`signalbox waive`; the rest goes on by itself; "
            f"`signalbox restatements --pipeline {found.pipeline}` says how far it is, "
            f'`signalbox explain {found.features} "{first}"` tells its story',
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


MOST_WAIT = timedelta(hours=1)
"""No attempt is put off for longer, whatever the receiver asks for."""


def next_attempt(attempts: int, now: datetime, wanted_seconds: float | None = None) -> datetime:
    """When to try again after so many failed attempts: 30 s, doubled up to 15 minutes.

    Args:
        attempts: that failed, this one included.
        now: on the machine's clock.
        wanted_seconds: that the receiver asked to be left alone for; an hour at the most.
    """
    backoff = min(30.0 * 2 ** min(attempts - 1, 10), 900.0)
    return now + timedelta(
        seconds=max(backoff, min(wanted_seconds or 0.0, MOST_WAIT.total_seconds()))
    )
