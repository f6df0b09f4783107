"""What a drill found: the same for terminal, JSON and page."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Step(BaseModel):
    """One thing that was done, and what happened.

    Attributes:
        ok: whether it is what the drill is there to show.
    """

    model_config = ConfigDict(frozen=True)

    did: str
    found: str
    ok: bool = True


class Measurement(BaseModel):
    """A difference over many days, with its confidence interval.

    Attributes:
        what: what is compared.
        metric: of which the difference is taken.
        better: which direction of the metric is better.
        mean, low, high: of the differences, and of the interval at `level`.
        n: number of days.
        reference: mean of the metric itself, of what the difference is taken from.
        by_day: the difference of each date.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    metric: str
    better: Literal["lower", "higher"]
    mean: float
    low: float
    high: float
    n: int
    reference: float
    level: float = 0.95
    by_day: Mapping[str, float] = {}

    @property
    def conclusion(self) -> str:
        """In words, whatever the sign."""
        if self.low <= 0 <= self.high:
            return "cannot be told from chance"
        worse = (self.mean > 0) == (self.better == "lower")
        return "worse" if worse else "better"


class Figure(BaseModel):
    """One quantity as it came out on either side.

    Attributes:
        what: what was counted or measured.
        unit: of the values; empty for a plain number.
        ideal: what it would be without the trouble; None where there is no such value.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    unit: str = ""
    ideal: float | None = None
    plain: float
    signalbox: float


class DrillReport(BaseModel):
    """A drill from its question to its verdict.

    Attributes:
        plain: what was done on plain Dagster, and what happened.
        signalbox: the same on Signalbox.
        figures: what was counted or measured on both sides.
        notes: what has to be known to read the measurements.
        verdict: in a sentence.
        seconds: wall time by part.
        home: where the drill's home was kept; None if it was removed.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    question: str
    plain: tuple[Step, ...]
    signalbox: tuple[Step, ...]
    figures: tuple[Figure, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: str
    seconds: Mapping[str, float] = {}
    home: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every step showed what it should; a measurement may come out either way."""
        return all(step.ok for step in (*self.plain, *self.signalbox))

    def concluded(self, verdict: str) -> "DrillReport":
        """The report with its verdict, or with what did not show what it should."""
        wrong = [step.did for step in (*self.plain, *self.signalbox) if not step.ok]
        if wrong:
            verdict = f"The drill did not show what it should: {'; '.join(wrong)}."
        return self.model_copy(update={"verdict": verdict})

    def document(self) -> dict[str, object]:
        """As JSON, verdict and conclusions included."""
        found = self.model_dump(mode="json")
        found["ok"] = self.ok
        for one, measured in zip(found["measurements"], self.measurements, strict=True):
            one["conclusion"] = measured.conclusion
        return found
