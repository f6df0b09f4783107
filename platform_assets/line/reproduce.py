"""Rebuilding a registered model: the same rows, the same recipe, and what came of it.

Nothing is registered, recorded or changed.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import RefusedError, SignalboxError
from platform_assets.domain.fingerprint import Difference, Environment
from platform_assets.domain.manifest import PartitionVersion, Snapshot
from platform_assets.domain.reproduction import (
    Aspect,
    Comparison,
    Predictions,
    Recipe,
    Reproduction,
    conclude,
    differences,
)
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.days import load_snapshot
from platform_assets.line.fingerprints import ENVIRONMENT
from platform_assets.line.models import EXAMPLE_ROWS
from platform_assets.line.recipes import recipe_of, recorded_recipe, told_again
from platform_assets.line.registered import judgements, model_date
from platform_assets.line.rows import fit_table
from platform_assets.line.services import Services
from resources.distributed.launching import Processes
from resources.environment import environment
from resources.ledger.records import VersionRecord
from resources.tracking.models import save_model
from resources.training import Trainer, load_trainer, training_frame, with_processes
from resources.versions import trainer_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TOLERANCE = 1e-6
"""Differences of predictions that are let pass by default: of a probability, or in the target's
unit."""


@dataclass(frozen=True)
class Rebuilt:
    """A model that was trained again, and the digest of the files that it would be stored as."""

    model: object
    trainer: Trainer
    digest: str


def reproduce(
    services: Services,
    record: VersionRecord,
    *,
    tolerance: float = TOLERANCE,
    declared: bool = False,
) -> Reproduction:
    """Train a registered model again and compare.

    Args:
        services: of the pipeline.
        record: of the model version.
        tolerance: differences of predictions up to this one are let pass.
        declared: take parameters, seed, trainer and features from the catalog as it is now, in
            place of those that were recorded.

    Raises:
        RefusedError: what it was trained on cannot be had exactly as it was.
    """
    snapshot = recorded_snapshot(services, record)
    table = read_exactly(services, record, snapshot.partitions)
    then, now = recorded_recipe(record), recipe_of(services.spec)
    used = now if declared or then is None else then
    spec = told_again(services.spec, used)
    rebuilt = train_again(spec, table)
    comparisons = [
        Comparison(
            aspect=Aspect.DATA,
            note=f"{len(snapshot.partitions)} partition versions, {table.num_rows} rows, read "
            "back from the lake, each by its digest",
        ),
        *_compared(then, used, recipe_of(spec), now),
        compare_environment(record, used.trainer, rebuilt.trainer.requirements),
    ]
    found, repeats, unpredictable = None, None, ""
    if rebuilt.digest != record.data_version:
        try:
            found = _predictions(services, record, rebuilt, spec, table)
        except SignalboxError as error:
            unpredictable = str(error)
        if not any(c.differences for c in comparisons):
            repeats = train_again(spec, table).digest == rebuilt.digest
    return conclude(
        comparisons=comparisons,
        digest_then=record.data_version,
        digest_now=rebuilt.digest,
        predictions=found,
        unpredictable=unpredictable,
        repeats=repeats,
        tolerance=tolerance,
    )


def recorded_snapshot(services: Services, record: VersionRecord) -> Snapshot:
    """What a model was trained on, by the manifest that it names.

    Raises:
        RefusedError: the manifest is gone or was changed.
    """
    try:
        return load_snapshot(services, model_date(record), str(record.detail["snapshot"]))
    except RefusedError as error:
        raise RefusedError(
            f"{_named(services, record)} cannot be rebuilt, nobody can tell what it was trained "
            f"on: {error}"
        ) from error


def read_exactly(
    services: Services,
    record: VersionRecord,
    partitions: tuple[PartitionVersion, ...],
) -> "pa.Table":
    """Rows in the versions that were recorded, or nothing.

    Raises:
        RefusedError: one of them is not there any more as it was.
    """
    try:
        return services.dataset.read(partitions)
    except RefusedError as error:
        raise RefusedError(
            f"{_named(services, record)} cannot be rebuilt, its data is not there as it was "
            f"(diverged: data): {error}"
        ) from error


def _named(services: Services, record: VersionRecord) -> str:
    return (
        f"{services.spec.model.name} version {record.detail['model_version']} of {record.partition}"
    )


def train_again(spec: PipelineSpec, table: "pa.Table") -> Rebuilt:
    """Train on rows as a spec says, and store the model nowhere but for its digest."""
    frame, _ = training_frame(table, spec)
    trainer, asked = load_trainer(spec.model.trainer), spec.model.processes
    how: dict[str, Any] = {
        "kind": spec.model.kind,
        "parameters": dict(spec.model.parameters),
        "seed": spec.model.seed,
        "on_round": lambda _round, _metrics: None,
        **with_processes(trainer, None if asked is None else Processes(asked)),
    }
    model = fit_table(trainer, table, spec, how)
    example = frame.head(EXAMPLE_ROWS)
    with tempfile.TemporaryDirectory(prefix="signalbox-") as folder:
        digest = save_model(
            Path(folder, "model"),
            model,
            trainer.flavor,
            identity={"run_id": "", "model_id": "", "artifact_path": ""},
            input_example=example,
            predictions=trainer.predict(model, example),
            requirements=trainer.requirements,
        )
    return Rebuilt(model, trainer, digest)


def _compared(then: Recipe | None, used: Recipe, now: Recipe, catalog: Recipe) -> list[Comparison]:
    """Code, parameters and seed: what was recorded beside what the rebuilding was told.

    Args:
        then: as recorded.
        used: what the rebuilding was told.
        now: the same, with the source files as they are.
        catalog: what the catalog says now.
    """
    if then is None:
        note = "the catalog's of now were used"
        return [
            Comparison(aspect=aspect, recorded=False, note=note)
            for aspect in (Aspect.CODE, Aspect.PARAMETERS, Aspect.SEED)
        ]
    parts = {
        Aspect.CODE: (_code(then), _code(now), _declared(used), _declared(catalog)),
        Aspect.PARAMETERS: (then.parameters, used.parameters, used.parameters, catalog.parameters),
        Aspect.SEED: ({"seed": then.seed}, {"seed": used.seed}, *_seeds(used, catalog)),
    }
    return [
        Comparison(
            aspect=aspect,
            differences=differences(before, after),
            note=_left_out(differences(applied, said)),
        )
        for aspect, (before, after, applied, said) in parts.items()
    ]


def _code(recipe: Recipe) -> dict[str, Any]:
    return _declared(recipe) | {"code": recipe.code}


def _declared(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(include={"trainer", "kind", "features", "categories", "target"})


def _seeds(used: Recipe, catalog: Recipe) -> tuple[dict[str, int], dict[str, int]]:
    return {"seed": used.seed}, {"seed": catalog.seed}


def _left_out(found: tuple[Difference, ...]) -> str:
    """What the catalog has changed since, which was not applied."""
    if not found:
        return ""
    listed = "; ".join(str(difference) for difference in found)
    return f"what was recorded was used, the catalog has changed since: {listed}"


def compare_environment(
    record: VersionRecord, trainer: str, requirements: Sequence[str]
) -> Comparison:
    """The environment of a training beside the one of this process.

    The git commit is no part of it: what it changed is compared file by file, as code.
    """
    recorded = record.detail.get(ENVIRONMENT)
    if not recorded:
        return Comparison(
            aspect=Aspect.ENVIRONMENT,
            recorded=False,
            note="the model was trained before environments were recorded",
        )
    then = Environment.model_validate(recorded)
    now = environment(requirements, trainer_file(trainer, ""))
    found = then.differences(now)
    return Comparison(
        aspect=Aspect.ENVIRONMENT,
        differences=tuple(d for d in found if not d.field.startswith("git_")),
        note=f"it was trained in the image {then.image_digest}" if then.image_digest else "",
    )


def _predictions(
    services: Services,
    record: VersionRecord,
    rebuilt: Rebuilt,
    spec: PipelineSpec,
    trained_on: "pa.Table",
) -> Predictions:
    """Both models on the rows that the registered one was judged on, or else was trained on."""
    import numpy as np

    version = int(record.detail["model_version"])
    recipe = recorded_recipe(record)
    before_spec = told_again(services.spec, recipe) if recipe else spec
    before_trainer = load_trainer(before_spec.model.trainer)
    registered = services.tracking.load(
        spec.model.name, version, before_trainer.flavor, digest=record.data_version
    )
    rows, on = _rows_to_compare(services, record, trained_on)
    before = _predicted(before_trainer, registered, before_spec, rows)
    after = _predicted(rebuilt.trainer, rebuilt.model, spec, rows)
    apart = np.abs(before - after)
    return Predictions(
        on=on,
        rows=len(apart),
        differing=int(np.count_nonzero(apart != 0)),
        largest=float(apart.max()) if len(apart) else 0.0,
    )


def _predicted(
    trainer: Trainer, model: object, spec: PipelineSpec, rows: "pa.Table"
) -> "np.ndarray":
    frame, _ = training_frame(rows, spec)
    return trainer.predict(model, frame)


def _rows_to_compare(
    services: Services, record: VersionRecord, trained_on: "pa.Table"
) -> tuple["pa.Table", str]:
    for judgement in reversed(judgements(services, record)):
        judged = [PartitionVersion(**p) for p in judgement.detail["partitions"]]
        try:
            rows = services.dataset.read(judged)
        except RefusedError:
            continue
        if rows.num_rows:
            days = sorted({p.partition.rpartition("|")[2] for p in judged})
            return rows, f"the judged rows of {days[0]} to {days[-1]}"
    return trained_on, "the training rows"


def document(services: Services, record: VersionRecord, found: Reproduction) -> dict[str, Any]:
    """A verdict as JSON."""
    return {
        "model": services.spec.model.name,
        "pipeline": services.spec.pipeline,
        "version": int(record.detail["model_version"]),
        "date": record.partition,
        "snapshot": record.detail["snapshot"],
        "good": found.verdict.good,
        **found.model_dump(mode="json"),
    }
