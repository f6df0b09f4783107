"""Webserver, daemon and code locations side by side, as `dagster dev` has them.

`python -m platform_assets.demo.conductor WORKSPACE PORT`. The daemon is Signalbox's own
(`platform_assets.instance.daemon`), which `dagster dev` cannot be told to start.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

import dagster as dg
import yaml
from dagster._cli.proxy_server_manager import ProxyServerManager
from dagster._core.workspace.load_target import WorkspaceFileTarget

from platform_assets.demo import daemons

DAEMON = daemons.DAEMON
LOOK_SECONDS = 0.5
END_SECONDS = 10.0


def conduct(workspace: str, port: int) -> int:
    """Run both until one of them ends or SIGINT comes; 1 if one of them ended by itself."""
    os.environ["DAGSTER_IS_DEV_CLI"] = "1"
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.get())
        servers = stack.enter_context(
            ProxyServerManager(instance, WorkspaceFileTarget([workspace]), "warning")
        )
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="signalbox-"))
        shared = Path(folder, "workspace.yaml")
        shared.write_text(yaml.safe_dump({"load_from": _plain(servers.get_code_server_specs())}))
        children = {
            "webserver": _start(
                "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(shared)
            ),
            "daemon": _start(DAEMON, str(shared)),
        }
        try:
            while True:
                time.sleep(LOOK_SECONDS)
                for name, child in children.items():
                    if child.poll() is not None:
                        print(f"the {name} ended with code {child.returncode}", file=sys.stderr)
                        return 1
        except KeyboardInterrupt:
            return 0
        finally:
            _end(list(children.values()))


def _plain(specs: object) -> object:
    """As YAML takes it: Dagster gives mappings and sequences of its own."""
    if isinstance(specs, dict):
        return {str(key): _plain(value) for key, value in specs.items()}
    if isinstance(specs, list | tuple):
        return [_plain(value) for value in specs]
    return specs


def _start(module: str, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", module, *arguments])


def _end(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + END_SECONDS
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def main() -> int:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Whoever started this may have had SIGINT ignored, which children inherit.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    return conduct(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
