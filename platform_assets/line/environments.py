"""The environment of a model, and what it means for a promotion that it is another one now."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from platform_assets.domain.canary import (
    CanaryReport,
    Crossing,
    EnvironmentVerdict,
    judge_environment,
)
from platform_assets.domain.environments import EnvironmentFingerprint, changes
from platform_assets.domain.errors import TransientError
from platform_assets.line.services import Services
from resources.ledger.environments import UNRECORDED, CanaryNeeded, CanaryRecord
from resources.ledger.records import VersionRecord

if TYPE_CHECKING:
    import pandas as pd

    from resources.training import Trainer

VALUE, MACHINE, PROBE = "environment_fingerprint", "machine", "probe"
"""Keys of a model version's detail: value of its environment, where it was trained, and what the
fresh model said of some of its own rows."""

PROBE_ROWS = 64
TAG, CHANGE_TAG = "signalbox.environment", "signalbox.environment_change"
"""Tags of the MLflow run."""


def environment_here(services: Services) -> EnvironmentFingerprint:
    """The environment of this process, kept in the ledger.

    Raises:
        HomeError: SIGNALBOX_IMAGE names no digest.
    """
    from resources.surroundings import environment_fingerprint

    found = environment_fingerprint()
    services.environments.note(found.value, found.document())
    return found


def tag_what_ran(services: Services, mlflow_run_id: str) -> None:
    """Put on the MLflow run what the cluster says of the container; a server that is away has
    the image by the digest that was asked for."""
    ran = services.ran()
    if ran:
        with suppress(TransientError):
            services.tracking.retag(mlflow_run_id, {f"signalbox.{k}": v for k, v in ran.items()})


def machine_here() -> dict[str, Any]:
    """Where this process runs, as a model version's detail holds it."""
    from resources.surroundings import machine

    return machine().model_dump(mode="json")


def value_of(record: VersionRecord | None) -> str:
    """Value of the environment that a model was trained in; `UNRECORDED` where nobody knows."""
    return str(record.detail.get(VALUE) or UNRECORDED) if record else UNRECORDED


def differences(services: Services, then: str, now: str) -> tuple[str, ...]:
    """What is different between two environments that the ledger knows, in words."""
    if then == now or not then or not now:
        return ()
    found = {value: services.environments.find(value) for value in (then, now)}
    lost = [value[:12] for value, document in found.items() if document is None]
    if lost:
        return (f"the ledger has lost what environment {lost[0]} was",)
    before, after = (EnvironmentFingerprint.model_validate(found[value]) for value in (then, now))
    return changes(before, after)


@dataclass(frozen=True)
class Passage:
    """A candidate beside the champion in force, as far as their environments go.

    Attributes:
        needed: what the ledger has to find as the promotion is written; None: nothing.
    """

    verdict: EnvironmentVerdict
    then: str
    now: str
    needed: CanaryNeeded | None = None


def passage(
    services: Services, now: str, champion: VersionRecord | None, in_force: int | None
) -> Passage:
    """Whether a model of one environment may take over from the champion's.

    Args:
        now: value of the candidate's environment.
        champion: record of the version in force; None where there is none, or it is unknown here.
        in_force: its number.
    """
    then, digest = value_of(champion), champion.data_version if champion else ""
    terms, model = services.spec.environment, services.spec.model.name
    found: CanaryRecord | None = None
    if in_force is not None and terms.on_change == "hold" and now and then != now:
        found = services.environments.canary(model, in_force, digest, then, now)
    verdict = judge_environment(
        then=then,
        now=now,
        changed=differences(services, then, now) if in_force is not None else (),
        terms=terms,
        champion=in_force,
        canary=(found.id, CanaryReport.model_validate(found.report)) if found else None,
        pipeline=services.spec.pipeline,
    )
    needed = None
    if in_force is not None and verdict.crossing in (Crossing.HELD, Crossing.SHOWN):
        counts = verdict.canary if verdict.free else None
        needed = CanaryNeeded(in_force, digest, then, now, counts)
    return Passage(verdict, then, now, needed)


