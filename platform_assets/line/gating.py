"""The verdict of the evaluation gate on one version against the champion in force."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

from platform_assets.domain.completeness import CLEAR
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.gate import Evidence, GateReport, judge
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.promotion import PRIMARY_METRIC
from platform_assets.line.clearance import lapsed
from platform_assets.line.days import without_verdict
from platform_assets.line.environments import Passage, passage_of
from platform_assets.line.judging import JudgedRows, judged_rows, predictions_on
from platform_assets.line.services import Services
from resources import evidence
from resources.ledger.promotion_records import DIGESTS, EvaluationRecord
from resources.ledger.records import VersionRecord

GATE_TAGS = ("signalbox.gate", "signalbox.gate_against", "signalbox.gate_reason")
"""On the candidate's run in MLflow: passed or refused, against whom, and why."""


def registered(services: Services) -> dict[int, VersionRecord]:
    """Every version of the model that was ever trained, as it was recorded last, by number."""
    found = services.ledger.versions(services.spec.asset("model"))
    return {version_of(record): record for record in found}


def require_registered(services: Services, version: int) -> VersionRecord:
    """One version of the model.

    Raises:
        UsageError: it was never trained here.
    """
    known = registered(services)
    if version not in known:
        latest = ", ".join(map(str, sorted(known)[-5:])) or "none"
        raise UsageError(
            f"{services.spec.model.name} has no version {version} that was trained here; the "
            f"latest are {latest}, see them with `signalbox promotions {services.spec.pipeline}`"
        )
    return known[version]


def version_of(model: VersionRecord) -> int:
    return int(model.detail["model_version"])


def date_of(model: VersionRecord) -> date:
    return date.fromisoformat(model.partition)


def rows_between(
    services: Services, candidate: VersionRecord, champion: VersionRecord | None
) -> JudgedRows:
    """The rows that both are judged on: of the days after the later one of the two dates.

    Raises:
        HeldError: these days are not whole.
    """
    later = max(date_of(model) for model in (candidate, champion) if model is not None)
    found = services.ledger.current_version(services.spec.asset("evaluation"), later.isoformat())
    if found is None:
        return judged_rows(services, later)
    return JudgedRows(later, tuple(PartitionVersion(**p) for p in found.detail["partitions"]))


def unexplained(
    services: Services, model: VersionRecord, rows: JudgedRows, *, expired: bool
) -> list[str]:
    """What is wrong with the data that a model was trained on, or is judged on.

    Args:
        expired: whether a waiver that has run out counts as wrong; one that was revoked does.
    """
    names = {*model.detail.get("waivers", ()), *rows.waivers}
    problems = [*lapsed(services, names, expired=expired).values()]
    short: Mapping[str, str] = {**model.detail.get("short", {}), **rows.short}
    if short:
        asset = services.spec.asset("features")
        known = services.ledger.verdicts(services.spec.pipeline, asset, short)
        for partition, lacked in sorted(short.items()):
            found = known.get(partition)
            if found is None or found.verdict not in CLEAR:
                now = found.verdict if found else "unknown"
                problems.append(f"{partition} is short of {lacked}, and {now} by now")
    # The rows may have been taken from a judgement of earlier.
    unknown = without_verdict(services, (p.partition for p in rows.partitions))
    problems += [f"{partition}: {why}" for partition, why in sorted(unknown.items())]
    return problems


def known_verdict(
    services: Services,
    candidate: VersionRecord,
    against: int | None,
    champion: VersionRecord | None,
) -> EvaluationRecord | None:
    """The newest verdict on exactly this pair, if it would be asked for on the same terms now."""
    found = services.ledger.evaluation(services.spec.model.name, version_of(candidate), against)
    if found is None:
        return None
    rows = rows_between(services, candidate, champion)
    problems = _problems(services, candidate, rows, passage_of(services, candidate, against))
    asked = _asked(services, candidate, champion, problems)
    same = found.rows_digest == rows.digest and found.report.get("asked") == asked
    return found if same else None


