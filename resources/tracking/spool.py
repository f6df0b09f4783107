"""What MLflow has yet to be told, on the disk: it outlives the process and the server's absence.

An entry is there from before a run is begun until all of it has been told, its end included. Its
lock is held by the process that trains; the kernel gives it back when that process is gone.
What MLflow refuses for good is set aside in `refused/`, as it was, with the reason beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from platform_assets.domain.errors import HomeError
from resources.tracking.client import storage_errors

REFUSED = "refused"
"""The folder of what was set aside."""

TAKE_SECONDS = 30.0


class Entry:
    """The file of one run, locked as long as this object is open."""

    def __init__(self, folder: Path, key: str, lock: int) -> None:
        self.key = key
        self._path = folder / f"{key}.json"
        self._lock_path = folder / f"{key}.lock"
        self._lock: int | None = lock

    def keep(self, header: Mapping[str, Any], messages: Sequence[Any]) -> None:
        """Replace what is there: the run, and what is still to be told of it, in order.

        Raises:
            TransientError: the disk is full; what was there before still is.
            HomeError: the folder cannot be written.
        """
        draft = self._path.with_suffix(".new")
        with storage_errors():
            draft.write_text(json.dumps({"run": dict(header), "messages": list(messages)}))
            draft.replace(self._path)

    def read(self) -> tuple[dict[str, Any], list[Any]]:
        """What `keep` wrote last."""
        document = json.loads(self._path.read_text())
        return document["run"], document["messages"]

    def discard(self) -> None:
        """All has been told."""
        for path in (self._path, self._lock_path):
            path.unlink(missing_ok=True)
        self.release()

    def set_aside(self, reason: str) -> None:
        """MLflow will never take it: out of the way of the others, with why.

        Raises:
            TransientError: the disk is full; the entry is where it was.
            HomeError: the folder cannot be written.
        """
        folder = self._path.parent / REFUSED
        with storage_errors():
            folder.mkdir(exist_ok=True)
            (folder / f"{self.key}.reason").write_text(f"{reason}\n")
            self._path.replace(folder / self._path.name)
        self.discard()

    def release(self) -> None:
        """Leave the rest to whoever looks for what was abandoned."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Spool:
    """The entries of one home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: str) -> Entry:
        """A new entry, locked by this process.

        Raises:
            HomeError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(self.folder / f"{key}.lock")
        except OSError as error:
            raise HomeError(
                f"{self.folder} cannot be written ({error.strerror}), what MLflow has yet to be "
                "told is kept there: correct its permissions"
            ) from error
        assert lock is not None, f"the key {key} is taken"
        return Entry(self.folder, key, lock)

    def take(self, key: str, patience: float = TAKE_SECONDS) -> Entry | None:
        """The entry of a run that is gone on with; None while its process lives.

        Args:
            patience: seconds for whoever tells MLflow just now how that process ended.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, until = self.folder / f"{key}.lock", time.monotonic() + patience
        while True:
            lock = _locked(path)
            if lock is not None:
                if _is_at(lock, path):
                    return Entry(self.folder, key, lock)
                os.close(lock)  # all was told, and the file removed, between opening and locking it
            elif time.monotonic() > until:
                return None
            else:
                time.sleep(0.05)

    def pending(self) -> bool:
        """Whether there is any entry, of a living process or of one that is gone."""
        return self.folder.is_dir() and any(self.folder.glob("*.json"))

    def refused(self) -> dict[str, str]:
        """Why each entry was set aside, by its key."""
        folder = self.folder / REFUSED
        return {
            path.stem: reason.read_text().strip() if reason.exists() else "no reason was kept"
            for path in sorted(folder.glob("*.json"))
            for reason in [path.with_suffix(".reason")]
        }

    def abandoned(self) -> Iterator[Entry]:
        """The entries that no living process holds; each is locked while it is looked at."""
        for path in sorted(self.folder.glob("*.json")):
            lock = None
            with suppress(FileNotFoundError):
                lock = _locked(self.folder / f"{path.stem}.lock")
            if lock is None:
                continue
            entry = Entry(self.folder, path.stem, lock)
            try:
                if path.exists():  # else its process told all of it since we have listed it
                    yield entry
                else:
                    entry.discard()
            finally:
                entry.release()


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _locked(path: Path) -> int | None:
    found = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(found)
        return None
    return found
