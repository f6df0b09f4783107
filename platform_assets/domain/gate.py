"""The evaluation gate: whether a candidate is proven better than the champion, and does no harm.

Numbers come in, a report with reasons goes out. A candidate passes if every condition holds; what
cannot be told counts as not held. As good as the champion is not better: the incumbent stays.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from platform_assets.domain.environments import in_short
from platform_assets.domain.source_spec import Frozen, Name

_NUMBERS = ConfigDict(frozen=True, ser_json_inf_nan="strings")
"""JSON has no NaN: it is kept as text, which is read back as what it was."""


class GateTerms(Frozen):
    """What a candidate has to show; `evaluation.gate` of the catalog.

    Attributes:
        min_rows, min_blocks: of what both are judged on, at the least. A block is one day of one
            partition key: the rows of an airport's day share its weather and its queues, and are
            not independent of each other. That one of two equally good models is better in all of
            five blocks is chance three times in a hundred; in six, less than the interval allows.
        confidence: of the bootstrap interval of the difference.
        resamples, seed: of the bootstrap.
        min_improvement: of the deciding metric, which is the smaller the better: the interval's
            lower end has to lie above it.
        slices: columns, beside the partition key, in none of whose values the candidate may be
            worse by more than the margin.
        slice_min_rows: a slice with fewer rows is not looked at.
        slice_margin: of the champion's own loss in the slice, 0.1 is ten per cent.
        max_bias: how far the mean prediction may lie from the mean of what happened; of a
            regression in standard deviations of the target.
        max_ece: expected calibration error over ten equal bins; of a classification.
    """

    min_rows: int = Field(default=30, ge=1)
    min_blocks: int = Field(default=6, ge=2)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**31)
    min_improvement: float = Field(default=0.0, ge=0)
    slices: tuple[Name, ...] = ()
    slice_min_rows: int = Field(default=100, ge=1)
    slice_margin: float = Field(default=0.1, ge=0)
    max_bias: float = Field(default=0.25, gt=0)
    max_ece: float = Field(default=0.3, gt=0)


class JudgementSpec(Frozen):
    """A model of date D is judged on D+1 .. D+days."""

    days: int = Field(ge=1, le=60)
    ndcg_at: int = Field(default=50, ge=1)


class EvaluationSpec(JudgementSpec):
    """How a model is judged, and what it takes to become champion."""

    gate: GateTerms = GateTerms()

    @property
    def judgement(self) -> JudgementSpec:
        """What scores depend on: they stay what they are where the gate's terms change."""
        return JudgementSpec(days=self.days, ndcg_at=self.ndcg_at)


class Interval(BaseModel):
    """The champion's metric less the candidate's: above 0 the candidate is better."""

    model_config = _NUMBERS

    difference: float
    low: float
    high: float


class Calibration(BaseModel):
    """How far a model's predictions lie from what happened; None where it has no meaning."""

    model_config = _NUMBERS

    bias: float
    ece: float | None = None


class Scored(BaseModel):
    """One model on the rows that both are judged on.

    Attributes:
        metric: the deciding one's value; smaller is better.
        slices: its value by slice, `carrier=UA`.
    """

    model_config = _NUMBERS

    version: int
    metric: float
    calibration: Calibration
    slices: dict[str, float] = {}


class Evidence(BaseModel):
    """All that the gate looks at.

    Attributes:
        metric: name of the deciding one.
        against: the version in force, whether or not it is compared with.
        champion: its scores; None where there is none, or it counts as absent.
        absent: why it does.
        slice_rows: by slice.
        unexplained: what is wrong with the data that the candidate rests on or is judged on.
        held: why the version may not be promoted.
        environment: what has changed in it since the champion was trained, in words.
        unproven: why the candidate may not be promoted because of that.
    """

    model_config = _NUMBERS

    metric: str
    rows: int
    blocks: int
    against: int | None
    candidate: Scored
    champion: Scored | None
    absent: str = ""
    interval: Interval | None = None
    slice_rows: dict[str, int] = {}
    unexplained: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()


class Condition(BaseModel):
    """One thing that the gate asks, and what it found."""

    model_config = ConfigDict(frozen=True)

    name: Literal["sample", "improvement", "slices", "calibration", "data", "hold", "environment"]
    passed: bool
    found: str
    allowed: str
    reason: str = ""


class GateReport(BaseModel):
    """The verdict on one candidate against one champion."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    reason: str
    candidate: int
    champion: int | None
    conditions: tuple[Condition, ...]
    evidence: Evidence
    terms: GateTerms

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the conditions that do not hold."""
        return tuple(c.name for c in self.conditions if not c.passed)


def judge(evidence: Evidence, terms: GateTerms) -> GateReport:
    """Decide on a candidate."""
    conditions = (
        _sample(evidence, terms),
        _improvement(evidence, terms),
        _slices(evidence, terms),
        _calibration(evidence, terms),
        _listed("data", evidence.unexplained, "nothing unexplained"),
        _listed("hold", evidence.held, "no hold"),
        _environment(evidence),
    )
    return GateReport(
        passed=all(condition.passed for condition in conditions),
        reason=_reason(evidence, conditions),
        candidate=evidence.candidate.version,
        champion=evidence.against,
        conditions=conditions,
        evidence=evidence,
        terms=terms,
    )


