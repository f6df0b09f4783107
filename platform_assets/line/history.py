"""What a backfill of past days would build, and what it would leave out, with reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from platform_assets.domain.completeness import CompletenessReport
from platform_assets.domain.manifest import (
    Day,
    DayState,
    PartitionVersion,
    WindowRefusal,
    roll_up,
    take_snapshot,
    window,
)
from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.line.clearance import assess_range, refresh, refused
from platform_assets.line.days import built_and_lapsed, held_and_lapsed, without_verdict
from platform_assets.line.services import Services

STAGES = ("features", "day", "snapshot", "model", "evaluation")


@dataclass(frozen=True)
class HistoryPlan:
    """Partitions of a range of dates by stage.

    Attributes:
        build: what is missing or out of date and can be built, by stage.
        done: what exists already, by stage.
        held: why a partition cannot be built, by stage and partition.
    """

    build: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    done: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def judges(self) -> bool:
        """Whether a model would be judged, so that the champion has to be decided again."""
        return bool(self.build.get("evaluation"))


@dataclass(frozen=True)
class Grid:
    """Completeness, built versions and roll-ups of all dates in a range.

    Attributes:
        as_if_built: whether a partition that is whole counts in the roll-ups as if it was built
            already (a plan builds it before them), or as what it is: not built.
        refused: why runs have refused partitions that are whole and were not built.
    """

    reports: Mapping[PartitionKey, CompletenessReport]
    built: Mapping[str, PartitionVersion]
    days: Mapping[date, Day]
    as_if_built: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)


def read_grid(services: Services, first: date, last: date, *, as_if_built: bool = True) -> Grid:
    """Look at a range of dates in few queries, however long it is."""
    spec = services.spec
    refresh(services, first, last)
    reports = assess_range(services, first, last)
    records = services.ledger.current_versions(spec.asset("features"))
    built, lapsed_waivers = built_and_lapsed(services, records)
    unknown = without_verdict(services, built)
    built = {key: version for key, version in built.items() if key not in unknown}
    held = {} if as_if_built else dict(unknown)
    held |= {str(p): r.reason() for p, r in reports.items() if not r.is_clear}
    unfit = refused(services, (r for p, r in reports.items() if str(p) not in built))
    if not as_if_built:
        held |= unfit  # a plan lets a run try them once more
    held = held_and_lapsed(held, lapsed_waivers)
    would_be = {
        str(p): PartitionVersion(partition=str(p), data_version="", table_version=0, rows=0)
        for p, r in reports.items()
        if r.is_clear and as_if_built
    }
    days = {
        day: roll_up(day, spec.keys_of(day), {**would_be, **built}, held)
        for day in date_range(first, last)
    }
    return Grid(reports, built, days, as_if_built, unfit)


def plan_history(
    services: Services, first: date, last: date, grid: Grid | None = None
) -> HistoryPlan:
    """Plan the stages of a range of dates; each is judged on days within the range only.

    Args:
        services: of the pipeline.
        first: the first date, included.
        last: the last date, included.
        grid: what is known of the dates from the first window's start on; read if not given.
            One that was not read as if built holds what needs a stage that is not there yet.
    """
    spec = services.spec
    start = max(min(first, *window(first, spec.model.window_days)), spec.partitions.start)
    grid = grid or read_grid(services, start, last)
    reports, built, days = grid.reports, grid.built, grid.days
    wanted = date_range(first, last)
    build: dict[str, list[str]] = {stage: [] for stage in STAGES}
    held: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
    done = _done(services, wanted, days, built)
    for partition, report in reports.items():
        name = str(partition)
        if partition.date < first or name in done["features"]:
            continue
        if name in grid.refused and not grid.as_if_built:
            held["features"][name] = grid.refused[name]
        elif report.is_clear:
            build["features"].append(name)
        else:
            held["features"][name] = report.reason()
    for day in wanted:
        name = day.isoformat()
        if name in done["day"]:
            pass
        elif grid.as_if_built or days[day].state is DayState.WHOLE:
            build["day"].append(name)
        else:
            held["day"][name] = days[day].reason()
        if day < spec.first_model_date:
            continue
        taken = take_snapshot(
            pipeline=spec.pipeline,
            dataset=spec.asset("features"),
            day=day,
            data_start=spec.partitions.start,
            window_days=spec.model.window_days,
            min_days=spec.model.min_days,
            days=days,
        )
        for stage in ("snapshot", "model"):
            if name in done[stage]:
                continue
            if isinstance(taken, WindowRefusal):
                held[stage][name] = taken.reason
            else:
                build[stage].append(name)
        if day > spec.last_judged_date or name in done["evaluation"]:
            continue
        if name in held["model"]:
            held["evaluation"][name] = f"there is no model: {held['model'][name]}"
        elif not grid.as_if_built and name not in done["model"]:
            held["evaluation"][name] = "there is no model yet"
        else:
            _judgement(services, day, last, days, build, held)
    return HistoryPlan(
        build={stage: tuple(names) for stage, names in build.items()},
        done={stage: tuple(sorted(done[stage])) for stage in STAGES},
        held=held,
    )


def _done(
    services: Services,
    wanted: Sequence[date],
    days: Mapping[date, Day],
    built: Mapping[str, PartitionVersion],
) -> dict[str, set[str]]:
    """What exists of these dates and is not out of date.

    A roll-up is when a partition of its day was built since, a judgement when the model was
    trained again.
    """
    spec = services.spec
    names = {day.isoformat(): day for day in wanted}
    found = {
        stage: services.ledger.current_versions(spec.asset(stage), names) for stage in STAGES[1:]
    }
    models = {name: record.detail["model_version"] for name, record in found["model"].items()}
    done = {
        stage: {name for name in records if names[name] >= spec.first_model_date}
        for stage, records in found.items()
    }
    done["features"] = {key for day in wanted for key in spec.keys_of(day) if key in built}
    done["day"] = {
        name
        for name, record in found["day"].items()
        if record.data_version == days[names[name]].data_version()
    }
    done["evaluation"] = {
        name
        for name, record in found["evaluation"].items()
        if record.detail["model_version"] == models.get(name)
        and spec.first_model_date <= names[name] <= spec.last_judged_date
    }
    return done


def _judgement(
    services: Services,
    day: date,
    last: date,
    days: Mapping[date, Day],
    build: dict[str, list[str]],
    held: dict[str, dict[str, str]],
) -> None:
    name, following = day.isoformat(), services.spec.judged_on(day)
    if following[-1] > last:
        held["evaluation"][name] = f"judged on {following[0]} to {following[-1]}, not there yet"
        return
    waiting = [d for d in following if days[d].state is not DayState.WHOLE]
    if waiting:
        listed = "; ".join(f"{d}: {days[d].reason()}" for d in waiting)
        held["evaluation"][name] = f"judged on days that are held: {listed}"
        return
    build["evaluation"].append(name)
