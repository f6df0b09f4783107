"""The live days of a pipeline: what the sensor looks at, and what it decides."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from platform_assets.domain.attention import Standing, in_turn, recent_days, stays
from platform_assets.domain.completeness import HOUR, CompletenessReport
from platform_assets.domain.manifest import Day, DayState, roll_up
from platform_assets.domain.partition import (
    PartitionKey,
    date_range,
    local_date,
    local_hours,
    runs_of,
)
from platform_assets.domain.readiness import (
    Plan,
    plan_features,
    plan_held_days,
    plan_judgement,
    plan_training,
)
from platform_assets.line.clearance import assess_range, refused
from platform_assets.line.days import built_and_lapsed, decide_snapshots, held_and_lapsed
from platform_assets.line.features import (
    SourceChange,
    changes_since,
    record_completeness,
    told_key,
)
from platform_assets.line.inputs import stage_version
from platform_assets.line.late import left_to_late
from platform_assets.line.launching import NoRuns, Runs, Undecided, launchable
from platform_assets.line.services import Services
from platform_assets.line.waive import take_up_lapsed
from resources.ledger.records import FailureRecord


@dataclass(frozen=True)
class Tick:
    """What one look at the live days found.

    Attributes:
        plan: runs to launch, and held partitions with what they lack.
        changes: source partitions that changed since the last look.
        open_from: the first date that is not finished and still looked at.
        told: data version by source partition, once `changes` have been told.
        looked_to: the last date that was looked at; later ones are news to the next look.
        attended_to: the last attended date that was looked at; the next look goes on after it.
        looked: how many dates it looked at.
    """

    plan: Plan
    changes: tuple[SourceChange, ...]
    open_from: date
    told: Mapping[str, str] = field(default_factory=dict)
    looked_to: date | None = None
    attended_to: date | None = None
    looked: int = 0


MOST_REQUESTS = 60
MOST_CHANGES, LEAST_CHANGES, FILES_A_CHANGE = 120, 20, 10
"""What one look hands over at the most, oldest first: a tick must end within Dagster's minute, and
cost about a second of CPU. Dagster's record of a change costs that of taking in so many files: a
look that takes many in leaves changes to the next, but for the least."""

MOST_ATTENDED = 40
"""Attended dates that one look takes, in turn: what it costs must not depend on how many wait."""


def look(
    services: Services,
    open_from: date | None = None,
    told: Mapping[str, str] | None = None,
    *,
    looked_to: date | None = None,
    attended_to: date | None = None,
    runs: Runs | None = None,
    undecided: Undecided | None = None,
) -> Tick:
    """Look at the live days that may have changed, and decide what may leave.

    These are the last days up to now (`recent_days`), and those of the ledger's attention: what has
    left these days since the last look, and what the sweep or a person asks to look at again. An
    attended day is settled once it is finished, that is once its model is judged, or held: then it
    is looked at no more until something changes there. Days before `schedule.live_from` belong to
    backfills; only their judgement, which waits for live days, is looked after here.

    Args:
        services: of the pipeline.
        open_from: from where on days may be unfinished, where `looked_to` is not known.
        told: what the last look's `told` was, if its changes have arrived.
        looked_to, attended_to: those of the last look.
        runs: what became of the runs that were asked for; none: nothing was launched.
        undecided: the judgement that was run last, if its run failed.
    """
    spec, ledger = services.spec, services.ledger
    as_of = services.clock.as_of()
    first = max(spec.schedule.live_from, spec.partitions.start)
    last = min(
        local_date(as_of - timedelta(microseconds=1), spec.partitions.timezone), spec.partitions.end
    )
    if last < first:
        return Tick(Plan(), (), first, dict(told or {}))
    length = timedelta(days=recent_days(spec) - 1)
    recent = max(first, last - length)
    left = max(first, looked_to - length if looked_to else open_from or first)
    _attend_unfinished(services, date_range(left, recent - timedelta(days=1)))
    take_up_lapsed(services)
    began = datetime.now(UTC)
    needs = services.watch.attended_since(spec.pipeline)
    attended = [day for day in needs if first <= day <= last]
    mine = in_turn([day for day in attended if day < recent], attended_to, MOST_ATTENDED)
    looked = [*mine, *date_range(recent, last)]
    live = _open_days(services, looked)
    reports: dict[PartitionKey, CompletenessReport] = {}
    taken_in = 0
    for start, end in runs_of(live):
        taken_in += services.zone.refresh(start, end)
        reports |= assess_range(services, start, end)
    every_change = changes_since(services, reports, told or {})
    most = max(LEAST_CHANGES, MOST_CHANGES - taken_in // FILES_A_CHANGE)
    changes = every_change[:most]
    record_completeness(services, reports)
    keys = [key for day in live for key in spec.keys_of(day)]
    versions = ledger.current_versions(spec.asset("features"), keys)
    built, lapsed_waivers = built_and_lapsed(services, versions)
    plan = plan_features(
        spec.pipeline, reports.values(), list(built), stage_version(spec, "features")
    )
    held = {r.partition: r.reason() for r in reports.values() if not r.is_clear}
    unfit = refused(services, (r for r in reports.values() if r.partition not in built))
    plan += Plan(held=unfit)
    held |= unfit
    held = held_and_lapsed(held, lapsed_waivers)
    plan += Plan(held={key: held[key] for key in lapsed_waivers if key in held})
    days = {day: roll_up(day, spec.keys_of(day), built, held) for day in live}

    names = [day.isoformat() for day in live]
    trained = {
        date.fromisoformat(name): record.data_version
        for name, record in ledger.current_versions(spec.asset("model"), names).items()
    }
    ready = [
        day for day, found in days.items() if found.state is DayState.WHOLE and day not in trained
    ]
    snapshots = decide_snapshots(services, ready, days)
    plan += plan_training(spec.pipeline, days, snapshots, trained, stage_version(spec, "model"))
    over = [day for day in live if local_hours(day, spec.partitions.timezone)[-1] + HOUR <= as_of]
    rolled = {
        name: record.data_version
        for name, record in ledger.current_versions(spec.asset("day"), names).items()
    }
    plan += plan_held_days(spec.pipeline, {day: days[day] for day in over}, rolled)
    again = _without_champion(services, undecided)
    judgement, following = _judgement(services, looked, last, days, attended, again)
    plan += judgement

    untold = Counter(PartitionKey.parse(c.partition).date for c in every_change[most:])
    standings = {
        day: Standing(
            finished=day not in days,
            day=days.get(day),
            trained=day in trained,
            following={d.date: d.state for d in following.get(day, ())},
            waiting=tuple(_waiting(services, plan, day)),
            untold=untold[day],
            first_model_date=spec.first_model_date,
            last_judged_date=spec.last_judged_date,
        )
        for day in {*mine, *(day for day in attended if day >= recent)}
    }
    settled = {day for day, standing in standings.items() if not stays(standing)[0]}
    # A recent day is looked at anyway, and attended when it leaves these days.
    services.watch.settle(
        spec.pipeline, settled | {d for d in standings if d >= recent}, seen=needs
    )
    kept = [day for day in attended if day < recent and day not in settled]
    known = _still_told(told or {}, {*live, *kept} - (settled - {*date_range(recent, last)}))
    known |= {told_key(c.asset, c.partition): c.data_version for c in changes}
    launched = launchable(
        services,
        plan if len(plan.requests) <= MOST_REQUESTS else plan.in_turn(recent),
        runs or NoRuns(),
        began,
        MOST_REQUESTS,
        _covered(services, looked, again),
    )
    return Tick(
        launched,
        tuple(changes),
        min([*kept, *(day for day in live if day >= recent)], default=last),
        known,
        looked_to=last,
        attended_to=mine[-1] if mine else None,
        looked=len(looked),
    )


def _covered(
    services: Services, looked: Sequence[date], again: set[date]
) -> Callable[[FailureRecord], bool]:
    """Whether a look has decided anew on what a failed run was to make."""
    near = _near(services, looked) | again

    def covered(record: FailureRecord) -> bool:
        day = PartitionKey.parse(record.partition).date
        return day in (near if record.job == "judge" else looked)

    return covered


def _near(services: Services, looked: Iterable[date]) -> set[date]:
    """Some dates, and those whose models are judged on them."""
    return {d for day in looked for d in (*_judged_by(services, day), day)}


def _attend_unfinished(services: Services, dates: Sequence[date]) -> None:
    if dates:
        unfinished = _open_days(services, dates)
        services.watch.attend(
            services.spec.pipeline, dict.fromkeys(unfinished, "it has left the recent days")
        )


def _waiting(services: Services, plan: Plan, day: date) -> Iterable[str]:
    """The requested runs that a day has to be looked at for until they have happened."""
    judges = {day, *_judged_by(services, day)}
    for request in plan.requests:
        partition = PartitionKey.parse(request.partition)
        if partition.date == day or (request.job == "judge" and partition.date in judges):
            yield f"{request.job} {request.partition}"


def _judged_by(services: Services, day: date) -> tuple[date, ...]:
    """The dates whose models are judged on a day."""
    return date_range(day - timedelta(days=services.spec.evaluation.days), day - timedelta(days=1))


def _still_told(told: Mapping[str, str], dates: set[date]) -> dict[str, str]:
    return {
        key: version
        for key, version in told.items()
        if PartitionKey.parse(key.split(" ", 1)[1]).date in dates
    }


def _judgement(
    services: Services,
    looked: Sequence[date],
    last: date,
    known: Mapping[date, Day],
    attended: Collection[date],
    again: set[date],
) -> tuple[Plan, dict[date, list[Day]]]:
    """Judgement of the models of some dates, and of those that are judged on these dates."""
    spec = services.spec
    near = _near(services, looked) | again
    candidates = [
        day
        for day in sorted(near)
        if spec.first_model_date <= day <= spec.last_judged_date and spec.judged_on(day)[-1] <= last
    ]
    models, judged = _model_versions(services, candidates)
    # What was judged before and is not true any more is the late lane's to judge again.
    late = left_to_late(services) & judged.keys()
    models = {day: version for day, version in models.items() if day not in late}
    # The same judgement again, and the decision with it.
    judged = {day: version for day, version in judged.items() if day not in again}
    waiting = [day for day in models if judged.get(day) != models[day]]
    needed = {d for day in waiting for d in spec.judged_on(day)}
    days = {**known, **_as_recorded(services, needed - set(known), attended)}
    following = {day: [days[d] for d in spec.judged_on(day)] for day in waiting}
    code = stage_version(spec, "evaluation")
    return plan_judgement(spec.pipeline, models, judged, following, code), following


def _without_champion(services: Services, undecided: Undecided | None) -> set[date]:
    """The date whose evaluation a failed run has written, but not decided on the champion.

    Then nothing in the ledger but the run that wrote it tells that the decision is still wanted.
    """
    if undecided is None:
        return set()
    asset = services.spec.asset("evaluation")
    found = services.ledger.current_version(asset, undecided.partition)
    written = found is not None and found.run_id in undecided.run_ids
    return {date.fromisoformat(undecided.partition)} if written else set()


def _as_recorded(
    services: Services, dates: Iterable[date], attended: Collection[date]
) -> dict[date, Day]:
    """Roll-ups by the ledger alone, of days that this look does not take.

    What was not built of a day is held, unless the day is attended: then its turn will tell.
    """
    keys = {day: services.spec.keys_of(day) for day in dates}
    every_key = [key for own in keys.values() for key in own]
    records = services.ledger.current_versions(services.spec.asset("features"), every_key)
    built, held = built_and_lapsed(services, records)
    for day in keys.keys() - set(attended):
        for key in keys[day]:
            if key not in records:
                held[key] = "it was held when it was looked at last"
    return {day: roll_up(day, own, built, held) for day, own in keys.items()}


def _model_versions(
    services: Services, dates: Sequence[date]
) -> tuple[dict[date, int], dict[date, int]]:
    spec, names = services.spec, [day.isoformat() for day in dates]
    found = []
    for stage in ("model", "evaluation"):
        records = services.ledger.current_versions(spec.asset(stage), names)
        found.append(
            {date.fromisoformat(n): int(r.detail["model_version"]) for n, r in records.items()}
        )
    return found[0], found[1]


def _open_days(services: Services, dates: Sequence[date]) -> list[date]:
    """Of some dates those that are not finished."""
    models, judged = _model_versions(services, dates)
    return [day for day in dates if day not in models or judged.get(day) != models[day]]
