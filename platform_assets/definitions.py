"""The code location: every pipeline of the catalog, its sensors, and the executor."""
# ruff: noqa: E402 - the collector rests before anything is imported

import gc

# What is imported here stays: looking for garbage among it takes a tenth of the time of loading.
gc.disable()

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from platform_assets.component import pipeline_definitions
from platform_assets.domain.image_spec import deployment
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import check_spec
from platform_assets.instance.kubernetes.step_pod import STEP_KEY, step_pod_executor
from resources.catalog import components_folder, load_entries
from sensors.tracking_truth import tracking_truth_sensors


def build_definitions() -> dg.Definitions:
    """Put everything together, and refuse what a cluster would refuse.

    Raises:
        SpecError: a catalog file is wrong; nothing is loaded, so that nothing runs half-defined.
        RefusedError: on a cluster, an op, a job or an executor names an image that may not start.
    """
    merged = assemble()
    if deployment(os.environ) == "k8s" and not os.environ.get(STEP_KEY):
        from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor
        from platform_assets.instance.kubernetes.foreseeing import require_definitions

        require_definitions(merged, pinned_k8s_job_executor)
    return merged


def assemble() -> dg.Definitions:
    """Everything, whether or not a cluster would start it.

    Raises:
        SpecError: a catalog file is wrong.
    """
    entries = load_entries()
    parts = [
        pipeline_definitions(entry.spec, str(entry.path))
        for entry in entries.values()
        if not entry.component
    ]
    for entry in entries.values():
        # Dagster would wrap what a component raises.
        check_spec(entry.spec, str(entry.path))
    components = components_folder()
    if _has_definitions(components):
        parts.append(dg.load_from_defs_folder(path_within_project=components))
    specs = {name: entry.spec for name, entry in entries.items()}
    parts.append(dg.Definitions(sensors=tracking_truth_sensors(specs), executor=_executor(specs)))
    return dg.Definitions.merge(*parts)


def _executor(specs: Mapping[str, PipelineSpec]) -> dg.ExecutorDefinition:
    """What runs the steps of a run: this process, or a Job of the cluster for each.

    Raises:
        UsageError: on a cluster, an image that a pipeline names is not in the lock, or
            failures.yaml is wrong.
    """
    if deployment(os.environ) == "local":
        # Process start and imports cost more than the work of a partition.
        return dg.in_process_executor
    from resources.images import load_lock

    lock = load_lock()
    for spec in specs.values():
        for name in sorted(spec.images.names()):
            lock.named(name)
    if os.environ.get(STEP_KEY):
        # A pod of a step starts no other step; what would is a third of its start.
        return step_pod_executor()
    from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor
    from resources.failures import load_budgets

    load_budgets()  # a wrong one is refused here, not by each run
    return pinned_k8s_job_executor


def _has_definitions(folder: Path) -> bool:
    """Whether there is anything to load: Dagster's loader costs more than all of the catalog."""
    found = (path for ending in ("py", "yaml") for path in folder.rglob(f"*.{ending}"))
    return any(path != folder / "__init__.py" for path in found)


try:
    with warnings.catch_warnings():
        # Partition mappings by dimension are beta in Dagster; tests here tell when they change.
        warnings.simplefilter("ignore", dg.BetaWarning)
        defs = build_definitions()
finally:
    gc.enable()
