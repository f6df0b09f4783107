"""`signalbox drill partial-day`: 18 of 24 hours have landed, and it is past midnight."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

import dagster as dg

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.drills.harness import Scene
from platform_assets.drills.measure import Rows, chosen_dates, partial_against_whole
from platform_assets.drills.plain_dagster import CRON, PlainDagster
from platform_assets.drills.report import DrillReport, Measurement, Step
from platform_assets.drills.signalbox_side import SignalboxSide, failure_of
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from resources.catalog import load_catalog

NAME = "partial-day"
TITLE = "18 of 24 hours have landed when the nightly schedule comes"


@dataclass(frozen=True)
class Case:
    """What is played: the day, and the local hour until which it has landed."""

    spec: PipelineSpec
    day: date = date(2013, 2, 9)
    hours: int = 18

    @property
    def name(self) -> str:
        return self.day.isoformat()

    def night(self, minute: int, hour: int = 0) -> datetime:
        """An instant of the night after the day, local time."""
        after = self.day + timedelta(days=1)
        return datetime.combine(after, time(hour, minute), tzinfo=self.spec.zone)


def play(scene: Scene) -> DrillReport:
    """The drill on the pipeline of the catalog."""
    return play_case(scene, Case(load_catalog()["flights"]))


def play_case(scene: Scene, case: Case) -> DrillReport:
    """Play it: the same landing, plain Dagster and Signalbox beside each other."""
    spec, day = case.spec, case.day
    rows = Rows(spec)
    dates = chosen_dates(rows, scene.days)  # refused before minutes have gone by
    services = Services.open(spec, scene.home)
    first, yesterday = day - timedelta(days=spec.model.window_days - 1), day - timedelta(days=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        with scene.part(f"landing {first} to {yesterday}, and {day} until {case.hours}:00"):
            land_flights(services, first, yesterday, quiet=True)
            land_flights(services, day, day, case.hours, quiet=True)
            services.ledger.advance_clock(spec.pipeline, case.night(20))
        with (
            dg.DagsterInstance.ephemeral() as plain_instance,
            dg.DagsterInstance.from_config(str(scene.home.dagster)) as instance,
        ):
            landing = scene.home.landing / spec.pipeline
            plain = PlainDagster(landing, scene.home.root / "plain", spec, plain_instance)
            box = SignalboxSide(services, instance)
            with scene.part("the history, on plain Dagster"):
                plain.materialize("features", first, yesterday)
            with scene.part("the history, on Signalbox"):
                for key in spec.partitions.values:
                    ends = {"first": f"{key}|{first}", "last": f"{key}|{yesterday}"}
                    done = box.materialize("features", **ends)
                    _require(done.success, f"the history was not built: {failure_of(done)}")
            with scene.part("a quarter past midnight, on plain Dagster"):
                plain_steps = _plain_night(plain, case)
            with scene.part("the same moment, on Signalbox"):
                steps = _held(box, case)
            with scene.part(f"the rest of {day} lands"):
                land_flights(services, day, day, quiet=True)
                plain_steps += _plain_morning(plain, case)
                steps += _leaves(box, case)
    with scene.part(f"{scene.days} dates, each trained on its partial and on its whole day"):
        measurements = _measure(rows, dates, case.hours)
    report = DrillReport(
        name=NAME,
        title=TITLE,
        question=f"{case.hours} of 24 hours of {day} have landed in the folder when the day is "
        "over. Does a model train on them?",
        plain=tuple(plain_steps),
        signalbox=tuple(steps),
        measurements=measurements,
        notes=_notes(spec, dates),
        verdict="",
    )
    return report.concluded(_verdict(case))


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise RefusedError(f"drill {NAME} could not be played: {why}")


def _listed(requested: dict[str, list[str]]) -> str:
    return "; ".join(f"{asset} {', '.join(keys)}" for asset, keys in requested.items()) or "nothing"


def _plain_night(plain: PlainDagster, case: Case) -> list[Step]:
    before = plain.evaluate(case.night(10))
    unobserved = plain.evaluate(case.night(20))
    plain.report_landed(case.day)
    after = plain.evaluate(case.night(25))
    wanted = {"features": [case.name], "model": [case.name]}
    steps = [
        Step(
            did=f"Dagster evaluates on_cron({CRON!r}) at 00:10 and at 00:20; then files of "
            "the day are reported to have landed, and it evaluates at 00:25",
            found=f"requested at 00:10: {_listed(before)}; at 00:20, for it waits for its source: "
            f"{_listed(unobserved)}; at 00:25: {_listed(after)}",
            ok=not before and not unobserved and after == wanted,
        )
    ]
    for asset, keys in after.items():
        for key in keys:
            plain.materialize(asset, date.fromisoformat(key), date.fromisoformat(key))
    own, model = plain.metadata("features", case.day), plain.metadata("model", case.day)
    steps.append(
        Step(
            did="what it requested is materialized",
            found=f"success: features of {own['hours']} of 24 hours ({own['rows']} rows), and a "
            f"model of {case.day} trained on them with its window ({model['rows']} rows)",
            ok=own["hours"] == case.hours and model["rows"] > 0,
        )
    )
    return steps


def _plain_morning(plain: PlainDagster, case: Case) -> list[Step]:
    plain.report_landed(case.day)
    at_six = plain.evaluate(case.night(0, hour=6))
    plain.evaluate(case.night(20) + timedelta(days=1))
    plain.report_landed(case.day)
    plain.report_landed(case.day + timedelta(days=1))
    next_night = plain.evaluate(case.night(25) + timedelta(days=1))
    again = [key for keys in next_night.values() for key in keys if key == case.name]
    return [
        Step(
            did="the rest of the day has landed and is reported; Dagster evaluates at 06:00",
            found=f"requested: {_listed(at_six)}; the model of the partial day stays",
            ok=not at_six,
        ),
        Step(
            did="and in the next night, when files of both days are reported",
            found=f"requested: {_listed(next_night)}; the features of {case.name} stay as they "
            f"are, in the windows of {plain.spec.model.window_days - 1} more models",
            ok=bool(next_night) and not again,
        ),
    ]


def _held(box: SignalboxSide, case: Case) -> list[Step]:
    requested = box.tick()
    built = [entry for entry in requested if entry[0] in ("features", "train")]
    shown = [entry for entry in requested if entry == ("day", case.name)]
    key = box.spec.keys_of(case.day)[0]
    asset = box.spec.asset("features")
    verdicts = {
        key: box.services.ledger.verdict(box.spec.pipeline, asset, key)
        for key in box.spec.keys_of(case.day)
    }
    day = box.services.ledger.current_version(box.spec.asset("day"), case.name)
    reasons = dict(day.detail["reasons"]) if day else {}
    steps = [
        Step(
            did="the readiness sensor looks at the same folder at 00:20",
            found=f"requested of features and training: {len(built)}; "
            + ("requested the roll-up that shows the day as held" if shown else "no roll-up"),
            ok=not built and bool(shown),
        ),
        Step(
            did=f"what it recorded of {case.day}",
            found=_together(reasons) or "nothing",
            ok=set(reasons) == set(verdicts)
            and all(f"missing {case.hours}:00-23:00" in why for why in reasons.values())
            and all(v is not None and v.verdict == "partial" for v in verdicts.values()),
        ),
    ]
    refused = box.materialize("features", first=key)
    steps.append(
        Step(
            did=f"a person materializes {asset} {key} all the same",
            found=f"refused: {failure_of(refused)}" if not refused.success else "it was built",
            ok=not refused.success and "is held" in failure_of(refused),
        )
    )
    trained = box.materialize("snapshot", first=case.name)
    steps.append(
        Step(
            did=f"and {box.spec.asset('snapshot')} {case.day}, which a model needs",
            found=f"refused: {failure_of(trained)}" if not trained.success else "it was taken",
            ok=not trained.success and box.model(case.day) is None,
        )
    )
    return steps


def _together(reasons: Mapping[str, str]) -> str:
    """Reasons, each once, with the partitions that it holds."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())


