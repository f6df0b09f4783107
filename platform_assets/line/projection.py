"""MLflow's aliases and the serving slot follow the ledger; what somebody else changed is found."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from platform_assets.domain.alert import Alert, Kind
from platform_assets.domain.errors import RefusedError, SignalboxError, TransientError
from platform_assets.domain.reconcile import (
    ALIASES,
    SLOT,
    Act,
    Drift,
    Policy,
    Projection,
    Seen,
    compare,
    drift_alerts,
)
from platform_assets.domain.serving import Served
from platform_assets.line.services import Services
from resources.ledger.promotions import PromotionRecord
from resources.ledger.records import AlertRecord
from resources.serving import Endpoint, locked
from resources.tracking.client import storage_errors
from resources.tracking.registry import drop_alias, look

LEFT = "projected.json"
"""In the slot's folder: how the projection was left."""

BEGUN = "projecting.json"
"""Beside it: what was begun since, and may have been left by who died before the note."""

LIVE_METRIC = "signalbox live metric"
"""Who rolls back where no person does, and who holds what was rolled back from."""

LOOKS = 5
"""How often to look again where the ledger changed during the look."""

MOST_STEPS = 100
"""So many changes of the ledger may have been left without a note; of older ones nobody died."""

_PROJECTIONS = TypeAdapter(list[Projection])


@dataclass(frozen=True)
class Reconciled:
    """What a look at the projection came to.

    Attributes:
        drifts: all differences, with those that were brought up or set right.
        done: names of the differences that are no more.
        failed: why others could not be brought up or set right, by name.
    """

    drifts: tuple[Drift, ...]
    done: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def remaining(self) -> tuple[Drift, ...]:
        """What is off still; what failed says why."""
        why = dict(self.failed)
        return tuple(
            d.model_copy(update={"reason": f"{d.reason}; {why[d.what]}"}) if d.what in why else d
            for d in self.drifts
            if d.what not in self.done
        )


def wanted(services: Services) -> Projection:
    """What aliases and slot should be, by the ledger."""
    model, ledger = services.spec.model.name, services.ledger
    state, history = ledger.alias_state(model), ledger.promotions(model)
    while history and state != ledger.alias_state(model):  # somebody promotes between the two
        state, history = ledger.alias_state(model), ledger.promotions(model)
    newest = ledger.newest_version(services.spec.asset("evaluation"))
    challenger = int(newest.detail["model_version"]) if newest else None
    held = {hold.version for hold in ledger.holds(model, services.clock.as_of())}
    if challenger in held or (state and state.version == challenger):
        challenger = None
    if state is None or not history:
        return Projection(aliases={**dict.fromkeys(ALIASES), "challenger": challenger})
    digest = recorded_digest(services, state.version, history[-1].model_date.isoformat())
    return Projection(
        counter=state.counter,
        aliases={
            "champion": state.version,
            "challenger": challenger,
            "previous": history[-1].previous,
        },
        slot=Served(version=state.version, digest=digest) if digest else None,
    )


def recorded_digest(services: Services, version: int, partition: str) -> str | None:
    """The digest that the ledger has of a version that was trained for a date."""
    records = services.ledger.history(services.spec.asset("model"), partition)
    return next(
        (r.data_version for r in reversed(records) if r.detail["model_version"] == version), None
    )


def differences(
    services: Services, policy: Policy | None = None
) -> tuple[Projection, tuple[Drift, ...]]:
    """What should be, and all that is off, of one moment.

    Raises:
        TransientError: the registry cannot be read, or the ledger changes all the time.
    """
    spec = services.spec
    for _ in range(LOOKS):
        # In this order: what is projected meanwhile is not taken for another hand's.
        left, should = _left(services), wanted(services)
        seen = _seen(services)
        now = services.ledger.alias_state(spec.model.name)
        if (now.counter if now else 0) == should.counter:
            break
    else:
        raise TransientError(
            f"the champion of {spec.model.name} changed during each of {LOOKS} looks at registry "
            "and slot, nothing was compared; try again when fewer promote at once"
        )
    history = services.ledger.promotions(spec.model.name)
    known = sorted({change.version for change in history})
    since = _since(services, left, history)
    return should, compare(should, seen, left, policy or spec.serving.on_drift, known, since)


