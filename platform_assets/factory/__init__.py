"""From a PipelineSpec to Dagster: assets, checks and jobs."""

from platform_assets.factory.pipeline import build_jobs, build_pipeline, job_name

__all__ = ["build_jobs", "build_pipeline", "job_name"]
