"""Time comes in from outside: through one of these, never through `datetime.now()`."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the instant that decisions are made at."""

    def as_of(self) -> datetime:
        """The present instant, timezone-aware, in UTC."""
        ...


class WallClock:
    """The machine's own time: production."""

    def as_of(self) -> datetime:
        return datetime.now(UTC)


@dataclass(frozen=True)
class FixedClock:
    """One instant that the caller chose: tests, replays."""

    instant: datetime

    def __post_init__(self) -> None:
        if self.instant.tzinfo is None:
            raise ValueError(f"a clock needs a timezone-aware instant, got {self.instant!r}")

    def as_of(self) -> datetime:
        return self.instant.astimezone(UTC)
