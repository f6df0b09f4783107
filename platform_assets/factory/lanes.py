"""Which lane a run is in, by where it came from."""

from collections.abc import Mapping

LANE_TAG = "signalbox/lane"
PIPELINE_TAG = "signalbox/pipeline"
BACKFILL_TAG = "dagster/backfill"


def lane_of(tags: Mapping[str, str]) -> str:
    """The lane of a run: its own tag, else backfill for a native backfill, else adhoc."""
    return tags.get(LANE_TAG) or ("backfill" if BACKFILL_TAG in tags else "adhoc")