def project(services: Services) -> Reconciled:
    """Have aliases and slot follow what the ledger has decided, and nothing else.

    What another hand moved is left where it is, for `reconcile`: that alerts, and mends or holds
    it as the catalog says.

    Raises:
        TransientError: the registry cannot be read, or another process is at it for too long.
    """
    model = services.spec.model.name
    with _alone(services):
        for _ in range(LOOKS):
            should, drifts = differences(services, "hold")
            found = _applied(services, should, drifts)
            # On another machine it may have moved on, and been projected, before this one's turn
            # to write came: MLflow compares nothing when an alias is set.
            now = services.ledger.alias_state(model)
            if (now.counter if now else 0) == should.counter:
                break
        return found


def projected(services: Services) -> str | None:
    """Project after a decision; where that fails, the ledger's decision stands.

    Returns:
        what does not follow, and why; None where all does.
    """
    spec = services.spec
    later = f"`{spec.pipeline}_reconcile` tries again, `signalbox doctor` compares them"
    try:
        found = project(services)
    except SignalboxError as error:
        return f"the ledger has the change, aliases and slot lag behind it ({error}); {later}"
    off = [*(f"{what}: {why}" for what, why in found.failed)]
    off += [drift.reason for drift in found.drifts if drift.act is Act.HOLD]
    return f"the ledger has the change, {'; '.join(off)}; {later}" if off else None


def reconcile(
    services: Services,
    tell: Callable[[str], None] = lambda _: None,
    *,
    mend: bool = False,
) -> Reconciled:
    """Compare ledger, aliases, slot and endpoint; alert of drift, and mend or hold it.

    Args:
        tell: hears of each drift.
        mend: whatever the catalog says.

    Raises:
        TransientError: the registry cannot be read, or another process is at it for too long.
    """
    spec = services.spec
    with _alone(services):
        should, drifts = differences(services, "mend" if mend else None)
        for drift in drifts:
            tell(f"{drift.act} {spec.model.name} {drift.what}: {drift.reason}")
        # Before anything is set right: who dies in between has alerted.
        alerts = drift_alerts(spec.pipeline, spec.model.name, drifts)
        if alerts:
            as_of = services.clock.as_of()
            services.alerts.raise_all([alert_record(alert, as_of) for alert in alerts])
        return _applied(services, should, drifts)


def serving_alerts(services: Services) -> tuple[Alert, ...]:
    """The alerts on serving that should be open now."""
    spec = services.spec
    try:
        _, drifts = differences(services)
        standing = drift_alerts(spec.pipeline, spec.model.name, drifts)
    except SignalboxError:
        # Nobody can tell: what is open stays open.
        standing = _open(services, Kind.DRIFT)
    return (*standing, *_rolled_back(services))


def alert_record(alert: Alert, as_of: datetime) -> AlertRecord:
    """An alert as the ledger keeps it."""
    return AlertRecord(
        pipeline=alert.pipeline,
        kind=alert.kind.value,
        subject=alert.subject,
        key=alert.key,
        text=alert.text,
        advice=alert.advice,
        raised_at=as_of,
        next_attempt_at=datetime.now(UTC),
    )


def _rolled_back(services: Services) -> Sequence[Alert]:
    spec = services.spec
    return [
        Alert(
            pipeline=spec.pipeline,
            kind=Kind.ROLLED_BACK,
            subject=f"{spec.model.name} version {hold.version}",
            concerns=(str(hold.id),),
            text=f"version {hold.version} was rolled back from: {hold.reason}",
            advice=f"find out why; `signalbox promotions {spec.pipeline}` has the history, "
            f"`signalbox release-hold {spec.pipeline} {hold.id}` lets it be promoted again",
        )
        for hold in services.ledger.holds(spec.model.name, services.clock.as_of())
        if hold.by == LIVE_METRIC
    ]


def _open(services: Services, kind: Kind) -> tuple[Alert, ...]:
    opened = services.alerts.all(services.spec.pipeline, only_open=True)
    return tuple(
        Alert(pipeline=a.pipeline, kind=kind, subject=a.subject, text=a.text, advice=a.advice)
        for a in opened
        if a.kind == kind
    )


def _since(
    services: Services, left: Projection | None, history: Sequence[PromotionRecord]
) -> list[Projection]:
    """What the ledger has wanted after it was noted how the projection was left."""
    if left is None:
        return []
    found = _begun(services)
    steps = [change for change in history if change.counter > left.counter][-MOST_STEPS:]
    for change in steps:
        digest = recorded_digest(services, change.version, change.model_date.isoformat())
        found.append(
            Projection(
                counter=change.counter,
                aliases={"champion": change.version, "previous": change.previous},
                slot=Served(version=change.version, digest=digest) if digest else None,
            )
        )
    return found


