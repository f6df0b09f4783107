"""The champion: which judged version is, by verdicts of the gate and compare-and-swap."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from platform_assets.domain.errors import HeldError, PromotionConflictError, RefusedError
from platform_assets.domain.lease import Lease
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.promotion import PRIMARY_METRIC
from platform_assets.line.clearance import described, lapsed, rests_on
from platform_assets.line.environments import passage_of
from platform_assets.line.gating import date_of, registered, verdict_on, version_of
from platform_assets.line.judging import JudgedRows
from platform_assets.line.projection import projected
from platform_assets.line.services import Outcome, Services
from resources import plots
from resources.ledger.promotions import (
    CHAMPION,
    AliasState,
    EvaluationRecord,
    PromotionRecord,
)
from resources.ledger.records import VersionRecord

CHAMPION_ALIAS = CHAMPION
BY = "signalbox"
"""Who promotes where no person does."""

ROUNDS = 5
"""How often a decision is made anew after somebody else changed the champion meanwhile."""


@dataclass
class _Judged:
    """What a decision is made of.

    Attributes:
        candidates: the judged versions that may be champion, in the order of their dates.
        rows: what each was judged on, by version.
        left_out: why others may not, by date.
        refused: the same, by version.
    """

    candidates: list[VersionRecord] = field(default_factory=list)
    rows: dict[int, JudgedRows] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def leave_out(self, model: VersionRecord, why: str) -> None:
        self.left_out[model.partition] = why
        self.refused[version_of(model)] = why


@dataclass(frozen=True)
class Standing:
    """The champion in force, and whether a candidate is compared with it.

    Attributes:
        state: the ledger's; None where there never was one.
        champion: what it is compared with; None where there is none, or it counts as absent.
        absent: why it does.
    """

    state: AliasState | None
    champion: VersionRecord | None
    absent: str = ""

    @property
    def version(self) -> int | None:
        """The version in force, whether it counts or not."""
        return self.state.version if self.state else None


def decide_champion(services: Services, run_id: str) -> Outcome:
    """Judge the candidates that are new against the champion, and promote who is proven better.

    Each is judged on the days after both trainings, so neither saw the rows; what is newer than
    the champion in the order of its dates, and what is older once, when it is first seen. Each
    verdict is good for the champion that it was made against: if somebody changes the champion
    meanwhile, the decision is made anew.

    A model that rests on a waiver that was revoked, or was judged on rows that do, is no
    candidate; as champion it counts as absent. Then the best of the others is found first, by the
    same comparisons, and promoted in one step. One whose date was trained and judged again is
    still what the others are compared with, as long as the registry has it. What was rolled back
    from comes back by a person's hand alone.

    Raises:
        HeldError: no model has been judged yet, or none that may be champion.
        PromotionConflictError: others changed the champion each time that a decision was made.
        LeaseTakenError: another run decides for too long.
        LeaseLostError: this one was taken for dead meanwhile.
    """
    with services.claim(services.spec.asset(CHAMPION), None, run_id) as lease:
        for left in reversed(range(ROUNDS)):
            try:
                with services.ledger.turn(services.spec.model.name):
                    return _decide(services, run_id, lease)
            except PromotionConflictError as error:
                if not left:
                    raise
                services.tell(f"{error}; the decision is made again")
    raise AssertionError("unreachable")


def standing(services: Services) -> Standing:
    """The champion in force."""
    return _look(services)[0]


def stand_in(services: Services, candidate: VersionRecord, run_id: str) -> VersionRecord | None:
    """Whom a candidate is compared with where the champion in force counts as absent.

    The best of the other candidates, by the comparisons that `decide_champion` would make.

    Returns:
        None where there is no other that passes.
    """
    found, judged = _look(services)
    model = services.spec.model.name

    def passes(
        other: VersionRecord, best: VersionRecord | None, against: int | None
    ) -> EvaluationRecord | None:
        why = found.absent if best is None else ""
        verdict = verdict_on(services, other, against, best, run_id, absent=why)
        return verdict if verdict.passed else None

    others = [
        other
        for other in judged.candidates
        if version_of(other) != version_of(candidate)
        and not services.tracking.absence(model, version_of(other))
    ]
    best = _best(others, passes, found.version)
    return best[0] if best else None


def _look(services: Services) -> tuple[Standing, _Judged]:
    model = services.spec.model.name
    state, history = services.ledger.alias_state(model), services.ledger.promotions(model)
    judged = _candidates(services, history, state)
    if state is None:
        return Standing(None, None), judged
    champion = registered(services).get(state.version)
    absent = _absence(services, judged, champion, history)
    return Standing(state, None if absent else champion, absent), judged


def _decide(services: Services, run_id: str, lease: Lease) -> Outcome:
    spec, ledger = services.spec, services.ledger
    found, judged = _look(services)
    if not judged.candidates and (found.champion is None or not judged.left_out):
        raise HeldError(spec.asset(CHAMPION), {CHAMPION: _nobody(services, judged)})
    known = {verdict.id for verdict in ledger.evaluations(spec.model.name)}
    verdicts: list[EvaluationRecord] = []

    def passes(
        candidate: VersionRecord, other: VersionRecord | None, against: int | None
    ) -> EvaluationRecord | None:
        why = found.absent if other is None else ""
        verdict = verdict_on(services, candidate, against, other, run_id, absent=why)
        if verdict.id not in known:
            verdicts.append(verdict)
        gone = verdict.passed and services.tracking.absence(spec.model.name, verdict.candidate)
        if gone:
            judged.leave_out(candidate, f"version {verdict.candidate} {gone}")
        return verdict if verdict.passed and not gone else None

    def crown(candidate: VersionRecord, verdict: EvaluationRecord) -> AliasState | None:
        promote(services, candidate, state, verdict, by=BY, run_id=run_id, lease=lease)
        return ledger.alias_state(spec.model.name)

    state, champion = found.state, found.champion
    if champion is None:
        best = _best(judged.candidates, passes, found.version)
        if best is None:
            latest = verdicts or ledger.evaluations(spec.model.name)[-1:]
            listed = "; ".join(str(v.report["reason"]) for v in latest)
            raise HeldError(
                spec.asset(CHAMPION), {CHAMPION: f"no candidate passed the gate ({listed})"}
            )
        champion = best[0]
        if found.version != version_of(champion):
            state = crown(*best)
    else:
        for candidate in judged.candidates:
            if _is_new(services, candidate, champion):
                verdict = passes(candidate, champion, version_of(champion))
                if verdict is not None:
                    state, champion = crown(candidate, verdict), candidate
    late = projected(services)
    if late:
        services.tell(late)
    changed = state != found.state
    return _told(services, champion, judged, verdicts, changed=changed, late=late)


def _candidates(
    services: Services, history: list[PromotionRecord], state: AliasState | None
) -> _Judged:
    spec, ledger = services.spec, services.ledger
    was = {change.version for change in history}
    back = {change.previous for change in history if change.action == "rollback"}
    held = {h.version: h for h in ledger.holds(spec.model.name, services.clock.as_of())}
    evaluations = ledger.current_versions(spec.asset("evaluation"))
    models = ledger.current_versions(spec.asset("model"))
    found = _Judged()
    for name, evaluation in sorted(evaluations.items()):
        model = models.get(name)
        if model is None or model.detail["model_version"] != evaluation.detail["model_version"]:
            continue  # retrained since: the new version has yet to be judged
        version = version_of(model)
        names = {*model.detail.get("waivers", ()), *evaluation.detail.get("waivers", ())}
        gone = lapsed(services, names, expired=version not in was)
        if gone:
            found.leave_out(model, "; ".join(gone.values()))
        elif version in held:
            found.leave_out(model, f"version {version} is {held[version].describe()}")
        elif version in back and not (state and state.version == version):
            found.leave_out(
                model, f"version {version} was rolled back from; only a person promotes it again"
            )
        else:
            partitions = tuple(PartitionVersion(**p) for p in evaluation.detail["partitions"])
            found.candidates.append(model)
            found.rows[version] = JudgedRows(date.fromisoformat(name), partitions)
    return found


def _absence(
    services: Services,
    judged: _Judged,
    champion: VersionRecord | None,
    history: list[PromotionRecord],
) -> str:
    """Why the champion in force is not compared with; empty if it is."""
    if champion is None:
        return "the champion in force was not trained here"
    if version_of(champion) in judged.rows:
        return ""
    if version_of(champion) in judged.refused:
        return f"the champion in force counts as absent: {judged.refused[version_of(champion)]}"
    gone = lapsed(services, rests_on(services, champion), expired=False)
    if gone:
        return f"the champion in force counts as absent: {'; '.join(gone.values())}"
    again = [c for c in judged.candidates if c.partition == champion.partition]
    # What can be loaded is compared with: other rows make no model a better one. And whom a person
    # rolled back to stays, whatever was trained since.
    model, version = services.spec.model.name, version_of(champion)
    if (
        again
        and history[-1].action != "rollback"
        and services.tracking.recorded_digest(model, version) is None
    ):
        return (
            f"the champion in force is not in MLflow's registry any more, and was trained again "
            f"as version {version_of(again[0])}"
        )
    return ""


def _nobody(services: Services, judged: _Judged) -> str:
    if judged.left_out:
        listed = "; ".join(f"{day}: {why}" for day, why in judged.left_out.items())
        return f"no judged model may be champion ({listed})"
    return (
        f"no model has been judged yet; it takes {services.spec.evaluation.days} whole days after "
        "a model's own"
    )


def _best(
    candidates: list[VersionRecord],
    passes: Callable[[VersionRecord, VersionRecord | None, int | None], EvaluationRecord | None],
    in_force: int | None,
) -> tuple[VersionRecord, EvaluationRecord] | None:
    """Without a champion to compare with: the best of all, found before anything is changed."""
    best: tuple[VersionRecord, EvaluationRecord] | None = None
    for candidate in candidates:
        if best is not None and passes(candidate, best[0], version_of(best[0])) is None:
            continue
        alone = passes(candidate, None, in_force)
        if alone is not None:
            best = (candidate, alone)
    return best


def _is_new(services: Services, candidate: VersionRecord, champion: VersionRecord) -> bool:
    if version_of(candidate) == version_of(champion):
        return False
    if date_of(candidate) >= date_of(champion):  # equal: the champion's date was trained again
        return True
    seen = services.ledger.evaluations(services.spec.model.name, version_of(candidate))
    return not seen


def promote(
    services: Services,
    candidate: VersionRecord,
    expected: AliasState | None,
    verdict: EvaluationRecord,
    *,
    by: str,
    run_id: str,
    reason: str = "",
    lease: Lease | None = None,
) -> PromotionRecord:
    """Make a version champion by a verdict of the gate; aliases and slot follow: `projected`.

    Raises:
        PromotionConflictError: somebody else changed the champion since the verdict.
        RefusedError: the verdict is another pair's or did not pass, or the version is held; its
            files are not those that were recorded; or the environment has changed and the canary
            that it was decided by does not count any more.
    """
    spec = services.spec
    crossing = passage_of(services, candidate, expected.version if expected else None)
    if not crossing.verdict.free:
        raise RefusedError(
            f"{spec.model.name}: version {version_of(candidate)} is held: "
            f"{crossing.verdict.reason}; nothing was changed"
        )
    # A verdict may be older than what somebody has done to the files; the ledger does not see them.
    with services.tracking.verified(
        spec.model.name, version_of(candidate), digest=candidate.data_version
    ):
        pass
    return services.ledger.promote(
        spec.pipeline,
        spec.model.name,
        version_of(candidate),
        model_date=date_of(candidate),
        expected=expected,
        evaluation_id=verdict.id,
        reason=reason or str(verdict.report["reason"]),
        by=by,
        run_id=run_id,
        at=services.clock.as_of(),
        digest=candidate.data_version,
        canary=crossing.needed,
        lease=lease,
    )


def _told(
    services: Services,
    champion: VersionRecord,
    judged: _Judged,
    verdicts: list[EvaluationRecord],
    *,
    changed: bool,
    late: str | None,
) -> Outcome:
    """The decision for people."""
    spec, ledger = services.spec, services.ledger
    history = ledger.promotions(spec.model.name)
    metric = PRIMARY_METRIC[spec.model.kind]
    newest = (verdicts or ledger.evaluations(spec.model.name))[-1:]
    metadata: dict[str, Any] = {
        "registered_model": spec.model.name,
        "registered_version": version_of(champion),
        "model_date": champion.partition,
        "reason": history[-1].reason,
        "candidates_judged": len(judged.candidates),
        "mlflow_run_id": champion.detail["mlflow_run_id"],
        "left_out": judged.left_out or None,
        "projection": late,
        "decisions": [shown(verdict) for verdict in verdicts],
        "gate": {**newest[0].report, **shown(newest[0])} if newest else None,
        "waivers": described(services, champion.detail.get("waivers", ())) or None,
    }
    scores = ledger.current_versions(
        spec.asset("evaluation"), (model.partition for model in judged.candidates)
    )
    curve = {
        date.fromisoformat(name): record.detail["metrics"][metric]
        for name, record in scores.items()
        if metric in record.detail["metrics"]
    }
    crowned = {c.model_date: f"v{c.version}" for c in history if c.model_date in curve}
    figures = {f"{metric} over time": plots.metric_over_time(metric, curve, crowned)}
    return Outcome(spec.asset(CHAMPION), None, champion.data_version, changed, metadata, figures)


def shown(verdict: EvaluationRecord) -> Mapping[str, Any]:
    """A verdict in a few words."""
    return {
        "evaluation": verdict.id,
        "candidate": verdict.candidate,
        "champion": verdict.champion,
        "passed": verdict.passed,
        "reason": verdict.report.get("reason"),
    }
