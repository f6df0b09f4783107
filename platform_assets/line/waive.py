"""Waivers, given and revoked by a person, and what came to rest on each."""

from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from platform_assets.domain.completeness import HOUR, CompletenessReport, Verdict
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.spec import PipelineSpec
from platform_assets.domain.waiver import Shortage, Waiver, coverage
from platform_assets.line.clearance import assess
from platform_assets.line.features import note_verdict
from platform_assets.line.services import Services
from resources.ledger.records import VersionRecord

MOST_DAYS = 366
"""How far ahead a waiver may reach: nobody can answer for longer."""

MOST_CHARACTERS = 500
"""Of a reason or a name: it goes into tags of MLflow, which are limited."""


def until_of(spec: PipelineSpec, text: str) -> datetime:
    """The start of a local day, in UTC: `2013-11-30` is the midnight with which it begins.

    Raises:
        UsageError: it is no date.
    """
    try:
        day = datetime.strptime(text.strip(), "%Y-%m-%d").date()  # noqa: DTZ007 - a date alone
        local = datetime.combine(day, time(0), tzinfo=ZoneInfo(spec.partitions.timezone))
        return local.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is no date until which a waiver can count; write it as in 2013-11-30"
        ) from error


def give_waiver(
    services: Services,
    partition: str,
    reason: str,
    by: str,
    until: datetime,
    covers: Mapping[str, Shortage] | None = None,
) -> Waiver:
    """Let a partition leave although it is short of something; of nothing more than that.

    Args:
        services: of the pipeline.
        partition: of the dataset, `JFK|2013-10-25`.
        reason: why, for whoever meets a model that rests on it.
        by: who answers for it.
        until: from then on it counts no more; on the pipeline's clock.
        covers: what the person has seen to be lacking, by source; default: what is lacking now.

    Raises:
        UsageError: no such partition, no reason, nobody, or until a time that is not allowed.
        RefusedError: there is nothing to waive, or what is lacking cannot be waived.
    """
    spec, as_of = services.spec, services.clock.as_of()
    key = services.partition(partition, keyed=True)
    name, why, who = str(key), said("reason", reason), said("name of who gives it", by)
    _require_until(until, as_of)
    report = assess(services, key)
    if report.is_clear and any(s.waiver for s in report.sources):
        # Whoever gave it and died then may not have come to this.
        _take_up(services, key, "somebody asked for a waiver of it")
    _require_waivable(services, key, report, as_of)
    lacking = coverage(report)
    if covers is not None and dict(covers) != lacking:
        raise RefusedError(
            f"{name} lacks something else than what was seen: now it is {report.reason()}; look "
            "at it again"
        )
    waiver = services.waivers.give(
        Waiver(
            name="",
            pipeline=spec.pipeline,
            partition=name,
            reason=why,
            by=who,
            given_at=as_of,
            until=until,
            covers=lacking,
        )
    )
    _take_up(services, key, f"waiver {waiver.name}")
    return waiver


def revoke_waiver(services: Services, name: str, by: str, reason: str) -> Waiver:
    """End a waiver: what was built under it may no longer be read, what was trained is listed.

    Raises:
        UsageError: there is none of that name, it was revoked already, no reason, or nobody.
        RefusedError: it has expired.
    """
    why, who = said("reason", reason), said("name of who revokes it", by)
    as_of = services.clock.as_of()
    for found in services.waivers.of(services.spec.pipeline):
        if found.name == name and found.state(as_of) == "expired":
            raise RefusedError(
                f"waiver {found.describe()} has expired: there is nothing left to revoke"
            )
    waiver = services.waivers.revoke(services.spec.pipeline, name, who, why, as_of)
    _take_up(services, PartitionKey.parse(waiver.partition), f"waiver {waiver.name} was revoked")
    return waiver


def next_step(services: Services, waiver: Waiver) -> str:
    """What happens next to the partition of a waiver, or what a person has to do."""
    spec, key = services.spec, PartitionKey.parse(waiver.partition)
    features = spec.asset("features")
    if key.date >= spec.schedule.live_from:
        return f"{key.date} is a live date: the readiness sensor requests {features} by itself"
    return (
        f"{key.date} lies before the live dates ({spec.schedule.live_from}) and belongs to "
        f"backfills: materialize {features} for {waiver.partition}, then {spec.asset('day')} for "
        f"{key.date}, then what is trained on it"
    )


