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


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources_of(path: Path) -> dict[str, Path]:
    """A module's source file and those that it imports from its own folder or below.

    By their path from that folder. Found by reading, not by running: what is imported by a
    computed name is not seen. A module that lies elsewhere is a library, or ours.
    """
    root, found, waiting = path.parent, dict[str, Path](), [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(root).as_posix()
        if name in found:
            continue
        found[name] = file
        if file.suffix == ".py":
            waiting += _imported(file, root)
    return dict(sorted(found.items()))


def _imported(file: Path, root: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = _package(root)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _beneath(root, package, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                above = file.parents[node.level - 1]
                if above == root or root in above.parents:
                    module = [*package, *above.relative_to(root).parts, *module]
                else:
                    module = [*_package(above), *module]
            yield from _beneath(root, package, module)
            for alias in node.names:  # `from package import module`
                yield from _beneath(root, package, [*module, alias.name])


def _package(folder: Path) -> list[str]:
    """The dotted name of the package that a folder is; empty for one that is on the path."""
    parts: list[str] = []
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return parts


def _beneath(root: Path, package: list[str], module: list[str]) -> Iterator[Path]:
    if module[: len(package)] != package or len(module) == len(package):
        return
    place = root.joinpath(*module[len(package) :])
    for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if file.is_file():
            yield file


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
