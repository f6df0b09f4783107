"""Which days are looked at, and for how long: so that a look's cost follows what is new."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.digests import digest_of
from platform_assets.domain.manifest import Day, DayState, describe_dates
from platform_assets.domain.spec import PipelineSpec


def recent_days(spec: PipelineSpec) -> int:
    """How many of the last local days are looked at each time, whatever their state.

    A day stays in it until its sources may be late no more and its model's judgement is due.
    """
    lateness = max(source.contract.lateness_hours for source in spec.sources.values())
    return -(-lateness // 24) + spec.evaluation.days + 2


def rules_version(spec: PipelineSpec, code: str = "") -> str:
    """Digest of what decides which days are held: with another one, any of them may be clear.

    Args:
        spec: the pipeline.
        code: version of what builds the dataset, which may refuse rows too.
    """
    return digest_of(
        {
            "code": code,
            "partitions": spec.partitions.model_dump(mode="json"),
            "sources": {n: s.model_dump(mode="json") for n, s in spec.sources.items()},
            "window": [spec.model.window_days, spec.model.min_days, spec.evaluation.days],
        }
    )[:16]


def with_weekdays(spec: PipelineSpec, dates: Mapping[date, str]) -> dict[date, str]:
    """Some dates, and the same weekdays that follow: their rows are judged against these dates'.

    Args:
        spec: the pipeline.
        dates: that are not what they were, with why.
    """
    rules = (source.contract.weekday_rows for source in spec.sources.values())
    weeks = max((rule.weeks for rule in rules if rule), default=0)
    found = dict(dates)
    for day, why in dates.items():
        for week in range(1, weeks + 1):
            found.setdefault(day + timedelta(days=7 * week), why)
    return found


class Standing(BaseModel):
    """What is known of an attended day when a look is over.

    Attributes:
        finished: its model is judged.
        day: its roll-up; none where it is finished.
        trained: whether it has a model.
        following: how the days stand that an unjudged model is judged on.
        waiting: requested runs that it has to be looked at for.
        untold: changes of its sources that Dagster has not been told of.
        first_model_date, last_judged_date: of the pipeline.
    """

    model_config = ConfigDict(frozen=True)

    finished: bool
    day: Day | None
    trained: bool
    following: Mapping[date, DayState] = {}
    waiting: tuple[str, ...] = ()
    untold: int = 0
    first_model_date: date
    last_judged_date: date


def stays(standing: Standing) -> tuple[bool, str]:
    """Whether a day is to be looked at again although nothing changes in its files, and why.

    A day in motion is. A held one is settled: its hours, a waiver or other rules bring it back. So
    is one whose model waits for a held day: that day brings it back.
    """
    day = standing.day
    if standing.untold:
        return True, f"{standing.untold} change(s) of its sources have to be told"
    if standing.waiting:
        return True, f"waiting for {', '.join(standing.waiting)}"
    if standing.finished or day is None:
        return False, "its model is judged"
    if standing.trained:
        return _judgement(standing, day.date)
    if day.state is DayState.HELD:
        return False, f"held: {day.reason()}"
    if day.state is DayState.UNBUILT:
        return True, f"waiting for {', '.join(day.reasons)}"
    if day.date < standing.first_model_date:
        return False, f"the first date that can train is {standing.first_model_date}"
    return True, "waiting for the other days of its window"


def _judgement(standing: Standing, day: date) -> tuple[bool, str]:
    if day > standing.last_judged_date:
        return False, "no days follow that its model could be judged on"
    held = [d for d, state in standing.following.items() if state is DayState.HELD]
    if held:
        return False, f"its model is judged when {describe_dates(held)} is whole"
    return True, "waiting for the days that its model is judged on"


def in_turn(dates: Sequence[date], after: date | None, most: int) -> tuple[date, ...]:
    """At the most so many of some dates: those after one of them, then from the beginning.

    Args:
        dates: in order.
        after: the last date of the turn before; none: from the beginning.
        most: how many.
    """
    if len(dates) <= most:
        return tuple(dates)
    later = [day for day in dates if after is None or day > after]
    return tuple((later or list(dates))[:most])


def portion(position: int, most: int, total: int) -> range:
    """The next places of a rotation over `total` places; empty only if there are none.

    Whoever goes on at `next_position` comes past every place exactly once a round: the last
    portion of a round is shorter instead of reaching into the next one.
    """
    start = position if 0 <= position < total else 0
    return range(start, min(start + max(1, most), total))


def next_position(done: int, total: int) -> int:
    """Where a rotation goes on that has come as far as `done`: at the beginning, after the end."""
    return done if done < total else 0
