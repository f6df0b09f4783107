"""The fingerprint of a training, and the model that was made under it before."""

from collections.abc import Mapping
from typing import Any

from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import TransientError
from platform_assets.domain.fingerprint import Environment, RunFingerprint
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from resources.ledger.records import VersionRecord
from resources.training import Trainer
from resources.versions import file_digest, module_file, sources_of, trainer_file

FINGERPRINT, PARTS, ENVIRONMENT = "fingerprint", "fingerprint_parts", "environment"
"""Keys of a model version's detail."""

_OURS = ("resources.training", "resources.tracking.models", "resources.tracking.category_loader")
"""Our modules between a snapshot's rows and a model's files: the frame, and how it is stored."""

_RANKS = ("resources.distributed.rank", "resources.distributed.shards")
"""And those that ranks run, where there are several."""


def training_code(spec: PipelineSpec) -> str:
    """Digest of what a training runs, 64 hexadecimal digits.

    In it, since each decides what is made of the same rows:
    - the trainer's source file, and those that it imports from its own folder or below;
    - our modules that make the frame and write the model's files;
    - the dataset's definition (features and their order, categories, target) and the kind.

    Not in it: descriptions; the code that made the rows, for the snapshot's digest is over the
    rows themselves; libraries, which are in the lock.
    """
    declared = spec.dataset.model_dump(mode="json", exclude={"description"})
    return digest_of(
        {"sources": training_sources(spec), "dataset": declared, "kind": spec.model.kind}
    )


def training_sources(spec: PipelineSpec) -> dict[str, str]:
    """SHA-256 of each source file that `training_code` is over, by its name."""
    trainer = trainer_file(spec.model.trainer, "")
    ours = (*_OURS, *(_RANKS if spec.model.processes else ()))
    sources = {f"trainer/{name}": file_digest(path) for name, path in sources_of(trainer).items()}
    for module in ours:
        file = module_file(module)
        assert file is not None, module
        sources[module] = file_digest(file)
    return sources


def fingerprint_of(
    spec: PipelineSpec, trainer: Trainer, snapshot: str
) -> tuple[RunFingerprint, Environment]:
    """What a training on a snapshot would be, here and now.

    Args:
        spec: the pipeline.
        trainer: that of the spec.
        snapshot: digest of the manifest.

    Raises:
        SpecError: there is no such trainer.
        UsageError: a requirement of it is not installed.
        HomeError: a variable names no image digest or no commit.
    """
    from resources.environment import environment

    found = environment(trainer.requirements, trainer_file(spec.model.trainer, ""))
    return (
        RunFingerprint(
            snapshot=snapshot,
            code=training_code(spec),
            trainer=spec.model.trainer,
            parameters=spec.model.parameters,
            seed=spec.model.seed,
            lock=found.lock_digest,
            image=found.image_digest,
            stream=spec.model.stream,
            processes=spec.model.processes.begun if spec.model.processes else "",
        ),
        found,
    )


def detail_of(fingerprint: RunFingerprint, found: Environment) -> dict[str, Any]:
    """What a model version's detail says of them."""
    return {
        FINGERPRINT: fingerprint.value,
        PARTS: fingerprint.parts(),
        ENVIRONMENT: found.model_dump(mode="json"),
    }


def tags_of(fingerprint: RunFingerprint, found: Environment) -> dict[str, str]:
    """What an MLflow run's tags say of them; MLflow's UI shows its own tag of a commit."""
    tags = {
        "signalbox.fingerprint": fingerprint.value,
        "signalbox.lock": found.lock_digest,
        "signalbox.image": found.image_digest or "none",
        "signalbox.git_commit": found.git_commit or "none",
        "signalbox.git_dirty": str(found.git_dirty).lower(),
    }
    return tags | ({"mlflow.source.git.commit": found.git_commit} if found.git_commit else {})


def known_model(
    services: Services, asset: str, partition: str, fingerprint: RunFingerprint
) -> VersionRecord | None:
    """The newest model of a partition that was made under this fingerprint and still stands.

    None where the run is told to make it again, and where the registry does not have that version
    with the recorded digest any more: what cannot be loaded is no known model.
    """
    if services.restate:
        return None
    for record in reversed(services.ledger.history(asset, partition)):
        if record.detail.get(FINGERPRINT) == fingerprint.value and stands(services, record):
            return record
    return None


def not_lost(services: Services, record: VersionRecord) -> bool:
    """Whether a model stands, or nobody can tell: while the registry is away nothing is lost."""
    try:
        return stands(services, record)
    except TransientError:
        return True


def stands(services: Services, record: VersionRecord) -> bool:
    """Whether the registry has a model's version, with the recorded digest.

    Raises:
        TransientError: the registry does not answer.
    """
    version = record.detail.get("model_version")
    if version is None:
        return False
    recorded = services.tracking.recorded_digest(services.spec.model.name, int(version))
    return recorded == record.data_version


def fingerprint_in(detail: Mapping[str, Any]) -> RunFingerprint | None:
    """The fingerprint that a model version's detail holds; None of one made before there were."""
    parts = detail.get(PARTS)
    return RunFingerprint.model_validate(parts) if parts else None
