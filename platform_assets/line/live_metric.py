"""The champion on the days since: scored as they are judged, rolled back from past its bound."""

from datetime import date, timedelta

from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.lease import Lease
from platform_assets.domain.live_metric import LiveScore, LiveVerdict, decide
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import date_range, local_date
from platform_assets.domain.serving import RollbackTerms
from platform_assets.line import past_bound, unscored
from platform_assets.line.clearance import lapsed
from platform_assets.line.days import without_verdict
from platform_assets.line.judging import JudgedRows, score_on
from platform_assets.line.projection import LIVE_METRIC, projected
from platform_assets.line.promoting import last_before
from platform_assets.line.services import Services
from resources.ledger.promotions import CHAMPION, AliasState, PromotionRecord
from resources.ledger.records import VersionRecord

MOST_GAP_DAYS = 14
"""Judged dates are looked for among so many more than are needed: days may be held."""


def due_key(services: Services) -> str | None:
    """Names what the champion in force is to be scored on; None: nothing yet.

    Another champion, another judged date, or other rows of one give another key.
    """
    state = services.ledger.alias_state(services.spec.model.name)
    if state is None:
        return None
    rows, _ = _live_rows(services, _history(services))
    if not rows:
        return None
    digest = digest_of([[str(r.date), r.digest] for r in rows])
    return f"{services.spec.pipeline}/live_metric/{state.counter}/{rows[-1].date}/{digest[:12]}"


def watch_champion(
    services: Services, run_id: str
) -> tuple[LiveVerdict | None, PromotionRecord | None]:
    """Score the champion and the one before on the newest judged dates; roll back past the bound.

    Returns:
        the verdict, None where there is nothing to judge; and the roll back, if there was one.

    Raises:
        PromotionConflictError: somebody else changed the champion meanwhile; nothing was changed.
        RefusedError: the files of one of the two are not those that were recorded.
        LeaseTakenError: another run decides about the champion for too long.
        LeaseLostError: this one was taken for dead meanwhile.
    """
    with services.claim(services.spec.asset(CHAMPION), None, run_id) as lease:
        found = _watch(services, run_id, lease)
    unscored.forget(services)
    return found


def _watch(
    services: Services, run_id: str, lease: Lease
) -> tuple[LiveVerdict | None, PromotionRecord | None]:
    spec, ledger = services.spec, services.ledger
    terms, state = spec.serving.rollback, ledger.alias_state(spec.model.name)
    if terms is None or state is None:
        return None, None
    history = _history(services)
    rows, left_out = _live_rows(services, history)
    champion = _record(services, history, state.version)
    if not (rows or left_out) or champion is None:
        return None, None
    to = _successor(services, history, state)
    before = _record(services, history, to) if to is not None else None
    metric = terms.metric_of(spec.model.kind)
    scores = []
    for judged in rows:
        mine = score_on(services, champion, judged)
        theirs = score_on(services, before, judged).metrics.get(metric) if before else None
        scores.append(
            LiveScore(
                date=judged.date,
                rows=mine.rows,
                champion=mine.metrics.get(metric),
                previous=theirs,
            )
        )
    verdict = decide(terms, metric, state.version, to, scores)
    if left_out:
        why = "; ".join(f"{day}: {reason}" for day, reason in left_out.items())
        verdict = verdict.model_copy(update={"reason": f"{verdict.reason}; left out are {why}"})
    if not verdict.roll_back or to is None:
        if verdict.past:
            past_bound.note(services, run_id, state.version, rows[-1].date, verdict.reason)
        else:
            past_bound.forget(services)
        return verdict, None
    change = ledger.roll_back(
        spec.pipeline,
        spec.model.name,
        to,
        expected=state,
        reason=verdict.reason,
        by=LIVE_METRIC,
        run_id=run_id,
        at=services.clock.as_of(),
        lease=lease,
    )
    late = projected(services)
    if late:
        services.tell(late)
    return verdict, change


def _history(services: Services) -> list[PromotionRecord]:
    return services.ledger.promotions(services.spec.model.name)


def _terms(services: Services) -> RollbackTerms:
    terms = services.spec.serving.rollback
    if terms is None:
        raise UsageError(
            f"pipeline {services.spec.pipeline} has no serving.rollback; declare metric, bound and "
            "days there"
        )
    return terms


def _live_rows(
    services: Services, history: list[PromotionRecord]
) -> tuple[list[JudgedRows], dict[str, str]]:
    """The rows of the newest dates judged since the champion's own, as many as are needed.

    Rows that may no longer be read prove nothing against anybody: a date that was judged on rows
    whose waiver has lapsed, or that the ledger has no verdict on, is left out.

    Returns:
        the rows, and by date why others that were looked at are left out.
    """
    spec, days = services.spec, _terms(services).days
    today = local_date(services.clock.as_of(), spec.partitions.timezone)
    last = min(today, spec.last_judged_date)
    since = max(history[-1].model_date, _evidence_until(services, history))
    first = max(since + timedelta(days=1), last - timedelta(days=days + MOST_GAP_DAYS))
    if first > last:
        return [], {}
    names = [day.isoformat() for day in date_range(first, last)]
    found = services.ledger.current_versions(spec.asset("evaluation"), names)
    judged = [
        JudgedRows(
            date.fromisoformat(name),
            tuple(PartitionVersion(**part) for part in record.detail["partitions"]),
        )
        for name, record in sorted(found.items())
    ]
    left_out = _left_out(services, judged)
    return [rows for rows in judged if str(rows.date) not in left_out][-days:], left_out


def _left_out(services: Services, judged: list[JudgedRows]) -> dict[str, str]:
    """Why dates may not be scored on, by date."""
    gone = lapsed(services, {name for rows in judged for name in rows.waivers})
    unknown = without_verdict(services, {p.partition for rows in judged for p in rows.partitions})
    found = {}
    for rows in judged:
        why = [gone[name] for name in rows.waivers if name in gone]
        lost = [p.partition for p in rows.partitions if p.partition in unknown]
        why += [f"{partition}: {unknown[partition]}" for partition in lost]
        if why:
            found[str(rows.date)] = "; ".join(why)
    return found


def _evidence_until(services: Services, history: list[PromotionRecord]) -> date:
    """The last judged date that was evidence against the one that was rolled back from.

    It does not count against the one that came back, who would else be rolled back from by the
    same storm. Holds are on the pipeline's clock; what a date is judged on ends `days` after it.
    """
    spec, newest = services.spec, history[-1]
    if newest.action != "rollback":
        return date.min
    holds = services.ledger.holds(spec.model.name, services.clock.as_of())
    since = [hold.since for hold in holds if hold.version == newest.previous]
    if not since:
        return date.min
    reached = local_date(max(since) - timedelta(microseconds=1), spec.partitions.timezone)
    return reached - timedelta(days=spec.evaluation.days)


def _successor(services: Services, history: list[PromotionRecord], state: AliasState) -> int | None:
    try:
        return last_before(services, history, state.version)
    except RefusedError:
        return None


def _record(
    services: Services, history: list[PromotionRecord], version: int
) -> VersionRecord | None:
    """The record of a version that was champion."""
    days = [change.model_date.isoformat() for change in history if change.version == version]
    for day in dict.fromkeys(reversed(days)):
        for record in reversed(services.ledger.history(services.spec.asset("model"), day)):
            if record.detail["model_version"] == version:
                return record
    return None
