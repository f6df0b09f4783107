"""torchrun for one place of a training: told when and where to begin.

The first places are forked from the supervisor, which has PyTorch loaded by then; those that come
later get an interpreter of their own, for by then the supervisor has threads.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn, Protocol

from resources.distributed.lifeline import die_with


class Child(Protocol):
    """What the supervisor asks of a process that it has started, as `subprocess.Popen` answers."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Forked:
    """A forked process, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        del timeout  # the supervisor waits for what it has killed only
        code = self._reap(0)
        assert code is not None
        return code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, how: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def forked(environment: Mapping[str, str], log: Path) -> tuple[Forked, IO[bytes]]:
    """A place in a fork of this process; it waits for its arguments on what is returned with it."""
    read, write = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(read)
        return Forked(pid), os.fdopen(write, "wb")
    try:
        os.close(write)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        die_with(parent)
        os.dup2(read, 0)
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(environment)
        _wait_and_run()
    except SystemExit as ended:
        os._exit(int(ended.code or 0) if isinstance(ended.code, int | None) else 1)
    except BaseException:  # noqa: BLE001 - nothing may return into the supervisor's own code
        traceback.print_exc()
    os._exit(1)


def spawned(environment: Mapping[str, str], log: Path) -> tuple[Child, IO[bytes]]:
    """A place in an interpreter of its own, which waits in the same way."""
    command = [sys.executable, "-m", __name__, str(os.getpid())]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
        )
    assert process.stdin is not None
    return process, process.stdin


def begin(waiting: IO[bytes], arguments: Sequence[str]) -> None:
    """Tell a place to begin."""
    waiting.write(("\0".join(arguments) + "\n").encode())
    waiting.close()


def _wait_and_run() -> NoReturn:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            raise SystemExit(0)
        line += part
    from torch.distributed.run import main as torchrun

    torchrun(line.decode().rstrip("\n").split("\0"))
    sys.stdout.flush()
    raise SystemExit(0)


def main(arguments: list[str]) -> None:
    """`python -m resources.distributed.agent PARENT`."""
    die_with(int(arguments[0]))
    _wait_and_run()


if __name__ == "__main__":
    main(sys.argv[1:])
