"""Evaluation on the following days, and the champion among the judged models."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from platform_assets.domain.digests import combine
from platform_assets.domain.errors import HeldError
from platform_assets.domain.lease import Lease
from platform_assets.domain.manifest import Day, DayState, PartitionVersion
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.promotion import PRIMARY_METRIC, Contender, Decision, compare
from platform_assets.line.clearance import described, lapsed
from platform_assets.line.days import days_of
from platform_assets.line.inputs import already_done, done_before, inputs_of, made_of
from platform_assets.line.models import require_version
from platform_assets.line.services import Outcome, Services
from resources import plots
from resources.ledger.promotions import EvaluationRecord
from resources.ledger.records import ScoreRecord, VersionRecord
from resources.scoring import score
from resources.training import load_trainer, training_frame

CHAMPION_ALIAS = "champion"


@dataclass(frozen=True)
class JudgedRows:
    """The rows that a date's model is judged on."""

    date: date
    partitions: tuple[PartitionVersion, ...]

    @property
    def digest(self) -> str:
        return combine((p.partition, p.data_version) for p in self.partitions)

    @property
    def short(self) -> dict[str, str]:
        """What the partitions lacked that were accepted or waived, by partition."""
        return {p.partition: p.short for p in self.partitions if p.short}

    @property
    def waivers(self) -> tuple[str, ...]:
        """The names of the waivers that they rest on."""
        return tuple(sorted({name for p in self.partitions for name in p.waivers}))

    @property
    def read_version(self) -> int:
        return max(p.table_version for p in self.partitions)


def judged_rows(services: Services, day: date) -> JudgedRows:
    """The following days of a date, all of them whole.

    Raises:
        HeldError: a following day is not whole, or not built.
    """
    spec = services.spec
    following = spec.judged_on(day)
    days = days_of(services, following)
    return _all_whole(spec.asset("evaluation"), day, [days[d] for d in following])


def _all_whole(asset: str, day: date, days: list[Day]) -> JudgedRows:
    waiting = [d for d in days if d.state is not DayState.WHOLE]
    if waiting:
        listed = "; ".join(f"{d.date} is {d.state}: {d.reason()}" for d in waiting)
        raise HeldError(
            asset,
            {
                day.isoformat(): f"its model is judged on {days[0].date} to {days[-1].date}, and "
                f"of these {len(waiting)} day(s) are not there: {listed}"
            },
        )
    return JudgedRows(day, tuple(p for d in days for p in d.partitions))


def score_on(services: Services, model: VersionRecord, rows: JudgedRows) -> ScoreRecord:
    """The score of a model on rows: the one that was recorded for exactly them, or made now.

    Raises:
        UsageError: the registry has no such version any more.
        RefusedError: its files are not those that were recorded.
    """
    return _scored(services, model, rows)[0]


def evaluate_model(services: Services, partition: PartitionKey, run_id: str) -> Outcome:
    """Judge a date's model on the flights of the following days.

    Raises:
        HeldError: there is no model, or a following day is not whole.
        LeaseTakenError: another run judges this date for too long.
        LeaseLostError: this one was taken for dead meanwhile.
    """
    asset = services.spec.asset("evaluation")
    with services.claim(asset, str(partition), run_id) as lease:
        return _evaluate(services, partition, run_id, lease)


