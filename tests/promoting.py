"""Verdicts and promotions for tests that need a champion and not a gate."""

from datetime import UTC, date, datetime
from typing import Any

from resources.ledger import Ledger
from resources.ledger.promotions import AliasState, EvaluationRecord, PromotionRecord

MODEL = "flight-delay"
NOON = datetime(2013, 1, 5, 12, tzinfo=UTC)


def verdict(
    ledger: Ledger, candidate: int, champion: int | None, *, passed: bool = True, **changes: Any
) -> EvaluationRecord:
    """Record a verdict on a pair."""
    fields: dict[str, Any] = {
        "pipeline": "flights",
        "model": MODEL,
        "candidate": candidate,
        "champion": champion,
        "judged_date": date(2013, 1, 4),
        "rows_digest": "ab" * 32,
        "passed": passed,
        "report": {"reason": "it is better" if passed else "it is worse"},
        "recorded_at": NOON,
        "run_id": "run",
    }
    return ledger.record_evaluation(EvaluationRecord(**(fields | changes)))


def promoted(
    ledger: Ledger,
    version: int,
    expected: AliasState | None,
    *,
    evaluation_id: int | None = None,
    **changes: Any,
) -> PromotionRecord:
    """Promote a version; by a verdict on the very pair, unless another is named."""
    if evaluation_id is None:
        evaluation_id = verdict(ledger, version, expected.version if expected else None).id
    fields: dict[str, Any] = {
        "model_date": date(2013, 1, 4),
        "reason": "it was better",
        "by": "ann",
        "run_id": "run",
        "at": NOON,
    }
    return ledger.promote(
        "flights",
        MODEL,
        version,
        expected=expected,
        evaluation_id=evaluation_id,
        **(fields | changes),
    )


def crowned(ledger: Ledger, version: int, **changes: Any) -> PromotionRecord:
    """Promote a version over whatever is champion now."""
    return promoted(ledger, version, ledger.alias_state(MODEL), **changes)
