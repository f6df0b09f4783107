"""Dagster (webserver, daemon, code location) as children that leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from platform_assets.demo import conductor, guard
from platform_assets.demo.daemons import require_no_daemon, sole_daemon
from platform_assets.domain.errors import RefusedError, TransientError
from platform_assets.factory.instance import end_orphaned_runs
from platform_assets.line import links
from resources.catalog import catalog_environment
from resources.dagster_api import DagsterApi
from resources.home import Home

READY_SECONDS = 120.0
PORT_SECONDS = 2.0
"""A killed process closes its sockets after its memory has gone: by then no list shows it."""
END_SECONDS = guard.INTERRUPT_SECONDS + 3 * guard.TERMINATE_SECONDS


def require_free_port(port: int, seconds: float = PORT_SECONDS) -> None:
    """Refuse a port that somebody else listens on, and goes on to.

    Raises:
        RefusedError: naming the port and the option that chooses another.
    """
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RefusedError(
                        f"port {port} of 127.0.0.1 is taken ({error.strerror}); end what listens "
                        "there, or choose another with --port"
                    ) from error
        time.sleep(0.05)


def workspace_file() -> Path:
    """The workspace.yaml that is really loaded: of the checkout, or of the installed package."""
    root = Path(__file__).resolve().parents[2]
    beside = root / "workspace.yaml"
    return beside if beside.exists() else root / "resources" / "workspace.yaml"


class DagsterDev:
    """Webserver, daemon and code location of a home, on 127.0.0.1.

    Used as a context manager: every process that it started, run workers included, has ended when
    the block is left. They also end when the calling process is killed, a few seconds later.

    Args:
        home: an initialised home.
        port: of the webserver.
        variables: for the environment of Dagster and all its runs, beside the home's.
    """

    def __init__(self, home: Home, port: int, variables: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api = DagsterApi(self.url)
        self.log = home.root / "dagster-dev.log"
        self._variables = dict(variables or {})
        self._guard: subprocess.Popen[bytes] | None = None
        self._mark = uuid.uuid4().hex

    def __enter__(self) -> "DagsterDev":
        require_free_port(self.port)
        require_no_daemon(self.home)
        with sole_daemon(self.home):
            end_orphaned_runs(self.home)
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", guard.__name__, self._mark, *self.command()],
                cwd=workspace_file().parent,
                env={
                    links.DAGSTER_UI: self.url,
                    links.MLFLOW_UI: self._mlflow_ui(),
                    **os.environ,
                    **self.home.environment(),
                    **catalog_environment(),
                    **self._variables,
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def _mlflow_ui(self) -> str:
        """Where runs say that MLflow's UI is: that of a tracking server, or `signalbox mlflow`."""
        return "" if self.home.mlflow_uri.startswith("http") else links.LOCAL_MLFLOW_UI

    def command(self) -> list[str]:
        """What is started."""
        return [sys.executable, "-m", conductor.__name__, str(workspace_file()), str(self.port)]

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
        assert self._guard is not None
        if self._guard.poll() is not None:
            raise RefusedError(
                f"Dagster ended with code {self._guard.returncode}; its log is {self.log}"
            )

    def wait(self) -> None:
        """Wait for Ctrl-C, or for Dagster to end."""
        while True:
            self.require_alive()
            time.sleep(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not leave processes behind.
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
        try:
            self._end()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        self._guard.stdin.close()
        try:
            self._guard.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        # Nothing is left by now, unless the guard itself was killed.
        guard.end_marked(self._mark)


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
    with terminates(), subprocess.Popen(command, env=environment) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()


@contextmanager
def terminates() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the block as Ctrl-C does, so that it leaves nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # What nohup has ignored stays ignored: whoever typed it wants the work to go on.
    ending = (signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
