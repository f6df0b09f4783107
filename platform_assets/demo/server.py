"""`dagster dev` as a child process that leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil

from platform_assets.domain.errors import RefusedError, TransientError
from resources.dagster_api import DagsterApi
from resources.home import Home

READY_SECONDS = 120.0
END_SECONDS = 20.0


def require_free_port(port: int) -> None:
    """Refuse a port that somebody else listens on.

    Raises:
        RefusedError: naming the port and the option that chooses another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise RefusedError(
                f"port {port} of 127.0.0.1 is taken ({error.strerror}); end what listens there, "
                "or choose another with --port"
            ) from error


def workspace_file() -> Path:
    """The workspace.yaml that is really loaded."""
    return Path(__file__).resolve().parents[2] / "workspace.yaml"


class DagsterDev:
    """Webserver, daemon and code location of a home, on 127.0.0.1.

    Used as a context manager: every process that it started, run workers included, has ended when
    the block is left.
    """

    def __init__(self, home: Home, port: int) -> None:
        self.home = home
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api = DagsterApi(self.url)
        self.log = home.root / "dagster-dev.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> "DagsterDev":
        require_free_port(self.port)
        workspace = workspace_file()
        command = [
            str(Path(sys.executable).with_name("dagster")),
            "dev",
            "-w",
            str(workspace),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=workspace.parent,
                env={**os.environ, **self.home.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_until_ready(self) -> None:
        """Wait until the code location is loaded and the daemons are well.

        Raises:
            RefusedError: the code location fails, or Dagster ended.
            TransientError: it took too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            self.require_alive()
            try:
                if self.api.loaded():
                    return
            except TransientError:
                pass
            time.sleep(0.5)
        raise TransientError(
            f"Dagster was not ready after {READY_SECONDS:.0f} s; its log is {self.log}"
        )

    def require_alive(self) -> None:
        """Refuse to go on when Dagster has ended by itself.

        Raises:
            RefusedError: with the place of its log.
        """
        self._note_children()
        assert self._process is not None
        if self._process.poll() is not None:
            raise RefusedError(
                f"Dagster ended with code {self._process.returncode}; its log is {self.log}"
            )

    def wait(self) -> None:
        """Wait for Ctrl-C, or for Dagster to end."""
        while True:
            self.require_alive()
            time.sleep(1)

    def _note_children(self) -> None:
        if self._process is None:
            return
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self._seen |= {child.pid: child for child in children}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C, or a second SIGTERM, must not leave processes behind.
        asked = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, signal.SIG_IGN) for number in asked]
        try:
            self._end()
        finally:
            for number, handler in zip(asked, before, strict=True):
                signal.signal(number, handler)

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        self._note_children()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # psutil compares start times: a recycled pid is never hit.
        left = [child for child in self._seen.values() if child.is_running()]
        for child in left:
            _signal(child, signal.SIGTERM)
        _, alive = psutil.wait_procs(left, timeout=5)
        for child in alive:
            _signal(child, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=5)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def run_mlflow_ui(home: Home, port: int) -> None:
    """MLflow's own server on the home's store, until Ctrl-C."""
    require_free_port(port)
    command = [
        str(Path(sys.executable).with_name("mlflow")),
        "server",
        "--backend-store-uri",
        home.mlflow_uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    environment = {
        **os.environ,
        **home.environment(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with subprocess.Popen(command, env=environment) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
