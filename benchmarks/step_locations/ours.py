"""The job, in the code location of the whole catalog."""

import dagster as dg

from benchmarks.step_locations import nothing
from platform_assets.definitions import defs as catalog

defs = dg.Definitions.merge(catalog, dg.Definitions(jobs=[nothing]))
