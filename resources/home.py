"""The home: the one folder that holds all state of the embedded default."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.request import url2pathname

from platform_assets.domain.errors import HomeError, SignalboxError, TransientError
from resources.ledger.engine import explain_sqlite, upgrade

FORMAT = 1
"""Layout of the home. A home of another format is refused, never guessed at."""

DAGSTER_URL = "SIGNALBOX_DAGSTER_URL"
"""Variable: where Dagster keeps its storage, if not in the home; a database of its own."""

LAKE_URL = "SIGNALBOX_LAKE_URL"
"""Variable: where the datasets' tables lie, if not in the home; the manifests stay in it."""

CHECKPOINTS_URL = "SIGNALBOX_CHECKPOINTS_URL"
"""Variable: where the checkpoints of trainings lie, if not in the home."""

QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    # Threads that wait must not spin: two trainings on two cores would take ten times
    # their CPU. Read when OpenMP loads, so it must stand in the environment before.
    "OMP_WAIT_POLICY": "passive",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Variables of every process that works on a home."""

MARKER = "home.json"
LOCK = "init.lock"
LOCK_SECONDS = 300.0
DEFAULT_ROOT = ".signalbox"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Home:
    """Where everything lies. Locating a home touches nothing on the disk."""

    root: Path
    landing: Path
    lake: Path
    dagster: Path
    ledger_url: str
    mlflow_uri: str
    mlflow_artifacts: Path
    dagster_url: str | None = None
    """Of Dagster's storage, where it is not in the home."""
    lake_url: str | None = None
    """Of the datasets' tables, where they are not in the home: `s3://bucket/folder`."""
    checkpoints_url: str | None = None
    """Of the checkpoints, where they are not in the home: `s3://bucket/folder`."""

    @classmethod
    def locate(cls, root: Path | None = None) -> "Home":
        """The home at a folder.

        Args:
            root: the folder; without it SIGNALBOX_HOME, else `.signalbox` in the working folder.

        Raises:
            HomeError: the folder's name cannot stand in a database URL, or a variable is wrong.
        """
        chosen = root or Path(os.environ.get("SIGNALBOX_HOME") or DEFAULT_ROOT)
        place = chosen.expanduser().resolve()
        odd = sorted(set(str(place)) & set("?#%"))
        if odd:
            raise HomeError(
                f"SIGNALBOX_HOME is {place}, which holds {' '.join(odd)}; database URLs allow "
                "none of ? # % in a path, choose another folder"
            )
        return cls(
            root=place,
            landing=place / "landing",
            lake=place / "lake",
            dagster=place / "dagster",
            ledger_url=os.environ.get("SIGNALBOX_LEDGER_URL") or sqlite_ledger(place),
            mlflow_uri=os.environ.get("SIGNALBOX_MLFLOW_URI") or _mlflow_uri(place),
            mlflow_artifacts=place / "mlflow" / "artifacts",
            dagster_url=os.environ.get(DAGSTER_URL) or None,
            lake_url=_bucket_url(LAKE_URL),
            checkpoints_url=_bucket_url(CHECKPOINTS_URL),
        )

    def dataset_path(self, pipeline: str) -> str:
        """Where the tables of a pipeline's features lie: a folder, or a URL."""
        root = self.lake_url or str(self.lake)
        return f"{root}/{pipeline}/features"

    @property
    def checkpoints(self) -> str:
        """Where the checkpoints of trainings lie: a folder, or a URL."""
        return self.checkpoints_url or str(self.root / "checkpoints")

    def environment(self) -> dict[str, str]:
        """The variables by which a child process finds the same home, and keeps quiet."""
        variables = {
            "SIGNALBOX_HOME": str(self.root),
            "DAGSTER_HOME": str(self.dagster),
            **QUIET,
        }
        if self.ledger_url != sqlite_ledger(self.root):
            variables["SIGNALBOX_LEDGER_URL"] = self.ledger_url
        if self.mlflow_uri != _mlflow_uri(self.root):
            variables["SIGNALBOX_MLFLOW_URI"] = self.mlflow_uri
        if self.lake_url:
            variables[LAKE_URL] = self.lake_url
        if self.checkpoints_url:
            variables[CHECKPOINTS_URL] = self.checkpoints_url
        if self.dagster_url:
            variables[DAGSTER_URL] = self.dagster_url
        return variables

    def require(self) -> None:
        """Refuse to go on without a good home.

        Raises:
            HomeError: it is missing, unfinished, unreadable, or of another format.
        """
        with _explained(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise HomeError(_in_the_way(self.root))
            found = _read_marker(self.root)
        if found is None:
            state = "was never finished" if self.root.exists() else "does not exist"
            raise HomeError(
                f"SIGNALBOX_HOME is {self.root}, which {state}; run `signalbox init`, or set "
                "SIGNALBOX_HOME to a home that is there"
            )
        _require_format(self.root, found)
        with _explained(self.root):
            self._require_place(found)

    def made_at(self) -> str | None:
        """The folder that this home was made or adopted at; None where nothing tells."""
        found = (_read_marker(self.root) or {}).get("root")
        return str(found) if found else self._made_at_by_mlflow()

    def _made_at_by_mlflow(self) -> str | None:
        """The same of a home whose marker does not say: by the first place that MLflow noted."""
        path = self.root / "mlflow" / "mlflow.db"
        query = "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
        try:
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as store:
                place = url2pathname(str(store.execute(query).fetchone()[0]).partition("://")[2])
        except (sqlite3.Error, TypeError):
            return None
        return place.removesuffix("/mlflow/artifacts/0") if place.startswith("/") else None

    def settle(self) -> None:
        """Write down that this home belongs where it lies."""
        found = _read_marker(self.root) or {}
        _write_marker(self.root, {**found, "root": str(self.root)})

    def _require_place(self, found: Mapping[str, object]) -> None:
        """Refuse a home that was copied or moved after it was used.

        One in which nothing was built yet names no place, and is a home of its own at once.
        """
        made_at = found.get("root") or self._made_at_by_mlflow()
        if made_at is None or made_at == str(self.root):
            return
        if not any(any(f.iterdir()) for f in (self.lake, self.mlflow_artifacts) if f.is_dir()):
            self.settle()
            return
        raise HomeError(
            f"SIGNALBOX_HOME is {self.root}, a copy of the home at {made_at}, or that home moved; "
            "its records name files there, run `signalbox adopt` to make it a home of its own, or "
            f"set SIGNALBOX_HOME to {made_at}"
        )


def initialise(
    home: Home, *, dagster_yaml: Path, prepare: Callable[[Home], None] | None = None
) -> None:
    """Make a home, once; on a good home it only brings the ledger's schema up to date.

    Any number of processes may call it at once: one works, the others wait for it. A home whose
    making was killed half-way is completed by the next call; `home.json` is written last.

    Args:
        home: where.
        dagster_yaml: becomes the configuration of the home's Dagster instance.
        prepare: called inside the lock, only while the home is not finished yet; creates the
            databases of Dagster and MLflow, which break when two processes do so at once.

    Raises:
        HomeError: the folder cannot be used, or holds a home of another format.
        TransientError: the disk is full, or another process holds the lock for too long.
    """
    with _explained(home.root):
        if home.root.exists() and not home.root.is_dir():
            raise HomeError(_in_the_way(home.root))
        home.root.mkdir(parents=True, exist_ok=True)
        with _locked(home.root / LOCK):
            found = _read_marker(home.root)
            if found is not None:
                _require_format(home.root, found)
                home._require_place(found)
            for folder in (home.landing, home.lake, home.dagster, home.mlflow_artifacts):
                folder.mkdir(parents=True, exist_ok=True)
            upgrade(home.ledger_url)
            if found is not None:
                if "root" not in found:  # made by an earlier version
                    home.settle()
                return
            shutil.copyfile(dagster_yaml, home.dagster / "dagster.yaml")
            if prepare is not None:
                prepare(home)
            _write_marker(
                home.root,
                {
                    "format": FORMAT,
                    "created_by": _own_version(),
                    "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "root": str(home.root),
                },
            )


@contextlib.contextmanager
def locked(home: Home) -> Iterator[None]:
    """Be the only one who makes or adopts the home, until the block is left.

    Raises:
        HomeError: the folder cannot be used.
        TransientError: the disk is full, or another process holds the lock for too long.
    """
    with _explained(home.root), _locked(home.root / LOCK):
        yield


def _bucket_url(variable: str) -> str | None:
    url = os.environ.get(variable, "").rstrip("/")
    if not url:
        return None
    if not url.startswith("s3://") or not url.removeprefix("s3://"):
        raise HomeError(
            f"{variable} is {url!r}; allowed is the URL of a bucket, or of a folder in one, such "
            "as s3://lake/signalbox"
        )
    return url


def sqlite_ledger(root: Path) -> str:
    """The URL of the ledger that lies in a home."""
    return f"sqlite:///{root / 'ledger.db'}"


def _mlflow_uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow' / 'mlflow.db'}"


def _read_marker(root: Path) -> Mapping[str, object] | None:
    try:
        content = (root / MARKER).read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content)
    except ValueError as error:
        raise HomeError(
            f"{root / MARKER} is not JSON ({error}); restore it, or set SIGNALBOX_HOME to "
            "another folder"
        ) from error
    if not isinstance(found, dict):
        raise HomeError(
            f"{root / MARKER} holds {type(found).__name__}, an object with the field format is "
            "needed; restore it, or set SIGNALBOX_HOME to another folder"
        )
    return found


