"""Source assets: what the landing zone holds, observed and never computed."""

from datetime import timedelta

import dagster as dg
from dagster._core.definitions.external_asset import create_external_asset_from_source_asset

from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.grid import asset_key, dagster_key, keyed
from platform_assets.instance.claiming import in_lane
from platform_assets.line.clearance import refresh
from platform_assets.line.services import Services


def build_source(spec: PipelineSpec, source: str) -> dg.AssetsDefinition:
    """One source as an observable asset, key x date; its hours are kept in the ledger."""
    declared = spec.sources[source]

    @dg.observable_source_asset(
        key=asset_key(spec.landed(source)),
        partitions_def=keyed(spec),
        group_name=spec.pipeline,
        description=f"{declared.description} Delivered hour by hour into the landing zone; a "
        "partition is observed as it fills, and materialized by its producer when it is whole.",
        tags={"signalbox/pipeline": spec.pipeline, "dagster/kind/parquet": ""},
        metadata={
            "dagster/column_schema": dg.TableSchema(
                columns=[
                    dg.TableColumn(
                        name,
                        column.type,
                        description=column.description or None,
                        constraints=dg.TableColumnConstraints(nullable=column.nullable),
                    )
                    for name, column in declared.columns.items()
                ]
            )
        },
    )
    def observe(context: dg.AssetExecutionContext) -> dg.DataVersionsByPartition:
        services = Services.open(spec)
        as_of = services.clock.as_of()
        last = min(spec.partitions.end, (as_of + timedelta(days=1)).date())
        with in_lane(context):
            refresh(services, spec.partitions.start, last)
        versions = {}
        for partition, report in services.zone.reports(spec.partitions.start, last, as_of).items():
            for found in report.sources:
                if found.source == source and not found.is_absent:
                    versions[dagster_key(spec, partition)] = found.data_version()
        context.log.info(f"{spec.landed(source)}: {len(versions)} partition(s) have arrivals")
        return dg.DataVersionsByPartition(versions)

    # What Dagster does with it anyway when definitions are resolved; only so can it carry owners.
    return create_external_asset_from_source_asset(observe).map_asset_specs(
        lambda asset: asset.replace_attributes(owners=list(spec.owners))
    )
