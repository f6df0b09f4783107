"""From a registered model back to each hour that it rests on: what a reviewer is shown.

Nothing is believed that can be looked at: rows are read back and compared with their digests, so
are the model's files, and the alias with the ledger.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.manifest import PartitionVersion, Snapshot
from platform_assets.domain.model_ref import CHAMPION
from platform_assets.line.clearance import described, lapsed
from platform_assets.line.days import load_snapshot
from platform_assets.line.environments import VALUE, record_of
from platform_assets.line.fingerprints import ENVIRONMENT, FINGERPRINT
from platform_assets.line.recipes import RECIPE
from platform_assets.line.registered import judgements, model_date, promotions
from platform_assets.line.services import Services
from resources.ledger.records import VersionRecord

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN = "not recorded"


def audit(services: Services, record: VersionRecord) -> dict[str, Any]:
    """All that is known of a registered version, and whether it can still be shown.

    Args:
        services: of the pipeline.
        record: of the version.

    Returns:
        A JSON document; `ok` tells whether every check passed.
    """
    spec, version = services.spec, int(record.detail["model_version"])
    changes = [_change(change, version) for change in promotions(services)]
    judged = [_judgement(services, judgement) for judgement in judgements(services, record)]
    verdicts = [_verdict(v) for v in services.ledger.evaluations(spec.model.name, version)]
    snapshot, rows = _data(services, record)
    names = {*record.detail.get("waivers", ()), *(w for j in judged for w in j["waivers"])}
    checks = _checks(services, record, snapshot, judged, changes, names)
    return {
        "model": spec.model.name,
        "version": version,
        "date": record.partition,
        "pipeline": spec.pipeline,
        "description": spec.model.description or spec.description,
        "role": _role(changes, version),
        "as_of": services.clock.as_of().isoformat(),
        "looked_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": record.data_version,
        "ok": all(check["ok"] for check in checks),
        "checks": checks,
        "promotions": changes,
        "verdicts": verdicts,
        "judgements": judged,
        "training": {
            "dagster_run_id": record.run_id,
            "mlflow_run_id": record.detail["mlflow_run_id"],
            "registered_at": record.committed_at.isoformat(timespec="seconds"),
            "rows": record.rows,
            "cost": record.detail.get("cost", {}),
            "fingerprint": record.detail.get(FINGERPRINT, UNKNOWN),
            "recipe": record.detail.get(RECIPE),
            "environment": record.detail.get(ENVIRONMENT),
        },
        "environment": record_of(services, record),
        "snapshot": {
            "digest": record.detail["snapshot"],
            "window_start": snapshot.window_start.isoformat() if snapshot else None,
            "days": [day.isoformat() for day in snapshot.days] if snapshot else [],
            "held": dict(record.detail.get("held", {})),
            "read_at_versions": (
                services.dataset.read_versions(snapshot.partitions) if snapshot else {}
            ),
            "partitions": rows,
        },
        "waivers": described(services, names),
    }


def _role(changes: Sequence[Mapping[str, Any]], version: int) -> str:
    if changes and changes[-1]["version"] == version:
        return "champion"
    if any(change["version"] == version for change in changes):
        return "former champion"
    return "candidate"


def _change(change: Any, version: int) -> dict[str, Any]:
    return {
        "version": change.version,
        "model_date": change.model_date.isoformat(),
        "previous": change.previous,
        "action": change.action,
        "at": change.decided_at.astimezone(UTC).isoformat(timespec="seconds"),
        "by": change.by,
        "run_id": change.run_id,
        "reason": change.reason,
        "evaluation_id": change.evaluation_id,
        "this": change.version == version,
    }


def _verdict(found: Any) -> dict[str, Any]:
    report = dict(found.report)
    reasons = report.get("reasons") or ([report["reason"]] if report.get("reason") else [])
    return {
        "id": found.id,
        "champion": found.champion,
        "judged_after": found.judged_date.isoformat(),
        "passed": found.passed,
        "at": found.recorded_at.isoformat(timespec="seconds"),
        "run_id": found.run_id,
        "reasons": [str(reason) for reason in reasons],
        "conditions": [
            {name: condition.get(name) for name in ("name", "passed", "found", "allowed")}
            for condition in report.get("conditions", ())
        ],
    }


def _judgement(services: Services, found: VersionRecord) -> dict[str, Any]:
    partitions = [dict(p) for p in found.detail["partitions"]]
    days = sorted({str(p["partition"]).rpartition("|")[2] for p in partitions})
    return {
        "days": days,
        "rows": found.rows,
        "metrics": dict(found.detail["metrics"]),
        "at": found.committed_at.isoformat(timespec="seconds"),
        "run_id": found.run_id,
        "waivers": list(found.detail.get("waivers", ())),
        "short": dict(found.detail.get("short", {})),
        "partitions": partitions,
    }


# --- the data ---------------------------------------------------------------------------------


def _data(
    services: Services, record: VersionRecord
) -> tuple[Snapshot | None, list[dict[str, Any]]]:
    """The manifest, and what is known of each partition version that it names."""
    try:
        snapshot = load_snapshot(services, model_date(record), str(record.detail["snapshot"]))
    except SignalboxError:
        return None, []
    asset = services.spec.asset("features")
    names = [p.partition for p in snapshot.partitions]
    history: dict[tuple[str, str], VersionRecord] = {}
    current: dict[str, str] = {}
    for version in services.ledger.histories(asset, names):
        history[version.partition, version.data_version] = version
        current[version.partition] = version.data_version
    return snapshot, [
        _partition(p, history.get((p.partition, p.data_version)), current.get(p.partition))
        for p in snapshot.partitions
    ]


def _partition(
    p: PartitionVersion, found: VersionRecord | None, current: str | None
) -> dict[str, Any]:
    detail = found.detail if found else {}
    return {
        "partition": p.partition,
        "data_version": p.data_version,
        "table_version": p.table_version,
        "rows": p.rows,
        "verdict": detail.get("verdict", UNKNOWN),
        "hours": dict(detail.get("hours", {})),
        "excluded": dict(detail.get("excluded", {})),
        "arrivals": dict(detail.get("arrivals", {})),
        "short": p.short,
        "waivers": list(p.waivers),
        "built_at": found.committed_at.isoformat(timespec="seconds") if found else None,
        "run_id": found.run_id if found else None,
        "changed_since": current != p.data_version,
        "environment": detail.get(VALUE),
        "image": detail.get("image"),
    }


# --- the checks -------------------------------------------------------------------------------


def _checks(
    services: Services,
    record: VersionRecord,
    snapshot: Snapshot | None,
    judged: Sequence[Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]],
    waivers: set[str],
) -> list[dict[str, Any]]:
    """What was claimed, and what was found when it was looked at."""
    spec, version = services.spec, int(record.detail["model_version"])

    def manifest() -> str:
        found = load_snapshot(services, model_date(record), str(record.detail["snapshot"]))
        return f"it names {len(found.partitions)} partitions, and has the recorded digest"

    def trained() -> str:
        found = load_snapshot(services, model_date(record), str(record.detail["snapshot"]))
        rows = _read(services, found.partitions)
        return f"{rows.num_rows} rows were read, each partition has the recorded digest"

    def judging() -> str:
        latest = [PartitionVersion(**p) for p in judged[-1]["partitions"]]
        rows = _read(services, tuple(latest))
        return f"{rows.num_rows} rows were read, each partition has the recorded digest"

    def files() -> str:
        with services.tracking.verified(spec.model.name, version, digest=record.data_version):
            return "the registry's files have the digest that was recorded at the registration"

    checks = [
        _check("the list of what it was trained on is the one that was recorded", manifest),
        _check("every row that it was trained on can be read as it was", trained),
        _check("the files in the registry are those that were trained", files),
    ]
    if judged:
        checks.append(_check("every row that it was judged on can be read as it was", judging))
    gone = lapsed(services, waivers, expired=False)
    checks.append(
        {
            "what": "no waiver that it rests on was revoked",
            "ok": not gone,
            "found": "; ".join(gone.values())
            or f"it rests on {', '.join(sorted(waivers)) or 'none'}",
        }
    )
    if _role(changes, version) == "champion":
        checks.append(_check("the registry's alias names the champion", lambda: _alias(services)))
        checks.append(_promoted(services, changes[-1], version))
    return checks


def _check(what: str, look: Callable[[], str]) -> dict[str, Any]:
    """A claim, and what a look found; who refuses to show it has not shown it."""
    try:
        return {"what": what, "ok": True, "found": look()}
    except SignalboxError as error:
        return {"what": what, "ok": False, "found": str(error)}


def _alias(services: Services) -> str:
    model = services.spec.model.name
    shown = services.tracking.alias(model, CHAMPION)
    state = services.ledger.alias_state(model)
    decided = state.version if state else None
    if shown != decided:
        raise _AliasError(
            f"the registry's alias names version {shown or 'none'}, the ledger decided for "
            f"{decided}: somebody moved it, the next decision puts it right"
        )
    return f"both name version {shown}"


class _AliasError(SignalboxError):
    """The alias is not what was decided; told within a check."""


def _promoted(services: Services, change: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Whether the last promotion rests on a verdict of its own."""
    what = "its promotion rests on a recorded verdict of exactly this pair"
    if change["action"] != "promote":
        return {"what": what, "ok": True, "found": f"it is champion by {change['action']}"}
    # By its number: a pair may have been judged again since, on other rows or terms.
    verdicts = services.ledger.evaluations(services.spec.model.name, version)
    found = next((v for v in verdicts if v.id == change["evaluation_id"]), None)
    of_pair = found is not None and found.champion == change["previous"]
    against = f"version {change['previous']}" if change["previous"] else "none"
    if change["evaluation_id"] is None:
        told = "it was promoted before verdicts were recorded"
    elif found is None:
        told = f"there is no verdict {change['evaluation_id']} on version {version}"
    elif not of_pair:
        other = f"version {found.champion}" if found.champion else "none"
        told = f"verdict {found.id} on version {version} is against {other}, not {against}"
    else:
        told = (
            f"verdict {found.id} on version {version} against {against}, which "
            f"{'passed' if found.passed else 'did not pass'}"
        )
    return {"what": what, "ok": bool(of_pair and found and found.passed), "found": told}


def _read(services: Services, partitions: tuple[PartitionVersion, ...]) -> "pa.Table":
    return services.dataset.read(partitions)