def uses_of(services: Services) -> dict[str, dict[str, Any]]:
    """What rests on each waiver, by its name; what was made under it is listed for good.

    Returns:
        `features`: partitions whose current rows left under it. `models`: each registered version
        that was trained on such rows. `judged`: the dates whose model was judged on some.
    """
    spec, ledger = services.spec, services.ledger
    uses: dict[str, dict[str, Any]] = {}

    def note(record: VersionRecord, kind: str, what: object) -> None:
        for name in record.detail.get("waivers", ()):
            listed = uses.setdefault(name, {"features": [], "models": [], "judged": []})[kind]
            if what not in listed:
                listed.append(what)

    for partition, record in ledger.current_versions(spec.asset("features")).items():
        note(record, "features", partition)
    for record in ledger.versions(spec.asset("model")):
        model = {
            "date": record.partition,
            "model": spec.model.name,
            "version": record.detail["model_version"],
            "mlflow_run_id": record.detail["mlflow_run_id"],
        }
        note(record, "models", model)
    for record in ledger.versions(spec.asset("evaluation")):
        note(record, "judged", record.partition)
    return uses


def list_waivers(services: Services, *, every: bool = True) -> list[dict[str, Any]]:
    """The waivers of a pipeline as documents, oldest first; those in force, or all there were."""
    as_of, uses = services.clock.as_of(), uses_of(services)
    nothing: dict[str, Any] = {"features": [], "models": [], "judged": []}
    return [
        document(waiver, as_of) | uses.get(waiver.name, nothing)
        for waiver in services.waivers.of(services.spec.pipeline)
        if every or waiver.state(as_of) == "active"
    ]


def document(waiver: Waiver, as_of: datetime) -> dict[str, Any]:
    """A waiver and its state as plain values."""
    return {**waiver.model_dump(mode="json"), "state": waiver.state(as_of)}


def said(what: str, text: str, of: str = "a waiver") -> str:
    """What a person says of something that they do, in one line.

    Raises:
        UsageError: nothing was said, or too much.
    """
    said = " ".join(text.split())
    if not said or len(said) > MOST_CHARACTERS or not said.isprintable():
        found = repr(said[:40]) if said else "none was given"
        raise UsageError(
            f"{of} needs a {what}, {found}; allowed are 1 to {MOST_CHARACTERS} printable "
            "characters: say it in a sentence"
        )
    return said


def _require_until(until: datetime, as_of: datetime) -> None:
    latest = as_of + timedelta(days=MOST_DAYS)
    if not as_of < until <= latest:
        raise UsageError(
            f"a waiver until {until:%Y-%m-%d %H:%M}Z cannot be given as of "
            f"{as_of:%Y-%m-%d %H:%M}Z; allowed is a later time, at the most {MOST_DAYS} days ahead "
            f"({latest:%Y-%m-%d %H:%M}Z)"
        )


def _require_waivable(
    services: Services, key: PartitionKey, report: CompletenessReport, as_of: datetime
) -> None:
    spec = services.spec
    if local_hours(key.date, spec.partitions.timezone)[-1] + HOUR > as_of:
        raise RefusedError(
            f"{key} cannot be waived as of {as_of.isoformat()}: the day is not over, and what is "
            "not due yet may still come; wait until it is"
        )
    if report.is_clear:
        under = sorted({s.waiver for s in report.sources if s.waiver})
        advice = (
            f"under {', '.join(under)}; revoke that first to give another"
            if under
            else "there is nothing to waive; build it"
        )
        raise RefusedError(f"{key} may leave already ({report.verdict}): {advice}")
    rows = next(s for s in report.sources if s.source == spec.dataset.rows)
    if not rows.observed:
        raise RefusedError(
            f"{key} has no accepted hour of {rows.source}, which its rows are made of: a waiver "
            "would let nothing leave; have it delivered"
        )


def _take_up(services: Services, key: PartitionKey, why: str) -> None:
    """Have the sensor look at the date again, and the ledger say what is so now."""
    services.watch.attend(services.spec.pipeline, {key.date: why})
    note_verdict(services, key, assess(services, key))


def take_up_lapsed(services: Services) -> None:
    """Attend the dates of waivers that are over and that the ledger has as waived still.

    A waiver's end is no event: nobody does anything, and no file changes.
    """
    spec, as_of = services.spec, services.clock.as_of()
    over = {
        w.partition: w for w in services.waivers.of(spec.pipeline) if w.state(as_of) != "active"
    }
    if not over:
        return
    asset, verdict = spec.asset("features"), Verdict.WAIVED
    recorded = services.ledger.verdicts_being(spec.pipeline, asset, verdict, over)
    active = {
        w.name for w in services.waivers.of(spec.pipeline, recorded) if w.state(as_of) == "active"
    }
    for name, record in recorded.items():
        report = CompletenessReport.model_validate({**record.report, "as_of": as_of})
        if not {s.waiver for s in report.sources if s.waiver} <= active:
            _take_up(services, PartitionKey.parse(name), f"waiver {over[name].name} is over")
