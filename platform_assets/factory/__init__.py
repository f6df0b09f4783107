"""From a PipelineSpec to Dagster: assets, checks and jobs."""

from platform_assets.factory.pipeline import build_pipeline, job_name

__all__ = ["build_pipeline", "job_name"]
