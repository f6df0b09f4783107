"""What a training is told besides its rows, as it is recorded and as it is taken up again."""

from typing import TYPE_CHECKING, Any

from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.fingerprints import training_sources
from resources.ledger.records import VersionRecord

if TYPE_CHECKING:
    from platform_assets.domain.reproduction import Recipe

RECIPE = "recipe"
"""Key of a model version's detail."""


def recipe_of(spec: PipelineSpec) -> "Recipe":
    """What a training would be told now.

    Raises:
        SpecError: the trainer does not exist.
    """
    from platform_assets.domain.reproduction import Recipe

    model, dataset = spec.model, spec.dataset
    return Recipe(
        trainer=model.trainer,
        code=training_sources(spec),
        kind=model.kind,
        features=dataset.features,
        categories=dataset.categories,
        target=dataset.target.name,
        parameters=dict(model.parameters),
        seed=model.seed,
    )


def recorded_recipe(record: VersionRecord) -> "Recipe | None":
    """What the training of a model was told; None where that was not recorded."""
    from platform_assets.domain.reproduction import Recipe

    found: dict[str, Any] | None = record.detail.get(RECIPE)
    return None if found is None else Recipe.model_validate(found)


def told_again(spec: PipelineSpec, recipe: "Recipe") -> PipelineSpec:
    """A spec that tells a training what it was told then."""
    target = spec.dataset.target.model_copy(update={"name": recipe.target})
    dataset = spec.dataset.model_copy(
        update={
            "features": recipe.features,
            "categories": recipe.categories,
            "target": target,
        }
    )
    model = spec.model.model_copy(
        update={
            "kind": recipe.kind,
            "trainer": recipe.trainer,
            "parameters": dict(recipe.parameters),
            "seed": recipe.seed,
        }
    )
    return spec.model_copy(update={"dataset": dataset, "model": model})
