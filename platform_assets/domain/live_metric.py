"""Whether the champion does so badly on the days since that the one before has to come back."""

import math
from collections.abc import Sequence
from datetime import date

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.serving import RollbackTerms, is_better, is_past


class LiveScore(BaseModel):
    """Champion and predecessor on the very same rows of the days after a judged date.

    Attributes:
        rows: that both were scored on.
        champion, previous: value of the metric; None where it is not defined, or nobody is.
    """

    model_config = ConfigDict(frozen=True)

    date: date
    rows: int
    champion: float | None
    previous: float | None = None


class LiveVerdict(BaseModel):
    """What becomes of the champion, and why."""

    model_config = ConfigDict(frozen=True)

    past: bool
    """It is past its bound, whether or not anybody is there to take over."""
    roll_back: bool
    reason: str


def decide(
    terms: RollbackTerms,
    metric: str,
    champion: int,
    previous: int | None,
    scores: Sequence[LiveScore],
) -> LiveVerdict:
    """Roll back if the newest judged dates all lie past the bound, and the one before does better.

    A day on which the one before is as bad (a snow storm) says nothing against the champion. A
    value that is not defined proves nothing, and breaks the succession.

    Args:
        metric: name of what the scores are.
        previous: the version that would come back; None: there is none.
        scores: of dates that differ, in any order.
    """
    newest = sorted(scores, key=lambda s: s.date)[-terms.days :]
    if len(newest) < terms.days:
        return _stays(
            f"version {champion} has been judged on {len(newest)} later date(s), "
            f"{terms.days} are needed"
        )
    told = "; ".join(_told(score) for score in newest)
    good = [s for s in newest if not _is_past(metric, s.champion, terms.bound)]
    if good:
        return _stays(
            f"version {champion} has {metric} within its bound {terms.bound:g} on {good[-1].date} "
            f"({told})"
        )
    since = f"version {champion} has {metric} past its bound {terms.bound:g} ({told})"
    if previous is None:
        return _stays(f"{since}, and no version that was champion before may come back", past=True)
    for score in newest:
        if not _is_better(metric, score.previous, score.champion):
            return _stays(
                f"{since}, and version {previous} did no better on {score.date}", past=True
            )
    return LiveVerdict(
        past=True, roll_back=True, reason=f"{since}, version {previous} did better each time"
    )


def _stays(reason: str, *, past: bool = False) -> LiveVerdict:
    return LiveVerdict(past=past, roll_back=False, reason=reason)


def _is_past(metric: str, value: float | None, bound: float) -> bool:
    return value is not None and math.isfinite(value) and is_past(metric, value, bound)


def _is_better(metric: str, value: float | None, other: float | None) -> bool:
    if value is None or other is None or not math.isfinite(value):
        return False
    return is_better(metric, value, other)


def _told(score: LiveScore) -> str:
    mine, theirs = (
        "none" if value is None else f"{value:.4f}" for value in (score.champion, score.previous)
    )
    return f"{score.date}: {mine}, before {theirs}, {score.rows} rows"
