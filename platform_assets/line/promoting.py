"""Promotion and roll back by a person's hand: the same verdicts, the same compare-and-swap."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lease import Lease
from platform_assets.line import environments
from platform_assets.line.clearance import lapsed, rests_on
from platform_assets.line.crowning import promote, shown, stand_in, standing
from platform_assets.line.gating import (
    known_verdict,
    registered,
    require_registered,
    verdict_on,
    version_of,
)
from platform_assets.line.services import Services
from platform_assets.line.waive import said
from resources.ledger.promotions import CHAMPION, PromotionRecord
from resources.ledger.records import VersionRecord

BY_HAND = "by hand"
"""In place of a run's id."""

WAIT_SECONDS = 60.0
"""How long a person waits for a run that decides about the champion, before it is named."""


def promote_version(
    services: Services,
    version: int,
    *,
    by: str,
    reason: str = "",
    evaluate: bool = False,
    run_id: str = BY_HAND,
) -> PromotionRecord:
    """Make a version champion, by a verdict of the gate on it against the one in force.

    Where that one counts as absent, the verdict is a comparison with the best of the other
    candidates; only where there is none is the version compared with nobody. Under the lease of
    the asset `champion`: who sleeps through it has lost, whatever the champion is by then.

    Args:
        reason: beside the verdict's own; may be empty.
        evaluate: make a verdict first, whether or not there is one.

    Raises:
        UsageError: no such version, or nobody answers for it.
        RefusedError: there is no verdict on exactly this pair, or it did not pass; the version is
            archived, held, or champion already.
        HeldError: the days that both would be judged on are not whole.
        PromotionConflictError: somebody else changed the champion meanwhile.
        LeaseTakenError: a run that decides about the champion was waited for in vain.
        LeaseLostError: this one was taken for dead meanwhile.
    """
    who = said("name of who promotes", by, "a promotion")
    candidate = require_registered(services, version)
    require_there(services, version)
    # In the order of `decide_champion`, so that nobody has the one and waits for the other.
    with (
        services.claim(services.spec.asset(CHAMPION), None, run_id, wait=WAIT_SECONDS) as lease,
        services.ledger.turn(services.spec.model.name),
    ):
        return _promote(
            services, candidate, who, reason, evaluate=evaluate, run_id=run_id, lease=lease
        )


def _promote(
    services: Services,
    candidate: VersionRecord,
    who: str,
    reason: str,
    *,
    evaluate: bool,
    run_id: str,
    lease: Lease,
) -> PromotionRecord:
    spec, version = services.spec, version_of(candidate)
    found = standing(services)
    if found.version == version:
        raise RefusedError(
            f"{spec.model.name}: version {version} is champion already, nothing was changed"
        )
    if evaluate:
        compared = found.champion
        if found.absent:
            # That the champion does not count is no proof of anybody else.
            compared = stand_in(services, candidate, run_id)
        verdict = verdict_on(
            services,
            candidate,
            found.version,
            compared,
            run_id,
            absent=found.absent,
            again=True,
        )
    elif found.absent:
        raise RefusedError(
            f"{spec.model.name}: {found.absent}; version {version} has to be compared with the "
            f"best of the others: `signalbox promote {spec.pipeline} {version} --evaluate --by WHO`"
        )
    else:
        known = known_verdict(services, candidate, found.version, found.champion)
        if known is None:
            raise RefusedError(_no_verdict(services, version, found.version))
        verdict = known
    why = str(verdict.report["reason"])
    if not verdict.passed:
        raise RefusedError(f"{spec.model.name}: {why}; nothing was changed")
    more = said("reason", reason, "a promotion") if reason else ""
    told = f"{more} ({why})" if more else why
    return promote(
        services,
        candidate,
        found.state,
        verdict,
        by=who,
        run_id=run_id,
        reason=told,
        lease=lease,
    )


def _no_verdict(services: Services, version: int, against: int | None) -> str:
    model, pipeline = services.spec.model.name, services.spec.pipeline
    others = services.ledger.evaluations(model, version)
    listed = ", ".join(
        dict.fromkeys(f"champion {v.champion}" if v.champion else "no champion" for v in others)
    )
    known = f"there are verdicts on it against {listed} that do not count" if others else "none"
    now = f"champion {against}" if against is not None else "no champion"
    return (
        f"{model}: version {version} has no verdict against {now} on the present rows and terms "
        f"({known}); make one with `signalbox promote {pipeline} {version} --evaluate --by WHO`"
    )


def require_there(services: Services, version: int) -> None:
    """Refuse a version that MLflow's registry has no longer.

    Raises:
        RefusedError: it was deleted or archived.
    """
    gone = services.tracking.absence(services.spec.model.name, version)
    if gone:
        raise RefusedError(
            f"{services.spec.model.name}: version {version} {gone}; only one that is there can "
            "become champion, nothing was changed"
        )


