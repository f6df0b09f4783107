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

_known: dict[Path, tuple[tuple[int, int, int, int], ImageLock]] = {}


def lock_file() -> Path:
    """SIGNALBOX_IMAGES, else the one that comes with the project."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(str(files("platform_assets"))) / LOCK_FILE


def load_lock(path: Path | None = None) -> ImageLock:
    """The lock; an empty one, which lets nothing run, where there is no file.

    Read again only once the file is another one: every Job that is created asks for it.

    Raises:
        UsageError: it is no YAML, or no lock; names each wrong field.
    """
    place = path or lock_file()
    try:
        state = place.stat()
    except FileNotFoundError:
        return ImageLock()
    version = (state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size)
    if _known.get(place, (None, None))[0] != version:
        _known[place] = version, parse_lock(read_document(place), str(place))
    return _known[place][1]


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
