"""Which lane a run is in, by where it came from."""

from collections.abc import Mapping

LANE_TAG = "signalbox/lane"
PIPELINE_TAG = "signalbox/pipeline"
BACKFILL_TAG = "dagster/backfill"

RETRIED_IF_KILLED = {
    "dagster/max_retries": "2",
    "dagster/retry_on_asset_or_op_failure": "false",
}
"""Tags of a run that nobody watches: if its process dies, Dagster launches it again.

A step that fails is not tried again by this: the same refusal would come back.
"""


def lane_of(tags: Mapping[str, str]) -> str:
    """The lane of a run: its own tag, else backfill for a native backfill, else adhoc."""
    return tags.get(LANE_TAG) or ("backfill" if BACKFILL_TAG in tags else "adhoc")
