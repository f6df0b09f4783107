"""How sure a mean is: the bootstrap over paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        n: number of differences.
        level: of confidence, 0.95.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float

    @property
    def tells(self) -> bool:
        """Whether it leaves 0 out: the mean can be told from chance at this level."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    differences: Sequence[float], *, seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The mean of paired differences, and its percentile bootstrap interval over the pairs.

    The same differences, seed and settings give the same interval.

    Args:
        differences: one number a pair, such as a day; of both members of it.
        seed: of the resampling.
        resamples: how often the pairs are drawn with replacement.
        level: of confidence, between 0 and 1.

    Raises:
        ValueError: fewer than two differences, or one that is no finite number.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs two differences or more, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError("an interval needs finite differences, leave the undefined pairs out")
    if not 0 < level < 1:
        raise ValueError(f"the level of confidence is {level}; it lies between 0 and 1")
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    means = values[draws].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), len(values), level)
