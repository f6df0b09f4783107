"""The code location: every pipeline of the catalog, its sensors, and the executor."""

import warnings
from pathlib import Path

import dagster as dg

from platform_assets.component import pipeline_definitions
from resources.catalog import load_catalog
from sensors.tracking_truth import tracking_truth_sensors

COMPONENTS = Path(__file__).parent / "defs"
"""Where `dg scaffold defs` writes to."""


def build_definitions() -> dg.Definitions:
    """Put everything together.

    Raises:
        SpecError: a catalog file is wrong; nothing is loaded, so that nothing runs half-defined.
    """
    catalog = load_catalog()
    parts = [pipeline_definitions(spec, f"{name}.yaml") for name, spec in catalog.items()]
    if COMPONENTS.is_dir():
        parts.append(dg.load_from_defs_folder(path_within_project=COMPONENTS))
    parts.append(
        dg.Definitions(
            sensors=tracking_truth_sensors(catalog),
            # Process start and imports cost more than the work of a partition.
            executor=dg.in_process_executor,
        )
    )
    return dg.Definitions.merge(*parts)


with warnings.catch_warnings():
    # Partition mappings by dimension are beta in Dagster; tests here tell when they change.
    warnings.simplefilter("ignore", dg.BetaWarning)
    defs = build_definitions()
