"""Checkpoints: whose they are, how often one is taken, and why.

The interval is Young's: with a cost C of one checkpoint and a mean time M between interruptions,
sqrt(2 C M) loses the least in the long run (J. W. Young, CACM 17(9), 1974; J. T. Daly, FGCS 22(3),
2006). It is cut from above, so that no more than a stated time of work can be lost, and from below,
so that the checkpoints cost no more than a stated share of the training.
"""

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import TransientError

FIRST_SECONDS = 5.0
"""As long as no checkpoint was taken, nobody knows what one costs: the first is taken then."""

PRIOR_SECONDS = 24 * 3600.0
"""Time of training with one interruption that is assumed to have been seen before any was."""


class TrainingInterruptedError(TransientError):
    """The place of a training is taken away: it has saved what it had, and is to be gone on with.

    Attributes:
        step: the last one that is durable; None where nothing could be saved.
    """

    def __init__(self, what: str, step: int | None) -> None:
        self.step = step
        kept = f"step {step} is saved" if step is not None else "nothing of it is saved"
        super().__init__(
            f"{what} was interrupted by a signal, {kept}; it is no failure of the training, which "
            "goes on from there when it is launched again"
        )


class CheckpointsSpec(BaseModel):
    """What a model's declaration says of its checkpoints.

    Attributes:
        enabled: whether its trainer is given a checkpointer.
        keep: how many are kept; the newest may be torn, so two at the least.
        most_lost_seconds: of training that an interruption may cost, if that can be had for
            `most_cost`.
        most_cost: share of the training's time that checkpoints may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    keep: int = Field(default=2, ge=2, le=100)
    most_lost_seconds: float = Field(default=600.0, ge=1.0)
    most_cost: float = Field(default=0.035, gt=0.0, le=0.5)


@dataclass(frozen=True)
class CheckpointKey:
    """Whose checkpoints: no training goes on from another's.

    Attributes:
        asset: asset key of the model, `flights/model`.
        partition: partition key, `2013-01-28`.
        fingerprint: `RunFingerprint.value`: data, code, parameters, seed, libraries, image.
    """

    asset: str
    partition: str
    fingerprint: str

    @property
    def value(self) -> str:
        """64 hexadecimal digits."""
        return digest_of([self.asset, self.partition, self.fingerprint])


@dataclass(frozen=True)
class Interval:
    """How long a training goes on between two checkpoints.

    Attributes:
        seconds: of training, from the end of one to the beginning of the next.
        reason: why, for a person.
    """

    seconds: float
    reason: str


def mean_time_between(interruptions: int, observed_seconds: float) -> float:
    """Seconds between two interruptions, by what was seen and one interruption a day before that.

    Args:
        interruptions: how many were seen.
        observed_seconds: of training, in which they were seen.
    """
    return (max(observed_seconds, 0.0) + PRIOR_SECONDS) / (max(interruptions, 0) + 1)


def interval(cost: float | None, between: float, spec: CheckpointsSpec) -> Interval:
    """How long to go on to the next checkpoint.

    Args:
        cost: seconds that one takes from the training, as measured; None: none was taken yet.
        between: mean seconds between two interruptions.
        spec: the bounds.
    """
    if cost is None:
        seconds = min(FIRST_SECONDS, spec.most_lost_seconds)
        return Interval(seconds, f"after {seconds:.3g} s, to learn what one costs")
    best = math.sqrt(2.0 * cost * between)
    least = cost / spec.most_cost
    said = f"one costs {cost:.3g} s, and every {between:.3g} s there is an interruption"
    chosen, why = best, f"{said}: every {best:.3g} s loses the least"
    if best > spec.most_lost_seconds:
        chosen = spec.most_lost_seconds
        why = f"{said}: no more than {chosen:.3g} s may be lost (most_lost_seconds)"
    if chosen < least:
        chosen = least
        why = f"{said}: more often than every {least:.3g} s would cost more than "
        why += f"{spec.most_cost:.1%} (most_cost)"
        if least > spec.most_lost_seconds:
            why += f", so up to {least:.3g} s may be lost, not {spec.most_lost_seconds:.3g}"
    return Interval(chosen, why)
