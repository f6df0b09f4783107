"""The catalog: one YAML file a pipeline, what a user writes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from platform_assets.domain.errors import SpecError, UsageError
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.spec import PipelineSpec

PIPELINE_FILE = "pipeline.yaml"
"""What a Dagster component of type SignalboxPipeline declares, beside its defs.yaml."""


@dataclass(frozen=True)
class Entry:
    """A pipeline and the file that declares it; a component's is loaded by Dagster itself."""

    spec: PipelineSpec
    path: Path
    component: bool


def catalog_folder() -> Path:
    """SIGNALBOX_CATALOG, else the catalog that comes with the project."""
    chosen = os.environ.get("SIGNALBOX_CATALOG")
    return Path(chosen).expanduser() if chosen else Path(str(files("platform_assets"))) / "catalog"


DECLARATIONS = (
    "SIGNALBOX_CATALOG",
    "SIGNALBOX_LANES",
    "SIGNALBOX_IMAGES",
    "SIGNALBOX_CLUSTER",
    "SIGNALBOX_FAILURES",
)
"""Variables that name files in the place of those that come with the project."""


def catalog_environment() -> dict[str, str]:
    """The variables by which a child process, wherever it works, finds the same declarations."""
    chosen = {name: os.environ[name] for name in DECLARATIONS if os.environ.get(name)}
    return {name: str(Path(place).expanduser().resolve()) for name, place in chosen.items()}


def components_folder() -> Path:
    """Where `dg scaffold defs` puts components; it does not move with SIGNALBOX_CATALOG."""
    return Path(str(files("platform_assets"))) / "defs"


def load_catalog(folder: Path | None = None) -> dict[str, PipelineSpec]:
    """The pipelines of `load_entries` by name."""
    return {name: entry.spec for name, entry in load_entries(folder).items()}


def load_entries(folder: Path | None = None, components: Path | None = None) -> dict[str, Entry]:
    """Read every `*.yaml` of a folder in the order of the file names, then those of components.

    Args:
        folder: the catalog; by default `catalog_folder()`.
        components: the components; by default `components_folder()`.

    Returns:
        the pipelines by name, with their files.

    Raises:
        UsageError: there is no such folder, or no pipeline in it.
        SpecError: a file is no YAML or no pipeline, or two of them clash; names file and line
            or field.
    """
    place = folder or catalog_folder()
    entries: dict[str, Entry] = {}
    origins: dict[str, Path] = {}
    found = [(path, False) for path in _catalog_files(place)]
    found += [(path, True) for path in _component_files(components or components_folder())]
    for path, component in found:
        spec = read_pipeline(path)
        for field, name in (("pipeline", spec.pipeline), ("model.name", spec.model.name)):
            other = origins.setdefault(f"{field} {name}", path)
            if other != path:
                taken_by = other.name if other.parent == path.parent else other
                raise SpecError(
                    str(path),
                    {field: f"found {name!r}, which {taken_by} has taken; each needs its own"},
                )
        entries[spec.pipeline] = Entry(spec, path, component)
    if not entries:
        raise UsageError(
            f"the catalog {place} holds no *.yaml; write one file a pipeline, or set "
            "SIGNALBOX_CATALOG to a folder that has some"
        )
    return entries


def _catalog_files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        raise UsageError(
            f"the catalog {place} is no folder; set SIGNALBOX_CATALOG to a folder that holds one "
            "YAML file a pipeline"
        )
    paths = sorted(p for p in place.iterdir() if not p.name.startswith("."))
    for path in paths:
        if path.suffix == ".yml":
            raise SpecError(str(path), {"(file)": "only *.yaml is read here; rename it"})
    return (p for p in paths if p.suffix == ".yaml")


def _component_files(place: Path) -> Iterator[Path]:
    for path in sorted(place.rglob(PIPELINE_FILE)):
        # Without a component beside it, Dagster does not know the pipeline either.
        component = path.with_name("defs.yaml")
        if component.is_file() and "SignalboxPipeline" in component.read_text(errors="replace"):
            yield path


def read_pipeline(path: Path) -> PipelineSpec:
    """One file as a pipeline.

    Raises:
        SpecError: it is no YAML or no pipeline; names file and line or field.
    """
    return parse_spec(read_document(path), str(path))


class _Strict(yaml.constructor.SafeConstructor):
    """Refuses what YAML would pass over, or crash on."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice: the first one would be lost without a word."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} stands twice in one mapping",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Name the line of a scalar that has the form of a date but is none."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(
                problem=f"found {getattr(node, 'value', '')!r}: {error}",
                problem_mark=node.start_mark,
            ) from error


class _Loader(_Strict, yaml.SafeLoader):
    """In Python: it says what it found instead."""


_Fast: type[yaml.SafeLoader] = _Loader
if yaml.__with_libyaml__:

    class _Fast(_Strict, yaml.CSafeLoader):  # type: ignore[no-redef]
        """By libyaml: a tenth of the time, and terser where it fails."""


def _load(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Fast)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def read_document(path: Path) -> Any:
    """One YAML document.

    Raises:
        SpecError: it cannot be read, is not UTF-8 or not YAML; names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(str(path), {"(file)": f"cannot be read: {error.strerror}"}) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(
            str(path),
            {
                f"line {line}": f"found byte 0x{data[error.start]:02x}, which is not UTF-8; "
                "save the file as UTF-8"
            },
        ) from error
    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "(file)"
        found = "; ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(str(path), {where: f"{found}; valid YAML is needed"}) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        why = f"found {chr(error.character)!r}; YAML allows no control characters"
        raise SpecError(str(path), {f"line {line}": why}) from error
