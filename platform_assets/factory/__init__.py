"""From a PipelineSpec to Dagster: assets, checks and jobs."""

from platform_assets.factory.pipeline import build_jobs, build_pipeline, check_spec, job_name

__all__ = ["build_jobs", "build_pipeline", "check_spec", "job_name"]
