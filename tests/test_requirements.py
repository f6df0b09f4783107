"""What the project declares is what is locked."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: [Requirement(text) for text in texts]
    for name, texts in PROJECT["optional-dependencies"].items()
}
DECLARED = [Requirement(text) for text in PROJECT["dependencies"]]


def test_every_dependency_is_locked() -> None:
    lines = (ROOT / "requirements.in").read_text().splitlines()
    wanted = {canonicalize_name(Requirement(line).name) for line in lines if line.strip()}
    locked = versions("requirements.lock")
    assert len(DECLARED) > 20
    for requirement in DECLARED:
        name = canonicalize_name(requirement.name)
        assert name in wanted, f"{name} is missing in requirements.in"
        assert requirement.specifier.contains(locked[name]), f"{requirement}, not {locked[name]}"


def test_the_extra_has_a_lock_of_its_own_that_agrees_with_the_other() -> None:
    locked, main = versions("requirements-torch.lock"), versions("requirements.lock")
    assert list(EXTRAS) == ["torch"]
    for requirement in EXTRAS["torch"]:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])
    assert "torch" not in main
    assert {n: v for n, v in locked.items() if n in main and main[n] != v} == {}
    assert not [name for name in locked if name.startswith(("nvidia", "cuda", "triton"))]
    text = (ROOT / "requirements-torch.lock").read_text()
    assert len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) == len(locked)
    assert "://" not in text, "an index is the machine's own"


def versions(lock: str) -> dict[str, str]:
    """Version by name."""
    text = (ROOT / lock).read_text()
    found = re.findall(r"^([\w.-]+)==([\w.+!]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}
