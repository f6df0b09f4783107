"""Train the pipeline of flights_torch.yaml on this machine, from landing to model, by one command.

`python -m tests.pipelines.flights_ranks`, in the home that SIGNALBOX_HOME names. What is there
already is not made again: after a kill it goes on from the last checkpoint.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from platform_assets.component import pipeline_definitions
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.grid import asset_key
from platform_assets.factory.instance import make_home
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.home import Home

YAML = Path(__file__).parent / "flights_torch.yaml"
FIRST, DAY = "2013-01-02", "2013-01-05"
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def spec_of(trainer: str | None = None) -> PipelineSpec:
    """The pipeline; with another trainer, for tests."""
    document = yaml.safe_load(YAML.read_text())
    if trainer is not None:
        document["model"]["trainer"] = trainer
    return parse_spec(document, YAML.name)


def materialize(
    spec: PipelineSpec, instance: dg.DagsterInstance, stages: list[str], first: str, last: str
) -> None:
    """As a run over a range of partitions does it."""
    found = dg.Definitions.merge(
        pipeline_definitions(spec), dg.Definitions(executor=dg.in_process_executor)
    )
    job = found.resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        instance=instance,
        asset_selection=[asset_key(spec.asset(stage)) for stage in stages],
        tags={START: first, END: last},
    )


def prepare(spec: PipelineSpec, home: Home, instance: dg.DagsterInstance) -> None:
    """Land the flights of three days and build what a model reads."""
    from datetime import date

    services = Services.open(spec, home)
    land_flights(services, date.fromisoformat(FIRST), date.fromisoformat(DAY), quiet=True)
    for airport in spec.partitions.values:
        materialize(spec, instance, ["features"], f"{airport}|{FIRST}", f"{airport}|{DAY}")
    materialize(spec, instance, ["day"], FIRST, DAY)
    materialize(spec, instance, ["snapshot"], DAY, DAY)


def train(spec: PipelineSpec, home: Home, instance: dg.DagsterInstance) -> dict[str, Any]:
    """Train, and tell what came of it."""
    materialize(spec, instance, ["model"], DAY, DAY)
    record = Services.open(spec, home).ledger.current_version(spec.asset("model"), DAY)
    event = instance.get_latest_materialization_event(asset_key(spec.asset("model")))
    assert record is not None
    assert event is not None
    assert event.asset_materialization is not None
    told = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    return {
        "model_version": record.detail["model_version"],
        "digest": record.data_version,
        "rows": record.rows,
        "ranks": record.detail["ranks"],
        "train_log_loss": told.get("train_log_loss"),
        "lost": told.get("ranks_lost"),
        "metadata": sorted(told),
        "mlflow_run_id": record.detail["mlflow_run_id"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true", help="only what the model reads")
    parser.add_argument("--trainer", help="another trainer, package.module:Name")
    given = parser.parse_args()
    spec, home = spec_of(given.trainer), Home.locate()
    make_home(home)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        if Services.open(spec, home).ledger.current_version(spec.asset("snapshot"), DAY) is None:
            prepare(spec, home, instance)
        if not given.prepare:
            print(json.dumps(train(spec, home, instance), indent=1))


if __name__ == "__main__":
    main()
