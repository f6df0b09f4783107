"""Tags of the runs that sensors launch; which lane a run is in is decided in `domain.lanes`."""

from platform_assets.domain.lanes import BACKFILL_TAG, LANE_TAG, PIPELINE_TAG

__all__ = ["BACKFILL_TAG", "LANE_TAG", "PIPELINE_TAG", "RETRIED_IF_KILLED"]

RETRIED_IF_KILLED = {
    "dagster/max_retries": "2",
    "dagster/retry_on_asset_or_op_failure": "false",
}
"""Tags of a run that nobody watches: if its process dies, Dagster launches it again.

A step that fails is not tried again by this: the same refusal would come back.
"""
