"""A page of the docs as blocks of code, each under the comment that says what it is."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.pipelines.cases import ROOT

PAGE = ROOT / "docs" / "add-a-pipeline.md"
_BLOCK = re.compile(r"(?:<!-- (?P<what>[^>]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What the comment above a block says, its language, and its text."""

    what: str
    kind: str
    text: str


@dataclass(frozen=True)
class Page:
    """The blocks of the page in their order."""

    blocks: tuple[Block, ...]

    @classmethod
    def read(cls, path: Path = PAGE) -> "Page":
        found = _BLOCK.finditer(path.read_text())
        return cls(tuple(Block(m["what"] or "", m["kind"], m["text"]) for m in found))

    def block(self, what: str) -> str:
        """The text of the only block of that kind."""
        (found,) = (block for block in self.blocks if block.what == what)
        return found.text
