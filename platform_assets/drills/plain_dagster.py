"""The same training as a plain Dagster project would have it: pandas, and a schedule by cron.

Nothing of Signalbox decides here: when something runs is up to Dagster's own automation.
"""

import warnings
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from platform_assets.domain.spec import PipelineSpec

if TYPE_CHECKING:
    import pandas as pd

CRON = "15 0 * * *"
"""A quarter past midnight: the day is over, so one expects it to be there."""

LANDED = "landed"
"""The asset that stands for the producers' folder."""

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run configuration: what Dagster logs of each step is not what a person waits for."""


@dataclass
class PlainDagster:
    """An external source, features and a model by date, on the folder of the producers.

    Attributes:
        landing: `<home>/landing/<pipeline>`.
        store: where rows and models go.
        spec: only for names, columns, parameters.
        policy: how a backfill makes runs of partitions; None is Dagster's default, a run each.
    """

    landing: Path
    store: Path
    spec: PipelineSpec
    instance: dg.DagsterInstance | None = None
    policy: dg.BackfillPolicy | None = field(default_factory=dg.BackfillPolicy.single_run)
    cursor: Any = None
    _defs: dg.Definitions | None = field(default=None, init=False)

    @property
    def defs(self) -> dg.Definitions:
        if self._defs is None:
            self._defs = self._build()
        return self._defs

    def _build(self) -> dg.Definitions:
        grid = self.spec.partitions
        days = dg.DailyPartitionsDefinition(
            start_date=grid.start.isoformat(), timezone=grid.timezone
        )
        nightly = dg.AutomationCondition.on_cron(CRON, grid.timezone)
        window = dg.TimeWindowPartitionMapping(start_offset=1 - self.spec.model.window_days)

        # What lands is not Dagster's to make: it is told of it, and `on_cron` waits for that.
        landed = dg.AssetSpec(LANDED, partitions_def=days)

        @dg.asset(
            partitions_def=days,
            deps=[landed],
            automation_condition=nightly,
            backfill_policy=self.policy,
        )
        def features(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            self.store.mkdir(parents=True, exist_ok=True)
            for key in context.partition_keys:
                rows, hours = self._read_day(date.fromisoformat(key))
                rows.to_parquet(self.store / f"{key}.parquet")
            return dg.MaterializeResult(metadata={"rows": len(rows), "hours": hours})

        @dg.asset(
            partitions_def=days,
            deps=[dg.AssetDep(features, partition_mapping=window)],
            automation_condition=nightly,
            backfill_policy=self.policy,
        )
        def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            rows = self._train(date.fromisoformat(context.partition_key))
            return dg.MaterializeResult(metadata={"rows": rows})

        return dg.Definitions(assets=[landed, features, model])

    def _read_day(self, day: date) -> "tuple[pd.DataFrame, int]":
        """The rows of a local day as far as they have landed, and the hours of it."""
        import pandas as pd
        from pyarrow import parquet

        spec = self.spec
        start = pd.Timestamp(day, tz=spec.partitions.timezone)
        end = pd.Timestamp(day + timedelta(days=1), tz=spec.partitions.timezone)
        hours = pd.date_range(start, end, freq="h", inclusive="left").tz_convert("UTC")
        tables, seen = {}, set()
        for source in spec.sources:
            parts = []
            for key in spec.partitions.values:
                paths = {
                    hour: self.landing / source / key / f"{hour:%Y-%m-%d/%Y-%m-%dT%HZ}.parquet"
                    for hour in hours
                }
                landed = {hour: path for hour, path in paths.items() if path.exists()}
                seen |= set(landed)
                rows = parquet.read_table([str(path) for path in landed.values()]).to_pandas()
                parts.append(rows.assign(**{spec.partitions.key: key}))
            tables[source] = pd.concat(parts, ignore_index=True)
        flights, weather = tables["flights"], tables["weather"]
        rows = flights.merge(weather, on=[spec.partitions.key, "time_hour"], how="left")
        rows = rows[rows["dep_time"].notna() & rows["arr_delay"].notna()].copy()
        for name in ("dep", "arr"):
            clock = rows[f"sched_{name}_time"]
            rows[f"{name}_minute"] = clock // 100 * 60 + clock % 100
        rows["weekday"] = rows["time_hour"].dt.tz_convert(spec.partitions.timezone).dt.dayofweek
        rows["delayed"] = (rows["arr_delay"] >= 15).astype(float)
        return rows[[*spec.dataset.features, "delayed"]], len(seen)

    def _train(self, day: date) -> int:
        """Train on the days of the window that are there; the number of rows."""
        import lightgbm as lgb
        import pandas as pd

        spec = self.spec
        wanted = [day - timedelta(days=n) for n in reversed(range(spec.model.window_days))]
        files = [self.store / f"{one}.parquet" for one in wanted]
        rows = pd.concat([pd.read_parquet(file) for file in files if file.exists()])
        for name in spec.dataset.categories:
            rows[name] = rows[name].astype("category")
        settings = dict(spec.model.parameters)
        rounds = int(settings.pop("num_boost_round"))
        data = lgb.Dataset(rows[list(spec.dataset.features)], label=rows["delayed"])
        more = {"objective": "binary", "seed": spec.model.seed, "verbosity": -1}
        model = lgb.train({**settings, **more}, data, num_boost_round=rounds)
        model.save_model(self.store / f"{day}.model.txt")
        return len(rows)

    def materialize(self, asset: str, first: date, last: date) -> dg.ExecuteInProcessResult:
        """Run an asset for the dates from first to last, in one run."""
        assert self.instance is not None
        ends = {
            "dagster/asset_partition_range_start": first.isoformat(),
            "dagster/asset_partition_range_end": last.isoformat(),
        }
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(asset)],
            tags=ends,
            run_config=QUIET,
        )

    def report_landed(self, day: date) -> None:
        """Report that files of a date have landed, as producers of an external asset do."""
        assert self.instance is not None
        folder, now = f"*/*/{day.isoformat()}", datetime.now(UTC)
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                LANDED,
                partition=day.isoformat(),
                metadata={"files": len(list(self.landing.glob(f"{folder}/*.parquet")))},
                tags={"dagster/data_version": f"as of {now.isoformat()}"},
            )
        )

    def evaluate(self, moment: datetime) -> dict[str, list[str]]:
        """Let Dagster evaluate its automation conditions at an instant.

        Returns:
            the partitions that it requests, by asset.
        """
        assert self.instance is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = dg.evaluate_automation_conditions(
                defs=self.defs,
                instance=self.instance,
                evaluation_time=moment,
                cursor=self.cursor,
            )
        self.cursor = result.cursor
        found = {
            name: sorted(filter(None, result.get_requested_partitions(dg.AssetKey(name))))
            for name in ("features", "model")
        }
        return {name: partitions for name, partitions in found.items() if partitions}

    def metadata(self, asset: str, day: date) -> dict[str, int]:
        """What the latest materialization of a date says of itself."""
        assert self.instance is not None
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[day.isoformat()]), limit=1
        )
        event = found.records[0].asset_materialization
        assert event is not None
        return {name: int(str(value.value)) for name, value in event.metadata.items()}
