"""The drills by name; a new one is added here."""

from collections.abc import Mapping

from platform_assets.drills import partial_day
from platform_assets.drills.harness import Drill

DRILLS: Mapping[str, Drill] = {
    drill.name: drill for drill in (Drill(partial_day.NAME, partial_day.TITLE, partial_day.play),)
}
