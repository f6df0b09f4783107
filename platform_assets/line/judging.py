"""Evaluation on the following days."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from platform_assets.domain.digests import combine
from platform_assets.domain.errors import HeldError, RefusedError
from platform_assets.domain.lease import Lease
from platform_assets.domain.manifest import Day, DayState, PartitionVersion
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.clearance import described
from platform_assets.line.days import days_of
from platform_assets.line.inputs import already_done, done_before, inputs_of, made_of
from platform_assets.line.models import require_version
from platform_assets.line.recipes import recorded_recipe, told_again
from platform_assets.line.services import Outcome, Services
from resources import plots
from resources.ledger.records import ScoreRecord, VersionRecord
from resources.scoring import score
from resources.training import load_trainer, training_frame

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


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


def judged_rows(services: Services, day: date) -> JudgedRows:
    """The following days of a date, all of them whole.

    Raises:
        HeldError: a following day is not whole, or not built.
    """
    spec = services.spec
    following = spec.judged_on(day)
    days = days_of(services, following)
    return _all_whole(spec.asset("evaluation"), day, [days[d] for d in following])


def require_judgeable(services: Services, day: date) -> None:
    """Ask whether a date's model can be judged now.

    Raises:
        HeldError: there is no model, or a following day is not whole.
    """
    require_version(services, "model", day)
    judged_rows(services, day)


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
    table, target, predictions = predictions_on(services, model, rows)
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
        figures["calibration"] = plots.calibration(target, predictions)
    return record, figures


def predictions_on(
    services: Services, model: VersionRecord, rows: JudgedRows
) -> "tuple[pa.Table, np.ndarray, np.ndarray]":
    """The rows, what happened in them and what a model says of them; the last of shape (rows,).

    A model is asked what it was trained to answer: with the features, categories and trainer that
    were recorded with it, whatever the catalog names now. What happened is the catalog's.

    Raises:
        UsageError: the registry has no such version any more, or its trainer is not there.
        RefusedError: its files are not those that were recorded; or it was trained for another
            kind, on features that the rows have no more, or stored in another flavor.
    """
    spec, version = services.spec, int(model.detail["model_version"])
    table = services.dataset.read(rows.partitions)
    recipe = recorded_recipe(model)
    then = spec if recipe is None else told_again(spec, recipe)
    if then.model.kind != spec.model.kind:
        raise RefusedError(
            f"version {version} of {spec.model.name} was trained for a {then.model.kind}, the "
            f"catalog says {spec.model.kind} now: the two cannot be compared; {_AGAIN}"
        )
    _require_features(spec, then, version, table)
    features = then.dataset.model_copy(update={"target": spec.dataset.target})
    frame, target = training_frame(table, then.model_copy(update={"dataset": features}))
    trainer = load_trainer(then.model.trainer)
    fitted = services.tracking.load(
        spec.model.name, version, trainer.flavor, digest=model.data_version
    )
    return table, target.to_numpy(), trainer.predict(fitted, frame)


_AGAIN = (
    "train the date of a candidate again; if it is champion, give the model another name, which "
    "begins without one"
)


def _require_features(
    spec: PipelineSpec, then: PipelineSpec, version: int, table: "pa.Table"
) -> None:
    """Refuse to ask a model about rows without what it looks at.

    Rows that were built since a feature left the catalog have it as a column without any value,
    which a trainer takes for missing values.
    """
    import pyarrow.compute as pc

    dropped = [name for name in then.dataset.features if name not in spec.dataset.features]
    lacking = [name for name in dropped if name not in table.column_names]
    left = [name for name in dropped if name not in lacking]
    if left and table.num_rows:
        keys = [spec.partitions.key, "date"]
        found = table.group_by(keys).aggregate([(name, "count") for name in left])
        lacking += [name for name in left if pc.any(pc.equal(found[f"{name}_count"], 0)).as_py()]
    if lacking:
        raise RefusedError(
            f"version {version} of {spec.model.name} was trained on {', '.join(lacking)}, which "
            f"the rows that it is to be judged on have no more, since the catalog does not name it "
            f"as a feature; name it again and build them again, or {_AGAIN}"
        )
