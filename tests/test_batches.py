"""A run over several partitions tells of each what a run of that partition alone tells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
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


JUDGED, NOT_JUDGED = DAYS
"""The second is judged on a date that is held."""


def judged(line: Line) -> dict[str, Any]:
    """By stage and partition, the ledger's verdicts: whether it is complete, and what it lacks."""
    return {
        f"{stage} {name}": (record.verdict, record.report)
        for stage in ("features", "day")
        for name, record in line.services.ledger.verdicts(
            line.spec.pipeline, line.spec.asset(stage), (*CELLS, *DAYS)
        ).items()
    }


def cleared(line: Line, stage: str) -> dict[str, Any]:
    """What the asset check that tells clear from held said of each partition, in all its runs."""
    found: dict[str, Any] = {"partitions": 0}
    check = dg.AssetCheckKey(line.key(stage), "clear")
    for record in line.instance.event_log_storage.get_asset_check_execution_history(check, 100):
        event = record.event and record.event.dagster_event
        if event is None or event.event_type_value != "ASSET_CHECK_EVALUATION":
            continue  # that it is planned
        said = plain(event.asset_check_evaluation_data.metadata)
        found["partitions"] += said["partitions"]
        for what in ("short", "held", "failed"):
            found.setdefault(what, {}).update(said[what])
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
        verdicts = judged(batch)
    with copied(templates.empty, tmp_path / "single") as single:
        single.land("2013-01-02", "2013-01-09")
        for cell in CELLS:
            single.must("features", partition=cell)
        single.must("day", partition=DAYS[0])
        alone = told(single, "features", CELLS) | told(single, "day", DAYS[:1])
        of_both = judged(single)
    assert together == alone
    assert set(of_both) >= {f"features {name}" for name in CELLS}
    assert {name: verdicts.get(name) for name in of_both} == of_both


def test_judgements_of_a_batch_are_those_of_single_runs(
    shared_folder: Path, home_template: Path, tmp_path: Path
) -> None:
    templates = Templates(shared_folder, home_template)

    def found(line: Line) -> dict[str, Any]:
        versions = line.versions("evaluation").items()
        return {
            "told": told(line, "evaluation", (JUDGED,)),
            "scores": {
                name: (
                    v.data_version,
                    v.rows,
                    {k: d for k, d in plain(v.detail).items() if k != "cost"},
                )
                for name, v in versions
            },
            "check": cleared(line, "evaluation"),
        }

    with copied(templates.models, tmp_path / "batch") as batch:
        batch.run("evaluation", span=DAYS)
        together = found(batch)
    with copied(templates.models, tmp_path / "single") as single:
        single.must("evaluation", partition=JUDGED)
        single.run("evaluation", partition=NOT_JUDGED)
        alone = found(single)
    assert set(together["scores"]) == {JUDGED}
    assert (set(together["check"]["held"]), together["check"]["partitions"]) == ({NOT_JUDGED}, 2)
    assert together == alone
