"""The third door: a Dagster Component around a pipeline spec, for `dg scaffold`."""

from pathlib import Path
from typing import Any

import dagster as dg

from platform_assets.domain.spec import PipelineSpec, parse_spec
from platform_assets.factory import build_jobs, build_pipeline
from resources.catalog import read_document
from sensors.readiness import build_readiness_sensor


def pipeline_definitions(
    spec: PipelineSpec, origin: str = "a spec written in Python"
) -> dg.Definitions:
    """Assets, checks, jobs and the readiness sensor of one pipeline: what every door leads to."""
    jobs = build_jobs(spec)
    return dg.Definitions.merge(
        build_pipeline(spec, jobs, origin),
        dg.Definitions(sensors=[build_readiness_sensor(spec, jobs)]),
    )


class SignalboxPipelineScaffolder(dg.Scaffolder[Any]):
    """Writes a pipeline.yaml to start from beside the component's defs.yaml."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        folder = Path(request.target_path)
        folder.mkdir(parents=True, exist_ok=True)
        template = Path(__file__).parent / "catalog" / "flights.yaml"
        name = folder.name.replace("-", "_").lower()
        text = template.read_text().replace("pipeline: flights\n", f"pipeline: {name}\n", 1)
        text = text.replace("  name: flight-delay\n", f"  name: {name.replace('_', '-')}\n", 1)
        (folder / "pipeline.yaml").write_text(text)
        dg.scaffold_component(request, {"spec": "pipeline.yaml"})


@dg.scaffold_with(SignalboxPipelineScaffolder)
class SignalboxPipeline(dg.Component, dg.Model, dg.Resolvable):
    """A training pipeline declared in a YAML file beside this component."""

    spec: str

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Read the file and build what the catalog would have built from it."""
        path = context.path / self.spec
        return pipeline_definitions(parse_spec(read_document(path), path.name), path.name)
