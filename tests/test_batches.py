"""A run over several partitions tells of each what a run of that partition alone tells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest

from platform_assets.domain.partition import PartitionKey
from tests.small import Line, Templates, copied

pytestmark = pytest.mark.heavy

DAYS = ("2013-01-04", "2013-01-05")
CELLS = ("JFK|2013-01-04", "LGA|2013-01-04")

# Of which run, when, and after how many commits before it.
OF_THE_RUN = {
    "mlflow_run_id", "delta_version", "signalbox.dagster_run_id", "signalbox.owner",
    "signalbox.run_key", "signalbox.git_commit", "mlflow.source.git.commit", "mlflow.source.name",
}  # fmt: skip
ONCE_A_RUN = "completeness"
"""The picture of a roll-up is drawn once a run, on its newest date."""


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: getattr(v, "value", v) for k, v in values.items() if k not in OF_THE_RUN}


def told(line: Line, stage: str, names: tuple[str, ...]) -> dict[str, Any]:
    """By partition, metadata and tags of its events."""
    found: dict[str, Any] = {}
    for event in line.materializations(stage):
        name = str(PartitionKey.parse(str(event.partition)))
        if name in names:
            metadata = plain(event.metadata)
            metadata.pop(ONCE_A_RUN, None)
            found.setdefault(name, []).append((metadata, plain(event.tags or {})))
    assert set(found) == set(names)
    return found


def tracked(line: Line) -> dict[str, Any]:
    """By name, what MLflow has of the trainings of DAYS."""
    client = mlflow.MlflowClient(line.home.mlflow_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {
        run.info.run_name: (
            run.info.status,
            run.data.params,
            run.data.metrics,
            plain(run.data.tags),
            [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs],
        )
        for run in runs
        if str(run.info.run_name).endswith(DAYS)
    }


def test_models_of_a_batch_are_told_as_those_of_single_runs(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    templates = Templates(shared_folder, home_template)
    with copied(templates.models, tmp_path / "batch") as batch:
        together = {stage: told(batch, stage, DAYS) for stage in ("snapshot", "model")}
        together["mlflow"] = tracked(batch)
        assert batch.check("model").passed
    with copied(templates.features, tmp_path / "single") as single:
        for day in DAYS:
            single.must("snapshot", "model", partition=day)
        alone = {stage: told(single, stage, DAYS) for stage in ("snapshot", "model")}
        alone["mlflow"] = tracked(single)
        assert single.check("model").passed
    assert len(together["mlflow"]) == len(DAYS)
    assert together == alone


def test_features_and_roll_ups_of_a_batch_are_told_as_those_of_single_runs(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    templates = Templates(shared_folder, home_template)
    with copied(templates.features, tmp_path / "batch") as batch:
        together = told(batch, "features", CELLS) | told(batch, "day", DAYS[:1])
    with copied(templates.empty, tmp_path / "single") as single:
        single.land("2013-01-02", "2013-01-09")
        for cell in CELLS:
            single.must("features", partition=cell)
        single.must("day", partition=DAYS[0])
        alone = told(single, "features", CELLS) | told(single, "day", DAYS[:1])
    assert together == alone
