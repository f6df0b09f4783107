"""Training: from a snapshot to a registered candidate model."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import HeldError
from platform_assets.domain.lease import Lease
from platform_assets.domain.manifest import Snapshot
from platform_assets.domain.partition import PartitionKey
from platform_assets.line import environments
from platform_assets.line.checkpointing import Course
from platform_assets.line.clearance import described, lapsed
from platform_assets.line.days import load_snapshot, unaccepted_now, without_verdict
from platform_assets.line.fingerprints import (
    detail_of,
    fingerprint_of,
    known_model,
    not_lost,
    tags_of,
)
from platform_assets.line.inputs import already_done, done_before, made_of
from platform_assets.line.links import dagster_run_url, mlflow_run_url, require_addresses
from platform_assets.line.ranks import Ranks
from platform_assets.line.recipes import RECIPE, recipe_of
from platform_assets.line.rows import Rows
from platform_assets.line.services import Outcome, Services
from resources import plots
from resources.ledger.records import VersionRecord
from resources.training import load_trainer, with_processes

EXAMPLE_ROWS = 5
"""Rows of the input example that is stored with each model."""

IDENTITY = (
    *("model_version", "mlflow_run_id", "mlflow_experiment_id", "snapshot"),
    *(environments.VALUE, environments.MACHINE, environments.PROBE, "image", "ran"),
)
"""Keys of a model version's detail that say which model it is, and where it was made."""


def require_version(services: Services, stage: str, day: date) -> VersionRecord:
    """The current version of a stage that another one needs.

    Raises:
        HeldError: it was never built.
    """
    asset = services.spec.asset(stage)
    record = services.ledger.current_version(asset, day.isoformat())
    if record is None:
        raise HeldError(
            asset, {day.isoformat(): f"it has not been built; materialize {asset} for {day} first"}
        )
    return record


def require_snapshot(services: Services, day: date) -> VersionRecord:
    """The snapshot that a date is trained on.

    Raises:
        HeldError: there is none, no verdict on it or on a partition of it is known, the last
            attempt to take it was refused, or it rests on a waiver or an acceptance that is no
            longer in force: what it reads is not what the date would be trained on now.
        RefusedError: its manifest is gone or was changed.
    """
    asset, name = services.spec.asset("snapshot"), day.isoformat()
    verdict = services.ledger.verdict(services.spec.pipeline, asset, name)
    if verdict is not None and verdict.verdict == "held":
        raise HeldError(asset, {name: str(verdict.report["reason"])})
    record = require_version(services, "snapshot", day)
    if verdict is None:
        raise HeldError(
            asset, {name: f"no verdict on it is in the ledger; materialize {asset} for {day} again"}
        )
    gone = lapsed(services, record.detail.get("waivers", ()))
    if gone:
        raise HeldError(
            asset, {name: f"{'; '.join(gone.values())}; materialize {asset} for {day} again"}
        )
    read = load_snapshot(services, day, record.data_version).partitions
    held = unaccepted_now(services, read) | without_verdict(services, (p.partition for p in read))
    if held:
        listed = "; ".join(f"{partition}: {why}" for partition, why in sorted(held.items()))
        raise HeldError(asset, {name: f"{listed}; then materialize {asset} for {day} again"})
    return record


