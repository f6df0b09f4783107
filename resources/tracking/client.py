"""MLflow's client made quiet, with errors of our own tree.

Everything goes through `MlflowClient` with explicit run ids. The fluent API (`mlflow.start_run`)
keeps an active run in process globals, and its exit handler marks that run FINISHED whatever
happened to it.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from platform_assets.domain.errors import HomeError, SignalboxError, TransientError, UsageError

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
    # Its REST client sends what was not answered again, whether it was carried out or not, and
    # for minutes, in which no training goes on. `Patience` waits, and looks before it repeats.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
}

# Two processes that log the same dataset into one experiment at once collide on its unique key,
# and one gets an error; its transaction was rolled back and passes when it is tried again.
COLLISIONS = ("UNIQUE constraint failed", "duplicate key value")
# MLflow waits 20 s for a database that another process has locked, then gives up.
LOCKED = ("database is locked", "database table is locked")
# How MLflow words that a server did not answer, or answered that it could not now.
UNANSWERED = re.compile(
    r"Connection(Error| refused| aborted| reset)|NewConnectionError|Max retries exceeded"
    r"|RemoteDisconnected|[Tt]imed out|failed with error code (408|429|5\d\d)"
    r"|\b50[234] Server Error"
)
_BROKEN = re.compile(r"\w+Error\((\d+), '([^']+)'\)")
_CAUSE = re.compile(r"\[Errno -?\d+\] [^'\")]+|[Rr]ead timed out|[Cc]onnect(?:ion)? timed out")
ATTEMPTS = 5
FIRST_PAUSE = 0.05  # seconds


class AwayError(TransientError):
    """A tracking server did not answer; what it was asked for may have been carried out."""


def quiet_environment() -> None:
    """What has to be set before anybody in this process imports MLflow."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def quiet_mlflow() -> None:
    """Imports MLflow so that it neither prints nor reports; cheap when called again."""
    quiet_environment()
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
    """Runs `call`, again where it lost a race that changed nothing, and translates its errors.

    What a server did not answer is not tried again here (AwayError): see `Patience`.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    for number in range(1, ATTEMPTS + 1):
        try:
            with storage_errors():
                return call()
        except RequestException as error:  # from the upload of an artifact
            raise _translate(uri, error) or error from error
        except MlflowException as error:
            if number == ATTEMPTS or not _lost_race(error):
                translated = _translate(uri, error)
                if translated is None:
                    raise
                raise translated from error
            pause = FIRST_PAUSE * 2 ** (number - 1)
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
    raise AssertionError("unreachable")


def _lost_race(error: Exception) -> bool:
    if getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS":
        return False  # a collision, too, but an answer: the caller decides what it means
    return any(mark in str(error) for mark in COLLISIONS + LOCKED)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns what the file system says about a full or closed disk into our own errors."""
    try:
        yield
    except OSError as error:
        where = error.filename or "the artifacts folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TransientError(
                f"there is no space left to write {where} ({error.strerror}), a model and its "
                "figures need some: free space and try again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise HomeError(
                f"{where} cannot be written ({error.strerror}), the artifacts folder must be "
                "writable: correct its permissions"
            ) from error
        raise


def shown(uri: str) -> str:
    """The URI as it may stand in a message: without a user's password."""
    scheme, mark, rest = uri.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{host}" if at and "/" not in user else uri


def _innermost(text: str) -> str:
    """Of what MLflow says of a connection the cause alone: the rest is names of classes."""
    causes = _CAUSE.findall(text)
    causes += [f"[Errno {number}] {why}" for number, why in _BROKEN.findall(text)]
    return causes[-1].strip() if causes else text


def _translate(uri: str, error: Exception) -> SignalboxError | None:
    """Our own error for what is the fault of the store's surroundings, else None."""
    uri = shown(uri)
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
    code = getattr(error, "error_code", None)
    if not uri.startswith(SQLITE) and (
        code == "TEMPORARILY_UNAVAILABLE" or UNANSWERED.search(text)
    ):
        return AwayError(
            f"the tracking server {uri} does not answer ({_innermost(first)}), it must be "
            "reachable: start it, or try again when it is back"
        )
    if _lost_race(error) or code == "TEMPORARILY_UNAVAILABLE" or "API request" in text:
        return TransientError(
            f"the MLflow store {uri} did not answer ({first}), it must be reachable and have "
            "free space: try again"
        )
    if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return UsageError(
            f"MLflow refused the call ({first}), what it names must exist in {uri} and be within "
            "MLflow's limits: correct it"
        )
    return None
