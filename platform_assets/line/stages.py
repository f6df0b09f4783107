"""The names of a pipeline's assets as a person may write them."""

from platform_assets.domain.errors import UsageError
from platform_assets.domain.spec import PipelineSpec


def stage_of(spec: PipelineSpec, asset: str) -> str:
    """`features`, `day`, … or `landed_weather`, from `flights/features` or `features`.

    Raises:
        UsageError: the pipeline has no such asset.
    """
    stages = [
        *(f"landed_{name}" for name in spec.sources),
        *("features", "day", "snapshot", "model", "evaluation", "champion"),
    ]
    name = asset.removeprefix(f"{spec.pipeline}/")
    if name not in stages:
        raise UsageError(
            f"{asset!r} is no asset of pipeline {spec.pipeline}; allowed are "
            f"{', '.join(spec.asset(stage) for stage in stages)}"
        )
    return name