def verdict_on(
    services: Services,
    candidate: VersionRecord,
    against: int | None,
    champion: VersionRecord | None,
    run_id: str,
    *,
    absent: str = "",
    again: bool = False,
) -> EvaluationRecord:
    """The gate's verdict on a version against the one in force, recorded and shown in MLflow.

    A verdict that is there on the same rows and the same terms is the verdict.

    Args:
        against: the version in force; the verdict is good for it and no other.
        champion: its record; None where there is none, or it counts as absent.
        absent: why it does.
        again: make it in any case.

    Raises:
        HeldError: the days that both would be judged on are not whole.
        TransientError: MLflow cannot be told of it; nothing is recorded, the next try makes it.
    """
    spec = services.spec
    known = None if again else known_verdict(services, candidate, against, champion)
    if known is not None:
        return known
    rows = rows_between(services, candidate, champion)
    crossing = passage_of(services, candidate, against)
    problems = _problems(services, candidate, rows, crossing)
    changed = crossing.verdict.changes
    report = judge(
        _evidence(services, candidate, against, champion, rows, absent, problems, changed),
        spec.evaluation.gate,
    )
    asked = _asked(services, candidate, champion, problems)
    # Before it is recorded: what is recorded is not made, and not shown, again.
    _show(services, candidate, report)
    return services.ledger.record_evaluation(
        EvaluationRecord(
            pipeline=spec.pipeline,
            model=spec.model.name,
            candidate=version_of(candidate),
            champion=against,
            judged_date=rows.date,
            rows_digest=rows.digest,
            passed=report.passed,
            report={**json.loads(report.model_dump_json()), "asked": asked},
            recorded_at=datetime.now(UTC),
            run_id=run_id,
        )
    )


def _asked(
    services: Services,
    candidate: VersionRecord,
    champion: VersionRecord | None,
    problems: Mapping[str, list[str]],
) -> dict[str, Any]:
    """What a verdict depends on beside the rows.

    A number alone does not say which model it was: a registry that was set up anew counts from 1.
    """
    return {
        DIGESTS: {
            "candidate": candidate.data_version,
            "champion": champion.data_version if champion else None,
        },
        "terms": services.spec.evaluation.gate.model_dump(mode="json"),
        "compared": version_of(champion) if champion else None,
        "problems": dict(problems),
    }


def _problems(
    services: Services, candidate: VersionRecord, rows: JudgedRows, crossing: Passage
) -> dict[str, list[str]]:
    """What speaks against a version whatever its scores are: data, holds, its environment."""
    model, version = services.spec.model.name, version_of(candidate)
    # What was champion while its waiver counted has not been proven wrong since.
    was = {change.version for change in services.ledger.promotions(model)}
    holds = services.ledger.holds(model, services.clock.as_of())
    return {
        "data": unexplained(services, candidate, rows, expired=version not in was),
        "hold": [f"it is {hold.describe()}" for hold in holds if hold.version == version],
        # Left out where there is none: the verdicts of before this was asked still count.
        **({} if crossing.verdict.free else {"environment": [crossing.verdict.reason]}),
    }


def _evidence(
    services: Services,
    candidate: VersionRecord,
    against: int | None,
    champion: VersionRecord | None,
    rows: JudgedRows,
    absent: str,
    problems: Mapping[str, Iterable[str]],
    changed: tuple[str, ...],
) -> Evidence:
    spec, terms = services.spec, services.spec.evaluation.gate
    table, target, mine = predictions_on(services, candidate, rows)
    slices = evidence.slices_of(spec, table)
    blocks = evidence.blocks_of(spec, table)
    scores, interval = None, None
    if champion is not None:
        try:
            _, _, theirs = predictions_on(services, champion, rows)
        except UsageError as error:
            raise RefusedError(
                f"version {version_of(champion)} of {spec.model.name} is champion in the ledger "
                f"and cannot be compared with ({error}); roll back to another one with "
                f"`signalbox rollback {spec.pipeline} --to VERSION`"
            ) from error
        scores = evidence.scored(spec, version_of(champion), target, theirs, slices)
        if table.num_rows:
            kind = spec.model.kind
            each, other = (evidence.losses(kind, target, found) for found in (mine, theirs))
            interval = evidence.paired_interval(kind, each, other, blocks, terms)
    return Evidence(
        metric=PRIMARY_METRIC[spec.model.kind],
        rows=table.num_rows,
        blocks=len(set(blocks.tolist())),
        against=against,
        candidate=evidence.scored(spec, version_of(candidate), target, mine, slices),
        champion=scores,
        absent=absent,
        interval=interval,
        slice_rows={name: int(of.sum()) for name, of in slices.items()},
        unexplained=tuple(problems["data"]),
        held=tuple(problems["hold"]),
        environment=changed,
        unproven=tuple(problems.get("environment", ())),
    )


def _show(services: Services, candidate: VersionRecord, report: GateReport) -> None:
    """Show a verdict on the candidate's run in MLflow; whoever is told again replaces it."""
    run_id = candidate.detail["mlflow_run_id"]
    against = "no champion" if report.champion is None else f"champion {report.champion}"
    values = ("passed" if report.passed else "refused", against, report.reason)
    services.tracking.retag(run_id, dict(zip(GATE_TAGS, values, strict=True)))
    found: dict[str, Any] = {"gate_passed": float(report.passed)}
    if report.evidence.interval is not None:
        found |= {f"gate_{k}": v for k, v in report.evidence.interval.model_dump().items()}
    services.tracking.log_judgement(run_id, found)