def _leaves(box: SignalboxSide, case: Case) -> list[Step]:
    first = box.tick()
    second = box.tick()
    name = case.name
    rows = box.model(case.day)
    return [
        Step(
            did="the rest of the day has landed; the sensor looks again",
            found=f"requested: {_pairs(first)}",
            ok={("features", key) for key in box.spec.keys_of(case.day)} <= set(first),
        ),
        Step(
            did="and once more, when the features are built",
            found=f"requested: {_pairs(second)}; "
            + (
                f"the model of {case.day} trained by itself on {rows} rows"
                if rows
                else "no model there"
            ),
            ok=("train", name) in second and rows is not None,
        ),
    ]


def _pairs(requested: list[tuple[str, str]]) -> str:
    return ", ".join(f"{job} {partition}" for job, partition in requested) or "nothing"


def _measure(rows: Rows, dates: tuple[date, ...], hours: int) -> tuple[Measurement, ...]:
    days = rows.spec.model.window_days
    window = partial_against_whole(
        rows, dates, hours, days, f"window of {days} days, its last day at {hours} of 24 hours"
    )
    alone = partial_against_whole(
        rows, dates, hours, 1, f"a model of one day alone, at {hours} of 24 hours"
    )
    return (*window, *alone)


def _notes(spec: PipelineSpec, dates: tuple[date, ...]) -> tuple[str, ...]:
    return (
        f"Each difference is the metric of the model of the partial day minus that of the whole "
        f"day, on the {spec.evaluation.days} days that follow; trainer, parameters, seed and all "
        "other days are the same.",
        f"{len(dates)} dates from {dates[0]} to {dates[-1]}, evenly spread over all dates that "
        "are whole and whose judged days are. The interval is a percentile bootstrap over them; "
        "windows of near dates share days, so it is a little too narrow if anything.",
        "These are six intervals at 95 %: were there no difference at all, one of them or more "
        "would leave 0 out by chance about one time in four.",
        "How much a partial day costs a model is another question than whether it trained on "
        "one: the first is measured here, the second decided above.",
    )


def _verdict(case: Case) -> str:
    return (
        f"Plain Dagster trained on {case.hours} of 24 hours and called it success; Signalbox held "
        "the day, named the hours, refused a person too, and trained by itself when the rest was "
        "there."
    )
