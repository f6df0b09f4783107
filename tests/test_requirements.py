"""What the project declares is what is locked."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"]]


def test_every_dependency_is_locked() -> None:
    lines = (ROOT / "requirements.in").read_text().splitlines()
    wanted = {canonicalize_name(Requirement(line).name) for line in lines if line.strip()}
    locked = {
        canonicalize_name(name): version
        for name, version in re.findall(
            r"^([\w.-]+)==([\w.+!]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
        )
    }
    assert len(DECLARED) > 20
    for requirement in DECLARED:
        name = canonicalize_name(requirement.name)
        assert name in wanted, f"{name} is missing in requirements.in"
        assert requirement.specifier.contains(locked[name]), f"{requirement}, not {locked[name]}"
