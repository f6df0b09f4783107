"""A checkpointer outside of a run: to try a trainer with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platform_assets.domain.checkpoints import CheckpointKey, CheckpointsSpec
from resources.checkpoints.notice import Notice
from resources.checkpoints.saver import Saver
from resources.checkpoints.store import CheckpointStore


@contextmanager
def by_hand(
    folder: Path | str, what: str = "by hand", *, tell: Callable[[str], None] = print
) -> Iterator[Saver]:
    """A checkpointer in a folder, whose training SIGTERM interrupts until the block is left.

    Nobody fences here: one process at a time. The checkpoints stay; remove the folder to begin
    again, and when rows, code or parameters are others.

    Args:
        folder: a path, or `s3://bucket/folder`.
        what: whose they are; another name finds none of them.
        tell: is told what a person should know.
    """
    key = CheckpointKey("by-hand", what, "")
    before = CheckpointStore(folder, key, token=2**31).attempts()
    token = 1 + max((int(attempt["token"]) for attempt in before), default=0)
    store, notice = CheckpointStore(folder, key, token=token), Notice()
    store.note({})
    with notice.on_sigterm():
        yield Saver(store, what, CheckpointsSpec(), notice, tell=tell)
