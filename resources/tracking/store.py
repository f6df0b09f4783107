"""The tracking store and the model registry behind one address."""

from __future__ import annotations

import getpass
import hashlib
import logging
import re
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import url2pathname

from platform_assets.domain.errors import HomeError, RefusedError, UsageError
from resources.tracking.client import (
    SQLITE,
    attempt,
    open_client,
    quiet_environment,
    quiet_mlflow,
    sqlite_path,
)
from resources.tracking.messages import DIGEST_TAG, Begun, Link, Message
from resources.tracking.models import load_model, model_digest, older_digest, private_copy
from resources.tracking.patience import Patience
from resources.tracking.run import TrackedRun
from resources.tracking.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

DAGSTER_RUN_TAG = "signalbox.dagster_run_id"
OWNER_TAG = "signalbox.owner"
TAG_LENGTH = 8000  # MLflow's limit, in characters

# By name: this layer does not know the orchestrator.
INTERRUPTS = frozenset(
    {
        *("KeyboardInterrupt", "SystemExit", "DagsterExecutionInterruptedError"),
        "TrainingInterruptedError",
    }
)

logger = logging.getLogger(__name__)


class Tracking:
    """Runs, models and aliases of one MLflow store.

    Args:
        uri: `sqlite:///<path>`, or the address of a tracking server.
        artifacts: folder for models and figures of a local store; None where the server
            decides.
        spool: folder for what a server that is away has yet to be told; without one it is
            waited for at the end of a run, too.
        owner: names the ledger that decides about these runs; runs of another one are not ours.
        patience: how long a server is waited for that a training cannot do without.
    """

    def __init__(
        self,
        uri: str,
        artifacts: Path | None,
        *,
        spool: Path | None = None,
        owner: str = "",
        patience: Patience | None = None,
    ) -> None:
        quiet_environment()
        self.uri = uri
        self.artifacts = artifacts
        self.spool = Spool(spool) if spool else None
        self.owner = owner
        self.patience = patience or Patience()
        self._opened: MlflowClient | None = None

    def prepare(self) -> None:
        """Creates a sqlite store's schema once; does nothing to one that exists, or to a server.

        The database appears whole or not at all, and one that exists costs no import of MLflow.

        Raises:
            HomeError: not writable, or the file in its place is no MLflow database.
        """
        path = sqlite_path(self.uri)
        if path is None:
            return
        if self.artifacts is None:
            raise UsageError(
                f"the MLflow store {self.uri} has no artifacts folder, a sqlite store needs one: "
                "name it"
            )
        if url2pathname(str(self.artifacts.absolute())) != str(self.artifacts.absolute()):
            raise HomeError(
                f"the path {self.artifacts.absolute()} has a % that reads as an escape, MLflow "
                "would look for its models elsewhere: choose a home without it"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.artifacts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"the MLflow folders cannot be created ({error}), they must be writable: choose "
                "another home or correct its permissions"
            ) from error
        if not _is_prepared(path):
            self._create(path, self.artifacts.absolute().as_uri())

    @contextmanager
    def run(
        self, experiment: str, name: str, tags: Mapping[str, str], *, before: Begun | None = None
    ) -> Iterator[TrackedRun]:
        """An MLflow run whose final state tells what happened to the block.

        An exception makes it FAILED, an interrupt (Ctrl-C, SystemExit, Dagster's termination, a
        training whose place is taken away) KILLED, else it is FINISHED. A killed process leaves
        RUNNING behind, which settling.py sets right; so does one that could not reach the server
        to say its last word.

        Args:
            before: a run that was interrupted, and is gone on with: it is RUNNING again. Where
                MLflow has lost it, or its process lives, it is a new one.
        """
        cut = {key: str(value)[:TAG_LENGTH] for key, value in {**_context(), **tags}.items()}
        if self.owner:
            cut[OWNER_TAG] = self.owner
        tracked = self._gone_on_with(before, cut) if before is not None else None
        tracked = tracked or self._new(experiment, name, cut)
        try:
            try:
                yield tracked
            except BaseException as error:
                names = {base.__name__ for base in type(error).__mro__}
                self._fail_quietly(tracked, "KILLED" if names & INTERRUPTS else "FAILED")
                raise
            tracked.end("FINISHED")
        finally:
            tracked.release()

    def _new(self, experiment: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
        begun = Begun(uuid.uuid4().hex, experiment, name, tags, time.time_ns() // 1_000_000)
        entry = self.spool.open(begun.key) if self.spool is not None else None
        tracked = TrackedRun(self.link(), begun, entry)
        try:
            if entry is not None:
                entry.keep(asdict(begun), [])
            try:
                tracked.drain()
            except BaseException:
                if entry is not None and not begun.tried:
                    entry.discard()
                raise
        except BaseException:
            tracked.release()
            raise
        return tracked

    def _gone_on_with(self, before: Begun, tags: Mapping[str, str]) -> TrackedRun | None:
        entry = self.spool.take(before.key) if self.spool is not None else None
        if self.spool is not None and entry is None:
            return None
        begun = replace(before, tags=dict(tags))
        messages: list[Message] = []
        if entry is not None:
            with suppress(OSError, ValueError, KeyError):
                header, messages = entry.read()
                begun = replace(Begun(**header), tags=dict(tags))
        tracked = TrackedRun(self.link(), begun, entry)
        tracked.reopen(messages)
        try:
            if entry is not None:
                entry.keep(asdict(begun), messages)
            tracked.drain()
        except (UsageError, RefusedError) as error:
            logger.warning("MLflow run %s cannot be gone on with: %s", begun.run_id, error)
            if entry is not None:
                entry.discard()
            return None
        except BaseException:
            tracked.release()
            raise
        return tracked

    def finish(self, run_id: str) -> None:
        """Ends a run whose model was recorded, but whose process was killed before it said so."""
        self._end(run_id, "FINISHED")

    def log_judgement(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Adds metrics to a run that has ended: what was found out about its model later."""
        client, now = self._client(), int(time.time() * 1000)
        from mlflow.entities import Metric

        batch = [Metric(name, value, now, 0) for name, value in metrics.items()]
        attempt(self.uri, lambda: client.log_batch(run_id, metrics=batch))

    def retag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Adds tags to a run that has ended, or replaces them."""
        client = self._client()
        from mlflow.entities import RunTag

        batch = [RunTag(key, str(value)[:TAG_LENGTH]) for key, value in tags.items()]
        attempt(self.uri, lambda: client.log_batch(run_id, tags=batch))

    def recorded_digest(self, model: str, version: int) -> str | None:
        """The digest that the registry shows of a version; None where there is no such version."""
        client = self._client()
        try:
            found = attempt(self.uri, lambda: client.get_model_version(model, str(version)))
        except UsageError:
            return None
        digest = found.tags.get(DIGEST_TAG)
        return str(digest) if digest else None

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Points the alias at that version. The last writer wins: MLflow compares nothing."""
        client = self._client()
        attempt(self.uri, lambda: client.set_registered_model_alias(model, alias, str(version)))

    def alias(self, model: str, alias: str) -> int | None:
        """The version that the alias points at; None where there is no such alias or model."""
        client = self._client()
        try:
            found = attempt(self.uri, lambda: client.get_model_version_by_alias(model, alias))
        except UsageError:
            return None
        return int(found.version)

    def absence(self, model: str, version: int) -> str | None:
        """Why a version is not to be used: deleted or archived; None where it is there."""
        client = self._client()
        try:
            found = attempt(self.uri, lambda: client.get_model_version(model, str(version)))
        except UsageError:
            return "is not in MLflow's registry, it was deleted there or never registered"
        if found.current_stage == "Archived":
            return "is archived in MLflow's registry"
        return None

    def load(self, model: str, version: int, flavor: str, *, digest: str) -> object:
        """The model of that version, as its flavor gives it back (a Booster, an estimator).

        Its bytes are compared with the ledger's digest before anything of them is read as a
        model: loading runs what the files say.

        Args:
            digest: as it was recorded when the model was registered, 64 hexadecimal digits.

        Raises:
            UsageError: there is no such model or version.
            RefusedError: its files are others than those that were recorded, or gone.
        """
        with self.verified(model, version, digest=digest) as folder:
            return load_model(folder, flavor)

    @contextmanager
    def verified(self, model: str, version: int, *, digest: str) -> Iterator[Path]:
        """A private copy of a version's files, of exactly the digest; gone when the block is left.

        Raises:
            UsageError: there is no such model or version.
            RefusedError: its files are others than those that were recorded, or gone.
        """
        client = self._client()
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
        from mlflow.utils.file_utils import local_file_uri_to_path
        from mlflow.utils.uri import is_local_uri

        place = attempt(
            self.uri, lambda: client.get_model_version_download_uri(model, str(version))
        )
        with tempfile.TemporaryDirectory(prefix="signalbox-") as temporary:
            try:
                if is_local_uri(place):
                    found = local_file_uri_to_path(place)
                else:
                    fetch = partial(download_artifacts, place, dst_path=temporary)
                    found = attempt(
                        self.uri,
                        lambda: fetch(tracking_uri=self.uri, registry_uri=self.uri),
                    )
                folder = private_copy(Path(found), Path(temporary))
            except (FileNotFoundError, MlflowException) as error:
                raise RefusedError(
                    f"the files of model {model} version {version} cannot be had from {place} "
                    f"({str(error).splitlines()[0]}), those with digest {digest} are needed; "
                    "restore them, or train the model again"
                ) from error
            found = model_digest(folder)
            if found != digest:
                if older_digest(folder) == digest:
                    raise RefusedError(
                        f"model {model} version {version} was registered when its digest did not "
                        f"count the MLmodel file, which says what is run: recorded was {digest}, "
                        f"by the present scheme it is {found}, and nothing of it was loaded; "
                        "train its date again, with the tag signalbox/restate set to true"
                    )
                raise RefusedError(
                    f"the files of model {model} version {version} have digest {found}, recorded "
                    f"was {digest}: they were changed since, and nothing of them was loaded; "
                    "restore them, or train the model again"
                )
            yield folder

    def _create(self, path: Path, artifacts: str) -> None:
        # MLflow's migrations (more than 60) tolerate neither a second process nor being killed,
        # so they run on a file beside; linking it into place fails if somebody was faster.
        quiet_mlflow()
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with tempfile.TemporaryDirectory(prefix=".prepare-", dir=path.parent) as folder:
            made = Path(folder, path.name)
            uri = f"{SQLITE}{made}"
            attempt(uri, lambda: SqlAlchemyStore(uri, artifacts))._dispose_engine()
            with suppress(FileExistsError):
                path.hardlink_to(made)

    def _client(self) -> MlflowClient:
        if self._opened is None:
            self._opened = open_client(self.uri)
        return self._opened

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        client = self._client()
        place = None
        if self.artifacts is not None:
            place = (self.artifacts.absolute() / _folder_name(name)).as_uri()
        found = attempt(self.uri, lambda: client.get_experiment_by_name(name))
        if found is None:
            try:
                return str(
                    attempt(
                        self.uri, lambda: client.create_experiment(name, artifact_location=place)
                    )
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = attempt(self.uri, lambda: client.get_experiment_by_name(name))
        if found.lifecycle_stage != "active":
            raise RefusedError(
                f"the MLflow experiment {name!r} was deleted, a run needs an active one: restore "
                f"it (mlflow experiments restore --experiment-id {found.experiment_id})"
            )
        return str(found.experiment_id)

    def _end(self, run_id: str, state: str) -> None:
        client = self._client()
        attempt(self.uri, lambda: client.set_terminated(run_id, status=state))

    def _fail_quietly(self, tracked: TrackedRun, state: str) -> None:
        """Ends a run while an exception is on its way: that one must arrive, not ours."""
        try:
            tracked.fail(state)
        except Exception:
            logger.warning(
                "MLflow run %s could not be marked %s; the sensors will set it right",
                tracked.begun.run_id,
                state,
                exc_info=True,
            )

    def link(self) -> Link:
        """The store, opened."""
        return Link(self.uri, self._client(), self.patience, self._experiment)


def _is_prepared(path: Path) -> bool:
    """Whether an MLflow database is there; HomeError if something else is."""
    if not path.exists():
        return False
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, timeout=20, uri=True)) as connection:
            connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:
        raise HomeError(
            f"the file {path} is not an MLflow database ({error}), nothing else may be in its "
            "place: move it away"
        ) from error
    return True


def _context() -> dict[str, str]:
    """What MLflow's UI shows of a run's origin; MLflow's own providers would ask git."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.name": Path(sys.argv[0]).name or "signalbox",
        "mlflow.source.type": "JOB",
    }


def _folder_name(experiment: str) -> str:
    """A folder of its own for each experiment, whatever characters its name has."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", experiment)
    if safe == experiment and not safe.startswith("."):
        return safe
    return f"{safe.lstrip('.')}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"