def _evaluate(services: Services, partition: PartitionKey, run_id: str, lease: Lease) -> Outcome:
    spec, day = services.spec, partition.date
    asset, name = spec.asset("evaluation"), str(partition)
    model = require_version(services, "model", day)
    rows = judged_rows(services, day)
    upstream = {spec.asset("model"): model.data_version}
    inputs = inputs_of(
        services,
        "evaluation",
        # The registered version too: it is what the scores are recorded of.
        model=[model.data_version, model.detail["model_version"]],
        rows=rows.digest,
        terms=[rows.short, list(rows.waivers)],
        dataset=spec.dataset.model_dump(mode="json"),
    )
    done = done_before(services, asset, name, inputs)
    if done is not None:
        told = _described(services, rows, done.detail["model_version"], done.detail["metrics"])
        return already_done(services, done, told, upstream)
    found, figures = _scored(services, model, rows, with_figures=True)
    # Before it is recorded: what is recorded is not done again.
    services.tracking.log_judgement(
        model.detail["mlflow_run_id"], {f"judged_{k}": v for k, v in found.metrics.items()}
    )
    version = combine({"model": model.data_version, "rows": rows.digest})
    changed = services.record(
        lease=lease,
        asset=asset,
        partition=name,
        data_version=version,
        rows=found.rows,
        run_id=run_id,
        always=True,
        detail={
            "model_version": found.model_version,
            "rows_digest": rows.digest,
            "metrics": found.metrics,
            "partitions": [p.model_dump() for p in rows.partitions],
            "short": rows.short,
            "waivers": list(rows.waivers),
            **made_of(services, inputs),
        },
    )
    metadata = {
        **_described(services, rows, found.model_version, found.metrics),
        "rows": found.rows,  # after the metrics, which may have a count of their own
        "lease_token": lease.token,
    }
    return Outcome(asset, name, version, changed, metadata, figures, upstream)


