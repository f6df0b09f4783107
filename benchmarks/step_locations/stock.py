"""The job, with dagster-k8s's executor."""

import dagster as dg
from dagster_k8s import k8s_job_executor

from benchmarks.step_locations import nothing

defs = dg.Definitions(jobs=[nothing], executor=k8s_job_executor)