def train_model(
    services: Services,
    partition: PartitionKey,
    run_id: str,
    *,
    lane: str,
    log: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Train on the date's snapshot and register the model as a candidate.

    Raises:
        HeldError: the date has no snapshot, or it was refused.
        RefusedError: a partition of it can no longer be read as it was, or the lease was lost.
        HomeError: a variable names no image digest, no commit, or no address of a UI.
        LeaseTakenError: another run trains this date for too long.
    """
    asset = services.spec.asset("model")
    require_addresses()
    with services.claim(asset, str(partition), run_id) as lease:
        return _train(services, partition, run_id, lease, lane=lane, log=log)


def _train(
    services: Services,
    partition: PartitionKey,
    run_id: str,
    lease: Lease,
    *,
    lane: str,
    log: Callable[[str], None],
) -> Outcome:
    spec, day = services.spec, partition.date
    asset, name = spec.asset("model"), str(partition)
    snapshot_record = require_snapshot(services, day)
    snapshot = load_snapshot(services, day, snapshot_record.data_version)
    upstream = {spec.asset("snapshot"): snapshot_record.data_version}
    trainer = load_trainer(spec.model.trainer)
    fingerprint, environment = fingerprint_of(spec, trainer, snapshot_record.data_version)
    # What is made, and on what terms: the same model of rows that somebody else has waived is
    # recorded again, so that this person is found.
    inputs = digest_of(
        {"fingerprint": fingerprint.value, "terms": [snapshot.short, list(snapshot.waivers)]}
    )
    made = {
        "held": dict(snapshot.held),
        "short": snapshot.short,
        "waivers": list(snapshot.waivers),
        **detail_of(fingerprint, environment),
        RECIPE: recipe_of(spec).model_dump(mode="json"),
        **made_of(services, inputs),
    }
    done = done_before(services, asset, name, inputs)
    # What the registry has lost is not there, though the ledger knows of it: it is made again.
    if done is not None and not_lost(services, done):
        if lease.after_crash:  # it was recorded, and killed before it could tell MLflow
            services.tracking.finish(done.detail["mlflow_run_id"])
        services.attend([day], "its model was trained")
        found = environments.passage_here(services, environments.value_of(done))
        told = {**_described(services, snapshot, done.detail), **environments.described(found)}
        return already_done(services, done, told, upstream)
    terms = _terms(services, snapshot)
    known = known_model(services, asset, name, fingerprint)
    if known is not None:
        detail = {**{key: known.detail.get(key) for key in IDENTITY}, **made}
        services.tracking.retag(known.detail["mlflow_run_id"], terms)
        services.record(
            lease=lease,
            asset=asset,
            partition=name,
            data_version=known.data_version,
            rows=known.rows,
            run_id=run_id,
            always=True,
            detail=detail,
        )
        services.attend([day], "its model is known")
        log(
            f"{asset} {name}: version {known.detail['model_version']} of {spec.model.name} has "
            f"this fingerprint ({fingerprint.value[:12]}); nothing is to be trained"
        )
        found = environments.passage_here(services, environments.value_of(known))
        told = {**_described(services, snapshot, detail), "known_model_of_run": known.run_id}
        told |= environments.described(found)
        told |= {"rows": known.rows, "lease_token": lease.token}
        return Outcome(asset, name, known.data_version, True, told, {}, upstream)
    rows = Rows(services, snapshot)
    parameters = dict(spec.model.parameters)
    here = environments.environment_here(services)
    change = environments.passage_here(services, here.value)
    if change.verdict.changes:
        log(change.verdict.reason)
    tags = {
        "signalbox.dagster_run_id": run_id,
        "signalbox.pipeline": spec.pipeline,
        "signalbox.partition": name,
        "signalbox.lane": lane,
        "signalbox.snapshot": snapshot_record.data_version,
        **_link(run_id, f"{asset} {name}"),
        **tags_of(fingerprint, environment),
        **environments.tags_of(here.value, change),
        **terms,
    }
    course = Course(services, trainer, name, fingerprint.value, lease, log)
    title = f"{spec.model.name} {name}"
    with (
        services.tracking.run(spec.pipeline, title, tags, before=course.mlflow) as run,
        course.under_way(run),
    ):
        run.log_parameters(
            {
                **parameters,
                "seed": spec.model.seed,
                "trainer": spec.model.trainer,
                "window_days": spec.model.window_days,
                "rows": rows.count,
                "days": len(snapshot.days),
            }
        )
        where = environments.machine_here()
        run.log_document(
            "environment.json",
            {
                **detail_of(fingerprint, environment),
                environments.VALUE: here.value,
                environments.MACHINE: where,
                "whole": here.document,
            },
        )
        run.log_snapshot(
            f"{asset} {name}",
            snapshot_record.data_version,
            source=f"{spec.pipeline}/snapshots/{day}",
            rows=rows.count,
        )
        log(f"{asset} {name}: training on {rows.count} rows of {len(snapshot.days)} days")
        ranks = Ranks(services, partition, run_id, log)
        rounds = course.rounds

        def on_round(step: int, metrics: Mapping[str, float]) -> None:
            rounds.append(dict(metrics))
            run.log_round(step, metrics)
            if ranks.processes is None:  # those of others go on, and are to be listened to
                services.step_aside(lambda: course.notice.told)

        how: dict[str, Any] = {
            "kind": spec.model.kind,
            "parameters": parameters,
            "seed": spec.model.seed,
            "on_round": on_round,
            **with_processes(trainer, ranks.processes),
            **course.argument(),
        }
        services.step_aside()
        model = rows.fit(trainer, how)
        services.step_aside()
        course.log_metrics(run)
        # What is registered stays: a run that was taken for dead shall add nothing any more.
        services.leases.require(lease)
        example = rows.frame.head(EXAMPLE_ROWS)
        logged = run.log_model(
            model,
            trainer.flavor,
            name=spec.model.name,
            input_example=example,
            predictions=trainer.predict(model, example),
            requirements=trainer.requirements,
        )
        figures = _figures(rounds, dict(trainer.importance(model))) | ranks.figures()
        for title, png in figures.items():
            run.log_figure(title, png)
        detail = {
            "model_version": logged.version,
            "mlflow_run_id": run.run_id,
            "mlflow_experiment_id": run.begun.experiment_id,
            "snapshot": snapshot_record.data_version,
            environments.VALUE: here.value,
            environments.MACHINE: where,
            environments.PROBE: environments.probe_of(trainer, model, rows.frame),
            **ranks.detail(),
            **course.detail(),
            **made,
        }
        # Within the run: where this is refused, the training has failed in MLflow too.
        services.record(
            lease=lease,
            asset=asset,
            partition=name,
            data_version=logged.digest,
            rows=rows.count,
            run_id=run_id,
            always=True,
            detail=detail,
        )
    ranks.ended_well()
    course.over()
    environments.tag_what_ran(services, run.run_id)
    services.attend([day], "its model was trained")
    metadata = {
        "rows": rows.count,
        **_described(services, snapshot, detail),
        **environments.described(change),
        **ranks.metadata(),
        **(rounds[-1] if rounds else {}),
        **course.told(),
        "lease_token": lease.token,
    }
    return Outcome(asset, name, logged.digest, True, metadata, figures, upstream)


def _link(run_id: str, what: str) -> dict[str, str]:
    """Tags of the MLflow run by which its Dagster run is found.

    MLflow's UI shows the note as the run's description, and the address in it as a link.
    """
    url = dagster_run_url(run_id)
    if url is None:
        return {}
    note = f"{what}, trained by [Dagster run {run_id[:8]}]({url})"
    return {"signalbox.dagster_run": url, "mlflow.note.content": note}


def _terms(services: Services, snapshot: Snapshot) -> dict[str, str]:
    """As tags of the MLflow run: what the snapshot lacks, and who let that go."""
    return {
        "signalbox.held_days": ", ".join(snapshot.held) or "none",
        "signalbox.waivers": ", ".join(snapshot.waivers) or "none",
        "signalbox.short_partitions": ", ".join(snapshot.short) or "none",
        **{
            f"signalbox.waiver.{waiver}": text
            for waiver, text in described(services, snapshot.waivers).items()
        },
    }


def _described(services: Services, snapshot: Snapshot, detail: Mapping[str, Any]) -> dict[str, Any]:
    """A model for people, whoever trained it."""
    return {
        "registered_model": services.spec.model.name,
        "registered_version": detail["model_version"],
        "mlflow_run_id": detail["mlflow_run_id"],
        "mlflow_run": mlflow_run_url(
            services.home, str(detail.get("mlflow_experiment_id")), detail["mlflow_run_id"]
        ),
        "days": len(snapshot.days),
        "held": dict(snapshot.held),
        "short": snapshot.short or None,
        "waivers": described(services, snapshot.waivers) or None,
        "snapshot": detail["snapshot"],
        "fingerprint": detail["fingerprint"],
    }


def _figures(rounds: list[dict[str, float]], importance: dict[str, float]) -> dict[str, bytes]:
    figures = {}
    for metric in rounds[0] if len(rounds) > 1 else ():
        values = [values[metric] for values in rounds]
        figures[f"training {metric}"] = plots.training_curve(metric, values)
    if importance:
        figures["feature importance"] = plots.importance(importance)
    return figures