def _described(
    services: Services, rows: JudgedRows, version: int, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """A judgement for people, whoever made it."""
    following = services.spec.judged_on(rows.date)
    return {
        "registered_version": version,
        "judged_on": f"{following[0]} to {following[-1]}",
        **metrics,
        "short": rows.short or None,
        "waivers": described(services, rows.waivers) or None,
    }


def _scored(
    services: Services, model: VersionRecord, rows: JudgedRows, *, with_figures: bool = False
) -> tuple[ScoreRecord, dict[str, bytes]]:
    """Score a model on rows, or find the score that was recorded for exactly them."""
    spec = services.spec
    version = int(model.detail["model_version"])
    known = services.ledger.score(spec.pipeline, version, rows.date, rows.digest)
    if known is not None and not with_figures:
        return known, {}
    table = services.table.read(rows.partitions, rows.read_version)
    frame, target = training_frame(table, spec)
    trainer = load_trainer(spec.model.trainer)
    fitted = services.tracking.load(
        spec.model.name, version, trainer.flavor, digest=model.data_version
    )
    predictions = trainer.predict(fitted, frame)
    record = ScoreRecord(
        pipeline=spec.pipeline,
        model_version=version,
        model_date=date.fromisoformat(model.partition),
        judged_date=rows.date,
        rows_digest=rows.digest,
        rows=table.num_rows,
        metrics=score(spec, table, predictions),
        recorded_at=datetime.now(UTC),
    )
    services.ledger.record_score(record)
    figures: dict[str, bytes] = {}
    if with_figures and spec.model.kind == "binary_classification":
        figures["calibration"] = plots.calibration(target.to_numpy(), predictions)
    return record, figures


def decide_champion(services: Services, run_id: str) -> Outcome:
    """Find the best judged model and make it champion.

    Candidates stand in the order of their dates. Each is compared with the champion so far on the
    candidate's own judged days, which lie after both trainings: so neither saw the rows, both are
    scored on the same ones, and the outcome does not depend on the order of the runs.

    A model that rests on a waiver that was revoked, or was judged on rows that do, is no candidate;
    where a waiver has expired, only what became champion while it counted still is one.

    Raises:
        HeldError: no model has been judged yet, or none that may be champion.
        LeaseTakenError: another run decides for too long.
        LeaseLostError: this one was taken for dead meanwhile.
    """
    with services.claim(services.spec.asset("champion"), None, run_id) as lease:
        return _decide(services, run_id, lease)


def _decide(services: Services, run_id: str, lease: Lease) -> Outcome:
    spec, ledger = services.spec, services.ledger
    asset = spec.asset("champion")
    left_out: dict[str, str] = {}
    before = {champion.version for champion in ledger.champions(spec.pipeline)}
    evaluations = ledger.current_versions(spec.asset("evaluation"))
    models = ledger.current_versions(spec.asset("model"))
    champion: VersionRecord | None = None
    decisions: list[Decision] = []
    curve: dict[date, float] = {}
    crowned: dict[date, str] = {}
    for name, evaluation in sorted(evaluations.items()):
        model = models.get(name)
        if model is None or model.detail["model_version"] != evaluation.detail["model_version"]:
            continue  # retrained since: the new version has yet to be judged
        names = {*model.detail.get("waivers", ()), *evaluation.detail.get("waivers", ())}
        gone = lapsed(services, names, expired=model.detail["model_version"] not in before)
        if gone:
            left_out[name] = "; ".join(gone.values())
            continue
        rows = JudgedRows(
            date.fromisoformat(name),
            tuple(PartitionVersion(**p) for p in evaluation.detail["partitions"]),
        )
        candidate = _contender(services, model, rows)
        incumbent = _contender(services, champion, rows) if champion else None
        decision = compare(candidate, incumbent, spec.model.kind)
        decisions.append(decision)
        if PRIMARY_METRIC[spec.model.kind] in candidate.metrics:
            curve[rows.date] = candidate.metrics[PRIMARY_METRIC[spec.model.kind]]
        if decision.promoted:
            champion = model
            crowned[rows.date] = f"v{candidate.version}"
    if champion is None and left_out:
        listed = "; ".join(f"{day}: {why}" for day, why in left_out.items())
        raise HeldError(asset, {"champion": f"no judged model may be champion ({listed})"})
    if champion is None:
        raise HeldError(
            asset,
            {
                "champion": "no model has been judged yet; it takes "
                f"{spec.evaluation.days} whole days after a model's own"
            },
        )
    figure = plots.metric_over_time(PRIMARY_METRIC[spec.model.kind], curve, crowned)
    return _crown(services, champion, decisions, figure, run_id, lease, left_out)


def _contender(services: Services, model: VersionRecord, rows: JudgedRows) -> Contender:
    found, _ = _scored(services, model, rows)
    return Contender(version=found.model_version, date=found.model_date, metrics=found.metrics)


def _crown(
    services: Services,
    champion: VersionRecord,
    decisions: list[Decision],
    figure: bytes,
    run_id: str,
    lease: Lease,
    left_out: Mapping[str, str],
) -> Outcome:
    spec, ledger = services.spec, services.ledger
    asset, version = spec.asset("champion"), int(champion.detail["model_version"])
    won = next(d for d in reversed(decisions) if d.promoted)
    before = ledger.alias_state(spec.model.name)
    changed = before is None or before.version != version
    if changed:
        verdict = ledger.record_evaluation(
            EvaluationRecord(
                pipeline=spec.pipeline,
                model=spec.model.name,
                candidate=version,
                champion=before.version if before else None,
                judged_date=date.fromisoformat(champion.partition),
                rows_digest="",
                passed=True,
                report={"reason": won.reason},
                recorded_at=datetime.now(UTC),
                run_id=run_id,
            )
        )
        ledger.promote(
            spec.pipeline,
            spec.model.name,
            version,
            model_date=date.fromisoformat(champion.partition),
            expected=before,
            evaluation_id=verdict.id,
            reason=won.reason,
            by="signalbox",
            run_id=run_id,
            at=services.clock.as_of(),
            lease=lease,
        )
    _set_alias(services, version)
    metadata: dict[str, Any] = {
        "registered_model": spec.model.name,
        "registered_version": version,
        "model_date": champion.partition,
        "reason": won.reason,
        "candidates_judged": len(decisions),
        "mlflow_run_id": champion.detail["mlflow_run_id"],
        "left_out": dict(left_out) or None,
        "decisions": [d.model_dump() for d in decisions],
        "waivers": described(services, champion.detail.get("waivers", ())) or None,
    }
    figures = {f"{PRIMARY_METRIC[spec.model.kind]} over time": figure}
    return Outcome(asset, None, champion.data_version, changed, metadata, figures)


def _set_alias(services: Services, version: int) -> None:
    """Have the alias follow the ledger, even where nothing changed: somebody may have moved it.

    MLflow compares nothing when an alias is set. Who comes late, since it slept, would move it
    back: so each looks at the ledger again after it has set it, and the last one is right.
    """
    spec, wanted = services.spec, version
    while True:
        services.tracking.set_alias(spec.model.name, CHAMPION_ALIAS, wanted)
        now = services.ledger.champion(spec.pipeline)
        if now is None or now.version == wanted:
            return
        wanted = now.version
