"""Zygotes from the side of whoever launches: started, asked for forks, replaced, let go."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from platform_assets.domain.errors import TransientError
from platform_assets.domain.lease import Holder

MODULE = "platform_assets.instance.zygote"
PACKET = 1 << 17
LOAD_SECONDS = 180.0
"""For imports, on a machine that is busy."""

FORK_SECONDS = 30.0
ZYGOTES = 3
"""How many are tried for one run: the one there is, a new one, and a newer one still."""


class CannotForkError(TransientError):
    """No process could be forked for a run, and none will start it."""


class ZygoteLostError(CannotForkError):
    """The zygote does not answer: it was killed, or hangs."""


class Zygote:
    """A process to fork runs from, for one code location.

    Args:
        origin: the repository, as Dagster serializes it.

    Raises:
        CannotForkError: it could not be started, or the definitions could not be loaded.
    """

    def __init__(self, origin: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A Ctrl-C on the terminal is for whoever owns it.
                start_new_session=True,
            )
        try:
            found = self._ask({"origin": origin}, [], LOAD_SECONDS)
        except CannotForkError:
            self.close()
            raise
        if "error" in found:
            self.close()
            raise CannotForkError(f"the definitions could not be loaded: {found['error']}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def fork(self, run_id: str, instance_ref: str) -> "Fork | None":
        """A process for a run, which waits; None if the code on the disk is another one by now.

        Raises:
            CannotForkError: it refused, with the reason.
        """
        held, given = os.pipe()
        fork = Fork(given)
        try:
            found = self._ask(
                {"run_id": run_id, "instance_ref": instance_ref}, [held], FORK_SECONDS
            )
            if "stale" in found:
                fork.abandon()
                return None
            if "pid" not in found:
                raise CannotForkError(str(found.get("refused") or found.get("error")))
            fork.holder = Holder(run_id, found["machine"], found["pid"], found["started"])
        except BaseException:
            fork.abandon()
            raise
        finally:
            os.close(held)
        return fork

    def close(self) -> None:
        """Let it go: it ends with its last run."""
        self._channel.close()
        # Nobody waits for it otherwise; a zombie would stay as long as this process.
        threading.Thread(target=self.process.wait, daemon=True).start()

    def _ask(self, request: dict[str, Any], pipes: list[int], seconds: float) -> dict[str, Any]:
        try:
            self._channel.settimeout(seconds)
            socket.send_fds(self._channel, [json.dumps(request).encode()], pipes)
            reply = self._channel.recv(PACKET)
        except OSError as error:
            raise ZygoteLostError(
                f"the process {self.pid} to fork from does not answer ({error})"
            ) from error
        if not reply:
            raise ZygoteLostError(f"the process {self.pid} to fork from has ended")
        found: dict[str, Any] = json.loads(reply)
        return found


class Fork:
    """A forked process that waits to be told whether to execute its run."""

    holder: Holder

    def __init__(self, go: int) -> None:
        self._go = go

    def start(self) -> None:
        """Have it execute the run; from here on nobody else may.

        Raises:
            CannotForkError: it has gone.
        """
        try:
            os.write(self._go, b"!")
        except OSError as error:
            raise CannotForkError(
                f"process {self.holder.pid} ended before its run began ({error})"
            ) from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the pipe: unless it was told to start, the process ends and does nothing."""
        if self._go >= 0:
            with suppress(OSError):
                os.close(self._go)
            self._go = -1


class Nursery:
    """One zygote a code location, started when first needed; safe to use from many threads."""

    def __init__(self) -> None:
        self._zygotes: dict[str, Zygote] = {}
        self._guard = threading.Lock()

    def warm(self, origin: str) -> int:
        """Start the zygote of a code location unless it is there; its process id."""
        with self._guard:
            return self._zygote(origin).pid

    def fork(self, origin: str, run_id: str, instance_ref: str, say: Callable[[str], None]) -> Fork:
        """A process for a run, which waits for its start.

        A zygote that has died, or that holds other code than the disk does, is replaced.

        Args:
            say: is told of replacements.

        Raises:
            CannotForkError: none could be forked; the run is not started by anything here.
        """
        with self._guard:
            why = ""
            for _ in range(ZYGOTES):
                zygote = self._zygote(origin)
                try:
                    fork = zygote.fork(run_id, instance_ref)
                except ZygoteLostError as error:
                    why = str(error)
                else:
                    if fork is not None:
                        return fork
                    why = "the code on the disk has changed"
                say(f"{why}; starting another process to fork from")
                self._drop(origin)
        raise CannotForkError(f"{why}, {ZYGOTES} times in a row")

    def close(self) -> None:
        with self._guard:
            for origin in list(self._zygotes):
                self._drop(origin)

    def _zygote(self, origin: str) -> Zygote:
        if origin not in self._zygotes:
            self._zygotes[origin] = Zygote(origin)
        return self._zygotes[origin]

    def _drop(self, origin: str) -> None:
        self._zygotes.pop(origin).close()
