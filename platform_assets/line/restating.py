"""Restatements on their way: features, roll-up, training, judgement, and when one is done."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from platform_assets.domain.manifest import DayState, WindowRefusal, describe_dates, window
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.readiness import Job, Plan, Request, run_key
from platform_assets.line.days import days_of, decide_snapshot
from platform_assets.line.impact import Readers
from platform_assets.line.late import is_rebuilt, may_go, retrains, touching
from platform_assets.line.services import Services
from resources.ledger.records import RestatementRecord, VersionRecord

MOST_REQUESTS = 20
"""What one look hands over at the most; the rest is requested by the next."""

ENDED_BADLY = ("FAILURE", "CANCELED")


@dataclass(frozen=True)
class _Going:
    """A restatement that may go, and what is out of date because of it.

    Attributes:
        rebuilt: whether the features are made of what is there now.
        days, models, evaluations: the dates of each stage that are out of date.
    """

    record: RestatementRecord
    partition: PartitionKey
    features: VersionRecord
    rebuilt: bool
    days: tuple[date, ...] = ()
    models: tuple[date, ...] = ()
    evaluations: tuple[date, ...] = ()

    @property
    def is_done(self) -> bool:
        return self.rebuilt and not (self.days or self.models or self.evaluations)


@dataclass
class _Steps:
    """The requests of one look, and what each restatement waits for."""

    services: Services
    readers: Readers
    state_of: Callable[[str], str | None]
    requests: dict[str, Request] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[int, str] = field(default_factory=dict)
    blocked: dict[int, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def is_full(self) -> bool:
        return len(self.requests) >= MOST_REQUESTS

    def ask(
        self,
        job: Job,
        replaced: VersionRecord,
        inputs: object,
        owners: Sequence[_Going],
    ) -> bool:
        """Request a run; tells whether it may still come to something.

        Its run key holds when that which is replaced was made: hours that change there and back
        again need a run each time, though its inputs are those of an earlier one.
        """
        name = replaced.partition
        approved = max(
            (g.record.approved_at.isoformat() for g in owners if g.record.approved_at), default=""
        )
        made = [replaced.committed_at.isoformat(), approved]
        key = run_key(self.services.spec.pipeline, job, name, ["late", inputs, made])
        state = self.state_of(key)
        if state in ENDED_BADLY:
            why = (
                f"the run of {job} {name} ended as {state}, what was there stays; see it in "
                "Dagster, have the hours corrected or the run re-executed, or try again"
            )
            self.say(owners, why)
            self.failed |= {going.record.number: why for going in owners}
            return False
        if state is not None:
            self.say(owners, f"{job} {name} is under way")
        elif self.is_full:
            self.say(owners, f"{job} {name} is requested later")
        else:
            reason = f"late or corrected data of {', '.join(str(g.partition) for g in owners)}"
            self.requests[key] = Request(job=job, partition=name, run_key=key, reason=reason)
            self.say(owners, f"{job} {name} is requested")
        return True

    def say(self, owners: Sequence[_Going], text: str) -> None:
        for going in owners:
            self.notes[going.record.partition].append(text)

    def wait(self, owners: Sequence[_Going], job: str, text: str) -> None:
        """It is not its turn: what was held when it was looked at last counts until it is."""
        self.say(owners, f"{job} {text}")
        for going in owners:
            known = going.record.changes.get("blocked", {})
            if job in known:
                self.blocked[going.record.number][job] = known[job]

    def hold(self, owners: Sequence[_Going], job: str, why: str, stays: str) -> None:
        """It cannot go until somebody mends what is held: `stays` is in use until then."""
        self.say(owners, f"{job} is held: {why}")
        for going in owners:
            self.blocked[going.record.number][job] = f"{why}; {stays}"

    def is_left_to_daily(self, unbuilt: Sequence[date]) -> bool:
        """Whether dates that have landed whole are built without a person."""
        return bool(unbuilt) and min(unbuilt) >= self.services.spec.schedule.live_from


@dataclass(frozen=True)
class Due:
    """What may go now.

    Attributes:
        plan: the requests, and by partition what the others wait for.
        ended: restatements that are done, with their outcome.
    """

    plan: Plan
    ended: Mapping[str, str] = field(default_factory=dict)


def due(services: Services, state_of: Callable[[str], str | None] = lambda _: None) -> Due:
    """The next runs of the restatements that may go; those that are done are closed.

    One of which a run has failed waits for a person, as those do that are beyond the lateness.

    Whatever is asked for again has the same run key, until its inputs change or a person approves
    it once more; so a look may be repeated, and one that was lost loses nothing.

    Args:
        services: of the pipeline.
        state_of: Dagster's state of the run of a run key, such as FAILURE; None if there is none.
    """
    records = services.restatements.all(services.spec.pipeline, only_open=True)
    if not records:
        return Due(Plan())
    dates = [PartitionKey.parse(record.partition).date for record in records]
    readers = Readers(services, min(dates), max(dates))
    steps, ended, held = _Steps(services, readers, state_of), {}, {}
    open_ones = []
    for going in _look(services, readers, records):
        record = going.record
        if going.is_done:  # by these requests, or by what somebody did by hand
            ended[record.partition] = _end(services, going)
        elif may_go(record):
            open_ones.append(going)
        else:
            held[record.partition] = f"listed: {record.reason}"
    unbuilt = _request_features(steps, [g for g in open_ones if not g.rebuilt])
    _request_days(steps, open_ones)
    waiting = _request_training(steps, open_ones, unbuilt)
    _request_judgement(steps, open_ones, unbuilt, waiting)
    for going in open_ones:
        record = going.record
        _remark(steps, record)
        if record.number in steps.failed:
            services.restatements.relist(record.number, steps.failed[record.number])
    held |= {key: "; ".join(notes) for key, notes in steps.notes.items()}
    return Due(Plan(requests=tuple(steps.requests.values()), held=held), ended)


def _look(
    services: Services, readers: Readers, records: Sequence[RestatementRecord]
) -> list[_Going]:
    spec = services.spec
    partitions = {record.partition: PartitionKey.parse(record.partition) for record in records}
    built = services.ledger.current_versions(spec.asset("features"), partitions)
    rolled = {p.date for p in partitions.values()} & readers.days.keys()
    days = days_of(services, rolled)
    old_days = {
        day
        for day, found in days.items()
        if found.state is not DayState.UNBUILT
        and found.data_version() != readers.days[day].data_version
    }
    going = []
    for record in sorted(records, key=lambda r: partitions[r.partition]):
        features, partition = built[record.partition], partitions[record.partition]
        rebuilt = is_rebuilt(record, features)
        impact, version = readers.of(partition), features.data_version
        # What was trained on the old rows since it was found is a part of it, until they are gone.
        now = dict(record.touches) if rebuilt else touching(record, impact)
        if now != record.touches:
            services.restatements.touch(record.number, now)
            record = replace(record, touches=now)
        old_models = {d for d, read in impact.models.items() if read != version}
        judged = {d for d in impact.evaluations if _of_another_model(readers, d)} - old_models
        trained: set[date] = set()
        if rebuilt:
            trained = old_models if retrains(record) else set()
            reads = impact.evaluations.items()
            judged |= {d for d, read in reads if read is not None and read != version}
            # The judgement of a model that is trained again comes after it.
            judged |= trained & impact.evaluations.keys()
        going.append(
            _Going(
                record=record,
                partition=partition,
                features=features,
                rebuilt=rebuilt,
                days=tuple({partition.date} & old_days) if rebuilt else (),
                models=tuple(sorted(trained)),
                evaluations=tuple(sorted(judged)),
            )
        )
    return going


def _of_another_model(readers: Readers, day: date) -> bool:
    model = readers.models.get(day)
    if model is None:
        return False
    found = int(readers.evaluations[day].detail["model_version"])
    return found != readers.version(day)


def _request_features(steps: _Steps, waiting: Sequence[_Going]) -> set[date]:
    """Features of what was not rebuilt; returns the dates that a training has to wait for."""
    dates = set()
    for going in waiting:
        held = str(going.record.changes.get("held", ""))
        if held:
            steps.say([going], f"it waits until it is clear: {held}")
            job = f"features {going.partition}"
            steps.blocked[going.record.number][job] = f"{held}; what was built stays in use"
        elif steps.ask("features", going.features, going.record.changes["now"], [going]):
            dates.add(going.partition.date)
    return dates


def _request_days(steps: _Steps, open_ones: Sequence[_Going]) -> None:
    owners = _by_date(open_ones, "days")
    days = days_of(steps.services, owners)
    for day, own in sorted(owners.items()):
        steps.ask("day", steps.readers.days[day], days[day].data_version(), own)


def _by_date(open_ones: Sequence[_Going], stage: str) -> dict[date, list[_Going]]:
    found: dict[date, list[_Going]] = defaultdict(list)
    for going in open_ones:
        for day in getattr(going, stage):
            found[day].append(going)
    return found


def _request_training(steps: _Steps, open_ones: Sequence[_Going], unbuilt: set[date]) -> set[date]:
    """Training of what read older versions; returns the dates that are to be trained still."""
    services = steps.services
    owners = _by_date(open_ones, "models")
    for day, own in sorted(owners.items()):
        job = f"train {day}"
        missing = unbuilt & set(window(day, services.spec.model.window_days))
        if missing:
            steps.wait(own, job, f"waits for the features of {describe_dates([*missing])}")
            continue
        if steps.is_full:
            steps.wait(own, job, "is requested later")
            continue
        taken = decide_snapshot(services, day)
        if not isinstance(taken, WindowRefusal):
            steps.ask("train", steps.readers.models[day], taken.data_version(), own)
        elif steps.is_left_to_daily(taken.unbuilt):
            steps.wait(own, job, f"waits: {taken.reason}")
        else:
            version = steps.readers.version(day)
            stays = f"version {version}, trained on the rows before, stays in use"
            champion = own[0].record.touches.get("champion") or {}
            is_champion = champion.get("version") == version
            steps.hold(own, job, taken.reason, stays + (" as champion" if is_champion else ""))
    return set(owners)


def _request_judgement(
    steps: _Steps, open_ones: Sequence[_Going], unbuilt: set[date], untrained: set[date]
) -> None:
    services, spec = steps.services, steps.services.spec
    owners = _by_date(open_ones, "evaluations")
    for day, own in sorted(owners.items()):
        job = f"judge {day}"
        following = spec.judged_on(day)
        missing = unbuilt & set(following)
        if day in untrained:
            steps.wait(own, job, "waits for its model")
            continue
        if missing:
            steps.wait(own, job, f"waits for the features of {describe_dates([*missing])}")
            continue
        if steps.is_full:
            steps.wait(own, job, "is requested later")
            continue
        rows = days_of(services, following)
        lacking = [d for d in following if rows[d].state is not DayState.WHOLE]
        unbuilt_days = [d for d in lacking if rows[d].state is DayState.UNBUILT]
        if lacking:
            why = f"{describe_dates(lacking)} not whole"
            if lacking == unbuilt_days and steps.is_left_to_daily(lacking):
                steps.wait(own, job, f"waits: {why}")
            else:
                why += f" ({'; '.join(rows[d].reason() for d in lacking)})"
                steps.hold(own, job, why, "the judgement before stays as it is")
            continue
        inputs = [steps.readers.version(day), *(rows[d].data_version() for d in following)]
        steps.ask("judge", steps.readers.evaluations[day], inputs, own)


def _remark(steps: _Steps, record: RestatementRecord) -> None:
    text = "; ".join(steps.notes[record.partition]) or record.outcome
    blocked = steps.blocked.get(record.number, {})
    if text != record.outcome or blocked != record.changes.get("blocked", {}):
        steps.services.restatements.remark(record.number, text, blocked)


def _end(services: Services, going: _Going) -> str:
    """Close a restatement of which nothing is left to do; returns the outcome in words."""
    record, spec = going.record, services.spec
    before, after = str(record.changes["built"]), going.features.data_version
    if before == after:
        outcome = f"identical: the hours differ, the rows do not ({after[:12]})"
    else:
        outcome = f"features {before[:12]} -> {after[:12]}"
    touched = {model["date"]: int(model["version"]) for model in record.touches.get("models", ())}
    models = services.ledger.current_versions(spec.asset("model"), touched)
    again = {
        day: int(found.detail["model_version"])
        for day, found in sorted(models.items())
        if int(found.detail["model_version"]) != touched[day]
    }
    if again:
        listed = ", ".join(f"{day} version {touched[day]} -> {now}" for day, now in again.items())
        outcome += f"; models trained again: {listed}"
    elif touched and before != after and not retrains(record):
        outcome += f"; {len(touched)} model(s) left as they are, as {record.approved_by} said"
    judged = record.touches.get("evaluations", ())
    if judged and before != after:
        outcome += f"; judged again: {', '.join(judged)}"
    services.restatements.end(record.number, "done", outcome, services.clock.as_of())
    return outcome
