"""What every run would find out anew, found out before the fork: Dagster's statements and classes.

A tiny job is executed in a folder of its own, which is gone afterwards; SQLAlchemy keeps what it
compiled for it, by engine, and all of a process's connections come from one
(platform_assets/instance/connections.py). An expression is evaluated as those of the catalog are.
Neither starts a thread nor leaves anything open.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

SETTINGS = """
telemetry:
  enabled: false
storage:
  custom:
    module: platform_assets.instance.storage
    class: OneEngineStorage
    config:
      base_dir: {folder}
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""
SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DAY = "2013-01-01"


def rehearse() -> bool:
    """Execute a job that does nothing, as runs are; tells whether it went well."""
    import dagster as dg

    above = dg.AssetKey(["signalbox", "rehearsed"])
    days = dg.DailyPartitionsDefinition(DAY)

    @dg.multi_asset(
        name="signalbox__rehearsal",
        specs=[dg.AssetSpec(above, deps=[dg.AssetKey(["signalbox", "source"])], code_version="1")],
        partitions_def=days,
        check_specs=[dg.AssetCheckSpec("rehearsed", asset=above)],
    )
    def rehearsal(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        tags = {"dagster/data_version": "1", "dagster/data_version_is_user_provided": "true"}
        context.log_event(dg.AssetObservation(above, partition=DAY, tags=tags))
        context.log_event(dg.AssetMaterialization(above, partition=DAY, tags=tags))
        yield dg.MaterializeResult(asset_key=above, metadata={"rows": 1}, tags={"a": "b"})
        yield dg.AssetCheckResult(check_name="rehearsed", asset_key=above, passed=True)

    with tempfile.TemporaryDirectory(prefix="signalbox-") as folder:
        Path(folder, "dagster.yaml").write_text(SETTINGS.format(folder=folder), encoding="utf-8")
        with dg.DagsterInstance.from_config(folder) as instance:
            for _ in range(2):  # the second one finds what the first one has left
                found = dg.materialize(
                    [rehearsal],
                    instance=instance,
                    partition_key=DAY,
                    run_config=SILENT,
                    raise_on_error=False,
                )
            instance.get_run_by_id(found.run_id)
    return bool(found.success)


def rehearse_expressions() -> None:
    """Have pandas find out what an expression may name; it looks at every time zone for it."""
    import pandas as pd

    from resources.expressions import Columns

    number = pd.Series([1, 2], dtype=pd.Int64Dtype())
    text = pd.Series(["2013", None], dtype=pd.StringDtype("python"))
    columns = Columns({"n": number, "t": text}, number.index, "rehearsal")
    columns.evaluate("more", "n + 1 > 2 and n < 5")
    columns.evaluate("text", "t.str.len()")
    columns.evaluate("there", "t.isna() | (n == 2)")