def roll_back(
    services: Services,
    to: int | None,
    *,
    by: str,
    reason: str,
    hold_until: datetime | None = None,
    run_id: str = BY_HAND,
) -> PromotionRecord:
    """Make a version champion again that was before, and hold the present one.

    Args:
        to: the version; None: the one before the present one that may be.
        hold_until: until when the present one may not be promoted, on the pipeline's clock; None:
            until it is released.

    Raises:
        UsageError: no reason, or nobody answers for it.
        RefusedError: there is no such version that was champion, or it may not be any more.
        PromotionConflictError: somebody else changed the champion meanwhile.
        LeaseTakenError: a run that decides about the champion was waited for in vain.
        LeaseLostError: this one was taken for dead meanwhile.
    """
    who, why = (
        said("name of who rolls back", by, "a roll back"),
        said("reason", reason, "a roll back"),
    )
    with services.claim(services.spec.asset(CHAMPION), None, run_id, wait=WAIT_SECONDS) as lease:
        return _roll_back(services, to, who, why, hold_until, run_id, lease)


def _roll_back(
    services: Services,
    to: int | None,
    who: str,
    why: str,
    hold_until: datetime | None,
    run_id: str,
    lease: Lease,
) -> PromotionRecord:
    spec, ledger = services.spec, services.ledger
    state = ledger.alias_state(spec.model.name)
    if state is None:
        raise RefusedError(f"{spec.model.name} has no champion, there is nothing to roll back")
    history = ledger.promotions(spec.model.name)
    if to is None:
        to = last_before(services, history, state.version)
    elif to in {change.version for change in history} - {state.version}:
        # Whatever else is wrong with it the ledger says.
        gone = _unfit(services, to)
        if gone:
            raise RefusedError(
                f"{spec.model.name}: version {to} {gone}; roll back to another one, nothing was "
                "changed"
            )
    return ledger.roll_back(
        spec.pipeline,
        spec.model.name,
        to,
        expected=state,
        reason=why,
        by=who,
        run_id=run_id,
        at=services.clock.as_of(),
        hold_until=hold_until,
        lease=lease,
    )


def last_before(services: Services, history: list[PromotionRecord], present: int) -> int:
    """The version that was champion last before the present one, and may be again.

    Raises:
        RefusedError: there is none.
    """
    holds = services.ledger.holds(services.spec.model.name, services.clock.as_of())
    held = {hold.version: hold for hold in holds}
    problems = []
    for version in dict.fromkeys(change.previous for change in reversed(history)):
        if version is None or version == present:
            continue
        gone = f"is {held[version].describe()}" if version in held else _unfit(services, version)
        if not gone:
            return version
        problems.append(f"version {version} {gone}")
    listed = f" ({'; '.join(problems)})" if problems else ""
    raise RefusedError(
        f"{services.spec.model.name}: version {present} is champion and no other that was may be "
        f"again{listed}; nothing was changed"
    )


def _unfit(services: Services, version: int) -> str | None:
    """Why a version that was champion may not be again."""
    model = registered(services).get(version)
    if model is None:
        return "was not trained here"
    gone = lapsed(services, rests_on(services, model), expired=False)
    if gone:
        return f"rests on what no longer counts: {'; '.join(gone.values())}"
    absent = services.tracking.absence(services.spec.model.name, version)
    if absent or services.slot.kept(version, model.data_version) is not None:
        return absent
    try:
        with services.tracking.verified(
            services.spec.model.name, version, digest=model.data_version
        ):
            return None
    except RefusedError as error:
        return f"cannot be served: {error}"


def told(change: PromotionRecord) -> dict[str, Any]:
    """A change of the champion, for JSON."""
    return {
        "version": change.version,
        "previous": change.previous,
        "action": change.action,
        "change": change.counter,
        "by": change.by,
        "reason": change.reason,
        "evaluation": change.evaluation_id,
        "model_date": change.model_date.isoformat(),
        "run_id": change.run_id,
        "decided_at": change.decided_at.isoformat(),
    }


def document(services: Services) -> Mapping[str, Any]:
    """All that is known of a model's champions: in force, history, verdicts, holds, canaries."""
    spec, ledger = services.spec, services.ledger
    state = ledger.alias_state(spec.model.name)
    return {
        "pipeline": spec.pipeline,
        "model": spec.model.name,
        "champion": {"version": state.version, "change": state.counter} if state else None,
        "history": [told(change) for change in ledger.promotions(spec.model.name)],
        "evaluations": [
            {**shown(verdict), "judged_date": verdict.judged_date.isoformat()}
            for verdict in ledger.evaluations(spec.model.name)
        ],
        "holds": [
            {
                "hold": hold.id,
                "version": hold.version,
                "by": hold.by,
                "reason": hold.reason,
                "until": hold.until.isoformat() if hold.until else None,
            }
            for hold in ledger.holds(spec.model.name, services.clock.as_of())
        ],
        "canaries": [
            environments.told(canary, spec.environment.tolerance)
            for canary in services.environments.canaries(spec.model.name)
        ],
    }
