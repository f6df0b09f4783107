"""The story of a partition: everything that the ledger knows of it, oldest first.

A replay has two clocks: arrivals, versions and champions stand on the machine's, waivers on the
pipeline's. An entry says which one its instant is on, and stands where it happened: the order is
the machine's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from platform_assets.domain.completeness import (
    HOUR,
    SourceReport,
    describe_hours,
)
from platform_assets.domain.errors import RefusedError
from platform_assets.domain.manifest import describe_dates
from platform_assets.domain.partition import PartitionKey, date_range, local_hours
from platform_assets.line.clearance import recorded_reason
from platform_assets.line.days import load_snapshot
from platform_assets.line.services import Services
from resources.ledger.records import ArrivalRecord, TransitionRecord, VersionRecord


@dataclass(frozen=True)
class Entry:
    """One thing that happened.

    Attributes:
        at: when, on the clock that it was written down on.
        kind: arrival, corrected, verdict, run, alert, waiver, quarantine, restatement, version,
            snapshot, model, evaluation, champion.
        after: instants on the machine's clock that it cannot have happened before.
    """

    at: datetime
    kind: str
    text: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[datetime, ...] = ()

    def document(self, on_pipeline_clock: bool) -> dict[str, Any]:
        return {
            "at": self.at.astimezone(UTC).isoformat(),
            "clock": "pipeline" if on_pipeline_clock else "machine",
            "kind": self.kind,
            "text": self.text,
            **self.detail,
        }


def story(services: Services, stage: str, key: PartitionKey) -> list[dict[str, Any]]:
    """What happened to a partition, oldest first.

    Args:
        services: of the pipeline.
        stage: `landed_weather`, `features`, `day`, `snapshot`, `model` or `evaluation`.
        key: a partition of the stage.
    """
    spec, name = services.spec, str(key)
    versions = services.ledger.history(spec.asset(stage), name)
    entries: list[Entry] = []
    found: list[VersionRecord] = []
    anchors: dict[datetime, datetime] = {}
    if key.key is not None:
        found = services.ledger.history(spec.asset("features"), name)
        entries += _arrivals(services, stage, key, found, anchors)
        entries += _quarantine(services, stage, key)
    entries += _verdicts(services, stage, name, anchors)
    entries += _alerts(services, stage, key)
    entries += [
        Entry(
            record.committed_at,
            "version",
            f"version {record.data_version[:12]}, {record.rows} rows, by run {record.run_id}"
            + (f"; short of: {record.detail['short']}" if record.detail.get("short") else ""),
            {"data_version": record.data_version, "rows": record.rows, "run_id": record.run_id},
        )
        for record in versions
    ]
    if key.key is not None:
        # After the versions, so that what ends because of one stands behind it.
        entries += _restatements(services, name, found)
        entries += _waivers(services, name, found, anchors)
    entries += _readers(services, stage, key)
    return _in_order(services, entries, anchors)


def _in_order(
    services: Services, entries: Iterable[Entry], anchors: Mapping[datetime, datetime]
) -> list[dict[str, Any]]:
    """Entries in the order of the machine's clock.

    Args:
        services: of the pipeline.
        entries: in any order; of equal instants the order is kept.
        anchors: what is known of both clocks: the machine's instant by the pipeline's.
    """
    replay, as_of = services.spec.schedule.clock == "landed", services.clock.as_of()

    def on_pipeline_clock(entry: Entry) -> bool:
        # A replay's clock lies in the past of the machine's.
        return replay and entry.at <= as_of

    def place(entry: Entry) -> datetime:
        if not on_pipeline_clock(entry):
            return max(entry.at, *entry.after) if entry.after else entry.at
        known = [machine for pipeline, machine in anchors.items() if pipeline <= entry.at]
        return max([*known, *entry.after], default=entry.at)

    return [entry.document(on_pipeline_clock(entry)) for entry in sorted(entries, key=place)]


def _wanted_sources(services: Services, stage: str) -> list[str]:
    every = list(services.spec.sources)
    return [name for name in every if stage in ("features", f"landed_{name}")]


def _arrivals(
    services: Services,
    stage: str,
    key: PartitionKey,
    versions: Sequence[VersionRecord],
    anchors: dict[datetime, datetime],
) -> list[Entry]:
    spec = services.spec
    zone = spec.partitions.timezone
    hours = local_hours(key.date, zone)
    built = versions[0].committed_at if versions else None
    entries = []
    for name in _wanted_sources(services, stage):
        found = services.ledger.arrivals(spec.pipeline, name, key.key, hours[0], hours[-1])
        for record in found:
            ended = record.hour + HOUR
            anchors[ended] = min(record.seen_at, anchors.get(ended, record.seen_at))
        # The ledger keeps a file as it was seen last: what was seen after the first version was
        # built came late, or replaced what was there.
        later = [r for r in found if built is not None and r.seen_at > built]
        first = [r for r in found if r not in later]
        for kind, records, verb in (
            ("arrival", first, "arrived"),
            ("corrected", later, "came or were replaced after the first version was built"),
        ):
            if records:
                entries.append(_arrived(kind, name, records, zone, verb, len(hours)))
    return entries


def _arrived(
    kind: str, source: str, records: Sequence[ArrivalRecord], zone: str, verb: str, expected: int
) -> Entry:
    seen = [record.seen_at for record in records]
    accepted = [record for record in records if record.rejected is None]
    return Entry(
        max(seen),
        kind,
        f"{source}: {len(records)} of {expected} hours {verb}, "
        f"{describe_hours([r.hour for r in records], zone)}; {sum(r.rows for r in accepted)} rows"
        + (f", {len(records) - len(accepted)} refused" if len(accepted) < len(records) else ""),
        {
            "source": source,
            "files": len(records),
            "refused": len(records) - len(accepted),
            "first_hour": records[0].hour.isoformat(),
            "last_hour": records[-1].hour.isoformat(),
            "first_seen_at": min(seen).isoformat(),
            "last_seen_at": max(seen).isoformat(),
        },
    )


def _verdicts(
    services: Services, stage: str, name: str, anchors: dict[datetime, datetime]
) -> list[Entry]:
    """What looks and runs said, as often as it became another."""
    asset = services.spec.asset(stage)
    found = services.ledger.transitions(services.spec.pipeline, asset, name)
    for record in found:
        anchors.setdefault(record.as_of, record.recorded_at)
    folded: list[list[TransitionRecord]] = []
    for record in found:
        same = folded and (folded[-1][-1].verdict, folded[-1][-1].run_id) == (record.verdict, None)
        if same and record.run_id is None:
            folded[-1].append(record)
        else:
            folded.append([record])
    entries = [_transition(group) for group in folded]
    if not any(record.run_id is None for record in found):
        entries += _recorded(services, stage, name, anchors)
    return entries


def _transition(group: Sequence[TransitionRecord]) -> Entry:
    """A verdict as it was when it last said so; of one that came by itself, since when."""
    first, last = group[0], group[-1]
    text = f"{last.verdict}: {last.reason}"
    if last.run_id is not None:
        text = f"run {last.run_id} ended, {text}"
    detail = {
        "verdict": last.verdict,
        "as_of": first.as_of.isoformat(),
        "last_at": last.recorded_at.isoformat(),
        "changes": len(group),
        "run_id": last.run_id,
    }
    return Entry(first.recorded_at, "verdict" if last.run_id is None else "run", text, detail)


def _recorded(
    services: Services, stage: str, name: str, anchors: dict[datetime, datetime]
) -> list[Entry]:
    """The verdict that stands, where nobody kept how it came to be."""
    spec = services.spec
    record = services.ledger.verdict(spec.pipeline, spec.asset(stage), name)
    if record is None or not (stage == "features" or stage.startswith("landed_")):
        return []
    anchors[record.as_of] = record.recorded_at
    if stage == "features":
        why = recorded_reason(record)
    else:
        source = SourceReport.model_validate(record.report)
        why = f"{source.observed} of {source.expected} hours"
    text = f"verdict as recorded: {record.verdict}: {why}"
    detail = {"verdict": record.verdict, "as_of": record.as_of.isoformat()}
    return [Entry(record.recorded_at, "verdict", text, detail)]


def _alerts(services: Services, stage: str, key: PartitionKey) -> list[Entry]:
    """The alerts that named it, and what was said when they were over."""
    spec, name = services.spec, str(key)
    asset = spec.asset(stage)
    mine = {f"{asset} {name}"} | ({f"{asset} {key.date}"} if stage == "features" else set())
    entries, raised = [], {}
    for record in services.alerts.all(spec.pipeline):
        if record.subject not in mine:
            continue
        concerns = record.key.rsplit("|", 1)[1].split(",")
        if record.kind == "healed":
            named = any(number in raised for number in concerns)
        else:
            named = record.subject == f"{asset} {name}" or key.key in concerns
        if not named:
            continue
        raised[str(record.number)] = record
        text = f"alert {record.kind}: {record.text}"
        detail = {"alert": record.kind, "delivered": record.delivered_at is not None}
        told = (record.told_at,) if record.told_at else ()
        entries.append(Entry(record.raised_at, "alert", text, detail, told))
    return entries


def _waivers(
    services: Services,
    name: str,
    versions: Sequence[VersionRecord],
    anchors: dict[datetime, datetime],
) -> list[Entry]:
    pipeline, as_of = services.spec.pipeline, services.clock.as_of()
    recorded = services.waivers.recorded_at(pipeline, name)
    entries = []
    for waiver in services.waivers.of(pipeline, [name]):
        given = recorded[waiver.name]
        anchors[waiver.given_at] = given
        detail = {"waiver": waiver.name, "by": waiver.by}
        entries.append(
            Entry(waiver.given_at, "waiver", f"waiver given: {waiver.describe()}", detail, (given,))
        )
        # What was built under it was built before it ended.
        used = [v.committed_at for v in versions if waiver.name in v.detail.get("waivers", ())]
        state, after = waiver.state(as_of), (given, *used)
        if state == "revoked" and waiver.revoked_at is not None:
            text = f"waiver {waiver.name} revoked by {waiver.revoked_by}: {waiver.revoke_reason}"
            entries.append(Entry(waiver.revoked_at, "waiver", text, detail, after))
        elif state == "expired":
            text = f"waiver {waiver.name} expired"
            entries.append(Entry(waiver.until, "waiver", text, detail, after))
    return entries


def _quarantine(services: Services, stage: str, key: PartitionKey) -> list[Entry]:
    spec = services.spec
    hours = set(local_hours(key.date, spec.partitions.timezone))
    entries = []
    for record in services.quarantine.all(spec.pipeline):
        if record.key != key.key or record.hour not in hours:
            continue
        if record.source not in _wanted_sources(services, stage):
            continue
        where = f"{record.source} {describe_hours([record.hour], spec.partitions.timezone)}"
        detail = {"path": record.path, "kept": record.kept}
        text = f"{where} was refused into quarantine: {record.reason}"
        entries.append(Entry(record.found_at, "quarantine", text, detail))
        if record.ended_at is not None:
            text = f"{where} left quarantine: {record.ended_by}"
            entries.append(Entry(record.ended_at, "quarantine", text, detail))
    return entries


def _restatements(services: Services, name: str, versions: Sequence[VersionRecord]) -> list[Entry]:
    entries = []
    first, last = ([v.committed_at for v in some] for some in (versions[:1], versions[-1:]))
    for record in services.restatements.all(services.spec.pipeline, partition=name):
        detail = {"decision": record.decision, "state": record.state, "changes": record.changes}
        text = f"its hours changed after they were used: {record.decision} ({record.reason})"
        entries.append(Entry(record.found_at, "restatement", text, detail, tuple(first)))
        if record.approved_at is not None:
            text = f"restatement approved by {record.approved_by}"
            entries.append(Entry(record.approved_at, "restatement", text, detail))
        if record.ended_at is not None:
            text = f"restatement {record.state}" + (f": {record.outcome}" if record.outcome else "")
            after = tuple(last if record.state == "done" else first)
            entries.append(Entry(record.ended_at, "restatement", text, detail, after))
    return entries


def _readers(services: Services, stage: str, key: PartitionKey) -> list[Entry]:
    """Snapshots, models, evaluations and champions that rest on it, grouped."""
    spec, ledger = services.spec, services.ledger
    features = key.key is not None or stage == "day"
    last = key.date + timedelta(days=spec.model.window_days - 1) if features else key.date
    after = [day.isoformat() for day in date_range(key.date, last)]
    before = [
        day.isoformat()
        for day in date_range(key.date - timedelta(days=spec.evaluation.days), key.date)
    ]
    snapshots = []
    if features:
        taken = ledger.histories(spec.asset("snapshot"), after)
        snapshots = [r for r in taken if _reads(services, r, key)]
    elif stage == "snapshot":
        snapshots = ledger.history(spec.asset("snapshot"), str(key))
    trained = ledger.histories(spec.asset("model"), after)
    if features or stage == "snapshot":
        versions = {record.data_version for record in snapshots}
        models = [r for r in trained if r.detail.get("snapshot") in versions]
    else:
        models = trained
    numbers = {int(record.detail["model_version"]) for record in models}
    judged = ledger.histories(spec.asset("evaluation"), sorted({*before, *after}))
    on_it = [r for r in judged if features and _judged_on(r, key)]
    of_it = [r for r in judged if int(r.detail["model_version"]) in numbers]
    entries = []
    for kind, records, text in (
        ("snapshot", snapshots if features else [], "read by the snapshot(s) of"),
        (
            "model",
            models if stage not in ("model", "evaluation") else [],
            "trained on: the model(s) of",
        ),
        ("evaluation", on_it, "judged on: the model(s) of"),
        ("evaluation", of_it if stage != "evaluation" else [], "what rests on it was judged: "),
    ):
        entries += _grouped(kind, records, text)
    for champion in ledger.champions(spec.pipeline):
        if champion.version in numbers:
            entries.append(
                Entry(
                    champion.decided_at,
                    "champion",
                    f"{champion.model} version {champion.version} of {champion.model_date}, which "
                    f"rests on it, became champion: {champion.reason}",
                    {"version": champion.version, "run_id": champion.run_id},
                )
            )
    return entries


def _grouped(kind: str, records: Sequence[VersionRecord], text: str) -> list[Entry]:
    if not records:
        return []
    dates = sorted({date.fromisoformat(record.partition) for record in records})
    numbers = [r.detail["model_version"] for r in records if "model_version" in r.detail]
    detail = {"dates": [day.isoformat() for day in dates], "model_versions": numbers}
    at = min(record.committed_at for record in records)
    return [Entry(at, kind, f"{text.rstrip()} {describe_dates(dates)}", detail)]


def _reads(services: Services, record: VersionRecord, key: PartitionKey) -> bool:
    """Whether a snapshot reads the partition, or any of its date."""
    try:
        snapshot = load_snapshot(
            services, date.fromisoformat(record.partition), record.data_version
        )
    except RefusedError:
        return False  # its manifest is gone; whoever needs it is told so
    return any(_is_it(p.partition, key) for p in snapshot.partitions)


def _judged_on(record: VersionRecord, key: PartitionKey) -> bool:
    return any(_is_it(str(p["partition"]), key) for p in record.detail.get("partitions", ()))


def _is_it(name: str, key: PartitionKey) -> bool:
    found = PartitionKey.parse(name)
    return found.date == key.date and key.key in (None, found.key)
