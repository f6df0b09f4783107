"""Which process this is, and whether another one still lives."""

import os
import socket
from functools import cache
from pathlib import Path

import psutil

from platform_assets.domain.lease import Holder

PARTS = 3
"""Host name, start of the kernel, process namespace: what `machine` gives on Linux."""


def holder(run_id: str, pid: int | None = None) -> Holder:
    """A process of this machine at work for a run: this one, unless another is named."""
    found = os.getpid() if pid is None else pid
    return Holder(run_id, machine(), found, _started(found) or "")


def is_dead(other: Holder) -> bool:
    """Whether a process is known to be gone; False if it lives on, or lived elsewhere."""
    if other.machine != machine() or not other.started:
        return False
    return _started(other.pid) != other.started


def rebooted(other: Holder) -> bool:
    """Whether the machine of this name was started anew since a process lived on it.

    Machines are known by their host name here: those that share a database need names that differ.
    Where the kernel has no id for its start it is False.
    """
    before, now = other.machine.split(" "), machine().split(" ")
    known = len(before) == len(now) == PARTS
    return known and before[0] == now[0] and before[1] != now[1]


@cache
def machine() -> str:
    """The kernel, since its start, and the process namespace: within them a pid has a meaning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
    return f"{socket.gethostname()} {boot} {namespace}"


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's own ticks; None if there is none, or a zombie."""
    try:
        # The name stands in brackets and may hold anything, brackets too.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _started_elsewhere(pid)
    return None if fields[0] in "ZX" else fields[19]


def _started_elsewhere(pid: int) -> str | None:
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None
