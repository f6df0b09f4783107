"""Features: the completeness of one key and date, and its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from platform_assets.domain.completeness import CompletenessReport, SourceReport
from platform_assets.domain.errors import HeldError
from platform_assets.domain.late import PREFIX, hour_name, versions_of
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.line.clearance import assess, described, refused
from platform_assets.line.services import Outcome, Services
from resources.dataset import build_rows


@dataclass(frozen=True)
class SourceChange:
    """A source partition that is not what Dagster was told last."""

    asset: str
    partition: str
    report: SourceReport
    data_version: str


def changes_since(
    services: Services,
    reports: Mapping[PartitionKey, CompletenessReport],
    told: Mapping[str, str],
) -> list[SourceChange]:
    """The source partitions whose data version is not the one that was told.

    Args:
        services: of the pipeline.
        reports: what was found.
        told: data version by `told_key`; a partition that never had an arrival has none.
    """
    changes = []
    for partition, report in sorted(reports.items()):
        for source in report.sources:
            asset, version = services.spec.landed(source.source), source.data_version()
            before = told.get(told_key(asset, str(partition)))
            if before != version and not (before is None and source.is_absent):
                changes.append(SourceChange(asset, str(partition), source, version))
    return changes


def told_key(asset: str, partition: str) -> str:
    return f"{asset} {partition}"


def record_partitions(
    services: Services, reports: Mapping[PartitionKey, CompletenessReport]
) -> None:
    """Write down the verdicts on partitions of the dataset; one that a run has refused stays so."""
    kept = refused(services, reports.values())
    wanted = {str(p): report for p, report in reports.items() if str(p) not in kept}
    services.record_verdicts(
        services.spec.asset("features"),
        {
            name: (report.verdict, report.model_dump(mode="json", exclude={"as_of"}))
            for name, report in wanted.items()
        },
        services.clock.as_of(),
        {name: report.reason() for name, report in wanted.items()},
    )


def record_completeness(
    services: Services, reports: Mapping[PartitionKey, CompletenessReport]
) -> None:
    """Write down the verdicts on partitions and on their sources."""
    record_partitions(services, reports)
    for name in services.spec.sources:
        verdicts = {
            str(partition): (source.verdict, source.model_dump(mode="json"))
            for partition, report in reports.items()
            for source in report.sources
            if source.source == name
        }
        services.record_verdicts(services.spec.landed(name), verdicts, services.clock.as_of())


def _recorded(services: Services, partition: PartitionKey) -> dict[str, str]:
    """The data versions of a partition's sources as they were recorded last."""
    spec, found = services.spec, {}
    for name in spec.sources:
        asset = spec.landed(name)
        before = services.ledger.verdict(spec.pipeline, asset, str(partition))
        if before is not None:
            version = SourceReport.model_validate(before.report).data_version()
            found[told_key(asset, str(partition))] = version
    return found


def hours_digest(services: Services, partition: PartitionKey) -> dict[str, dict[str, str]]:
    """The first digits of each accepted hour's digest, by source and hour (`2013-02-09T14Z`)."""
    spec = services.spec
    hours = local_hours(partition.date, spec.partitions.timezone)
    return {
        source: {
            hour_name(arrival.hour): arrival.digest[:PREFIX]
            for arrival in services.ledger.arrivals(
                spec.pipeline, source, partition.key, hours[0], hours[-1]
            )
            if arrival.rejected is None
        }
        for source in spec.sources
    }


def note_verdict(services: Services, partition: PartitionKey, report: CompletenessReport) -> None:
    """Write down a verdict without using up a change that Dagster has not been told of."""
    reports = {partition: report}
    if changes_since(services, reports, _recorded(services, partition)):
        record_partitions(services, reports)
    else:
        record_completeness(services, reports)


def _let_go(detail: Mapping[str, Any]) -> tuple[Any, ...]:
    """On what terms rows left: of which files, what they were short of, under which waivers."""
    return detail.get("arrivals"), detail.get("short", ""), list(detail.get("waivers", ()))


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
    # Told first, recorded after: a change may be told twice, but never lost.
    for change in changes_since(services, {partition: report}, _recorded(services, partition)):
        tell(change)
    record_completeness(services, {partition: report})
    if not report.is_clear:
        raise HeldError(asset, {name: report.reason()})
    hours = hours_digest(services, partition)
    tables = {
        source: services.zone.read(source, partition.key, partition.date)
        for source in spec.read_sources
    }
    built = build_rows(spec, partition.key, partition.date, tables)
    before = services.ledger.current_version(asset, name)
    names = sorted({s.waiver for s in report.sources if s.waiver})
    detail = {
        "excluded": built.excluded,
        "hours": {s.source: s.observed for s in report.sources},
        "arrivals": versions_of(report),
        "hours_digest": hours,
        "verdict": report.verdict.value,
        "short": report.shortage(),
        "waivers": names,
    }
    commit = services.table.commit(
        partition, built.table, previous=before.data_version if before else None
    )
    services.record(
        asset=asset,
        partition=name,
        data_version=commit.data_version,
        # Nothing was committed: the rows lie where they lay.
        table_version=commit.table_version
        if commit.changed or not before
        else before.table_version,
        rows=commit.rows,
        run_id=run_id,
        # A lake that was lost and built anew holds the same rows at another table version.
        # The same rows on other terms are the same version, but let go by somebody else.
        always=commit.changed or (before is not None and _let_go(before.detail) != _let_go(detail)),
        detail=detail,
    )
    metadata = {
        "rows": commit.rows,
        "rows_landed": built.rows_in,
        **{f"excluded_{reason}": count for reason, count in built.excluded.items()},
        "rows_without_joined_row": built.unmatched,
        "completeness": report.reason(),
        "verdict": report.verdict.value,
        "short": report.shortage() or None,
        "waivers": described(services, names) or None,
        "as_of": report.as_of.isoformat(),
        "delta_version": commit.table_version,
        "committed": commit.changed,
    }
    inputs = {spec.landed(s.source): s.data_version() for s in report.sources}
    return Outcome(asset, name, commit.data_version, commit.changed, metadata, {}, inputs)
