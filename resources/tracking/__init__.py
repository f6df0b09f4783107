"""Experiments, models and aliases in MLflow.

    store.py    Tracking: prepare, run, register, alias, load, reconcile
    run.py      TrackedRun: what one training writes down
    models.py   model folders: saving, loading, and a digest that identical trainings share
    client.py   MLflow's client made quiet, with errors of our own tree

MLflow is imported on first use (about 2 CPU-seconds), never by importing this package.
"""

from resources.tracking.models import LoggedModel, model_digest
from resources.tracking.run import TrackedRun, dataset_digest
from resources.tracking.store import DAGSTER_RUN_TAG, Tracking

__all__ = [
    "DAGSTER_RUN_TAG",
    "LoggedModel",
    "TrackedRun",
    "Tracking",
    "dataset_digest",
    "model_digest",
]
