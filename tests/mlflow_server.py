"""A real `mlflow server` process for tests; it can be killed and started again on its port."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from resources.tracking.client import QUIET
from tests.ports import free_port

READY_SECONDS = 120


class MlflowServer:
    """A tracking server with a database and artifacts of its own.

    Args:
        folder: where it keeps them.
        prepared: a database whose migrations ran already.
    """

    def __init__(self, folder: Path, prepared: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(prepared, folder / "server.db")
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        store += ["--artifacts-destination", str(self.folder / "artifacts")]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *place],
            env={**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its workers end with it
        )
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, "mlflow server ended by itself"
            time.sleep(0.1)
        raise AssertionError(f"mlflow server did not answer within {READY_SECONDS} s")

    def kill(self) -> None:
        """End it and its workers without a word, as a lost machine does."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
