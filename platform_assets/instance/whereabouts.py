"""In which process a run is, and whether that one lives: a tag on the run says, and its leases."""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import GRPC_INFO_TAG

from platform_assets.domain.lease import TIMEOUT_SECONDS, Holder
from resources.processes import holder, is_dead, machine, rebooted

if TYPE_CHECKING:
    from resources.ledger.leases import LeaseRecord

PROCESS_TAG = ".signalbox/process"
"""On a run: which process it is in, so that whoever terminates or watches it finds it."""

SILENT_SECONDS = 10 * TIMEOUT_SECONDS
"""A run elsewhere that has renewed none of its leases for this long is taken for dead."""


def worker_of(run: DagsterRun) -> Holder | None:
    """The process that a run is in; None if a code server has it, or nothing tells."""
    text = None if GRPC_INFO_TAG in run.tags else run.tags.get(PROCESS_TAG)
    return Holder(run.run_id, **json.loads(text)) if text else None


def tag_of(worker: Holder) -> dict[str, str]:
    """The tag that says which process a run is in."""
    place = {"machine": worker.machine, "pid": worker.pid, "started": worker.started}
    return {PROCESS_TAG: json.dumps(place)}


def own_tag(run: DagsterRun) -> dict[str, str]:
    """The tag of a run that executes in this process; nothing if it has one, or needs none.

    A run of a code server is that one's. A step that has a process of its own does not stand for
    its run, and in a thread a signal would end the whole process instead of the run. A tag of a
    dead process is that of the run before, of which this one is a re-execution.
    """
    known = worker_of(run)
    if (
        GRPC_INFO_TAG in run.tags
        or (known is not None and not is_dead(known))
        or multiprocessing.parent_process() is not None
        or threading.current_thread() is not threading.main_thread()
    ):
        return {}
    return tag_of(holder(run.run_id))


def name_of(worker: Holder) -> str:
    """A process as people name it: `process 4711 of host-a`."""
    return f"process {worker.pid} of {worker.machine.partition(' ')[0]}"


class Silence:
    """Since when the leases of runs elsewhere stand still, on a clock that never goes back.

    Args:
        monotonic: that clock, in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, tuple[frozenset[tuple[str, int, int]], float]] = {}

    def why_gone(self, worker: Holder, held: "Iterable[LeaseRecord]") -> str | None:
        """Why a process that cannot be looked at has gone; None while it may live.

        Args:
            worker: of a run.
            held: the leases that the run holds, as the ledger has them now.
        """
        if worker.machine == machine():
            return None
        signs = frozenset((one.resource, one.token, one.renewals) for one in held)
        now = self._monotonic()
        before, since = self._seen.get(worker.run_id, (None, now))
        if signs != before:
            since = now
            self._seen[worker.run_id] = (signs, now)
        again = rebooted(worker)
        if not signs:
            if not again:
                return None  # it may be waiting for its slot
            return f"{name_of(worker)} ended with its machine, which was started anew"
        if now - since < (TIMEOUT_SECONDS if again else SILENT_SECONDS):
            return None
        return f"{name_of(worker)} has renewed none of its leases for {now - since:.0f} seconds"
