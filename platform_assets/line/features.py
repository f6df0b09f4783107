"""Features: the completeness of one key and date, and its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from platform_assets.domain.completeness import CompletenessReport, SourceReport
from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import HeldError
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.services import Outcome, Services
from resources.dataset import build_rows


@dataclass(frozen=True)
class SourceChange:
    """A source partition whose verdict differs from the last one recorded."""

    asset: str
    partition: str
    report: SourceReport
    data_version: str


def arrivals_version(report: SourceReport) -> str:
    """Data version of a source partition: which hours it has, and how many rows."""
    return digest_of(report.model_dump(mode="json", exclude={"missing", "not_due"}))


def record_partitions(
    services: Services, reports: Mapping[PartitionKey, CompletenessReport]
) -> None:
    """Write down the verdicts on partitions of the dataset."""
    services.record_verdicts(
        services.spec.asset("features"),
        {
            str(partition): (report.verdict, report.model_dump(mode="json", exclude={"as_of"}))
            for partition, report in reports.items()
        },
        services.clock.as_of(),
    )


def record_completeness(
    services: Services, reports: Mapping[PartitionKey, CompletenessReport]
) -> list[SourceChange]:
    """Write down the verdicts on partitions and on their sources.

    Returns:
        the sources that changed. Nobody is told of a change twice: whoever calls this has to.
    """
    record_partitions(services, reports)
    changes = []
    for name in services.spec.sources:
        asset = services.spec.landed(name)
        found = {
            str(partition): source
            for partition, report in reports.items()
            for source in report.sources
            if source.source == name
        }
        verdicts = {
            partition: (source.verdict, source.model_dump(mode="json"))
            for partition, source in found.items()
        }
        for partition in services.record_verdicts(asset, verdicts, services.clock.as_of()):
            source = found[partition]
            changes.append(SourceChange(asset, partition, source, arrivals_version(source)))
    return changes


def assess(services: Services, partition: PartitionKey) -> CompletenessReport:
    """Look at the landing zone and decide whether a partition is whole, as of now."""
    assert partition.key is not None
    services.zone.refresh(partition.date, partition.date, [partition.key])
    return services.zone.report(partition.key, partition.date, services.clock.as_of())


def build_features(
    services: Services,
    partition: PartitionKey,
    run_id: str,
    tell: Callable[[SourceChange], None] = lambda _: None,
) -> Outcome:
    """Join one key's day and commit it.

    Args:
        services: of the pipeline.
        partition: a key and a date.
        run_id: recorded with the version.
        tell: is called for each source that has changed, also where the partition is held.

    Raises:
        HeldError: an hour of a source is missing, or was rejected.
        RefusedError: the rows break the dataset's schema.
        TransientError: the commit failed, nothing is half-written.
    """
    spec, name = services.spec, str(partition)
    asset = spec.asset("features")
    assert partition.key is not None
    report = assess(services, partition)
    for change in record_completeness(services, {partition: report}):
        tell(change)
    if not report.is_whole:
        raise HeldError(asset, {name: report.reason()})
    tables = {
        source: services.zone.read(source, partition.key, partition.date)
        for source in spec.read_sources
    }
    built = build_rows(spec, partition.key, partition.date, tables)
    before = services.ledger.current_version(asset, name)
    commit = services.table.commit(
        partition, built.table, previous=before.data_version if before else None
    )
    services.record(
        asset=asset,
        partition=name,
        data_version=commit.data_version,
        table_version=commit.table_version,
        rows=commit.rows,
        run_id=run_id,
        # A lake that was lost and built anew holds the same rows at another table version.
        always=commit.changed,
        detail={
            "excluded": built.excluded,
            "hours": {s.source: s.observed for s in report.sources},
        },
    )
    metadata = {
        "rows": commit.rows,
        "rows_landed": built.rows_in,
        **{f"excluded_{reason}": count for reason, count in built.excluded.items()},
        "rows_without_joined_row": built.unmatched,
        "completeness": report.reason(),
        "as_of": report.as_of.isoformat(),
        "delta_version": commit.table_version,
        "committed": commit.changed,
    }
    inputs = {spec.landed(s.source): arrivals_version(s) for s in report.sources}
    return Outcome(asset, name, commit.data_version, commit.changed, metadata, {}, inputs)
