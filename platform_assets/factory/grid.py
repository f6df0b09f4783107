"""Partitions: the domain's keys and dates as Dagster's definitions and back."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta

import dagster as dg

from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec

DATE_DIMENSION = "date"


def asset_key(name: str) -> dg.AssetKey:
    """`flights/features` as an asset key."""
    return dg.AssetKey(name.split("/"))


def daily(spec: PipelineSpec, first: date, last: date) -> dg.DailyPartitionsDefinition:
    """Calendar days of the pipeline's timezone, first and last included."""
    return dg.DailyPartitionsDefinition(
        start_date=first.isoformat(),
        end_date=(last + timedelta(days=1)).isoformat(),
        timezone=spec.partitions.timezone,
    )


def keyed(spec: PipelineSpec) -> dg.MultiPartitionsDefinition:
    """Key x date."""
    grid = spec.partitions
    return dg.MultiPartitionsDefinition(
        {
            grid.key: dg.StaticPartitionsDefinition(list(grid.values)),
            DATE_DIMENSION: daily(spec, grid.start, grid.end),
        }
    )


def dagster_key(spec: PipelineSpec, partition: PartitionKey) -> str:
    """The key as Dagster writes it: the dimensions stand in the order of their names."""
    if partition.key is None:
        return str(partition)
    return str(
        dg.MultiPartitionKey(
            {spec.partitions.key: partition.key, DATE_DIMENSION: partition.date.isoformat()}
        )
    )


def partition_tags(spec: PipelineSpec, partition: PartitionKey) -> dict[str, str]:
    """The tags that Dagster's UI filters events of a multi-partition key by."""
    if partition.key is None:
        return {}
    return {
        f"dagster/partition/{spec.partitions.key}": partition.key,
        f"dagster/partition/{DATE_DIMENSION}": partition.date.isoformat(),
    }


def ranges(definition: dg.PartitionsDefinition, keys: Iterable[str]) -> Sequence[tuple[str, str]]:
    """Keys as ranges of a partitions definition, each from first to last."""
    subset = definition.subset_with_partition_keys(list(keys))
    return [(r.start, r.end) for r in subset.get_partition_key_ranges(definition)]
