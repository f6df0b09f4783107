"""A document as a pipeline, or what is wrong with it, field by field."""

from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from platform_assets.domain.errors import SpecError
from platform_assets.domain.source_spec import listed
from platform_assets.domain.spec import PipelineSpec, WrongReferencesError


def parse_spec(document: Any, origin: str) -> PipelineSpec:
    """Validate a document as a pipeline.

    Args:
        document: what a YAML file holds.
        origin: the file, for the message.

    Raises:
        SpecError: with one entry a wrong field: the value found and what is allowed.
    """
    if not isinstance(document, Mapping):
        raise SpecError(
            origin,
            {
                "(file)": f"found {type(document).__name__}, a mapping with the fields of "
                f"{listed(PipelineSpec.model_fields)} is needed"
            },
        )
    try:
        return PipelineSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(origin, dict(_explain(error))) from None


def _explain(error: ValidationError) -> Iterable[tuple[str, str]]:
    problems = error.errors(include_url=False)
    for problem in problems:
        place = problem["loc"]
        field = ".".join(str(part) for part in place) or "(file)"
        message = problem["msg"].removeprefix("Value error, ")
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, WrongReferencesError):
            yield from cause.problems.items()
        elif problem["type"] == "too_short" and any(
            p["loc"][: len(place)] == place and p["loc"] != place for p in problems
        ):
            continue  # only because its elements were refused
        elif problem["type"] == "missing":
            yield field, "is missing"
        elif problem["type"] == "extra_forbidden":
            yield field, f"is no field here; allowed are {_allowed_fields(place)}"
        elif isinstance(problem["input"], Mapping):
            yield field, message
        else:
            yield field, f"found {problem['input']!r}: {message}"


def _allowed_fields(location: tuple[int | str, ...]) -> str:
    """The fields that may stand where an unknown one was found."""
    kind: Any = PipelineSpec
    for part in location[:-1]:
        if _is_spec(kind):
            kind = kind.model_fields[str(part)].annotation
            if isinstance(kind, UnionType):  # one that may be left out
                kind = next(filter(_is_spec, get_args(kind)), kind)
        else:  # a name in a mapping, or an index in a tuple
            kind = next(filter(_is_spec, get_args(kind)))
    if not _is_spec(kind):  # a part that may be left out
        kind = next(filter(_is_spec, get_args(kind)))
    return listed(kind.model_fields)


def _is_spec(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
