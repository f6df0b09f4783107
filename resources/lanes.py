"""The declaration of the lanes, and the sections of a dagster.yaml that follow from it."""

import os
import re
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from platform_assets.domain.errors import HomeError
from platform_assets.domain.lane_limits import concurrency_section
from platform_assets.domain.lanes import Lanes, parse_lanes
from resources.catalog import read_document

GENERATED = "# Written by `signalbox lanes write` from platform_assets/lanes.yaml: change it there."

OWNED = (
    "instance_class",
    "concurrency",
    "run_coordinator",
    "run_launcher",
    "run_monitoring",
    "run_retries",
)
"""The sections of a home's dagster.yaml that are the project's, where the project has them.

Storage, logs and the like are whoever's who runs the home.
"""


def lanes_file() -> Path:
    """SIGNALBOX_LANES, else the declaration that comes with the project."""
    chosen = os.environ.get("SIGNALBOX_LANES")
    return (
        Path(chosen).expanduser() if chosen else Path(str(files("platform_assets"))) / "lanes.yaml"
    )


def load_lanes(path: Path | None = None) -> Lanes:
    """Read the declaration.

    Raises:
        SpecError: it is missing, no YAML, or leaves the daily lane no slot.
    """
    place = path or lanes_file()
    return parse_lanes(read_document(place), str(place))


def generated_section(lanes: Lanes) -> str:
    """The section `concurrency` as text."""
    document = {"concurrency": concurrency_section(lanes)}
    return f"{GENERATED}\n{yaml.safe_dump(document, sort_keys=False)}"


def with_lanes(text: str, lanes: Lanes) -> str:
    """A dagster.yaml whose section `concurrency` is the generated one; all else stays as it is."""
    return _replaced(text, "concurrency", generated_section(lanes))


def renewed(text: str, project: str) -> str:
    """A home's dagster.yaml whose sections of OWNED are those of the project's.

    Args:
        text: the home's, of whatever version; its other sections and comments stay.
        project: the project's.
    """
    for name in OWNED:
        block = _block(project, name)
        if block is not None:
            text = _replaced(text, name, block)
    return text


def outdated(document: Mapping[str, Any], project: Mapping[str, Any], lanes: Lanes) -> list[str]:
    """The sections of a home's dagster.yaml that are not as the project and the lanes have them."""
    wanted = {**project, "concurrency": concurrency_section(lanes)}
    return sorted(n for n in OWNED if n in wanted and document.get(n) != wanted[n])


def write_instance_file(path: Path, text: str) -> bool:
    """Replace a dagster.yaml at once; the one before stays beside it. Tells whether it differed.

    Raises:
        HomeError: it cannot be written.
    """
    try:
        if path.read_text() == text:
            return False
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text)
        shutil.copyfile(path, path.with_name(f"{path.name}.before"))
        beside.replace(path)
    except OSError as error:
        raise HomeError(
            f"{path} cannot be written ({error.strerror}); own it, or free it"
        ) from error
    return True


def read_instance_file(path: Path) -> dict[str, Any]:
    """A dagster.yaml as a document.

    Raises:
        HomeError: it is missing, or no mapping.
    """
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise HomeError(
            f"{path} is missing ({error.strerror}); copy the project's there"
        ) from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise HomeError(f"{path} is no YAML ({said}); copy the project's over it") from error
    if not isinstance(document, Mapping):
        found = type(document).__name__
        raise HomeError(f"{path} holds a {found}, a mapping is needed; copy the project's over it")
    return dict(document)


def _span(text: str, name: str) -> tuple[int, int] | None:
    """Where a top-level section stands: from its key to the next line that is not indented."""
    found = re.search(rf"^{re.escape(name)}\s*:.*\n?", text, re.MULTILINE)
    if found is None:
        return None
    end = found.end()
    for line in text[end:].splitlines(keepends=True):
        if line.strip() and not line[0].isspace() and not line.startswith("- "):
            break
        end += len(line)
    start = found.start()
    if text[:start].endswith(f"{GENERATED}\n"):
        start -= len(GENERATED) + 1
    return start, end


def _block(text: str, name: str) -> str | None:
    span = _span(text, name)
    return text[span[0] : span[1]] if span else None


def _replaced(text: str, name: str, block: str) -> str:
    span = _span(text, name)
    if span is None:
        return f"{text.rstrip()}\n\n{block.rstrip()}\n"
    start, end = span
    return f"{text[:start]}{block.rstrip()}\n\n{text[end:]}".rstrip() + "\n"
