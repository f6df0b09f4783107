"""MLflow's client made quiet, with errors of our own tree.

Everything goes through `MlflowClient` with explicit run ids. The fluent API (`mlflow.start_run`)
keeps an active run in process globals, and its exit handler marks that run FINISHED whatever
happened to it.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from platform_assets.domain.errors import HomeError, SignalboxError, TransientError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

SQLITE = "sqlite:///"

# What MLflow reads while it is being imported. A user's own setting wins.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else a thread reports usage to MLflow's makers
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

# SQLite refuses at once, without waiting, when two transactions that began by reading want to
# write; the loser must begin again. MLflow itself does not.
ATTEMPTS = 8
FIRST_PAUSE = 0.05  # seconds


def quiet_mlflow() -> None:
    """Imports MLflow so that it neither prints nor reports; cheap when called again."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    # Where somebody else imported MLflow first, the environment came too late.
    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.WARNING:
            logger.setLevel(logging.WARNING)
    # It logs a traceback for each database error that it also raises; `attempt` reports those.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def sqlite_path(uri: str) -> Path | None:
    """The file behind a sqlite URI, None for any other kind of store."""
    if not uri.startswith(SQLITE):
        return None
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def open_client(uri: str) -> MlflowClient:
    """A client of the store at `uri`.

    Raises:
        HomeError: a sqlite store that was never prepared. MLflow would create one here, with
            its artifacts in the working directory, and two processes at once would break it.
    """
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise HomeError(
            f"there is no MLflow database at {path}, it must be created before it is used: "
            "initialise the home first (signalbox init)"
        )
    quiet_mlflow()
    from mlflow import MlflowClient

    return attempt(uri, lambda: MlflowClient(tracking_uri=uri, registry_uri=uri))


def attempt(uri: str, call: Callable[[], T]) -> T:
    """Runs `call`, again where a locked database refused it, and translates what it raises.

    Only database stores are tried again here: MLflow's REST client has retries of its own, and
    a request that timed out may have been carried out.
    """
    from mlflow.exceptions import MlflowException

    tries = 1 if uri.startswith(("http:", "https:")) else ATTEMPTS
    for number in range(1, tries + 1):
        try:
            return call()
        except MlflowException as error:
            if number == tries or not _locked(error):
                translated = _translate(uri, error)
                if translated is None:
                    raise
                raise translated from error
            pause = FIRST_PAUSE * 2 ** (number - 1)
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
    raise AssertionError("unreachable")


def _locked(error: Exception) -> bool:
    return "database is locked" in str(error) or "database table is locked" in str(error)


def _translate(uri: str, error: Exception) -> SignalboxError | None:
    """Our own error for what is the fault of the store's surroundings, else None."""
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    if "out-of-date database schema" in text:
        return HomeError(
            f"the MLflow store {uri} has the schema of another MLflow release, only the "
            f"installed release's is readable: back it up and run `mlflow db upgrade {uri}`"
        )
    if "readonly database" in text or "unable to open database file" in text:
        return HomeError(
            f"the MLflow store {uri} cannot be written ({first}), it must be writable: "
            "check the owner and the permissions of its folder"
        )
    if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE" or "API request" in text:
        return TransientError(
            f"the MLflow store {uri} did not answer ({first}), it must be reachable and have "
            "free space: try again"
        )
    return None
