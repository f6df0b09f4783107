"""Serving slots: a folder with a link that is swapped, and an endpoint that says what it serves.

    <home>/serving/<model>/
        current -> versions/7-3f9c1a2b4d5e     swapped by one rename
        versions/7-3f9c1a2b4d5e/model/         as MLflow wrote it
        versions/7-3f9c1a2b4d5e/signalbox.json which version it is

Whoever dies before the rename leaves the one before in force; what it had copied is removed by
the next.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from platform_assets.domain.errors import RefusedError, TransientError
from platform_assets.domain.serving import Served
from resources.tracking.client import storage_errors
from resources.tracking.models import model_digest

LINK, VERSIONS, MODEL, CARD = "current", "versions", "model", "signalbox.json"
ROUTE = "/signalbox"
"""Of an endpoint: what it serves, as JSON."""

LOCK_SECONDS = 60.0
ANSWER_SECONDS = 2.0
SETTLED_NANOSECONDS = 1_000_000_000
"""Files that changed less than this ago are read again: a second change may have the same time."""
TICK_NANOSECONDS = 1_000_000
"""Between two times of a folder; the kernel's clock of files stands still for up to 4 ms."""

_IGNORED = ("__pycache__", "registered_model_meta")

# Digests by folder, as long as no file of it has another size, inode or time of change.
_known: dict[Path, tuple[tuple[object, ...], str]] = {}


@dataclass(frozen=True)
class FolderSlot:
    """A folder that a model is served from.

    Attributes:
        root: of this model alone.
        keep: versions that stay beside the one in force.
    """

    root: Path
    keep: int = 3

    def deploy(self, model: str, version: int, digest: str, files: Path) -> None:
        """See `Slot`."""
        with storage_errors(), locked(self.root):
            place = self.root / VERSIONS / f"{version}-{digest[:12]}"
            if self.kept(version, digest) is None:
                self._copy(model, version, digest, files, place)
            self._newest(place)
            _point(self.root, place)
            self._prune(place)

    def serves(self) -> Served | None:
        """See `Slot`."""
        link = self.root / LINK
        if not os.path.lexists(link):
            return None
        folder = link.resolve()
        return Served(version=_version(folder), digest=digest_of_files(folder / MODEL))

    def kept(self, version: int, digest: str) -> Path | None:
        """The files of a version that lie in the slot whole; None where they do not."""
        place = self.root / VERSIONS / f"{version}-{digest[:12]}"
        if _version(place) != version or digest_of_files(place / MODEL) != digest:
            return None
        return place / MODEL

    @property
    def files(self) -> Path:
        """MLflow's folder of what is served: for `mlflow models serve -m`."""
        return self.root / LINK / MODEL

    def _copy(self, model: str, version: int, digest: str, files: Path, place: Path) -> None:
        draft = self.root / VERSIONS / f".{place.name}.{os.getpid()}"
        draft.parent.mkdir(parents=True, exist_ok=True)
        for old in draft.parent.glob(".*"):  # of who died; the lock says that nobody else copies
            shutil.rmtree(old, ignore_errors=True)
        try:
            shutil.copytree(files, draft / MODEL, ignore=shutil.ignore_patterns(*_IGNORED))
            found = _digest(draft / MODEL)
            if found != digest:
                raise RefusedError(
                    f"the files of model {model} version {version} have digest "
                    f"{found or 'none'}, the ledger has {digest}; they were not deployed and what "
                    "was served before still is: restore them, or train the model again"
                )
            card = {"model": model, "version": version, "digest": digest}
            (draft / CARD).write_text(json.dumps(card, indent=2) + "\n")
            _synced(draft)
            if place.exists():  # torn, or tampered with
                shutil.rmtree(place)
            draft.rename(place)
            _sync(place.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def _newest(self, place: Path) -> None:
        """Mark what comes in force last, for `_prune`: later than all others, also where the clock
        has not moved since, or was set back."""
        others = [p.stat().st_mtime_ns for p in place.parent.iterdir() if p != place]
        now = max([time.time_ns(), *(other + TICK_NANOSECONDS for other in others)])
        os.utime(place, ns=(now, now))

    def _prune(self, current: Path) -> None:
        others = [p for p in (self.root / VERSIONS).iterdir() if p != current and p.name[0] != "."]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in others[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Endpoint:
    """What a server says it serves: `signalbox serve`, or whatever has its route."""

    url: str

    def serves(self) -> Served | None:
        """See `Slot`.

        Raises:
            TransientError: it does not answer, or not as it should.
        """
        address = self.url.rstrip("/") + ROUTE
        try:
            with urlopen(address, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - http by the spec
                found = json.loads(answer.read(10_000))
            return Served(version=found["version"], digest=found["digest"])
        except (URLError, OSError, ValueError, KeyError, TypeError) as error:
            raise TransientError(
                f"{address} does not tell what it serves ({error}); a JSON object with version and "
                "digest is expected: start `signalbox serve`, or correct serving.endpoint"
            ) from error


@contextmanager
def locked(root: Path, name: str = "slot", seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only process of this machine that changes a slot; who dies lets go.

    Raises:
        TransientError: somebody else did for all of that time.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("a") as file:
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise TransientError(
                        f"another process has been at {root} for more than {seconds:g} s; wait for "
                        "it or end it, then try again"
                    ) from error
                time.sleep(0.02)
        yield


def digest_of_files(folder: Path) -> str:
    """`model_digest` of a folder, remembered while no file of it changes; empty: there is none."""
    before = _signature(folder)
    known = _known.get(folder)
    if known is not None and known[0] == before:
        return known[1]
    found = _digest(folder)
    newest = max((entry[-1] for entry in before), default=0)
    if before and newest + SETTLED_NANOSECONDS < time.time_ns():
        if len(_known) > 100:
            _known.clear()
        _known[folder] = (before, found)
    return found


def _signature(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Names, inodes, sizes and times of change; nobody sets the last one by hand."""
    found = []
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):
            state = path.stat()
            found.append((str(path), state.st_ino, state.st_size, state.st_ctime_ns))
    return tuple(found)


def _digest(folder: Path) -> str:
    if not (folder / "MLmodel").is_file():
        return ""
    try:
        return model_digest(folder)
    except (OSError, ValueError):  # a torn archive, a file that went
        return ""


def _version(folder: Path) -> int | None:
    try:
        found = json.loads((folder / CARD).read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def _point(root: Path, place: Path) -> None:
    """Swap the link: who reads it finds the one before or the new one, never none."""
    fresh = root / f".{LINK}.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(place.relative_to(root))
    link = root / LINK
    if link.is_dir() and not link.is_symlink():  # somebody put a folder in its place
        link.rename(root / f".{LINK}.{time.time_ns()}")
    fresh.replace(link)
    _sync(root)


def _synced(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
