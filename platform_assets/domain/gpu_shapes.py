"""GPU shapes: so many nodes with so many GPUs on each, and which of them a model can use."""

import re
from dataclasses import dataclass
from math import log2
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from platform_assets.domain.source_spec import Frozen

_LABEL_VALUE = r"^(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
_SHAPE = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,2})", re.ASCII)


@dataclass(frozen=True, order=True)
class Shape:
    """`2x4`: 2 nodes, 4 GPUs on each; a gang of pods on different nodes."""

    nodes: int
    gpus: int

    @property
    def total(self) -> int:
        """GPUs of all nodes together."""
        return self.nodes * self.gpus

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus}"


def shape_of(text: str) -> Shape:
    """`2x4` as a shape.

    Raises:
        ValueError: it is none.
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no shape; allowed is NODESxGPUS, as in 1x8, 2x4 and 4x2")
    return Shape(int(found[1]), int(found[2]))


def _text(text: str) -> str:
    return str(shape_of(text))


ShapeText = Annotated[str, AfterValidator(_text)]


class GpusSpec(Frozen):
    """The GPU shapes that a model can be trained in.

    Attributes:
        shapes: those that its trainer works in, the best first.
        preferred: the one that is asked for first; the first of `shapes` by default.
        minimum: the one with the fewest GPUs; by default the smallest of `shapes`.
        model: label nvidia.com/gpu.product of the nodes; empty for any.
        only_model: never on another model; else it is only preferred.
        scaling: twice the GPUs are 2 ** scaling times as fast, where no runs say otherwise.
        across_nodes: what is left of that speed with each doubling of the nodes.
    """

    shapes: tuple[ShapeText, ...] = Field(min_length=1, max_length=16)
    preferred: ShapeText | None = None
    minimum: ShapeText | None = None
    model: str = Field(default="", pattern=_LABEL_VALUE)
    only_model: bool = False
    scaling: float = Field(default=0.85, gt=0, le=1)
    across_nodes: float = Field(default=0.9, gt=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> "GpusSpec":
        if len(set(self.shapes)) != len(self.shapes):
            raise ValueError("shapes must differ from each other")
        allowed = ", ".join(self.shapes)
        for field in ("preferred", "minimum"):
            chosen = getattr(self, field)
            if chosen is not None and chosen not in self.shapes:
                raise ValueError(f"{field} is {chosen!r}; allowed are the shapes {allowed}")
        if self.minimum is not None:
            least = shape_of(self.minimum).total
            below = [text for text in self.shapes if shape_of(text).total < least]
            if below:
                raise ValueError(
                    f"minimum is {self.minimum} ({least} GPUs), and {', '.join(below)} has fewer; "
                    "take it out of the shapes, or name it as the minimum"
                )
        if self.only_model and not self.model:
            raise ValueError("only_model is true and no model is named; name it, or leave it out")
        return self

    def ordered(self) -> tuple[Shape, ...]:
        """The shapes, the preferred one first."""
        first = shape_of(self.preferred or self.shapes[0])
        return (first, *(s for s in map(shape_of, self.shapes) if s != first))

    def speed(self, shape: Shape) -> float:
        """How fast it trains in a shape, 1 for one GPU."""
        return speed_of(shape, self.scaling, self.across_nodes)


def speed_of(shape: Shape, scaling: float = 0.85, across_nodes: float = 0.9) -> float:
    """An estimate of the speed of a shape, 1 for one GPU, until runs have shown it."""
    return float(shape.total**scaling * across_nodes ** log2(shape.nodes))
