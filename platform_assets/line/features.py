"""Features: the completeness of one key and date, and its rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from platform_assets.domain.completeness import (
    CompletenessReport,
    SourceReport,
    content_of,
    suspect_built,
    suspect_nulls,
)
from platform_assets.domain.errors import HeldError, RefusedError, TransientError
from platform_assets.domain.late import PREFIX, hour_name, versions_of
from platform_assets.domain.lease import Lease
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.clearance import assess, described, refused
from platform_assets.line.inputs import (
    INPUTS,
    RESTATED_BY,
    already_done,
    done_before,
    inputs_of,
    made_of,
)
from platform_assets.line.services import Outcome, Services
from resources.dataset import BuiltRows, build_rows
from resources.landing.values import missing_values
from resources.ledger.records import ArrivalRecord

if TYPE_CHECKING:
    import pyarrow as pa


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
        services.record_verdicts(
            services.spec.landed(name), verdicts, services.clock.as_of(), trailing=True
        )


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


def accepted_hours(services: Services, partition: PartitionKey) -> dict[str, list[ArrivalRecord]]:
    """The accepted hours of each source, as the ledger knows them now."""
    assert partition.key is not None
    return {
        source: services.zone.accepted(source, partition.key, partition.date)
        for source in services.spec.sources
    }


def hours_digest(hours: Mapping[str, Sequence[ArrivalRecord]]) -> dict[str, dict[str, str]]:
    """The first digits of each accepted hour's digest, by source and hour (`2013-02-09T14Z`)."""
    return {
        source: {hour_name(record.hour): record.digest[:PREFIX] for record in records}
        for source, records in hours.items()
    }


def _judged_hours(
    services: Services, partition: PartitionKey, report: CompletenessReport
) -> dict[str, list[ArrivalRecord]]:
    """The accepted hours that a report speaks of; no others are read.

    Raises:
        TransientError: another look has found other hours since. The next try judges them.
    """
    hours = accepted_hours(services, partition)
    others = [
        f"{judged.source} (judged with {judged.observed} hours, {len(hours[judged.source])} now)"
        for judged in report.sources
        if judged.content != content_of((r.hour, r.digest) for r in hours[judged.source])
    ]
    if others:
        raise TransientError(
            f"the hours of {partition} have changed since they were judged: {', '.join(others)}; "
            f"nothing was written, materialize {services.spec.asset('features')} for it again"
        )
    return hours


def note_verdict(services: Services, partition: PartitionKey, report: CompletenessReport) -> None:
    """Write down a verdict without using up a change that Dagster has not been told of."""
    reports = {partition: report}
    if changes_since(services, reports, _recorded(services, partition)):
        record_partitions(services, reports)
    else:
        record_completeness(services, reports)


def _let_go(detail: Mapping[str, Any]) -> tuple[Any, ...]:
    """On what terms rows left: of which files, short of what, under which waivers, for whom."""
    return (
        detail.get("arrivals"),
        detail.get("short", ""),
        list(detail.get("waivers", ())),
        detail.get(INPUTS),
        detail.get(RESTATED_BY),
    )


def _clear_rows(
    services: Services,
    partition: PartitionKey,
    report: CompletenessReport,
    tables: "Mapping[str, pa.Table]",
) -> BuiltRows:
    """The rows of a partition, unless what is in them is suspicious and nobody has waived that.

    Raises:
        HeldError: it is. That is written down: every later look finds the partition suspicious.
        RefusedError: the rows break the dataset's schema.
    """
    spec = services.spec
    assert partition.key is not None
    why = {
        name: suspect_nulls(
            source,
            missing_values(tables[name].select(list(source.day_null_limits))),
            tables[name].num_rows,
        )
        for name, source in spec.sources.items()
        if name in tables and source.day_null_limits
    }
    try:
        built = build_rows(spec, partition.key, partition.date, tables)
    except RefusedError:
        _require_seen(services, partition, report, why)
        raise
    rows = spec.dataset.rows
    few = suspect_built(spec.dataset.min_rows, built.table.num_rows, built.excluded)
    _require_seen(services, partition, report, why | {rows: _joined(why.get(rows, ""), few)})
    return built


def _joined(*reasons: str) -> str:
    return ", ".join(reason for reason in reasons if reason)


