"""The image lock as a file: `images.lock.yaml`."""

import fcntl
import os
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import yaml

from platform_assets.domain.errors import HomeError
from platform_assets.domain.images import LOCK_FILE, ImageLock, parse_lock
from resources.catalog import read_document

HEAD = """\
# The images that may run, by logical name. Written by `signalbox images pin` and `bump`; a change
# is reviewed like code. Add a registry by hand, under `registries`.
"""
VARIABLE = "SIGNALBOX_IMAGES"


def lock_file() -> Path:
    """SIGNALBOX_IMAGES, else the one that comes with the project."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(str(files("platform_assets"))) / LOCK_FILE


def load_lock(path: Path | None = None) -> ImageLock:
    """The lock; an empty one, which lets nothing run, where there is no file.

    Raises:
        UsageError: it is no YAML, or no lock; names each wrong field.
    """
    place = path or lock_file()
    if not place.exists():
        return ImageLock()
    return parse_lock(read_document(place), str(place))


def change_lock(change: Callable[[ImageLock], ImageLock], path: Path | None = None) -> ImageLock:
    """Read the lock, change it and write it, whole or not at all; one at a time.

    Raises:
        UsageError: the file is no lock, or the change is refused.
        HomeError: it cannot be written.
    """
    place = (path or lock_file()).resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            changed = change(load_lock(place))
            _write(place, changed)
        finally:
            os.close(folder)
    except OSError as error:
        raise HomeError(
            f"{place} cannot be written ({error.strerror}); nothing was changed: make its folder "
            f"writable, or name another file in {VARIABLE}"
        ) from error
    return changed


def _write(place: Path, lock: ImageLock) -> None:
    document = lock.model_dump(mode="json")
    document["images"] = {name: document["images"][name] for name in sorted(document["images"])}
    text = HEAD + yaml.safe_dump(document, sort_keys=False, width=200)
    with tempfile.NamedTemporaryFile(
        "w", dir=place.parent, prefix=f".{place.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(place)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
