"""deploy/ on the disk: rendered from what it follows from, and compared with that."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from platform_assets.domain.cluster import Sources, files_inside, manifests
from platform_assets.domain.cluster_apps import instance
from platform_assets.domain.cluster_settings import ClusterSettings, parse_settings
from platform_assets.domain.errors import HomeError
from resources.catalog import read_document
from resources.failures import failures_file, load_budgets
from resources.home import QUIET
from resources.images import load_lock, lock_file
from resources.lanes import lanes_file, load_lanes, with_lanes

VARIABLE = "SIGNALBOX_CLUSTER"
HEAD = """\
# Written by `signalbox cluster render` from lanes.yaml, images.lock.yaml and cluster.yaml: change
# it there.
"""
NO_LOCK = "# There is no image lock yet: no image may run.\nversion: 1\n"


def settings_file() -> Path:
    """SIGNALBOX_CLUSTER, else the example that comes with the project."""
    chosen = os.environ.get(VARIABLE)
    own = Path(str(files("platform_assets"))) / "cluster.yaml"
    return Path(chosen).expanduser() if chosen else own


def load_settings(path: Path | None = None) -> ClusterSettings:
    """Read the settings of the cluster.

    Raises:
        UsageError: they are missing, no YAML, or wrong; names each wrong field.
    """
    place = path or settings_file()
    return parse_settings(read_document(place), str(place))


def render(project: str) -> dict[str, str]:
    """The files of deploy/ by path.

    Args:
        project: text of the project's dagster.yaml.

    Raises:
        UsageError: lanes, lock or settings are wrong.
    """
    lanes, lock = load_lanes(), load_lock()
    document = yaml.safe_load(with_lanes(project, lanes))
    sources = Sources(lanes, lock, load_settings(), document, QUIET, load_budgets())
    locked = lock_file()
    texts = {name: _dump(made) for name, made in files_inside(sources).items()}
    texts["lanes.yaml"] = lanes_file().read_text()
    texts["failures.yaml"] = failures_file().read_text()
    texts["cluster.yaml"] = settings_file().read_text()
    texts["images.lock.yaml"] = locked.read_text() if locked.exists() else NO_LOCK
    return {
        path: HEAD + "---\n".join(_dump(document) for document in documents)
        for path, documents in manifests(sources, texts).items()
    }


def instance_document(project: str) -> dict[str, Any]:
    """The cluster's dagster.yaml, as a document; raises as `render` does."""
    lanes = load_lanes()
    document = yaml.safe_load(with_lanes(project, lanes))
    return instance(document, load_settings(), load_budgets())


def differences(folder: Path, wanted: dict[str, str]) -> list[str]:
    """The files of a folder that are not as rendered: missing, changed, or not among them."""
    found = []
    for path, text in wanted.items():
        place = folder / path
        if not place.is_file():
            found.append(f"{path} is missing")
        elif place.read_text() != text:
            found.append(f"{path} differs")
    for place in sorted(folder.rglob("*.yaml")):
        path = place.relative_to(folder).as_posix()
        if path not in wanted and _is_ours(place):
            found.append(f"{path} is rendered no more")
    return found


def write(folder: Path, wanted: dict[str, str]) -> list[str]:
    """Make a folder as rendered; what somebody else put there stays. Returns what changed.

    Raises:
        HomeError: it cannot be written.
    """
    changed = differences(folder, wanted)
    try:
        for path, text in wanted.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        for line in changed:
            if line.endswith(" is rendered no more"):
                (folder / line.removesuffix(" is rendered no more")).unlink()
    except OSError as error:
        raise HomeError(
            f"{folder} cannot be written ({error.strerror}); make it writable, or name another "
            "folder with --out"
        ) from error
    return changed


def _is_ours(place: Path) -> bool:
    return place.read_text().startswith(HEAD)


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _dump(document: Any) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100)
