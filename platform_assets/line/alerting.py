"""Alerts of a pipeline: found, written down once each, and delivered from there."""

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from platform_assets.domain.alert import Blocked, Failed, Findings, Refusal, Restated
from platform_assets.domain.alerts import decide, next_attempt
from platform_assets.domain.attention import recent_days
from platform_assets.domain.completeness import CLEAR, CompletenessReport
from platform_assets.domain.partition import PartitionKey, date_range, local_date, runs_of
from platform_assets.domain.waiver import Waiver
from platform_assets.line.clearance import assess_range, recorded_report, refresh, refused
from platform_assets.line.days import built_and_lapsed
from platform_assets.line.due import read_due
from platform_assets.line.late import may_go
from platform_assets.line.launching import asset_of, describe, open_failures
from platform_assets.line.past_bound import past_bound_alerts
from platform_assets.line.projection import alert_record, serving_alerts
from platform_assets.line.services import Services
from platform_assets.line.straggling import straggler_alerts
from platform_assets.line.unscored import unscored_alerts
from resources.ledger.alerts import LOGGED_ONLY
from resources.ledger.records import AlertRecord
from resources.webhook import URL_VARIABLE, Webhook, alert_id, payload

GRACE = timedelta(hours=1)
"""On the wall clock the last hour's file takes its time: so long a day that is over is not held."""

MOST_DELIVERED = 20
MOST_DUE = 100
TICK_SECONDS = 6.0
"""What one delivery does at the most; one POST may begin within and end `SECONDS` after."""

CLAIM = timedelta(seconds=60)
"""An alert whose delivery began and of which no more was heard is tried again after this."""


def update(
    services: Services, tell: Callable[[AlertRecord], None] = lambda _: None
) -> list[AlertRecord]:
    """Raise what is new, close what is over; `tell` hears of each alert, twice if we die there."""
    spec, alerts = services.spec, services.alerts
    as_of = services.clock.as_of()
    decision = decide(gather(services), alerts.opened(spec.pipeline))
    # Raised before the old one is closed: what dies in between is made up for by the next look.
    if decision.raised:
        alerts.raise_all([alert_record(alert, as_of) for alert in decision.raised])
    if decision.retold:
        alerts.retell({n: (a.text, a.advice, a.key) for n, a in decision.retold.items()})
    if decision.closed:
        last_words = {
            number: alert_record(alert, as_of) if alert else None
            for number, alert in decision.closed.items()
        }
        alerts.settle(last_words, as_of)
    # Also what somebody raised who died before it was told.
    untold = alerts.untold(spec.pipeline)
    for record in untold:
        tell(record)
    alerts.told([record.number for record in untold], datetime.now(UTC))
    return untold


def log_line(record: AlertRecord) -> str:
    """An alert on one line."""
    return f"{record.kind} {record.subject}: {record.text}. What to do: {record.advice}"


def gather(services: Services) -> Findings:
    """Look at the live days that are over, and at what else a person has to know."""
    spec, as_of = services.spec, services.clock.as_of()
    first = max(spec.schedule.live_from, spec.partitions.start)
    last = _last_over(services, as_of)
    unbuilt = _unbuilt(services, first, last)
    restatements = services.restatements.all(spec.pipeline, only_open=True)
    return Findings(
        pipeline=spec.pipeline,
        features=spec.asset("features"),
        model=spec.asset("model"),
        as_of=as_of,
        live_from=first,
        live_to=last,
        reports=tuple(unbuilt),
        unfit=refused(services, unbuilt),
        due=read_due(services, ["model"]),
        refusals=tuple(_refusals(services)),
        restatements=tuple(
            Restated(partition=r.partition, reason=r.reason)
            for r in restatements
            if r.state == "open" and r.decision == "list"
        ),
        blocked=tuple(
            Blocked(partition=r.partition, why=r.changes["blocked"])
            for r in restatements
            if may_go(r) and r.changes.get("blocked")
        ),
        used=tuple(_used(services, as_of)),
        failed=tuple(
            Failed(
                asset=asset_of(services, record),
                partition=record.partition,
                run_id=record.run_id,
                said=describe(record),
            )
            for record in open_failures(services)
            if record.step != "wait"
        ),
        misplaced=tuple(services.zone.misplaced.known()),
        worded=(
            *serving_alerts(services),
            *unscored_alerts(services),
            *past_bound_alerts(services),
            *straggler_alerts(services),
        ),
    )


def _last_over(services: Services, as_of: datetime) -> date:
    """The last date that is over; on the wall clock since a while."""
    spec = services.spec
    grace = GRACE if spec.schedule.clock == "wall" else timedelta(0)
    today = local_date(as_of - grace, spec.partitions.timezone)
    return min(today - timedelta(days=1), spec.partitions.end)


