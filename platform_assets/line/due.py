"""What is due by now, read from the ledger: the dataset's and the model's date."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

from platform_assets.domain.freshness import (
    NO_RUN,
    DueReport,
    Expectation,
    due_date,
    due_report,
    latest_deadline,
)
from platform_assets.domain.manifest import DayState, WindowRefusal
from platform_assets.domain.partition import date_range, local_date
from platform_assets.line.clearance import lapsed
from platform_assets.line.days import built_and_lapsed, days_of, decide_snapshot
from platform_assets.line.services import Services
from resources.ledger.records import VersionRecord

CHUNK_DAYS = 60
"""How many dates are looked up at once, from today backwards, until one is there."""

STAGES = ("features", "model")
"""The assets that a date is due of."""


def read_due(services: Services, stages: Sequence[str] = STAGES) -> DueReport:
    """What is due by now, and why it is not there.

    Features whose waiver has lapsed are not there: they may no longer be read. Nor is a model that
    rests on a revoked one, which may not be champion; on one that has expired it is.

    Args:
        services: of the pipeline.
        stages: of the report: `features`, `model`, or both.
    """
    spec, as_of = services.spec, services.clock.as_of()
    return due_report(
        spec.pipeline,
        spec.partitions.timezone,
        as_of,
        [_expectation(services, stage, as_of) for stage in stages],
        {
            spec.asset("features"): lambda day: _why_no_features(services, day),
            spec.asset("model"): lambda day: _why_no_model(services, day),
        },
    )


def _expectation(services: Services, stage: str, as_of: datetime) -> Expectation:
    spec, grid = services.spec, services.spec.partitions
    start = grid.start if stage == "features" else spec.first_model_date
    at = (
        latest_deadline([source.contract.deadline for source in spec.sources.values()])
        if stage == "features"
        else spec.freshness.trained_by
    )
    first = max(start, spec.schedule.live_from)
    due = due_date(at, grid.timezone, as_of, first, grid.end)
    present, known_from = _present(services, stage, start, due, as_of)
    return Expectation(
        asset=spec.asset(stage),
        at=at,
        first=first,
        last=grid.end,
        present=present,
        known_from=known_from,
    )


def _present(
    services: Services, stage: str, start: date, due: date | None, as_of: datetime
) -> tuple[dict[date, datetime | None], date]:
    """The dates that are there, as far back as it takes to find one that was due, or any."""
    grid = services.spec.partitions
    found: dict[date, datetime | None] = {}
    last = min(local_date(as_of, grid.timezone), grid.end)
    while last >= start:
        first = max(start, last - timedelta(days=CHUNK_DAYS - 1))
        found |= _made(services, stage, date_range(first, last), due)
        if found and (due is None or min(found) <= due):
            return found, first
        last = first - timedelta(days=1)
    return found, start


def _made(
    services: Services, stage: str, days: tuple[date, ...], due: date | None
) -> dict[date, datetime | None]:
    """Of these dates those that are there; of the one that is due also when it was made first."""
    spec, asset = services.spec, services.spec.asset(stage)
    names = {day: spec.keys_of(day) if stage == "features" else (day.isoformat(),) for day in days}
    records = services.ledger.current_versions(asset, [n for own in names.values() for n in own])
    if stage == "features":
        there = set(built_and_lapsed(services, records)[0])
    else:
        there = records.keys() - _counting_no_more(services, records).keys()
    whole = [day for day, own in names.items() if there.issuperset(own)]
    made: dict[date, datetime | None] = dict.fromkeys(whole)
    if due in made and spec.schedule.clock == "wall":
        # A replay's clock says nothing about when the machine did it.
        made[due] = max(services.ledger.history(asset, n)[0].committed_at for n in names[due])
    return made


def _counting_no_more(
    services: Services, models: Mapping[str, VersionRecord]
) -> dict[str, list[str]]:
    """Of models those that rest on waivers that were revoked, and why they count no more."""
    rests = {name: model.detail.get("waivers", ()) for name, model in models.items()}
    gone = lapsed(services, {waiver for own in rests.values() for waiver in own}, expired=False)
    found = {name: [gone[w] for w in own if w in gone] for name, own in rests.items()}
    return {name: why for name, why in found.items() if why}


def _why_no_features(services: Services, day: date) -> str:
    found = days_of(services, [day])[day]
    alike = len(set(found.reasons.values())) == 1
    return NO_RUN if found.state is DayState.UNBUILT and alike else _held(found.reasons)


def _why_no_model(services: Services, day: date) -> str:
    found = services.ledger.current_versions(services.spec.asset("model"), [day.isoformat()])
    gone = _counting_no_more(services, found).get(day.isoformat())
    if gone is None:
        return _why_not_trained(services, day)
    return (
        f"the model that is there counts no more: {'; '.join(gone)}; "
        f"{_why_not_trained(services, day)}"
    )


def _why_not_trained(services: Services, day: date) -> str:
    own = days_of(services, [day])[day]
    if own.state is not DayState.WHOLE:  # the window need not be looked at
        return f"its own day is not whole: {_held(own.reasons)}"
    taken = decide_snapshot(services, day)
    return taken.reason if isinstance(taken, WindowRefusal) else NO_RUN


def _held(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{key}: {why}" for key, why in reasons.items())
