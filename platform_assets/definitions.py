"""The code location: every pipeline of the catalog, its sensors, and the executor."""

import dagster as dg

from platform_assets.factory import build_pipeline
from resources.catalog import load_catalog
from sensors.readiness import build_readiness_sensor
from sensors.tracking_truth import tracking_truth_sensors


def build_definitions() -> dg.Definitions:
    """Put everything together.

    Raises:
        SpecError: a catalog file is wrong; nothing is loaded, so that nothing runs half-defined.
    """
    catalog = load_catalog()
    return dg.Definitions.merge(
        *(build_pipeline(spec, f"{name}.yaml") for name, spec in catalog.items()),
        dg.Definitions(
            sensors=[
                *(build_readiness_sensor(spec) for spec in catalog.values()),
                *tracking_truth_sensors(catalog),
            ],
            # Process start and imports cost more than the work of a partition.
            executor=dg.in_process_executor,
        ),
    )


defs = build_definitions()