def _unbuilt(services: Services, first: date, last: date) -> list[CompletenessReport]:
    """The reports of live days' partitions that have not been built, or may not be read.

    The recent days are looked at; of older ones what is held stands in the ledger: what this costs
    must not grow with the days that are clear.
    """
    spec = services.spec
    recent = max(first, last - timedelta(days=recent_days(spec) - 1))
    asset = spec.asset("features")
    older = {
        name: record
        for name, record in services.ledger.verdicts_but(spec.pipeline, asset, CLEAR).items()
        if first <= PartitionKey.parse(name).date < recent
    }
    reports = {
        name: recorded_report(record)
        for name, record in sorted(older.items(), key=lambda item: PartitionKey.parse(item[0]))
    }
    days = date_range(recent, last)
    wanted = [*reports, *(key for day in days for key in spec.keys_of(day))]
    built = built_and_lapsed(services, services.ledger.current_versions(asset, wanted))[0]
    waiting = [day for day in days if not built.keys() >= set(spec.keys_of(day))]
    for start, end in runs_of(waiting):
        refresh(services, start, end)
        reports |= {str(key): r for key, r in sorted(assess_range(services, start, end).items())}
    return [report for name, report in reports.items() if name not in built]


def _refusals(services: Services) -> list[Refusal]:
    timezone = services.spec.partitions.timezone
    return [
        Refusal(day=local_date(r.hour, timezone), key=r.key, path=r.path, reason=r.reason)
        for r in services.quarantine.all(services.spec.pipeline, only_open=True)
    ]


def _used(services: Services, as_of: datetime) -> list[Waiver]:
    """The waivers of built partitions that a training to come would read."""
    spec = services.spec
    last = min(local_date(as_of, spec.partitions.timezone), spec.partitions.end)
    days = date_range(last - timedelta(days=spec.model.window_days), last)
    keys = [key for day in days for key in spec.keys_of(day)]
    records = services.ledger.current_versions(spec.asset("features"), keys)
    names = {name for record in records.values() for name in record.detail.get("waivers", ())}
    if not names:
        return []
    return [w for w in services.waivers.of(spec.pipeline) if w.name in names]


def deliver(services: Services, webhook: Webhook | None, now: datetime) -> tuple[int, str]:
    """Send what waits, in the order in which it came to be due, within bounded time.

    An alert never overtakes an earlier one on the same subject. Where there is no receiver, the
    log is all there is: alerts are marked so, and stay in `signalbox alerts`.

    Args:
        services: of the pipeline.
        webhook: the receiver.
        now: on the machine's clock.

    Returns:
        how many were taken, and what went wrong; empty if nothing did.
    """
    alerts, pipeline = services.alerts, services.spec.pipeline
    if webhook is None:
        alerts.logged_only(pipeline)
        return 0, ""
    until = time.monotonic() + TICK_SECONDS
    taken, tried, wrong = 0, 0, ""
    busy: set[int] = set()
    # One a subject at a time: delivered, it makes room for the next on the same.
    while found := [r for r in alerts.due(pipeline, now, MOST_DUE) if r.number not in busy]:
        for record in found:
            if tried >= MOST_DELIVERED or time.monotonic() >= until:
                return taken, wrong
            busy.add(record.number)
            if not alerts.claim(record, now + CLAIM):
                continue
            tried += 1
            answer = webhook.post(payload(record))
            if answer.taken:
                alerts.delivered(record.number, datetime.now(UTC))
                taken += 1
                continue
            wrong = answer.error
            again = next_attempt(record.attempts + 1, now, answer.retry_after)
            alerts.failed(record.number, answer.error, again)
            if answer.down:
                rest = [r.number for r in alerts.undelivered(pipeline) if r.number != record.number]
                alerts.postpone(rest, again, f"the receiver is down: {answer.error}")
                return taken, wrong
    return taken, wrong


def list_alerts(services: Services, *, every: bool = False) -> list[dict[str, Any]]:
    """The open alerts of a pipeline, or all there ever were, oldest first, as plain data."""
    return [
        {
            "id": alert_id(record),
            "kind": record.kind,
            "subject": record.subject,
            "raised_at": record.raised_at.isoformat(),
            "closed_at": record.closed_at and record.closed_at.isoformat(),
            "text": record.text,
            "advice": record.advice,
            "delivered_at": record.delivered_at and record.delivered_at.isoformat(),
            "attempts": record.attempts,
            "last_error": record.last_error,
            "next_attempt_at": None if record.delivered_at else record.next_attempt_at.isoformat(),
            "delivery": describe_delivery(record),
        }
        for record in services.alerts.all(services.spec.pipeline, only_open=not every)
    ]


def describe_delivery(record: AlertRecord) -> str:
    """Whether a receiver has an alert, in words."""
    if record.delivered_at is not None:
        return f"delivered {record.delivered_at:%Y-%m-%d %H:%M}Z"
    if record.last_error == LOGGED_ONLY:
        return LOGGED_ONLY
    if record.last_error is None:
        return "waits"
    tried = f"tried {record.attempts} time(s), " if record.attempts else ""
    return f"waits, {tried}next at {record.next_attempt_at:%H:%M:%S}Z: {record.last_error}"


def delivery_health(services: Services) -> tuple[bool, str]:
    """Whether every alert reaches the receiver, and in words how many are open and wait."""
    opened = len(services.alerts.all(services.spec.pipeline, only_open=True))
    waiting = services.alerts.undelivered(services.spec.pipeline)
    if Webhook.from_environment() is None:
        return True, f"{opened} open; {URL_VARIABLE} is not set, alerts are logged and listed only"
    failed = [record for record in waiting if record.attempts]
    text = f"{opened} open, {len(waiting)} wait for the receiver"
    return not failed, text + (f": {failed[-1].last_error}" if failed else "")
