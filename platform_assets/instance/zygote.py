"""The process that runs are forked from: `python -m platform_assets.instance.zygote FD`.

It imports the definitions and what their runs need, once, and opens nothing of the home: no
database, no table; and it has no thread. For each request it forks a child, which executes one run.
It ends when the process that started it has ended and its last run has.

Messages are JSON, one a packet of a Unix socket, each answered by one:

    {"origin": …}                               -> {"ready": true, "pid": …} | {"error": …}
    {"run_id": …, "instance_ref": …} and a pipe -> {"pid": …, "started": …, "machine": …}
                                                 | {"stale": path} | {"refused": why}
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platform_assets.instance.code_state import State, changed_since, read_state
from platform_assets.instance.worker import (
    DEADLY,
    become_reporter,
    become_worker,
    name_process,
)
from resources.processes import holder

PACKET = 1 << 17
HARMLESS_THREADS = {"jemalloc_bg_thd"}
"""jemalloc's own, in pyarrow and delta-rs: it stops and starts them itself around a fork."""


@dataclass
class Child:
    """A run's process, or the one that reports the end of it."""

    run_id: str
    instance_ref: str
    reports: bool = False


@dataclass
class Zygote:
    """The loop, with what it knows of its children."""

    channel: socket.socket
    woken: socket.socket
    folders: list[Path] = field(default_factory=list)
    state: State = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)
    owned: bool = True

    def serve(self) -> None:
        """Answer until the owner has gone and the last child has ended."""
        while self.owned or self.children:
            watched = [self.woken, *([self.channel] if self.owned else [])]
            ready, _, _ = select.select(watched, [], [])
            if self.woken in ready:
                self.woken.recv(PACKET)
                self._reap()
            if self.channel in ready and self.owned:
                self._answer()

    def let_go(self, *_: object) -> None:
        """Take no more runs, and end with the last one."""
        self.owned = False

    def _answer(self) -> None:
        try:
            data, pipes, _, _ = socket.recv_fds(self.channel, PACKET, 1)
        except (OSError, InterruptedError):
            data, pipes = b"", []
        if not data:
            self.let_go()
            return
        try:
            reply = self._handle(json.loads(data), pipes)
        except Exception:  # noqa: BLE001 - told to whoever asked
            reply = {"error": traceback.format_exc()}
        finally:
            for pipe in pipes:
                os.close(pipe)
        try:
            self.channel.send(json.dumps(reply).encode())
        except OSError:
            self.let_go()  # the child that may be waiting sees its pipe closed

    def _handle(self, request: dict[str, Any], pipes: list[int]) -> dict[str, Any]:
        if "origin" in request:
            self._load(request["origin"])
            return {"ready": True, "pid": os.getpid(), "threads": foreign_threads()}
        changed = changed_since(self.state, self.folders)
        if changed is not None:
            return {"stale": changed}
        threads = foreign_threads()
        if threads:
            return {"refused": f"the process to fork from has threads ({', '.join(threads)})"}
        pid = self._fork(Child(request["run_id"], request["instance_ref"]), pipes[0])
        worker = holder(request["run_id"], pid)
        return {"pid": pid, "started": worker.started, "machine": worker.machine}

    def _load(self, origin: str) -> None:
        """Import everything, until nothing has changed on the disk meanwhile."""
        from dagster._core.origin import RepositoryPythonOrigin
        from dagster._serdes import deserialize_value
        from dagster._utils.hosted_user_process import recon_repository_from_origin

        from platform_assets.instance.preload import preload
        from resources.catalog import catalog_folder, components_folder

        self.folders = [catalog_folder(), components_folder()]
        began, before = time.time_ns(), read_state(self.folders)
        found = recon_repository_from_origin(deserialize_value(origin, RepositoryPythonOrigin))
        repository = found.get_definition()
        repository.load_all_definitions()
        repository.asset_graph  # noqa: B018 - computed once, here
        preload()
        after = read_state(self.folders)
        # What changed while it was being loaded may have been read before or after: it counts as
        # changed, and the next zygote reads it anew.
        fresh = {path: None for path, found in after.items() if found and found[0] >= began}
        self.state = {**after, **fresh, **before}
        gc.collect()
        gc.freeze()  # what is shared with the children stays shared
        # OpenBLAS ends its idle threads before a fork, and starts new ones where they are used.
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    def _fork(self, child: Child, pipe: int | None, status: int = 0) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        # Held back in the child until it has handlers of its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, DEADLY)
        try:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                os.setsid()
                self.channel.close()
                self.woken.close()
                if pipe is None:
                    become_reporter(child.run_id, child.instance_ref, status)
                become_worker(child.run_id, child.instance_ref, pipe)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, DEADLY)
        self.children[pid] = child
        return pid

    def _reap(self) -> None:
        for pid in list(self.children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            child = self.children.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code and not child.reports:
                self._fork(Child(child.run_id, child.instance_ref, reports=True), None, code)


def foreign_threads() -> list[str]:
    """Names of the threads of this process that must not be there when it forks."""
    own = threading.get_native_id()
    names = []
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != own:
            try:
                name = (task / "comm").read_text().strip()
            except OSError:
                continue  # ended meanwhile
            if name not in HARMLESS_THREADS:
                names.append(name)
    return names


def main() -> None:
    """Serve on the socket that was handed over."""
    name_process("signalbox-forks")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        zygote = Zygote(channel, woken)
        signal.signal(signal.SIGTERM, zygote.let_go)
        zygote.serve()
    os._exit(0)


if __name__ == "__main__":
    main()
