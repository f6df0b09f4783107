"""A change of environment at a promotion: what the catalog asks for, and what a canary shows.

Pure: the environments, the canary's numbers and the terms come in, a decision with reasons goes
out. What cannot be told counts against the promotion.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from platform_assets.domain.environments import in_short
from platform_assets.domain.source_spec import Frozen


class EnvironmentTerms(Frozen):
    """What is done where a candidate was trained in another environment; catalog: `environment`.

    Attributes:
        on_change: `warn`: the asset check says so. `hold`: it is not promoted either, until a
            canary has trained the champion's own snapshot again in the new environment and has
            shown the same metrics.
        tolerance: by which a metric of the canary may differ from the recorded one, each in its
            own unit. The models may differ by more; how far is told.
    """

    on_change: Literal["warn", "hold"] = "warn"
    tolerance: float = Field(default=1e-6, ge=0, allow_inf_nan=False)


class Measure(BaseModel):
    """One metric as it was recorded and as the canary has it; None where it is not defined.

    Attributes:
        on: which rows.
    """

    model_config = ConfigDict(frozen=True)

    on: str
    metric: str
    recorded: float | None
    canary: float | None

    @property
    def difference(self) -> float:
        """How far apart; 0 where neither is defined, infinite where one alone is."""
        if self.recorded is None or self.canary is None:
            return 0.0 if self.recorded is self.canary else math.inf
        found = abs(self.canary - self.recorded)
        return math.inf if math.isnan(found) else found

    def __str__(self) -> str:
        said = ["not defined" if v is None else f"{v:.6g}" for v in (self.recorded, self.canary)]
        return f"{self.metric} {said[0]} -> {said[1]} on {self.on}"


class CanaryReport(BaseModel):
    """What came of the champion's own snapshot in the new environment.

    Attributes:
        identical: whether the model's files have the recorded digest.
        measures: what was compared.
        predictions: largest difference of a prediction from what the champion had said when it
            was trained; None where that was not recorded.
        changes: of the environment, in words.
        diverged: what beside the environment is not what it was: code.
        problem: why nothing could be compared; empty if it could.
    """

    model_config = ConfigDict(frozen=True)

    identical: bool
    measures: tuple[Measure, ...]
    predictions: float | None
    changes: tuple[str, ...]
    diverged: tuple[str, ...] = ()
    problem: str = ""

    @property
    def largest(self) -> float:
        """The largest difference of a metric; infinite where none could be compared."""
        return max((m.difference for m in self.measures), default=math.inf)

    def same(self, tolerance: float) -> bool:
        """Whether the metrics are the same."""
        # Written so that what is not a number is no proof; nor is a model without any metric.
        told = any(m.recorded is not None for m in self.measures)
        return not self.problem and told and self.largest <= tolerance

    def reason(self, tolerance: float) -> str:
        """The verdict as part of a sentence."""
        if self.problem:
            return f"nothing could be compared: {self.problem}"
        files = "the same files" if self.identical else "other files"
        if self.same(tolerance):
            said = "the same metrics" if self.largest == 0 else f"within {tolerance:g}"
            listed = "; ".join(map(str, self.measures[:2]))
            return f"it gave {files} and {said} ({listed})"
        off = [m for m in self.measures if not m.difference <= tolerance]
        listed = in_short([str(m) for m in off], 3) or "no metric is defined"
        why = f"; beside the environment differs {in_short(self.diverged, 2)}" * bool(self.diverged)
        return f"it gave {files} and other metrics than allowed is {tolerance:g} for: {listed}{why}"


class Crossing(StrEnum):
    """What a promotion finds of the environments of candidate and champion."""

    SAME = "same"
    WARNED = "changed"
    HELD = "held"
    SHOWN = "shown by a canary"


class EnvironmentVerdict(BaseModel):
    """Whether a candidate may be promoted, as far as the environment goes.

    Attributes:
        changes: in words, since the champion was trained.
        reason: as a sentence; empty where nothing has changed.
        canary: number of the one that counts.
    """

    model_config = ConfigDict(frozen=True)

    crossing: Crossing
    changes: tuple[str, ...] = ()
    reason: str = ""
    canary: int | None = None

    @property
    def free(self) -> bool:
        """Whether nothing keeps it from being promoted."""
        return self.crossing is not Crossing.HELD


def judge_environment(
    *,
    then: str,
    now: str,
    changed: Sequence[str],
    terms: EnvironmentTerms,
    champion: int | None,
    canary: tuple[int, CanaryReport] | None = None,
    pipeline: str = "PIPELINE",
) -> EnvironmentVerdict:
    """Decide on a candidate.

    Args:
        then: value of the champion's environment; empty where it was not recorded.
        now: of the candidate's.
        changed: differences in words, where both are known.
        champion: the version in force; None: there is none to compare with.
        canary: number and report of the newest one of this champion between these two.
    """
    if champion is None or (then == now and now):
        return EnvironmentVerdict(crossing=Crossing.SAME)
    words = tuple(changed)
    if not now:
        words = ("nobody has recorded what it was trained in",)
    elif not then:
        words = (f"nobody has recorded what champion {champion} was trained in",)
    said = f"it was trained in another environment than champion {champion}: {in_short(words)}"
    if terms.on_change == "warn":
        return EnvironmentVerdict(crossing=Crossing.WARNED, changes=words, reason=said)
    if not now:
        why = f"{words[0]}; train it again"
    elif canary is None:
        why = (
            f"{said}; no canary has trained its snapshot again in the new one: run `signalbox "
            f"canary {pipeline}` there, or the job {pipeline}_canary"
        )
    elif not canary[1].same(terms.tolerance):
        why = f"{said}; canary {canary[0]} is against it: {canary[1].reason(terms.tolerance)}"
    else:
        return EnvironmentVerdict(
            crossing=Crossing.SHOWN,
            changes=words,
            reason=f"{said}; by canary {canary[0]} {canary[1].reason(terms.tolerance)}",
            canary=canary[0],
        )
    number = canary[0] if canary else None
    return EnvironmentVerdict(crossing=Crossing.HELD, changes=words, reason=why, canary=number)


def measures(
    on: str, recorded: Mapping[str, float], found: Mapping[str, float]
) -> tuple[Measure, ...]:
    """The metrics of either side, by name."""
    return tuple(
        Measure(on=on, metric=name, recorded=_finite(recorded, name), canary=_finite(found, name))
        for name in sorted({*recorded, *found})
    )


def _finite(values: Mapping[str, float], name: str) -> float | None:
    value = float(values.get(name, math.nan))
    return value if math.isfinite(value) else None
