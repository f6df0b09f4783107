"""Finding a registered model by what a person calls it. The ledger says who is champion."""

from collections.abc import Iterable
from datetime import date

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.model_ref import ALIASES, ModelRef
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from resources.ledger.promotion_records import PromotionRecord
from resources.ledger.records import VersionRecord


def pipeline_of_model(ref: ModelRef, specs: Iterable[PipelineSpec]) -> PipelineSpec:
    """The pipeline whose model is meant, by its own name or by the model's.

    Raises:
        UsageError: there is none, or several pipelines train a model of that name.
    """
    known = list(specs)
    found = [s for s in known if s.pipeline == ref.name] or [
        s for s in known if s.model.name == ref.name
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{ref.name!r} is trained by the pipelines {', '.join(s.pipeline for s in found)}; "
            "name one of them in its place"
        )
    models = ", ".join(f"{s.model.name} (pipeline {s.pipeline})" for s in known)
    raise UsageError(f"{ref.name!r} is no model of the catalog; allowed are {models or 'none'}")


def promotions(services: Services) -> list[PromotionRecord]:
    """Each change of champion, oldest first."""
    return services.ledger.promotions(services.spec.model.name)


def alias_version(services: Services, alias: str) -> int:
    """The version that an alias stands for, by the ledger.

    Raises:
        RefusedError: none does.
    """
    model = services.spec.model.name
    state = services.ledger.alias_state(model, alias)
    if state is not None:
        return state.version
    if alias == "previous":
        changes = promotions(services)
        if changes and changes[-1].previous is not None:
            return changes[-1].previous
    assert alias in ALIASES
    raise RefusedError(
        f"model {model} has no {alias} yet; name a version, as in {model}@1, or wait until one "
        "was judged and won"
    )


def model_record(services: Services, ref: ModelRef) -> VersionRecord:
    """What the ledger holds of a registered version.

    Raises:
        UsageError: there is no such version.
        RefusedError: nobody has that alias.
    """
    version = ref.version if ref.version is not None else alias_version(services, str(ref.alias))
    models = services.ledger.versions(services.spec.asset("model"))
    for record in reversed(models):
        if int(record.detail["model_version"]) == version:
            return record
    known = sorted({int(record.detail["model_version"]) for record in models})
    raise UsageError(
        f"model {services.spec.model.name} has no version {version} in the ledger; "
        + (f"it has {_ranges(known)}" if known else "none was trained yet")
    )


def judgements(services: Services, record: VersionRecord) -> list[VersionRecord]:
    """The evaluations of this very version, oldest first."""
    found = services.ledger.history(services.spec.asset("evaluation"), record.partition)
    version = record.detail["model_version"]
    return [e for e in found if e.detail["model_version"] == version]


def model_date(record: VersionRecord) -> date:
    return date.fromisoformat(record.partition)


def _ranges(numbers: list[int]) -> str:
    """`1 to 4, 7`."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            run = numbers[start:i]
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}")
            start = i
    return ", ".join(parts)
