"""What may leave now: the next runs of the live days, and why the others wait."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.completeness import CompletenessReport
from platform_assets.domain.digests import digest_of
from platform_assets.domain.manifest import Day, DayState, Snapshot, WindowRefusal
from platform_assets.domain.partition import PartitionKey

Job = Literal["features", "day", "train", "judge"]


class Request(BaseModel):
    """One run to launch. The same run key again is the same run: Dagster launches it once.

    Attributes:
        run_key: of the first attempt; made of the inputs.
        attempt: which one this is, counted from 1.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    partition: str
    run_key: str
    reason: str
    attempt: int = 1

    @property
    def launch_key(self) -> str:
        """The run key that Dagster is given: another attempt is another run."""
        return self.run_key if self.attempt == 1 else f"{self.run_key}/{self.attempt}"


class Plan(BaseModel):
    """The requests of a tick, and what is held, by partition, with what it lacks."""

    model_config = ConfigDict(frozen=True)

    requests: tuple[Request, ...] = ()
    held: Mapping[str, str] = {}

    def __add__(self, other: "Plan") -> "Plan":
        return Plan(requests=self.requests + other.requests, held={**self.held, **other.held})

    def first(self, most: int, recent: date | None = None) -> "Plan":
        """The oldest requests, at most so many; what is left out is requested by a later look.

        Args:
            most: how many.
            recent: dates from here on go first: catching up must not keep today waiting.
        """
        if len(self.requests) <= most:
            return self
        return Plan(requests=self.in_turn(recent).requests[:most], held=self.held)

    def in_turn(self, recent: date | None = None) -> "Plan":
        """The same, oldest first; dates from `recent` on before all others."""

        def turn(request: Request) -> tuple[bool, date]:
            day = PartitionKey.parse(request.partition).date
            return recent is not None and day < recent, day

        return Plan(requests=tuple(sorted(self.requests, key=turn)), held=self.held)


def run_key(pipeline: str, job: Job, partition: str, inputs: object) -> str:
    """`flights/train/2013-02-09/3f…`: the inputs are part of it, so new data is a new run.

    So are the rules and the code that judge them: what they refused may pass others.
    """
    return f"{pipeline}/{job}/{partition}/{digest_of(inputs)[:16]}"


def plan_features(
    pipeline: str, reports: Iterable[CompletenessReport], built: Sequence[str], code: str = ""
) -> Plan:
    """Features of each partition that is clear and was not built; the others are held.

    Args:
        pipeline: its name.
        reports: of the partitions.
        built: those that are there.
        code: version of the rules and the code that build them.
    """
    done, requests, held = set(built), [], {}
    for report in reports:
        if report.partition in done:
            continue
        if not report.is_clear:
            held[report.partition] = report.reason()
            continue
        requests.append(
            Request(
                job="features",
                partition=report.partition,
                run_key=run_key(pipeline, "features", report.partition, [code, report.inputs()]),
                reason=report.reason(),
            )
        )
    return Plan(requests=tuple(requests), held=held)


def plan_training(
    pipeline: str,
    days: Mapping[date, Day],
    snapshots: Mapping[date, Snapshot | WindowRefusal],
    trained: Mapping[date, str],
    code: str = "",
) -> Plan:
    """Roll-up and training of each whole day that has no model and whose snapshot can be taken.

    Args:
        pipeline: its name.
        days: roll-ups of the live days.
        snapshots: what a snapshot of each whole day would be.
        trained: data version of the model of each date that has one.
        code: version of the trainer and its parameters.
    """
    requests, held = [], {}
    for day, roll_up in sorted(days.items()):
        if day in trained or roll_up.state is not DayState.WHOLE:
            continue  # a day that is not whole is held key by key already
        taken = snapshots[day]
        if isinstance(taken, WindowRefusal):
            held[day.isoformat()] = taken.reason
            continue
        name = day.isoformat()
        requests += [
            Request(
                job="day",
                partition=name,
                run_key=run_key(pipeline, "day", name, roll_up.data_version()),
                reason=f"all {len(roll_up.partitions)} partitions are built",
            ),
            Request(
                job="train",
                partition=name,
                run_key=run_key(pipeline, "train", name, [code, taken.data_version()]),
                reason=f"{len(taken.days)} days, {taken.rows} rows",
            ),
        ]
    return Plan(requests=tuple(requests), held=held)


def plan_held_days(pipeline: str, days: Mapping[date, Day], rolled: Mapping[str, str]) -> Plan:
    """Roll-up of each held day that is over, so that being held is seen where it is looked for.

    Args:
        pipeline: its name.
        days: roll-ups of the live days that are over.
        rolled: data version of the roll-up of each date that has one.
    """
    requests = [
        Request(
            job="day",
            partition=day.isoformat(),
            run_key=run_key(pipeline, "day", day.isoformat(), found.data_version()),
            reason=f"it is over and held: {found.reason()}",
        )
        for day, found in sorted(days.items())
        if found.state is DayState.HELD and rolled.get(day.isoformat()) != found.data_version()
    ]
    return Plan(requests=tuple(requests))


def plan_judgement(
    pipeline: str,
    models: Mapping[date, int],
    judged: Mapping[date, int],
    following: Mapping[date, Sequence[Day]],
    code: str = "",
) -> Plan:
    """Judgement of each model that has none, once its following days are whole.

    Args:
        pipeline: its name.
        models: registered version of the model of each date.
        judged: registered version that the evaluation of each date was made for.
        following: the days that each date's model is judged on.
        code: version of the evaluation.
    """
    requests = []
    for day, version in sorted(models.items()):
        if judged.get(day) == version:
            continue
        rows = following.get(day, ())
        if not rows or any(d.state is not DayState.WHOLE for d in rows):
            continue  # a candidate for now; a held day is named where it is held
        inputs = [code, version, *(d.data_version() for d in rows)]
        requests.append(
            Request(
                job="judge",
                partition=day.isoformat(),
                run_key=run_key(pipeline, "judge", day.isoformat(), inputs),
                reason=f"{rows[0].date} to {rows[-1].date} are whole",
            )
        )
    return Plan(requests=tuple(requests))
