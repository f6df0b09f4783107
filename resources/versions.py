"""Code versions: what a result depends on besides its data, read without importing it."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from platform_assets.domain.errors import SpecError


def module_file(module: str) -> Path | None:
    """The source file of a module; None where there is none. Imports its parents, not itself."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found and found.origin else None


def code_version(*parts: BaseModel | Path) -> str:
    """16 hexadecimal digits over declarations and source files."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.model_dump_json().encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def trainer_file(entry_point: str, origin: str) -> Path:
    """The source file of a trainer.

    Raises:
        SpecError: there is no such module, or no such name in it, so every training would fail.
    """
    module, _, name = entry_point.partition(":")
    path = module_file(module)
    if path is None:
        raise SpecError(
            origin,
            {
                "model.trainer": f"found {entry_point!r}, but there is no module {module!r}; it "
                "must be importable where the code location runs, else every training would fail"
            },
        )
    defined = top_level_names(path)
    if defined is not None and name not in defined:
        shown = ", ".join(sorted(n for n in defined if not n.startswith("_"))) or "nothing"
        raise SpecError(
            origin,
            {
                "model.trainer": f"found {entry_point!r}, but {module} defines no {name!r}; "
                f"it defines {shown}"
            },
        )
    return path


def top_level_names(path: Path) -> set[str] | None:
    """The names that a module defines or imports, read without running it.

    None where the source does not tell: compiled, not parsable, `import *`, `__getattr__`.
    """
    if path.suffix != ".py":
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None
    names = set(_bound(tree.body))
    return None if names & {"*", "__getattr__"} else names


def _bound(statements: Iterable[ast.stmt]) -> Iterator[str]:
    for node in statements:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (a.asname or a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for field in ("body", "orelse", "finalbody"):
                yield from _bound(getattr(node, field, ()))
            for handler in getattr(node, "handlers", ()):
                yield from _bound(handler.body)
        else:
            yield from (
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            )
