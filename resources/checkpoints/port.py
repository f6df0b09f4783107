"""What a trainer is given to save its state with, and what it finds."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

State = Mapping[str, bytes | Path]
"""Parts of a state by name; a file that is named is read before `wait` returns."""


class Parts(Mapping[str, bytes]):
    """The verified files of a checkpoint: each is read when it is asked for.

    Args:
        folder: where they lie.
        names: of the files.
        holds: lives as long as this: a temporary folder.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], holds: object = None) -> None:
        self._folder, self._names, self._holds = folder, names, holds

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        return (self._folder / name).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Checkpoint:
    """A state that was found whole.

    Attributes:
        step: how many steps were done.
        state: bytes by name, as they were saved.
        path: a local folder with those files, as long as this object is kept.
        about: when it was taken, and after how much training.
    """

    step: int
    state: Mapping[str, bytes]
    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)


class Checkpointer(Protocol):
    """Saves the state of one training, and finds it again. Of one thread."""

    def load(self) -> Checkpoint | None:
        """The newest one that is whole; None if there is none.

        One that is torn is passed over for the one before.

        Raises:
            TransientError: the place of the checkpoints does not answer.
        """
        ...

    def decline(self, why: str) -> None:
        """Say that none will be taken, and why: an interrupted training begins again."""
        ...

    def due(self, step: int) -> bool:
        """Whether one is to be taken after this step: by the interval, or since it is the last.

        What passes from a yes to the end of `save` is what a checkpoint costs, if `save` is not
        told.

        Raises:
            LeaseLostError: another run trains this partition by now.
        """
        ...

    def save(self, step: int, state: State, *, paused: float | None = None) -> None:
        """Have a state saved, all or nothing, while the training goes on; one at a time.

        Where an earlier one could not be saved that is said in the log, and the training goes on.

        Args:
            step: how many steps were done.
            state: parts by name.
            paused: seconds that the training stood still for it, where other processes train;
                None: this thread does, from the yes of `due` on.

        Raises:
            LeaseLostError: another run trains this partition by now; nothing was saved.
        """
        ...

    def missed(self, step: int, why: str, *, paused: float | None = None) -> None:
        """Say that there is no state to be saved after this step, as of a full disk, and why.

        The training goes on, and the next one is due by the interval. `paused` is as of `save`.
        """
        ...

    def staged(self, step: int) -> AbstractContextManager[Path]:
        """A local folder that becomes the checkpoint of a step when the block is left well.

        For engines that write files of their own; of other processes too. Durable by then.
        """
        ...

    def wait(self) -> None:
        """Until what was asked for is durable, or could not be: that is said in the log.

        Raises:
            LeaseLostError: another run trains this partition by now.
        """
        ...

    def stop_if_interrupted(self, step: int) -> None:
        """Leave the training if its place is taken away; after `save`, at the end of a step.

        Raises:
            TrainingInterruptedError: it is; what was saved is durable.
        """
        ...

    @property
    def interrupted(self) -> bool:
        """Whether its place is taken away: save now, then `stop_if_interrupted`."""
        ...

    @property
    def folder(self) -> str:
        """Where the checkpoints of this training lie: a folder, or a URL."""
        ...