def _require_seen(
    services: Services,
    partition: PartitionKey,
    report: CompletenessReport,
    why: Mapping[str, str],
) -> None:
    """Refuse rows that are suspicious for a reason that is not in the report that is clear."""
    why = {name: reason for name, reason in why.items() if reason}
    seen = {source.source: source.suspicion for source in report.sources}
    if all(reason in seen[name] for name, reason in why.items()):
        return  # the report is clear: whoever has waived it has seen this
    services.zone.findings.record(partition, report.sources, why, report.as_of)
    now = assess(services, partition)
    record_completeness(services, {partition: now})
    reason = f"{report.reason()}; {'; '.join(f'{name}: {text}' for name, text in why.items())}"
    raise HeldError(
        services.spec.asset("features"),
        {str(partition): reason if now.is_clear else now.reason()},
    )


def require_clear(
    services: Services,
    partition: PartitionKey,
    tell: Callable[[SourceChange], None] = lambda _: None,
) -> CompletenessReport:
    """Ask whether a partition may be built, as of now; the verdict is written down.

    Raises:
        HeldError: it may not.
    """
    report = assess(services, partition)
    # Told first, recorded after: a change may be told twice, but never lost.
    for change in changes_since(services, {partition: report}, _recorded(services, partition)):
        tell(change)
    record_completeness(services, {partition: report})
    if not report.is_clear:
        raise HeldError(services.spec.asset("features"), {str(partition): report.reason()})
    return report


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
        HeldError: an hour of a source is missing or was rejected, or its rows are suspicious.
        RefusedError: the rows break the dataset's schema, or the lease was lost meanwhile.
        TransientError: the commit failed, nothing is half-written; the hours changed while they
            were judged; or another run is at work on the partition for too long.
    """
    asset = services.spec.asset("features")
    with services.claim(asset, str(partition), run_id) as lease:
        return _build(services, partition, run_id, tell, lease)


def _build(
    services: Services,
    partition: PartitionKey,
    run_id: str,
    tell: Callable[[SourceChange], None],
    lease: Lease,
) -> Outcome:
    spec, name = services.spec, str(partition)
    asset = spec.asset("features")
    assert partition.key is not None
    report = require_clear(services, partition, tell)
    names = sorted({s.waiver for s in report.sources if s.waiver})
    terms = {
        "verdict": report.verdict.value,
        "short": report.shortage(),
        "waivers": names,
    }
    upstream = {spec.landed(s.source): s.data_version() for s in report.sources}
    inputs = inputs_of(services, "features", arrivals=versions_of(report), terms=terms)
    done = done_before(services, asset, name, inputs)
    # After a crash the rows are committed anew, whatever they are: the one before, should it still
    # be at it, then meets a conflict.
    told = {
        "completeness": report.reason(),
        "verdict": report.verdict.value,
        "short": report.shortage() or None,
        "waivers": described(services, names) or None,
        "as_of": report.as_of.isoformat(),
        "lease_token": lease.token,
    }
    if done is not None and not lease.after_crash and services.dataset.stands(partition, done.rows):
        told |= {
            "delta_table": services.dataset.table_name(partition),
            "delta_version": done.table_version,
            "committed": False,
        }
        return already_done(services, done, told, upstream)
    hours = _judged_hours(services, partition, report)
    tables = {
        source: services.zone.read(source, partition.key, partition.date, hours[source])
        for source in spec.judged_sources
    }
    built = _clear_rows(services, partition, report, tables)
    before = services.ledger.current_version(asset, name)
    detail = {
        "excluded": built.excluded,
        "hours": {s.source: s.observed for s in report.sources},
        "arrivals": versions_of(report),
        "hours_digest": hours_digest(hours),
        **terms,
        **made_of(services, inputs),
    }
    commit = services.dataset.commit(
        partition,
        built.table,
        previous=before.data_version if before else None,
        guard=lambda: services.leases.require(lease),
        token=lease.token,
        fence=lease.after_crash,
    )
    services.record(
        lease=lease,
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
        **told,
        "delta_table": services.dataset.table_name(partition),
        "delta_version": commit.table_version,
        "committed": commit.changed,
    }
    return Outcome(asset, name, commit.data_version, commit.changed, metadata, {}, upstream)
