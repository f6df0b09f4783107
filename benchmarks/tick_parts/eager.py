"""The same graph under `AutomationCondition.eager()`, everything materialized."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from benchmarks.tick_parts.history import LAST, flights
from benchmarks.tick_parts.sensors import Eager
from platform_assets.domain.partition import date_range


class Automation:
    """Both sources, features, day and model of some years; and Dagster's sensor over them."""

    def __init__(self, years: int, folder: Path) -> None:
        """
        Args:
            years: of partitions, until the day before the last.
            folder: of the instance: SQLite files, as in a home.
        """
        first = date(LAST.year - years + 1, 1, 1)
        self.days = date_range(first, LAST - timedelta(days=1))
        self.keys = flights(first).partitions.values
        folder.mkdir(parents=True)
        self.instance = dg.DagsterInstance.local_temp(str(folder))
        self._sensor = Eager(self._graph(first), self.instance)
        for name in ("landed_flights", "landed_weather", "features"):
            self._materialize(name, [self._multi(k, d) for d in self.days for k in self.keys])
        for name in ("day", "model"):
            self._materialize(name, [d.isoformat() for d in self.days])

    def _graph(self, first: date) -> dg.Definitions:
        # The last day is not over: what is expected of eager() is what has landed before it.
        daily = dg.DailyPartitionsDefinition(
            first.isoformat(), LAST.isoformat(), timezone="America/New_York"
        )
        keyed = dg.MultiPartitionsDefinition(
            {"airport": dg.StaticPartitionsDefinition(list(self.keys)), "date": daily}
        )
        eager = dg.AutomationCondition.eager()
        rolled = dg.MultiToSingleDimensionPartitionMapping("date")
        window = dg.TimeWindowPartitionMapping(start_offset=-27, end_offset=0)

        @dg.asset(partitions_def=keyed)
        def landed_flights() -> None: ...

        @dg.asset(partitions_def=keyed)
        def landed_weather() -> None: ...

        @dg.asset(
            partitions_def=keyed,
            deps=[landed_flights, landed_weather],
            automation_condition=eager,
        )
        def features() -> None: ...

        @dg.asset(
            partitions_def=daily,
            deps=[dg.AssetDep(features, partition_mapping=rolled)],
            automation_condition=eager,
        )
        def day() -> None: ...

        @dg.asset(
            partitions_def=daily,
            deps=[dg.AssetDep(day, partition_mapping=window)],
            automation_condition=eager,
        )
        def model() -> None: ...

        return dg.Definitions([landed_flights, landed_weather, features, day, model])

    def _multi(self, key: str, day: date) -> Any:
        return dg.MultiPartitionKey({"airport": key, "date": day.isoformat()})

    def _report(self, name: str, partition: Any) -> None:
        event = dg.AssetMaterialization(dg.AssetKey(name), partition=partition)
        self.instance.report_runless_asset_event(event)

    def _materialize(self, name: str, partitions: list[Any]) -> None:
        """One event by Dagster itself, and copies of its row for the other partitions."""
        last = partitions[-1]
        self._report(name, last)
        storage: Any = self.instance.event_log_storage
        with storage.index_connection() as connection:
            table = sa.Table("event_logs", sa.MetaData(), autoload_with=connection)
            query = table.select().where(table.c.partition == str(last))
            found = connection.execute(query.order_by(table.c.id.desc()).limit(1)).one()
            row = {k: v for k, v in found._mapping.items() if k != "id"}
            copies = [
                row | {"partition": str(p), "event": row["event"].replace(str(last), str(p))}
                for p in partitions[:-1]
            ]
            if copies:
                connection.execute(table.insert(), copies)

    def tick(self) -> None:
        """One evaluation of Dagster's sensor."""
        self._sensor.tick()

    @property
    def requested(self) -> int:
        return self._sensor.requested

    def land(self, days: int) -> int:
        """Both sources of all airports for the last days once more; returns how many."""
        fresh = [(k, d) for d in self.days[-days:] for k in self.keys]
        for name in ("landed_flights", "landed_weather"):
            for key, day in fresh:
                self._report(name, self._multi(key, day))
        return 2 * len(fresh)
