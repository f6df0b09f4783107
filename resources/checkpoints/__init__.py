"""Checkpoints of trainings: saved while they go on, found whole or not at all."""

from platform_assets.domain.checkpoints import CheckpointKey, CheckpointsSpec
from platform_assets.domain.checkpoints import TrainingInterruptedError as Interrupted
from resources.checkpoints.by_hand import by_hand
from resources.checkpoints.notice import Notice
from resources.checkpoints.port import Checkpoint, Checkpointer, State
from resources.checkpoints.saver import Saver
from resources.checkpoints.store import CheckpointStore

__all__ = [
    "Checkpoint",
    "CheckpointKey",
    "CheckpointStore",
    "Checkpointer",
    "CheckpointsSpec",
    "Interrupted",
    "Notice",
    "Saver",
    "State",
    "by_hand",
]
