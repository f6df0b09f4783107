"""The live days of a pipeline: what the sensor looks at, and what it decides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from platform_assets.domain.completeness import HOUR, CompletenessReport
from platform_assets.domain.manifest import DayState, roll_up
from platform_assets.domain.partition import PartitionKey, date_range, local_date, local_hours
from platform_assets.domain.readiness import (
    Plan,
    plan_features,
    plan_held_days,
    plan_judgement,
    plan_training,
)
from platform_assets.line.clearance import assess_range
from platform_assets.line.days import built_and_lapsed, days_of, decide_snapshot
from platform_assets.line.features import (
    SourceChange,
    changes_since,
    record_completeness,
    told_key,
)
from platform_assets.line.services import Services


@dataclass(frozen=True)
class Tick:
    """What one look at the live days found.

    Attributes:
        plan: runs to launch, and held partitions with what they lack.
        changes: source partitions that changed since the last look.
        open_from: the first date that is not finished; the next look starts there.
        told: data version by source partition, once `changes` have been told.
    """

    plan: Plan
    changes: tuple[SourceChange, ...]
    open_from: date
    told: Mapping[str, str] = field(default_factory=dict)


MOST_REQUESTS = 60
MOST_CHANGES = 120
"""What one look hands over at the most, oldest first: a tick must end within Dagster's minute."""


def look(
    services: Services, open_from: date | None = None, told: Mapping[str, str] | None = None
) -> Tick:
    """Look at the live days from `open_from` on and decide what may leave.

    A day is finished when its model is judged. Days before `schedule.live_from` belong to
    backfills; only their judgement, which waits for live days, is looked after here.

    Args:
        services: of the pipeline.
        open_from: where the last look said that this one starts.
        told: what the last look's `told` was, if its changes have arrived.
    """
    spec, ledger = services.spec, services.ledger
    as_of = services.clock.as_of()
    first = max(spec.schedule.live_from, spec.partitions.start, open_from or date.min)
    last = min(
        local_date(as_of - timedelta(microseconds=1), spec.partitions.timezone), spec.partitions.end
    )
    if last < first:
        return Tick(Plan(), (), first, dict(told or {}))
    live = _open_days(services, first, last)
    reports: dict[PartitionKey, CompletenessReport] = {}
    for start, end in _runs(live):
        services.zone.refresh(start, end)
        reports |= assess_range(services, start, end)
    changes = changes_since(services, reports, told or {})[:MOST_CHANGES]
    record_completeness(services, reports)
    keys = [key for day in live for key in spec.keys_of(day)]
    versions = ledger.current_versions(spec.asset("features"), keys)
    built, lapsed_waivers = built_and_lapsed(services, versions)
    plan = plan_features(spec.pipeline, reports.values(), list(built))
    held = {r.partition: r.reason() for r in reports.values() if not r.is_clear}
    held |= lapsed_waivers
    days = {day: roll_up(day, spec.keys_of(day), built, held) for day in live}

    names = [day.isoformat() for day in live]
    trained = {
        date.fromisoformat(name): record.data_version
        for name, record in ledger.current_versions(spec.asset("model"), names).items()
    }
    ready = [
        day for day, found in days.items() if found.state is DayState.WHOLE and day not in trained
    ]
    snapshots = {day: decide_snapshot(services, day) for day in ready}
    plan += plan_training(spec.pipeline, days, snapshots, trained)
    over = [day for day in live if local_hours(day, spec.partitions.timezone)[-1] + HOUR <= as_of]
    rolled = {
        name: record.data_version
        for name, record in ledger.current_versions(spec.asset("day"), names).items()
    }
    plan += plan_held_days(spec.pipeline, {day: days[day] for day in over}, rolled)
    plan += _judgement(services, first, last)
    open_names = {str(partition) for partition in reports}
    known = {
        key: version for key, version in (told or {}).items() if key.split(" ", 1)[1] in open_names
    }
    known |= {told_key(c.asset, c.partition): c.data_version for c in changes}
    return Tick(plan.first(MOST_REQUESTS), tuple(changes), live[0] if live else last, known)


def _runs(days: Sequence[date]) -> Iterator[tuple[date, date]]:
    """First and last date of each run of dates without a gap; dates in order."""
    start = 0
    for i in range(1, len(days) + 1):
        if i == len(days) or days[i] - days[i - 1] != timedelta(days=1):
            yield days[start], days[i - 1]
            start = i


def _judgement(services: Services, first: date, last: date) -> Plan:
    spec = services.spec
    candidates = [
        day
        for day in date_range(first - timedelta(days=spec.evaluation.days), last)
        if spec.first_model_date <= day <= spec.last_judged_date and spec.judged_on(day)[-1] <= last
    ]
    models, judged = _model_versions(services, candidates)
    waiting = [day for day in models if judged.get(day) != models[day]]
    days = days_of(services, {d for day in waiting for d in spec.judged_on(day)})
    following = {day: [days[d] for d in spec.judged_on(day)] for day in waiting}
    return plan_judgement(spec.pipeline, models, judged, following)


def _model_versions(
    services: Services, dates: list[date]
) -> tuple[dict[date, int], dict[date, int]]:
    spec, names = services.spec, [day.isoformat() for day in dates]
    found = []
    for stage in ("model", "evaluation"):
        records = services.ledger.current_versions(spec.asset(stage), names)
        found.append(
            {date.fromisoformat(n): int(r.detail["model_version"]) for n, r in records.items()}
        )
    return found[0], found[1]


def _open_days(services: Services, first: date, last: date) -> list[date]:
    """The dates that are not finished; one that is held for good does not keep later ones open."""
    dates = list(date_range(first, last))
    models, judged = _model_versions(services, dates)
    return [day for day in dates if day not in models or judged.get(day) != models[day]]
