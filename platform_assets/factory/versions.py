"""Code versions: what a result depends on besides its data, read without importing it."""

import hashlib
import importlib.util
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
        SpecError: there is no such module, so every training would fail.
    """
    module, _, _ = entry_point.partition(":")
    path = module_file(module)
    if path is None:
        raise SpecError(
            origin,
            {
                "model.trainer": f"found {entry_point!r}, but there is no module {module!r}; it "
                "must be importable where the code location runs, else every training would fail"
            },
        )
    return path
