"""The one authority on whether a partition may leave: every path asks here.

Sensor, UI materialization, backfill, `dg launch`, schedule, retry, plan, status and explain all
read the same report, made of the landing zone, the catalog's contract and the waivers in force.
"""

from collections.abc import Iterable, Mapping
from datetime import date

from platform_assets.domain.completeness import CLEAR, CompletenessReport
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.waiver import Waiver, apply_waivers
from platform_assets.line.services import Services


def assess(services: Services, partition: PartitionKey) -> CompletenessReport:
    """Look at the landing zone and decide whether a partition may leave, as of now."""
    assert partition.key is not None
    if services.zone.refresh(partition.date, partition.date, [partition.key]):
        # Whatever follows from it is the sensor's; it would not know that anything has changed.
        services.attend([partition.date], f"files changed of {partition}")
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
    asset = services.spec.asset("features")
    found = services.ledger.verdicts(services.spec.pipeline, asset, others) if others else {}
    as_of = services.clock.as_of()
    for name, record in found.items():
        if record.verdict not in CLEAR:
            report = CompletenessReport.model_validate({**record.report, "as_of": as_of})
            held[name] = report.reason()
    return held


def described(services: Services, names: Iterable[str]) -> dict[str, str]:
    """Who gave these waivers, why and until when, by name."""
    wanted = set(names)
    known = services.waivers.of(services.spec.pipeline) if wanted else []
    return {w.name: w.describe() for w in known if w.name in wanted}


def lapsed(services: Services, names: Iterable[str]) -> dict[str, str]:
    """Of these waivers those that are no longer in force, by name why."""
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
        elif waiver.state(as_of) == "expired":
            found[name] = f"waiver {waiver.describe()} has expired; give a new one"
        elif waiver.state(as_of) == "revoked":
            found[name] = (
                f"waiver {name} was revoked by {waiver.revoked_by}: {waiver.revoke_reason}"
            )
    return found
