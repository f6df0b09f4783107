"""Why a partition is done, ready or held, down to the missing hours."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from platform_assets.domain.completeness import REFUSED, CompletenessReport, describe_hours
from platform_assets.domain.errors import HeldError, RefusedError, UsageError
from platform_assets.domain.manifest import DayState, WindowRefusal
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.clearance import assess, described, lapsed, refused
from platform_assets.line.days import (
    as_partition_version,
    days_of,
    decide_snapshot,
    unaccepted_now,
    without_verdict,
)
from platform_assets.line.environments import described as environment_described
from platform_assets.line.environments import passage_of
from platform_assets.line.judging import judged_rows
from platform_assets.line.late import described as described_restatement
from platform_assets.line.late import open_restatements
from platform_assets.line.launching import asset_of, describe, open_failures
from platform_assets.line.models import require_snapshot
from platform_assets.line.services import Services
from platform_assets.line.stages import stage_of as stage_of
from platform_assets.line.story import story
from resources.ledger.records import FailureRecord, VersionRecord

KEYED_STAGES = ("features",)
RESTS_ON_ROWS = ("model", "evaluation")


def explain(services: Services, asset: str, partition: str) -> dict[str, Any]:
    """The story of one partition: state, reasons, versions.

    Raises:
        UsageError: unknown asset, or a partition that it does not have.
    """
    spec = services.spec
    stage = stage_of(spec, asset)
    if stage == "champion":
        raise UsageError(
            f"{spec.asset(stage)} has no partitions; see the champion with `signalbox status`"
        )
    keyed = stage in KEYED_STAGES or stage.startswith("landed_")
    key = services.partition(partition, keyed=keyed)
    _require_in_stage(spec, stage, key)
    name = str(key)
    table = {"delta_table": services.dataset.table_name(key)} if stage in KEYED_STAGES else {}
    history = services.ledger.history(spec.asset(stage), name)
    document: dict[str, Any] = {
        "asset": spec.asset(stage),
        "partition": name,
        "as_of": services.clock.as_of().isoformat(),
        **_state(services, stage, key),
        **(_terms(services, history[-1]) if history and stage in RESTS_ON_ROWS else {}),
        **(_environment(services, history[-1]) if history and stage == "model" else {}),
        "versions": [
            {
                "data_version": v.data_version,
                "rows": v.rows,
                "committed_at": v.committed_at.isoformat(),
                "run_id": v.run_id,
                "delta_version": v.table_version,
                **table,
                **{k: v.detail[k] for k in ("model_version", "metrics") if k in v.detail},
                **({"waivers": v.detail["waivers"]} if v.detail.get("waivers") else {}),
            }
            for v in history
        ],
        "story": story(services, stage, key),
    }
    if history and not document.get("lapsed") and not document.get("unknown"):
        document["state"] = "done"
    failure = _failure(services, document["asset"], name)
    if failure is not None:
        document["failed"] = {
            "run_id": failure.run_id,
            "attempts": failure.attempts,
            "step": failure.step,
            "cause": failure.cause,
            "reason": failure.reason,
        }
        if document["state"] == "ready":
            document |= {"state": "failed", "reason": describe(failure)}
    restatements = open_restatements(services, stage, name)
    if restatements:
        document["restatement"] = described_restatement(services, restatements[-1])
        if len(restatements) > 1:
            document["restatement"]["others"] = [r.partition for r in restatements[:-1]]
    return document


def _failure(services: Services, asset: str, name: str) -> FailureRecord | None:
    """The run that was to make it, ended badly, and was not made up for."""
    return next(
        (
            record
            for record in open_failures(services)
            if record.partition == name and asset_of(services, record) == asset
        ),
        None,
    )


def _require_in_stage(spec: PipelineSpec, stage: str, key: PartitionKey) -> None:
    first, last = spec.partitions.start, spec.partitions.end
    if stage in ("snapshot", "model", "evaluation"):
        first = spec.first_model_date
    if stage == "evaluation":
        last = spec.last_judged_date
    if not first <= key.date <= last:
        raise UsageError(
            f"{spec.asset(stage)} has no partition {key}; allowed are {first} to {last}: a model "
            f"needs {spec.model.window_days} days before it, and {spec.evaluation.days} after it "
            "to be judged"
        )


def _state(services: Services, stage: str, key: PartitionKey) -> dict[str, Any]:
    if stage.startswith("landed_") or stage == "features":
        return _hours(services, stage, key)
    decide: dict[str, Callable[[Services, PartitionKey], dict[str, Any]]] = {
        "day": _day,
        "snapshot": _snapshot,
        "model": _model,
        "evaluation": _evaluation,
    }
    return decide[stage](services, key)


def _hours(services: Services, stage: str, key: PartitionKey) -> dict[str, Any]:
    report = assess(services, key)
    wanted = [s for s in report.sources if stage == "features" or stage == f"landed_{s.source}"]
    shown = report.model_copy(update={"sources": tuple(wanted)})
    word = "done" if stage != "features" else "ready"
    state = word if shown.is_clear else "missing" if shown.is_absent else "held"
    verdict = shown.verdict.value
    found: dict[str, Any] = {
        "state": state,
        "verdict": verdict,
        "reason": shown.reason(),
        "short": shown.shortage(),
        "waivers": described(services, {s.waiver for s in shown.sources if s.waiver}),
        "sources": _source_lines(shown),
    }
    unfit = refused(services, [report]) if stage == "features" else {}
    if unfit:
        found |= {"state": REFUSED, "verdict": REFUSED, "reason": unfit[str(key)]}
    record = services.ledger.current_version(services.spec.asset("features"), str(key))
    gone = lapsed(services, record.detail.get("waivers", ())) if record else {}
    if stage == "features" and gone:
        # What was built under it may not be read any more, whatever is there now.
        found |= {"lapsed": gone, "reason": f"{found['reason']}; {'; '.join(gone.values())}"}
    unknown = without_verdict(services, [str(key)] if record else [])
    if record is not None and not gone:
        unknown |= unaccepted_now(services, [as_partition_version(record)])
    if stage == "features" and unknown:
        why = unknown[str(key)]
        found |= {"unknown": why, "reason": f"{found['reason']}; {why}"}
    return found


def _terms(services: Services, version: VersionRecord) -> dict[str, Any]:
    """What a model or a judgement was short of when it was made, and who let that go."""
    detail = version.detail
    return {
        "short": detail.get("short", {}),
        "waivers": described(services, detail.get("waivers", ())),
    }


def _environment(services: Services, version: VersionRecord) -> dict[str, Any]:
    """What a model was trained in, beside the champion in force."""
    state = services.ledger.alias_state(services.spec.model.name)
    found = passage_of(services, version, state.version if state else None)
    return environment_described(found)


def _source_lines(report: CompletenessReport) -> list[dict[str, Any]]:
    return [
        {
            "source": s.source,
            "verdict": s.verdict.value,
            "observed": s.observed,
            "expected": s.expected,
            "rows": s.rows,
            "missing": [hour.isoformat() for hour in s.missing],
            "missing_local": describe_hours(s.missing, report.timezone) if s.missing else "",
            "not_due": [hour.isoformat() for hour in s.not_due],
            "rejected": dict(s.rejected),
            "suspicion": s.suspicion,
            "overdue": s.overdue,
            "waiver": s.waiver,
            "waived": s.waived.model_dump(mode="json") if s.waived else None,
        }
        for s in report.sources
    ]


def _day(services: Services, key: PartitionKey) -> dict[str, Any]:
    day = days_of(services, [key.date])[key.date]
    state = {
        DayState.WHOLE: "ready",
        DayState.HELD: "held",
        DayState.UNBUILT: "held",
    }[day.state]
    reason = day.reason() or f"all {len(day.partitions)} partitions are built"
    return {
        "state": state,
        "reason": reason,
        "held": dict(day.reasons),
        "short": day.short,
        "waivers": described(services, day.waivers),
    }


def _snapshot(services: Services, key: PartitionKey) -> dict[str, Any]:
    taken = decide_snapshot(services, key.date)
    if isinstance(taken, WindowRefusal):
        return {"state": "held", "reason": taken.reason}
    return {
        "state": "ready",
        "reason": f"{len(taken.days)} of {services.spec.model.window_days} days are whole, "
        f"{taken.rows} rows; held: {', '.join(taken.held) or 'none'}",
        "held": dict(taken.held),
        "short": taken.short,
        "waivers": described(services, taken.waivers),
        "data_version": taken.data_version(),
    }


def _model(services: Services, key: PartitionKey) -> dict[str, Any]:
    spec = services.spec
    if services.ledger.current_version(spec.asset("snapshot"), str(key)) is None:
        return _snapshot(services, key)
    try:
        snapshot = require_snapshot(services, key.date)
    except HeldError as error:
        return {"state": "held", "reason": error.held[str(key)]}
    except RefusedError as error:
        return {"state": "held", "reason": str(error)}
    return {"state": "ready", "reason": f"snapshot {snapshot.data_version} is taken"}


def _evaluation(services: Services, key: PartitionKey) -> dict[str, Any]:
    spec = services.spec
    if services.ledger.current_version(spec.asset("model"), str(key)) is None:
        found = _model(services, key)
        return {"state": "held", "reason": f"there is no model yet: {found['reason']}"}
    try:
        rows = judged_rows(services, key.date)
    except HeldError as error:
        return {"state": "held", "reason": error.held[str(key)]}
    return {
        "state": "ready",
        "reason": f"the {spec.evaluation.days} days until "
        f"{key.date + timedelta(days=spec.evaluation.days)} are whole, "
        f"{sum(p.rows for p in rows.partitions)} rows",
    }