def _seen(services: Services) -> Seen:
    registry = look(services.home.mlflow_uri, services.spec.model.name)
    endpoint, error = None, ""
    if services.spec.serving.endpoint:
        try:
            endpoint = Endpoint(services.spec.serving.endpoint).serves()
        except SignalboxError as wrong:
            error = str(wrong)
    return Seen(
        aliases=registry.aliases,
        versions=registry.versions,
        slot=services.slot.serves(),
        endpoint=endpoint,
        endpoint_error=error,
    )


def _applied(services: Services, should: Projection, drifts: Sequence[Drift]) -> Reconciled:
    """Bring up what lags behind, set right what is to be; and note how it was left."""
    done, failed = [], []
    if any(drift.act in (Act.FOLLOW, Act.MEND) for drift in drifts):
        _begin(services, should)
    for drift in drifts:
        if drift.act not in (Act.FOLLOW, Act.MEND):
            continue
        try:
            if drift.what == SLOT:
                _deploy(services, should)
            else:
                _set_alias(services, drift.what.removeprefix("alias "), should)
        except SignalboxError as error:
            failed.append((drift.what, f"it could not be set right: {error}"))
        else:
            done.append(drift.what)
    off = {drift.what for drift in drifts} - set(done)
    _note(services, should, off, failed={what for what, _ in failed})
    return Reconciled(tuple(drifts), tuple(done), tuple(failed))


def _set_alias(services: Services, alias: str, should: Projection) -> None:
    model, version = services.spec.model.name, should.aliases[alias]
    if version is None:
        drop_alias(services.home.mlflow_uri, model, alias)
    else:
        services.tracking.set_alias(model, alias, version)


def _deploy(services: Services, should: Projection) -> None:
    model, slot = services.spec.model.name, services.slot
    if should.slot is None or should.slot.version is None:
        raise RefusedError(f"the ledger has no champion of {model}, nothing can be deployed")
    version, digest = should.slot.version, should.slot.digest
    kept = slot.kept(version, digest)
    fetched = (
        nullcontext(kept)
        if kept is not None
        else services.tracking.verified(model, version, digest=digest)
    )
    with fetched as files:
        slot.deploy(model, version, digest, files)


def _note(services: Services, should: Projection, off: set[str], *, failed: set[str]) -> None:
    """Write down how the projection was left; of what is off, as it was left before.

    Where something failed it may have been done all the same: the counter stays, so that what
    the ledger wants now is not taken for another hand's later.
    """
    before = _left(services)
    left = Projection(
        counter=before.counter if before and failed else should.counter,
        aliases={
            alias: (before.aliases.get(alias) if before else None)
            if f"alias {alias}" in off
            else version
            for alias, version in should.aliases.items()
        },
        slot=(before.slot if before else None) if SLOT in off else should.slot,
    )
    if left != before:
        _write(services.slot.root / LEFT, left.model_dump_json(indent=2))
    if not failed:
        (services.slot.root / BEGUN).unlink(missing_ok=True)


def _begin(services: Services, should: Projection) -> None:
    """Write down what is about to be projected: which challenger there was the ledger's history of
    the champion does not tell."""
    begun = _begun(services)
    if should not in begun:
        whole = [*begun, should][-MOST_STEPS:]
        _write(services.slot.root / BEGUN, _PROJECTIONS.dump_json(whole, indent=2).decode())


def _begun(services: Services) -> list[Projection]:
    try:
        return _PROJECTIONS.validate_json((services.slot.root / BEGUN).read_bytes())
    except (OSError, ValidationError):
        return []


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors():
        draft.write_text(text + "\n")
        draft.replace(path)


def _left(services: Services) -> Projection | None:
    path: Path = services.slot.root / LEFT
    try:
        return Projection.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        # Never projected, or who did first died before the note: all that the ledger has had since
        # its beginning may be what was left.
        return Projection()
    except (OSError, ValueError, ValidationError):
        return None  # torn: then nothing lags behind, all else is drift


def _alone(services: Services) -> AbstractContextManager[None]:
    """Project as the only process: who reads the ledger last is also the last who writes."""
    return locked(services.slot.root, "projection")