def _reason(evidence: Evidence, conditions: Sequence[Condition]) -> str:
    mine = evidence.candidate
    failed = [condition for condition in conditions if not condition.passed]
    if failed:
        why = "; ".join(f"{c.name}: {c.reason}" for c in failed)
        stays = "" if evidence.against is None else f", version {evidence.against} stays champion"
        return f"version {mine.version} is refused{stays} ({why})"
    found = f"{evidence.metric} {mine.metric:.4f} on {evidence.rows} rows"
    if evidence.champion is None:
        why = evidence.absent or "there is no champion"
        return f"version {mine.version} has {found}, compared with none: {why}"
    assert evidence.interval is not None
    return (
        f"version {mine.version} has {found}, version {evidence.champion.version} has "
        f"{evidence.champion.metric:.4f}: better by {_ends(evidence.interval)}"
    )


def _ends(interval: Interval) -> str:
    return f"{interval.difference:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _sample(evidence: Evidence, terms: GateTerms) -> Condition:
    # One model alone is not compared: blocks are for the interval.
    blocks = terms.min_blocks if evidence.champion is not None else 1
    passed = evidence.rows >= terms.min_rows and evidence.blocks >= blocks
    found = f"{evidence.rows} rows in {evidence.blocks} blocks"
    allowed = f"{terms.min_rows} rows in {blocks} blocks, or more"
    return Condition(
        name="sample",
        passed=passed,
        found=found,
        allowed=allowed,
        reason=""
        if passed
        else f"{found} are too few to tell, it takes {allowed}: raise evaluation.days",
    )


def _improvement(evidence: Evidence, terms: GateTerms) -> Condition:
    mine, theirs, interval = evidence.candidate, evidence.champion, evidence.interval
    allowed = f"proven better by more than {terms.min_improvement:g}"
    if not math.isfinite(mine.metric):
        return Condition(
            name="improvement",
            passed=False,
            found=f"no {evidence.metric}",
            allowed=allowed,
            reason=f"the rows define no {evidence.metric} of it",
        )
    if theirs is None:
        return Condition(
            name="improvement",
            passed=True,
            found=f"{evidence.metric} {mine.metric:.4f}, compared with none",
            allowed=allowed,
        )
    if interval is None or not all(map(math.isfinite, (interval.low, interval.high))):
        return Condition(
            name="improvement",
            passed=False,
            found="no interval",
            allowed=allowed,
            reason=f"the difference from version {theirs.version} cannot be told",
        )
    percent = f"{terms.confidence:.0%}"
    found = f"{evidence.metric} better by {_ends(interval)} at {percent}"
    passed = interval.low > terms.min_improvement
    if passed:
        why = ""
    elif interval.high < 0:
        why = (
            f"it is worse than version {theirs.version} by {_ends(_turned(interval))} at {percent}"
        )
    else:
        why = (
            f"it is not proven better than version {theirs.version}: the difference of "
            f"{evidence.metric} lies between {interval.low:.4f} and {interval.high:.4f} at "
            f"{percent}, it has to lie above {terms.min_improvement:g}"
        )
    return Condition(name="improvement", passed=passed, found=found, allowed=allowed, reason=why)


def _turned(interval: Interval) -> Interval:
    return Interval(difference=-interval.difference, low=-interval.high, high=-interval.low)


def _slices(evidence: Evidence, terms: GateTerms) -> Condition:
    theirs = evidence.champion
    margin = f"{terms.slice_margin:.0%}"
    allowed = f"no slice of {terms.slice_min_rows} rows or more worse by over {margin}"
    if theirs is None:
        found = "nothing to compare with"
        return Condition(name="slices", passed=True, found=found, allowed=allowed)
    large = [s for s, rows in evidence.slice_rows.items() if rows >= terms.slice_min_rows]
    worse = list(_worse(evidence.candidate, theirs, large, terms.slice_margin))
    return Condition(
        name="slices",
        passed=not worse,
        found=f"{len(worse)} of {len(large)} slices worse by over {margin}",
        allowed=allowed,
        reason="; ".join(worse),
    )


def _worse(mine: Scored, theirs: Scored, slices: Sequence[str], margin: float) -> Iterator[str]:
    for name in slices:
        found, bound = mine.slices.get(name, math.nan), theirs.slices.get(name, math.nan)
        # Written so that what is not a number is worse.
        if not found <= bound * (1 + margin):
            yield f"{name} has {found:.4f}, version {theirs.version} has {bound:.4f}"


def _calibration(evidence: Evidence, terms: GateTerms) -> Condition:
    """Within the bound, or no worse than the champion: a bad day for both is nobody's fault."""
    mine = evidence.candidate.calibration
    theirs = evidence.champion.calibration if evidence.champion else None
    asked = [("bias", abs(mine.bias), terms.max_bias, abs(theirs.bias) if theirs else None)]
    if mine.ece is not None:
        asked.append(("ECE", mine.ece, terms.max_ece, theirs.ece if theirs else None))
    off = []
    for name, found, bound, other in asked:
        # Written so that what is not a number is off.
        if not found <= max(bound, other if other is not None else bound):
            off.append(f"{name} is {found:.3f}, allowed is {bound:g}")
    return Condition(
        name="calibration",
        passed=not off,
        found=", ".join(f"{name} {found:.3f}" for name, found, _, _ in asked),
        allowed=", ".join(f"{name} {bound:g}" for name, _, bound, _ in asked)
        + (", or no worse than the champion" if theirs else ""),
        reason="; ".join(off),
    )


def _environment(evidence: Evidence) -> Condition:
    return Condition(
        name="environment",
        passed=not evidence.unproven,
        found=in_short(evidence.environment) or "nothing has changed",
        allowed="no change, one that only warns, or one that a canary has shown to be none",
        reason="; ".join(evidence.unproven),
    )


def _listed(name: Literal["data", "hold"], problems: Sequence[str], allowed: str) -> Condition:
    return Condition(
        name=name,
        passed=not problems,
        found=f"{len(problems)} problem(s)" if problems else allowed,
        allowed=allowed,
        reason="; ".join(problems),
    )
