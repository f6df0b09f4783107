"""Nothing but the job."""

import dagster as dg

from benchmarks.step_locations import nothing

defs = dg.Definitions(jobs=[nothing])
