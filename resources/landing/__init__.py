"""The landing zone: hourly Parquet files of producers, as described in docs/landing-zone.md."""

from resources.landing.layout import hour_path
from resources.landing.zone import LandingZone

__all__ = ["LandingZone", "hour_path"]
