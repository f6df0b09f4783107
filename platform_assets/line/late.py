"""Late and corrected data: which built partitions are no longer what their hours say.

A partition is compared with what it was built from, whoever built it and however long ago. What
differs is written down as a restatement, with what it touches and what the catalog wants done.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from platform_assets.domain.completeness import CompletenessReport, SourceReport
from platform_assets.domain.late import (
    HourChanges,
    changed_sources,
    compare_hours,
    decide,
    lateness_ends,
    version_of,
    versions_of,
)
from platform_assets.domain.partition import PartitionKey, date_range, local_date, runs_of
from platform_assets.line.clearance import assess_range, refresh
from platform_assets.line.features import (
    SourceChange,
    accepted_hours,
    changes_since,
    hours_digest,
    record_completeness,
    told_key,
)
from platform_assets.line.impact import Impact, Readers
from platform_assets.line.services import Services
from resources.ledger.records import RestatementRecord, VersionRecord


@dataclass(frozen=True)
class Noted:
    """What a look at some dates found.

    Attributes:
        found: restatements that are new.
        changes: source partitions that are not what was recorded last.
        unknown: built partitions of which nothing can be said: what they were built from was not
            recorded.
    """

    found: tuple[RestatementRecord, ...] = ()
    changes: tuple[SourceChange, ...] = ()
    unknown: tuple[str, ...] = ()


def within_lateness(services: Services) -> tuple[date, ...]:
    """The dates that have begun and of which some source is within its lateness still."""
    spec, as_of = services.spec, services.clock.as_of()
    timezone, contracts = spec.partitions.timezone, [s.contract for s in spec.sources.values()]
    longest = max(contracts, key=lambda contract: contract.lateness_hours)
    last = min(local_date(as_of - timedelta(microseconds=1), timezone), spec.partitions.end)
    first = last
    while (
        first > spec.partitions.start
        and lateness_ends(longest, first - timedelta(days=1), timezone) >= as_of
    ):
        first -= timedelta(days=1)
    return date_range(max(first, spec.partitions.start), last)


def note_changes(
    services: Services,
    dates: Iterable[date],
    tell: Callable[[SourceChange], None] = lambda _: None,
) -> Noted:
    """Compare what was built of some dates with what their hours are now.

    Args:
        services: of the pipeline.
        dates: local dates; those outside of the pipeline's are left out.
        tell: is called for each source that has changed, before that is recorded.
    """
    spec = services.spec
    wanted = sorted({d for d in dates if spec.partitions.start <= d <= spec.partitions.end})
    found: list[RestatementRecord] = []
    changes: list[SourceChange] = []
    unknown: list[str] = []
    for first, last in runs_of(wanted):
        refresh(services, first, last)
        reports = assess_range(services, first, last)
        built = services.ledger.current_versions(
            spec.asset("features"), [str(partition) for partition in reports]
        )
        changes += _tell(services, reports, tell)
        readers = Readers(services, first, last)
        waiting = {
            record.partition: record
            for record in services.restatements.all(spec.pipeline, only_open=True)
        }
        for partition, report in reports.items():
            record = built.get(str(partition))
            if record is None:
                continue  # nothing was used yet: it is built from what is there when it is clear
            if "arrivals" not in record.detail:
                unknown.append(str(partition))
                continue
            new = _changed(services, partition, report, record, readers)
            if new is not None:
                if services.restatements.found(new):
                    found.append(new)
            elif str(partition) in waiting:
                _settle(services, waiting[str(partition)], record)
    return Noted(tuple(found), tuple(changes), tuple(unknown))


def _tell(
    services: Services,
    reports: Mapping[PartitionKey, CompletenessReport],
    tell: Callable[[SourceChange], None],
) -> list[SourceChange]:
    """Tell what changed of the sources of which something was recorded before, and record it."""
    spec, names = services.spec, [str(partition) for partition in reports]
    told: dict[str, str] = {}
    known: set[str] = set()
    for source in spec.sources:
        asset = spec.landed(source)
        for name, verdict in services.ledger.verdicts(spec.pipeline, asset, names).items():
            version = _recorded_version(verdict.report)
            known.add(name)
            told[told_key(asset, name)] = version
    looked_at = {p: report for p, report in reports.items() if str(p) in known}
    changes = changes_since(services, looked_at, told)
    # Told first, recorded after: a change may be told twice, but never lost.
    for change in changes:
        tell(change)
    touched = {change.partition for change in changes}
    record_completeness(services, {p: r for p, r in looked_at.items() if str(p) in touched})
    return changes


def _recorded_version(report: Mapping[str, Any]) -> str:
    return SourceReport.model_validate(report).data_version()


def _changed(
    services: Services,
    partition: PartitionKey,
    report: CompletenessReport,
    record: VersionRecord,
    readers: Readers,
) -> RestatementRecord | None:
    """The restatement that a partition needs; none if it is what its hours say."""
    used, now = dict(record.detail["arrivals"]), versions_of(report)
    impact = readers.of(partition)
    if changed_sources(used, now):
        return _restatement(services, partition, report, record, impact)
    stale = impact.stale(record.data_version)
    if not stale or _left_as_they_are(services, str(partition), version_of(now)):
        return None
    # It was rebuilt by somebody else, from other hours than what reads it knows.
    history = services.ledger.history(services.spec.asset("features"), str(partition))
    before = [v for v in history if v.data_version in stale and "arrivals" in v.detail]
    if not before or not changed_sources(dict(before[-1].detail["arrivals"]), now):
        return None  # of the same hours by another code: no late data
    return _restatement(services, partition, report, before[-1], impact)


def _left_as_they_are(services: Services, partition: str, version: str) -> bool:
    """Whether a person has restated these very hours and said that nothing is to be trained."""
    records = services.restatements.all(services.spec.pipeline, partition=partition)
    done = [r for r in records if r.state == "done"]
    return bool(done) and done[-1].now_version == version and not retrains(done[-1])


def retrains(record: RestatementRecord) -> bool:
    """Whether the models that a restatement touches are trained again."""
    return bool(record.touches.get("retrain", True))


def _restatement(
    services: Services,
    partition: PartitionKey,
    report: CompletenessReport,
    built: VersionRecord,
    impact: Impact,
) -> RestatementRecord:
    spec, as_of = services.spec, services.clock.as_of()
    timezone = spec.partitions.timezone
    used, now = dict(built.detail["arrivals"]), versions_of(report)
    changed = changed_sources(used, now)
    decision = decide(
        {name: source.contract for name, source in spec.sources.items()},
        changed,
        partition.date,
        timezone,
        as_of,
        report,
    )
    hours = _hour_changes(services, partition, report, built, changed)
    return RestatementRecord(
        pipeline=spec.pipeline,
        partition=str(partition),
        used_version=version_of(used),
        now_version=version_of(now, held=bool(decision.held)),
        changes={
            "text": "; ".join(change.describe(timezone) for change in hours),
            "hours": {c.source: c.model_dump(mode="json", exclude={"source"}) for c in hours},
            "now": now,
            "built": built.data_version,
            "held": decision.held,
        },
        touches=impact.as_dict(),
        decision=decision.decision,
        reason=decision.reason,
        state="open",
        found_at=as_of,
    )


def _hour_changes(
    services: Services,
    partition: PartitionKey,
    report: CompletenessReport,
    built: VersionRecord,
    changed: Iterable[str],
) -> list[HourChanges]:
    used: Mapping[str, Mapping[str, str]] = built.detail.get("hours_digest", {})
    now = hours_digest(accepted_hours(services, partition))
    refused = {source.source: source.rejected for source in report.sources}
    return [
        compare_hours(source, used.get(source), now.get(source, {}), refused[source])
        for source in changed
    ]


def _settle(services: Services, record: RestatementRecord, built: VersionRecord) -> None:
    """Look after an open restatement of a partition that is what its hours say."""
    arrivals, as_of = dict(built.detail["arrivals"]), services.clock.as_of()
    if version_of(arrivals) == record.used_version:
        outcome = "the hours are again those that it was built from, nothing is to be done"
        services.restatements.end(record.number, "superseded", outcome, as_of)
    elif changed_sources(arrivals, record.changes["now"]):
        # It was built from newer hours than were found: what is left to do follows from these.
        newer = replace(
            record,
            now_version=version_of(arrivals),
            changes={**record.changes, "now": arrivals, "held": ""},
            state="open",
            found_at=as_of,
            outcome=None,
        )
        services.restatements.found(newer)


def is_rebuilt(record: RestatementRecord, features: VersionRecord) -> bool:
    """Whether the features are made of what a restatement found."""
    used = features.detail.get("arrivals")
    return used is not None and not changed_sources(used, record.changes.get("now", {}))


def touching(record: RestatementRecord, impact: Impact) -> dict[str, Any]:
    """What reads the partition of a restatement now, beside what a person has said of it."""
    said = {name: found for name, found in record.touches.items() if name == "retrain"}
    return {**said, **impact.as_dict()}


def touches(services: Services, record: RestatementRecord) -> Mapping[str, Any]:
    """What a restatement touches; of one whose features are still the old ones whatever reads them.

    So also what was taken, trained or judged since it was found.
    """
    if record.ended_at is not None:
        return record.touches
    asset = services.spec.asset("features")
    features = services.ledger.current_version(asset, record.partition)
    if features is None or is_rebuilt(record, features):
        return record.touches
    partition = PartitionKey.parse(record.partition)
    return touching(record, Readers(services, partition.date, partition.date).of(partition))


def left_to_late(services: Services) -> frozenset[date]:
    """The dates whose judgement the late lane looks after, where they were judged before."""
    dates = set()
    for record in services.restatements.all(services.spec.pipeline, only_open=True):
        if may_go(record):
            dates |= {date.fromisoformat(day) for day in record.touches.get("evaluations", ())}
    return frozenset(dates)


def may_go(record: RestatementRecord) -> bool:
    """Whether an open restatement needs nobody's word, or has it."""
    return record.decision == "restate" or record.state == "approved"