def passage_of(services: Services, candidate: VersionRecord, in_force: int | None) -> Passage:
    """`passage` of a registered version against the version in force."""
    return passage(services, value_of(candidate), _registered(services, in_force), in_force)


def passage_here(services: Services, now: str) -> Passage:
    """`passage` of what is trained in an environment, against whoever is champion now."""
    state = services.ledger.alias_state(services.spec.model.name)
    in_force = state.version if state else None
    return passage(services, now, _registered(services, in_force), in_force)


def record_of(services: Services, record: VersionRecord) -> dict[str, Any]:
    """All that is known of the environment of a registered version, for the audit.

    It is compared with the champion that it followed; one that never was champion with that in
    force.
    """
    model, version = services.spec.model.name, int(record.detail["model_version"])
    followed = [c for c in services.ledger.promotions(model) if c.version == version]
    state = services.ledger.alias_state(model)
    against = followed[0].previous if followed else state.version if state else None
    value = value_of(record)
    found = passage(services, value, _registered(services, against), against)
    tolerance = services.spec.environment.tolerance
    return {
        "value": value or None,
        "machine": record.detail.get(MACHINE),
        "ran": record.detail.get("ran") or {},
        "whole": services.environments.find(value) if value else None,
        "against": against,
        **described(found)["environment_change"],
        "canaries": [
            told(canary, tolerance)
            for canary in services.environments.canaries(model)
            if canary.now == value or canary.champion == version
        ],
    }


def _registered(services: Services, version: int | None) -> VersionRecord | None:
    if version is None:
        return None
    asset, champion = services.spec.asset("model"), services.ledger.champion(services.spec.pipeline)
    # Hardly ever anybody else is asked for: a training need not read the whole history.
    if champion is not None and champion.version == version:
        models = services.ledger.history(asset, champion.model_date.isoformat())
    else:
        models = services.ledger.versions(asset)
    mine = (m for m in reversed(models) if int(m.detail["model_version"]) == version)
    return next(mine, None)


def described(found: Passage) -> dict[str, Any]:
    """For people, and for the asset check."""
    return {
        "environment": found.now or "not recorded",
        "environment_change": {
            "state": found.verdict.crossing.value,
            "changes": list(found.verdict.changes),
            "reason": found.verdict.reason,
            "canary": found.verdict.canary,
        },
    }


def tags_of(value: str, found: Passage) -> dict[str, str]:
    """As tags of the MLflow run."""
    return {
        TAG: value[:16],
        CHANGE_TAG: "; ".join(found.verdict.changes)[:4000] or "none",
    }


def probe_of(trainer: "Trainer", model: object, frame: "pd.DataFrame") -> list[float]:
    """What a model says of some of the rows that it was trained on, evenly spaced."""
    return [float(said) for said in trainer.predict(model, frame.iloc[probed(len(frame))])]


def probed(rows: int) -> list[int]:
    """Which rows those are."""
    return list(range(0, rows, -(-rows // PROBE_ROWS))) if rows else []


def told(record: CanaryRecord, tolerance: float) -> Mapping[str, Any]:
    """A canary for JSON and pages."""
    report = CanaryReport.model_validate(record.report)
    return {
        "canary": record.id,
        "champion": record.champion,
        "digest": record.digest,
        "then": record.then,
        "now": record.now,
        "passed": record.passed,
        "reason": report.reason(tolerance),
        "largest_difference": None if report.largest == float("inf") else report.largest,
        "identical": report.identical,
        "predictions_apart": report.predictions,
        "measures": [m.model_dump(mode="json") for m in report.measures],
        "changes": list(report.changes),
        "by": record.by,
        "run_id": record.run_id,
        "at": record.recorded_at.isoformat(timespec="seconds"),
    }
