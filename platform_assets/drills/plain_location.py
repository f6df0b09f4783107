"""The code location of a plain Dagster project: features and a model by date, nothing else.

Loaded by `dagster dev -m platform_assets.drills.plain_location`; where rows lie is in the
environment.
"""

import os
from pathlib import Path

import dagster as dg

from platform_assets.drills.plain_dagster import PlainDagster
from resources.catalog import load_catalog

LANDING, STORE = "SIGNALBOX_DRILL_LANDING", "SIGNALBOX_DRILL_STORE"
JOB = "daily_training"


def _definitions() -> dg.Definitions:
    plain = PlainDagster(
        Path(os.environ[LANDING]),
        Path(os.environ[STORE]),
        load_catalog()["flights"],
        policy=None,
    )
    daily = dg.define_asset_job(JOB, selection=dg.AssetSelection.assets("features", "model"))
    return dg.Definitions.merge(plain.defs, dg.Definitions(jobs=[daily]))


if LANDING in os.environ:  # nothing is built where this is merely imported
    defs = _definitions()
