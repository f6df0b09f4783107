"""Was a model rebuilt? The verdict, from what was recorded then and what was found now.

What a training depends on is compared in a fixed order. Where the rebuilt model is another one,
the first aspect in that order that differs is where it diverged: what comes after it may differ
for no other reason.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.fingerprint import Difference, differing


class Aspect(StrEnum):
    """What a training depends on, in the order in which it is compared."""

    DATA = "data"
    CODE = "code"
    ENVIRONMENT = "environment"
    PARAMETERS = "parameters"
    SEED = "seed"


class Verdict(StrEnum):
    """What became of the attempt to rebuild a model."""

    IDENTICAL = "identical"
    """The same bytes."""
    EQUAL = "equal"
    """Other bytes, but each prediction is the same number."""
    WITHIN = "within tolerance"
    DIFFERENT = "different"

    @property
    def good(self) -> bool:
        return self is not Verdict.DIFFERENT


class Recipe(BaseModel):
    """What a training is told besides its rows; recorded with each model.

    Attributes:
        trainer: its entry point.
        code: SHA-256 of each source file that makes rows into a model, by module.
        features: in the order in which the trainer gets them.
    """

    model_config = ConfigDict(frozen=True)

    trainer: str
    code: Mapping[str, str]
    kind: str
    features: tuple[str, ...]
    categories: tuple[str, ...]
    target: str
    parameters: Mapping[str, bool | int | float | str]
    seed: int


class Comparison(BaseModel):
    """One aspect, then and now.

    Attributes:
        recorded: whether it is known what it was; what was not recorded cannot be compared.
        differences: empty if it is the same.
        note: what a person should know besides.
    """

    model_config = ConfigDict(frozen=True)

    aspect: Aspect
    recorded: bool = True
    differences: tuple[Difference, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        if not self.recorded:
            found = "not recorded"
        else:
            found = "; ".join(map(str, self.differences)) or "same"
        return f"{self.aspect}: {found}" + (f" ({self.note})" if self.note else "")


class Predictions(BaseModel):
    """How far two models are apart on the same rows.

    Attributes:
        on: which rows these are.
        largest: absolute difference of the two predictions for a row, at the most.
        differing: rows with another prediction, of `rows`.
    """

    model_config = ConfigDict(frozen=True)

    on: str
    rows: int
    differing: int
    largest: float


class Reproduction(BaseModel):
    """The verdict on one rebuilt model.

    Attributes:
        diverged: the first aspect that differs; None if none does, or the model is the same.
        digest_then: of the registered model's files, as recorded.
        digest_now: of the rebuilt model's.
        predictions: None where they were not needed (the bytes are the same) or cannot be had.
        reason: the verdict as a sentence.
    """

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    diverged: Aspect | None
    comparisons: tuple[Comparison, ...]
    digest_then: str
    digest_now: str
    predictions: Predictions | None
    tolerance: float
    reason: str


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The fields that are not what they were; those of inner mappings as `packages.numpy`."""
    return differing(_flat(then), _flat(now))


def conclude(
    *,
    comparisons: Sequence[Comparison],
    digest_then: str,
    digest_now: str,
    predictions: Predictions | None = None,
    unpredictable: str = "",
    repeats: bool | None = None,
    tolerance: float = 0.0,
) -> Reproduction:
    """Give the verdict.

    Args:
        comparisons: what was compared, in any order.
        digest_then, digest_now: of the model's files.
        predictions: of both models on the same rows.
        unpredictable: why there are none.
        repeats: whether a second rebuilding gave the same bytes as the first; None if nobody
            tried.
        tolerance: differences up to this one are let pass, in the unit of the predictions.
    """
    order = list(Aspect)
    ordered = tuple(sorted(comparisons, key=lambda found: order.index(found.aspect)))
    first = next((found for found in ordered if found.differences), None)
    unknown = [found.aspect.value for found in ordered if not found.recorded]
    if digest_then == digest_now:
        verdict = Verdict.IDENTICAL
        reason = f"the rebuilt model has the same bytes, digest {digest_now[:12]}"
    elif predictions is None:
        verdict = Verdict.DIFFERENT
        reason = (
            f"the rebuilt model has other bytes ({digest_now[:12]}, recorded {digest_then[:12]}), "
            f"and its predictions cannot be compared: {unpredictable}"
        )
    elif predictions.differing == 0 and predictions.largest == 0:
        verdict = Verdict.EQUAL
        reason = (
            f"the rebuilt model has other bytes ({digest_now[:12]}, recorded {digest_then[:12]}), "
            f"and the same prediction for each of {predictions.rows} rows of {predictions.on}"
        )
    else:
        # Not `<=` the other way round: a difference that is no number is within nothing.
        within = predictions.largest <= tolerance
        verdict = Verdict.WITHIN if within else Verdict.DIFFERENT
        reason = (
            f"{predictions.differing} of {predictions.rows} predictions on {predictions.on} "
            f"differ, by {predictions.largest:.3g} at the most; "
            f"{'within the tolerance of' if within else 'allowed is'} {tolerance:.3g}"
        )
    if verdict is not Verdict.IDENTICAL:
        reason += f"; {_cause(first, unknown, repeats)}"
    return Reproduction(
        verdict=verdict,
        diverged=first.aspect if first and verdict is not Verdict.IDENTICAL else None,
        comparisons=ordered,
        digest_then=digest_then,
        digest_now=digest_now,
        predictions=predictions,
        tolerance=tolerance,
        reason=reason,
    )


def _cause(first: Comparison | None, unknown: Sequence[str], repeats: bool | None) -> str:
    if first is not None:
        return f"it first diverged in {first}"
    if repeats is False:
        return (
            "nothing that was compared differs, and two rebuildings differ from each other: the "
            "trainer does not repeat itself"
        )
    if unknown:
        return f"nothing that is recorded differs; not recorded are {', '.join(unknown)}"
    return "nothing that was compared differs: look for code that the trainer imports"


def _flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return result