def _require_format(root: Path, found: Mapping[str, object]) -> None:
    if found.get("format") != FORMAT:
        raise HomeError(
            f"SIGNALBOX_HOME is {root}, a home of format {found.get('format')!r} made by version "
            f"{found.get('created_by', 'unknown')}; version {_own_version()} needs format "
            f"{FORMAT}: use the version that made it, or set SIGNALBOX_HOME to a new folder"
        )


def _write_marker(root: Path, document: Mapping[str, object]) -> None:
    draft = root / f".{MARKER}.{uuid.uuid4().hex}"
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(root / MARKER)
    finally:
        draft.unlink(missing_ok=True)


def _own_version() -> str:
    try:
        return version("signalbox")
    except PackageNotFoundError:
        return "unknown"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TransientError(
                        f"another process has been initialising {path.parent} for more than "
                        f"{LOCK_SECONDS:.0f} s; wait for it or end it, then try again"
                    ) from error
                time.sleep(0.05)
        yield


def _in_the_way(root: Path) -> str:
    return (
        f"SIGNALBOX_HOME is {root}, which is a file; a folder is needed, move the file away or "
        "choose another folder"
    )


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError, SignalboxError):
        raise  # of a server that `prepare` talked to, or explained already
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        if error.errno in _FULL:
            raise TransientError(
                f"the disk of SIGNALBOX_HOME ({root}) is full ({what}); free some space and try "
                "again"
            ) from error
        raise HomeError(
            f"SIGNALBOX_HOME is {root}, which cannot be used ({what}); a folder that can be "
            "written is needed, choose another one or give yourself the right to write there"
        ) from error
    except Exception as error:
        mine = explain_sqlite(error, f"a database in SIGNALBOX_HOME ({root})")
        if mine is None:
            raise
        raise mine from error
