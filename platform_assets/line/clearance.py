"""The one authority on whether a partition may leave: every path asks here.

Sensor, UI materialization, backfill, `dg launch`, schedule, retry, plan, status and explain all
read the same report, made of the landing zone, the catalog's contract and the waivers in force.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from platform_assets.domain.attention import with_weekdays
from platform_assets.domain.completeness import CLEAR, REFUSED, CompletenessReport
from platform_assets.domain.digests import digest_of
from platform_assets.domain.partition import PartitionKey, local_date
from platform_assets.domain.waiver import Waiver, apply_waivers
from platform_assets.line.inputs import stage_version
from platform_assets.line.services import Services
from resources.ledger.records import VerdictRecord, VersionRecord

MOST_REPORTS = 4096
_reports: dict[tuple[object, ...], tuple[Mapping[str, Any], CompletenessReport, str]] = {}


def refresh(services: Services, first: date, last: date, keys: Sequence[str] | None = None) -> int:
    """Look at the files of some dates, and have those attended that are not what they were.

    Whatever follows from a change is the sensors'. Once the ledger knows of it, a look of theirs
    would not see that anything has changed; nor would the sweep, in its first round. So what has
    to be attended is written down together with the change.

    Returns:
        the number of files that arrived, changed or vanished.
    """
    spec = services.spec

    def concerned(hours: Collection[datetime]) -> Mapping[date, str]:
        why = "files changed, found by a look of somebody else"
        dates = {local_date(hour, spec.partitions.timezone) for hour in hours}
        return services.live(with_weekdays(spec, dict.fromkeys(dates, why)))

    return services.zone.refresh(first, last, keys, concerned=concerned)


def assess(services: Services, partition: PartitionKey) -> CompletenessReport:
    """Look at the landing zone and decide whether a partition may leave, as of now."""
    assert partition.key is not None
    refresh(services, partition.date, partition.date, [partition.key])
    report = services.zone.report(partition.key, partition.date, services.clock.as_of())
    waivers = services.waivers.of(services.spec.pipeline, [str(partition)])
    return apply_waivers(report, waivers, report.as_of)


def assess_range(
    services: Services, first: date, last: date
) -> dict[PartitionKey, CompletenessReport]:
    """`assess` of every key and date, in few queries; the landing zone is to be refreshed first."""
    as_of = services.clock.as_of()
    reports = services.zone.reports(first, last, as_of)
    held = [str(partition) for partition, report in reports.items() if not report.is_clear]
    waivers: dict[str, list[Waiver]] = {}
    for waiver in _waivers(services, held):
        waivers.setdefault(waiver.partition, []).append(waiver)
    return {
        partition: apply_waivers(report, waivers.get(str(partition), ()), as_of)
        for partition, report in reports.items()
    }


def _waivers(services: Services, held: Iterable[str]) -> list[Waiver]:
    wanted = list(held)
    return services.waivers.of(services.spec.pipeline, wanted) if wanted else []


def still_held(services: Services, before: Iterable[str], now: Mapping[str, str]) -> dict[str, str]:
    """Why partitions are held, also those that a look did not take.

    Args:
        services: of the pipeline.
        before: the partitions that were held so far.
        now: why the partitions are held that the look took.
    """
    held = {name: why for name, why in now.items() if PartitionKey.parse(name).key is not None}
    others = set(before) - held.keys()
    asset, ledger = services.spec.asset("features"), services.ledger
    found: dict[str, VerdictRecord] = {}
    if others:
        # Of those that are held still, which are nearly all, only what is new is fetched.
        standing = ledger.verdicts_but(services.spec.pipeline, asset, CLEAR)
        found = {name: standing[name] for name in others & standing.keys()}
        found |= ledger.verdicts(services.spec.pipeline, asset, others - found.keys())
    for name, record in found.items():
        if record.verdict not in CLEAR:
            held[name] = recorded_reason(record)
    # What the ledger knows nothing of is not clear: it is looked at, and held until then.
    unknown = {name for name in others - found.keys() if _is_live(services, name)}
    services.attend((PartitionKey.parse(name).date for name in unknown), "nothing is known of it")
    held |= dict.fromkeys(unknown, "the ledger has no verdict on it, it is looked at again")
    if others:
        # A run that keeps failing is not clear either, whoever's turn it is to be looked at.
        failed = [r for r in services.failures.all(services.spec.pipeline) if r.job == "features"]
        held |= {r.partition: r.reason for r in failed if r.partition in others - held.keys()}
    return held


def _is_live(services: Services, name: str) -> bool:
    """Whether a partition still exists and is looked at; the catalog may say otherwise now."""
    spec, found = services.spec, PartitionKey.parse(name)
    first = max(spec.schedule.live_from, spec.partitions.start)
    return first <= found.date <= spec.partitions.end and name in spec.keys_of(found.date)


def recorded_reason(record: VerdictRecord) -> str:
    """Why a verdict is what it is, as it was recorded."""
    if record.verdict == REFUSED:
        return refusal_of(record)
    return _recorded(record)[2]


def recorded_report(record: VerdictRecord) -> CompletenessReport:
    """The report that a verdict was recorded with.

    A day that is held for good is asked for at every look: what was read of it is kept.
    """
    return _recorded(record)[1]


def _recorded(record: VerdictRecord) -> tuple[Mapping[str, Any], CompletenessReport, str]:
    """What was recorded, the report that it makes, and its reason."""
    key = (record.pipeline, record.asset, record.partition, record.recorded_at, record.as_of)
    found = _reports.get(key)
    if found is None or (found[0] is not record.report and found[0] != record.report):
        if len(_reports) >= MOST_REPORTS:
            _reports.clear()
        report = CompletenessReport.model_validate({**record.report, "as_of": record.as_of})
        found = _reports[key] = record.report, report, report.reason()
    return found


def refusal_of(record: VerdictRecord) -> str:
    """The reason of a refused partition, and the run that refused it."""
    refusal = record.report[REFUSED]
    return f"refused by run {refusal['run_id']}: {refusal['reason']}"


def refused(services: Services, reports: Iterable[CompletenessReport]) -> dict[str, str]:
    """Of partitions that are clear those that a run has refused for what they are now, and why."""
    clear = {report.partition: report for report in reports if report.is_clear}
    if not clear:
        return {}
    found = services.ledger.verdicts_being(
        services.spec.pipeline, services.spec.asset("features"), REFUSED, clear
    )
    return {
        name: refusal_of(record)
        for name, record in found.items()
        if record.report[REFUSED]["inputs"] == judged_for(services, clear[name])
    }


def judged_for(services: Services, report: CompletenessReport) -> str:
    """Digest of what a run judges: with other files, terms, rules or code it may come to pass."""
    return digest_of([report.inputs(), stage_version(services.spec, "features")])


def described(services: Services, names: Iterable[str]) -> dict[str, str]:
    """Who gave these waivers, why and until when, by name."""
    wanted = set(names)
    known = services.waivers.of(services.spec.pipeline) if wanted else []
    return {w.name: w.describe() for w in known if w.name in wanted}


def rests_on(services: Services, model: VersionRecord) -> set[str]:
    """The waivers that a version of the model rests on, by name: its own, and its judgement's.

    Of the judgements of exactly this version the last one counts, also after its date was trained
    and judged again: then it is no longer the date's current one.
    """
    asset, version = services.spec.asset("evaluation"), model.detail["model_version"]
    judged = [
        record
        for record in services.ledger.history(asset, model.partition)
        if record.detail["model_version"] == version
    ]
    return {name for record in (model, *judged[-1:]) for name in record.detail.get("waivers", ())}


def lapsed(services: Services, names: Iterable[str], *, expired: bool = True) -> dict[str, str]:
    """Of these waivers those that are no longer in force, by name why.

    Without `expired` those that were revoked alone: whoever expires has not been proven wrong.
    """
    wanted = set(names)
    if not wanted:
        return {}
    as_of = services.clock.as_of()
    known = {w.name: w for w in services.waivers.of(services.spec.pipeline)}
    found = {}
    for name in sorted(wanted):
        waiver = known.get(name)
        if waiver is None:
            found[name] = f"waiver {name} is not in the ledger"
        elif expired and waiver.state(as_of) == "expired":
            found[name] = f"waiver {waiver.describe()} has expired; give a new one"
        elif waiver.state(as_of) == "revoked":
            found[name] = (
                f"waiver {name} was revoked by {waiver.revoked_by}: {waiver.revoke_reason}"
            )
    return found
