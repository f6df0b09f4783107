"""What MLflow's aliases and the serving slot should be by the ledger, and what is off.

The ledger decides; aliases and slot are its projection. One that stands where it was left, or
where the ledger has had it since, lags behind, and follows. One that stands anywhere else was
moved by another hand: that is drift.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.alert import Alert, Kind
from platform_assets.domain.alerts import MOST_REASONS
from platform_assets.domain.serving import Served

ALIASES = ("champion", "challenger", "previous")
SLOT = "slot"
Policy = Literal["mend", "hold"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Act(StrEnum):
    """What becomes of a difference."""

    FOLLOW = "follow"
    """It lags behind the ledger and is brought up to it: no drift."""
    MEND = "mend"
    """Somebody else changed it; it is set right."""
    HOLD = "hold"
    """Somebody else changed it; the catalog leaves that to a person."""
    TELL = "tell"
    """It is not in our hand."""


class Projection(_Frozen):
    """Aliases and slot, as they should be, or as they were left.

    Attributes:
        counter: of the ledger's state that it is made of; 0: there was no champion.
        aliases: version by alias; None where the alias is not to be.
    """

    counter: int = 0
    aliases: Mapping[str, int | None] = {}
    slot: Served | None = None


class Seen(_Frozen):
    """What was found.

    Attributes:
        aliases: version by alias, of those that exist.
        versions: that the registry has.
        endpoint: what it says it serves; None where none is declared.
        endpoint_error: why it could not be asked.
    """

    aliases: Mapping[str, int] = {}
    versions: frozenset[int] = frozenset()
    slot: Served | None = None
    endpoint: Served | None = None
    endpoint_error: str = ""


class Drift(_Frozen):
    """One difference between the ledger and its projection.

    Attributes:
        what: `alias champion`, `slot`, `endpoint`, `version 7`.
        found, wanted: in words.
    """

    what: str
    act: Act
    found: str
    wanted: str
    reason: str

    @property
    def is_drift(self) -> bool:
        """Whether a person is to hear of it."""
        return self.act is not Act.FOLLOW


def compare(
    wanted: Projection,
    seen: Seen,
    left: Projection | None,
    policy: Policy,
    known: Sequence[int] = (),
    since: Sequence[Projection] = (),
) -> tuple[Drift, ...]:
    """All differences, each with what to do about it.

    Args:
        left: how the projection was left; None: nothing was ever projected.
        known: versions that were champion; those that the registry has no more are named.
        since: what the ledger has wanted after `left`: who died before its note left it there.
    """
    found = [
        *_aliases(wanted, seen, left, policy, since),
        *_slot(wanted, seen, left, policy, since),
        *_endpoint(wanted, seen),
    ]
    gone = {*known, *filter(None, wanted.aliases.values())} - seen.versions
    for version in sorted(gone):
        roles = [alias for alias, number in wanted.aliases.items() if number == version]
        role = f"it is {' and '.join(roles)}" if roles else "it was champion"
        found.append(
            Drift(
                what=f"version {version}",
                act=Act.TELL,
                found="not in MLflow's registry",
                wanted="registered",
                reason=f"version {version} is in the ledger ({role}) and was deleted in MLflow",
            )
        )
    return tuple(found)


def _aliases(
    wanted: Projection,
    seen: Seen,
    left: Projection | None,
    policy: Policy,
    since: Sequence[Projection],
) -> Sequence[Drift]:
    drifts = []
    for alias in ALIASES:
        now, should = seen.aliases.get(alias), wanted.aliases.get(alias)
        if now == should:
            continue
        before = left.aliases.get(alias) if left else None
        ours = {step.aliases[alias] for step in since if alias in step.aliases}
        act = _act(now == before or now in ours, policy)
        # The registry refuses an alias on a version that it does not have.
        if should is not None and should not in seen.versions:
            act = Act.TELL
        drifts.append(
            Drift(
                what=f"alias {alias}",
                act=act,
                found=_version(now),
                wanted=_version(should),
                reason=f"MLflow's alias {alias} is {_version(now)}, the ledger says "
                f"{_version(should)}{_left(act, _version(before))}",
            )
        )
    return drifts


def _slot(
    wanted: Projection,
    seen: Seen,
    left: Projection | None,
    policy: Policy,
    since: Sequence[Projection],
) -> Sequence[Drift]:
    champion = wanted.aliases.get("champion")
    if wanted.slot is None and champion is not None:
        return [
            Drift(
                what=SLOT,
                act=Act.TELL,
                found=str(seen.slot) if seen.slot else "nothing",
                wanted=f"version {champion}, of no recorded digest",
                reason=f"version {champion} is champion and the ledger has no digest of its files: "
                "neither slot nor endpoint can be compared with it, or brought up to it",
            )
        ]
    if seen.slot == wanted.slot or wanted.slot is None:
        # Where there is no champion nothing is taken away from what is served.
        return ()
    before = left.slot if left else None
    ours = [step.slot for step in since if step.slot is not None]
    act = _act(seen.slot == before or seen.slot in ours, policy)
    same = seen.slot is not None and seen.slot.version == wanted.slot.version
    why = "its files were changed: " if same else ""
    found = str(seen.slot) if seen.slot else "nothing"
    return [
        Drift(
            what=SLOT,
            act=act,
            found=found,
            wanted=str(wanted.slot),
            reason=f"{why}the slot serves {found}, the ledger says {wanted.slot}"
            f"{_left(act, str(before) if before else 'nothing')}",
        )
    ]


def _endpoint(wanted: Projection, seen: Seen) -> Sequence[Drift]:
    if wanted.slot is None or (seen.endpoint is None and not seen.endpoint_error):
        return ()
    if seen.endpoint == wanted.slot:
        return ()
    found = str(seen.endpoint) if seen.endpoint else seen.endpoint_error
    reason = (
        f"the endpoint serves {found}, the ledger says {wanted.slot}"
        if seen.endpoint
        else f"the endpoint does not tell what it serves: {found}"
    )
    return [
        Drift(what="endpoint", act=Act.TELL, found=found, wanted=str(wanted.slot), reason=reason)
    ]


def _act(as_left: bool, policy: Policy) -> Act:
    if as_left:
        return Act.FOLLOW
    return Act.MEND if policy == "mend" else Act.HOLD


def _version(number: int | None) -> str:
    return f"version {number}" if number is not None else "unset"


def _left(act: Act, before: str) -> str:
    return "" if act in (Act.FOLLOW, Act.TELL) else f"; it was left as {before}"


_ADVICE = {
    Act.MEND: "nothing to do if it heals; find out who changed it, for only the ledger decides",
    Act.HOLD: "set it right with `signalbox reconcile {pipeline} --mend`, or promote or roll back "
    "to what you want served",
}
_TELL = {
    "endpoint": "restart it: `signalbox serve {pipeline}` loads what the slot holds",
    SLOT: "promote a version that was trained here, or roll back to one; "
    "`signalbox promotions {pipeline}` has the history",
    "version": "roll back with `signalbox rollback {pipeline}`, or train it again; "
    "`signalbox doctor` lists what is off",
}


def drift_alerts(pipeline: str, model: str, drifts: Sequence[Drift]) -> tuple[Alert, ...]:
    """An alert for each drift; none for what only lags behind."""
    return tuple(
        Alert(
            pipeline=pipeline,
            kind=Kind.DRIFT,
            subject=f"{model} {drift.what}",
            text=drift.reason[:MOST_REASONS],
            advice=_advice(drift).format(pipeline=pipeline),
        )
        for drift in drifts
        if drift.is_drift
    )


def _advice(drift: Drift) -> str:
    if drift.act in _ADVICE:
        return _ADVICE[drift.act]
    return _TELL[drift.what if drift.what in _TELL else "version"]
