"""Launches a native backfill of grid_load's days before live_from, as the UI's dialog does.

    python -m tests.pipelines.grid_load_backfill http://127.0.0.1:3000

Each asset gets its own partitions: a model exists from the third day on, and is judged on the day
after its own. Dagster puts the date first in the keys, since "date" sorts before "station".
"""

import sys

from resources.dagster_api import DagsterApi

PARTITIONS = {
    "grid_load/features": [("2024-03-28|north", "2024-04-01|south")],
    "grid_load/day": [("2024-03-28", "2024-04-01")],
    "grid_load/snapshot": [("2024-03-30", "2024-04-01")],
    "grid_load/model": [("2024-03-30", "2024-04-01")],
    "grid_load/evaluation": [("2024-03-30", "2024-03-31")],
    "grid_load/champion": None,
}


def launch(url: str) -> str:
    """Launch it on a running Dagster; returns the backfill's id."""
    return DagsterApi(url).launch_backfill(
        PARTITIONS,
        title="grid_load until 2024-04-01",
        tags={"signalbox/lane": "backfill", "signalbox/pipeline": "grid_load"},
    )


if __name__ == "__main__":
    print(launch(sys.argv[1]))
