"""The drills by name; a new one is added here."""

from collections.abc import Mapping

from platform_assets.drills import (
    duplicate_cities,
    image_drift,
    partial_day,
    preemption,
    promotion_race,
    starvation,
)
from platform_assets.drills.harness import Drill

DRILLS: Mapping[str, Drill] = {
    drill.NAME: Drill(drill.NAME, drill.TITLE, drill.play)
    for drill in (
        partial_day,
        duplicate_cities,
        starvation,
        promotion_race,
        image_drift,
        preemption,
    )
}
