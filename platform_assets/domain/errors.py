"""Every error that Signalbox raises on purpose.

    SignalboxError
    ├── UsageError            wrong use: an unknown name, a malformed spec           (exit code 2)
    │   └── SpecError         a catalog entry that cannot be read
    ├── RefusedError          the signal is at danger: something is missing or held  (exit code 1)
    │   ├── HeldError         partitions that may not be built, each with its reason
    │   ├── LeaseLostError    a writer that slept through the loss of its lease (domain/lease.py)
    │   └── PromotionConflictError  somebody else changed the champion first
    ├── HomeError             the home cannot be used as it is                       (exit code 1)
    └── TransientError        may succeed if tried again: a full disk, a conflict    (exit code 1)
        └── LeaseTakenError   somebody else works on it for too long (domain/lease.py)

Whether an error may be retried is a matter of its type, never of its text.
"""

from collections.abc import Mapping


class SignalboxError(Exception):
    """Base of the tree; its text is one sentence for a person."""

    exit_code = 1
    retryable = False


class UsageError(SignalboxError):
    """The caller named something that does not exist or is not allowed."""

    exit_code = 2


class SpecError(UsageError):
    """A catalog file is wrong: names file, field, the value found and what is allowed."""

    def __init__(self, origin: str, problems: Mapping[str, str]) -> None:
        self.origin = origin
        self.problems = dict(problems)
        listed = "; ".join(f"{field}: {why}" for field, why in self.problems.items())
        super().__init__(f"{origin} is refused, no pipeline is loaded from it: {listed}")


class RefusedError(SignalboxError):
    """An action was refused because a rule does not hold."""


class HeldError(RefusedError):
    """Partitions that may not be built now.

    Attributes:
        held: reason by partition key.
    """

    def __init__(self, asset: str, held: Mapping[str, str]) -> None:
        self.asset = asset
        self.held = dict(held)
        listed = "; ".join(f"{key}: {why}" for key, why in self.held.items())
        super().__init__(
            f"{asset} is held for {len(self.held)} partition(s), nothing was written for them. "
            f"{listed}"
        )


class PromotionConflictError(RefusedError):
    """Somebody else changed what an alias points at, after one had looked: they won.

    It is no TransientError: the same promotion must not be tried again, for what it was judged
    against is gone. The candidate is to be evaluated against the winner.

    Attributes:
        expected, found: the version that the alias was to point at, and does; None: nothing.
    """

    def __init__(
        self, what: str, *, version: int, expected: int | None, found: int | None, winner: str
    ) -> None:
        self.version, self.expected, self.found = version, expected, found
        against = f"version {expected}" if expected is not None else "no version"
        now = f"version {found} is" if found is not None else "none is"
        super().__init__(
            f"{what}: version {version} was to replace {against}, but {now} in force by now "
            f"({winner}); nothing was changed. Evaluate version {version} against it and promote "
            "it then, with `signalbox promote PIPELINE VERSION --evaluate`"
        )


class HomeError(SignalboxError):
    """SIGNALBOX_HOME is missing, unwritable, or made by another version."""


class TransientError(SignalboxError):
    """The same call may succeed later; nothing was half-written."""

    retryable = True
