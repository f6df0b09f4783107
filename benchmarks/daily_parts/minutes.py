"""The code location of the catalog, and an asset whose every run takes a minute and no core."""

import os
import time
from pathlib import Path

import dagster as dg

from platform_assets import definitions as catalog

SECONDS = 60.0
ASSET = "minutes"
FIRST, LAST = "2013-01-01", "2013-04-30"
AWAKE = "awake"
"""A file in the home; while it is there, whoever sleeps wakes up."""


@dg.asset(name=ASSET, partitions_def=dg.DailyPartitionsDefinition(FIRST, end_offset=1))
def minutes() -> None:
    """Holds a slot for a minute, or until it is woken up."""
    mark = Path(os.environ["SIGNALBOX_HOME"], AWAKE)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not mark.exists():
        time.sleep(0.2)


defs = dg.Definitions.merge(catalog.defs, dg.Definitions(assets=[minutes]))
