"""A project without Signalbox: an asset that trains on whatever has landed, and how to reach it."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pandas as pd

from platform_assets.domain.partition import PartitionKey, date_range, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory import grid
from platform_assets.factory.sources import build_source
from resources.home import Home
from tests.small import small_spec

SENSOR = "careless_sensor"

FAILS_ONCE = "the-next-training-fails"
"""A file of this name in the home: the training fails, for a reason of its own, and removes it."""


def careless(
    home: Home, spec: PipelineSpec, condition: dg.AutomationCondition[dg.AssetKey] | None = None
) -> dg.Definitions:
    """The model, and a job of it."""

    @dg.asset(
        name="careless_model",
        partitions_def=grid.keyed(spec),
        deps=[grid.asset_key(spec.landed("flights"))],
        # One run may carry a range of partitions, as a backfill with this policy makes them.
        backfill_policy=dg.BackfillPolicy.multi_run(10),
        automation_condition=condition,
    )
    def careless_model(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from sklearn.linear_model import LogisticRegression

        marker = home.root / FAILS_ONCE
        if marker.exists():
            marker.unlink()
            raise RuntimeError("the machine was rebooted")
        hours = []
        for key in map(PartitionKey.parse, context.partition_keys):
            hours += landed_hours(home, spec, str(key.key), key.date)
        rows = pd.concat([pd.read_parquet(path) for path in hours]).dropna(subset=["arr_delay"])
        LogisticRegression().fit(rows[["sched_dep_time", "distance"]], rows["arr_delay"] >= 15)
        return dg.MaterializeResult(metadata={"hours": len(hours), "rows": len(rows)})

    @dg.sensor(name=SENSOR, job_name="careless_job")
    def careless_sensor(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
        """Of each key the newest day that files have landed of."""
        for key in spec.partitions.values:
            for day in reversed(date_range(spec.partitions.start, spec.partitions.end)):
                if landed_hours(home, spec, key, day):
                    name = grid.dagster_key(spec, PartitionKey(day, key))
                    yield dg.RunRequest(run_key=name, partition_key=name)
                    break

    return dg.Definitions(
        assets=[careless_model],
        sensors=[careless_sensor],
        jobs=[dg.define_asset_job("careless_job", selection=[careless_model])],
        executor=dg.in_process_executor,
    )


def landed_hours(home: Home, spec: PipelineSpec, key: str, day: date) -> list[Path]:
    """The flights' files of a key and day that are there."""
    folder = home.landing / "flights" / "flights" / key
    paths = [
        folder / f"{hour:%Y-%m-%d}" / f"{hour:%Y-%m-%dT%H}Z.parquet"
        for hour in local_hours(day, spec.partitions.timezone)
    ]
    return [path for path in paths if path.exists()]


def with_source(defs: dg.Definitions, spec: PipelineSpec) -> dg.Definitions:
    """And the source that it depends on, as an asset that is observed."""
    return dg.Definitions.merge(defs, dg.Definitions(assets=[build_source(spec, "flights")]))


def repository() -> dg.RepositoryDefinition:
    """The code location, found by its name."""
    return careless(Home.locate(), small_spec()).get_repository_def()