def open_restatements(services: Services, stage: str, name: str) -> list[RestatementRecord]:
    """The open restatements of a partition, or that touch the one of a later stage."""
    found = []
    for record in services.restatements.all(services.spec.pipeline, only_open=True):
        partition = PartitionKey.parse(record.partition)
        if stage == "day":
            touched = [partition.date.isoformat()]
        elif stage in ("snapshot", "evaluation"):
            touched = touches(services, record).get(f"{stage}s", [])
        elif stage == "model":
            touched = [model["date"] for model in touches(services, record).get("models", ())]
        else:
            touched = [record.partition]
        if name in touched:
            found.append(record)
    return found


def described(services: Services, record: RestatementRecord) -> dict[str, Any]:
    """A restatement for a person or a script: what changed, what it touches, what to do."""
    return {
        "partition": record.partition,
        "state": record.state,
        "changed": record.changes.get("text", ""),
        "hours": record.changes.get("hours", {}),
        "used_version": record.used_version,
        "now_version": record.now_version,
        "touches": dict(touches(services, record)),
        "decision": record.decision,
        "reason": record.reason,
        "found_at": record.found_at.isoformat(),
        "approved_by": record.approved_by,
        "progress" if record.ended_at is None else "outcome": record.outcome or "",
        "ended_at": record.ended_at.isoformat() if record.ended_at else None,
        "to_do": advice(services, record),
    }


def advice(services: Services, record: RestatementRecord) -> str:
    """What a person may do about a restatement."""
    if record.ended_at is not None:
        return ""
    if record.changes.get("held"):
        return f"`signalbox explain {services.spec.asset('features')} '{record.partition}'`"
    if may_go(record) and record.changes.get("blocked"):
        return "mend what is held, then it goes by itself in the lane late"
    if may_go(record):
        return "nothing, it goes by itself in the lane late"
    return f"`signalbox restate '{record.partition}' --by NAME`"
