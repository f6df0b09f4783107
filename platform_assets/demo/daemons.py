"""Who works as the daemon of a home: one process, on one of the machines that share it.

Signalbox's daemon holds a lease in the ledger for as long as it works. Dagster's own holds none:
where Dagster's storage is a server's, its heartbeats there are looked at; SQLite is on this
machine, whose processes can be looked at.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lease import RENEW_SECONDS, TIMEOUT_SECONDS, Holder, Lease, Taken
from platform_assets.instance.whereabouts import name_of
from resources.home import Home
from resources.leasing import keeper
from resources.ledger.leases import LeaseRecord, Leases
from resources.processes import holder, is_dead, machine

DAEMON = "platform_assets.demo.daemon_process"
DAEMONS = ("dagster._daemon", "dagster-daemon", DAEMON)
"""By one of these words on its command line a daemon is known, Dagster's or Signalbox's."""

RESOURCE = "daemon"
"""Name of the lease; its holder's run is called so as well."""

LOOK_SECONDS = 1.0

BEAT_SECONDS = 45.0
"""A daemon that lives has written a heartbeat by then: it does so every 30 s."""

STALE_SECONDS = 600.0
"""A heartbeat that is older is nobody's any more, also where the clocks of machines differ."""


def daemons_of(home: Home) -> Iterator[psutil.Process]:
    """The processes of this machine that work as a daemon on a home."""
    for process in psutil.process_iter():
        try:
            place, words = process.environ().get("DAGSTER_HOME"), process.cmdline()
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or somebody else's
        if place == str(home.dagster) and any(Path(word).name in DAEMONS for word in words):
            yield process


def require_no_daemon(home: Home) -> None:
    """Refuse a home that a Dagster daemon works on: two of them would launch everything twice.

    What holds the lease is refused by `sole_daemon`.

    Raises:
        RefusedError: naming its process, or the storage in which its heartbeats were seen.
    """
    for process in daemons_of(home):
        raise RefusedError(
            f"a Dagster daemon (process {process.pid}) works on {home.root} already; use its UI, "
            "or end it first"
        )
    if home.dagster_url is None:
        return
    record = Leases(home.ledger_url).find(RESOURCE)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        if beats(instance, _heard_of(record)):
            raise RefusedError(
                f"a Dagster daemon of another machine works on the storage of {home.root}: it "
                "wrote a heartbeat while this was watched; one machine runs the daemon, end that "
                "one first or leave it to it"
            )


def beats(instance: dg.DagsterInstance, ours_until: float) -> bool:
    """Whether a daemon writes heartbeats now; takes up to BEAT_SECONDS.

    Args:
        instance: whose storage it is.
        ours_until: heartbeats up to then are those of Signalbox's last daemon, whose lease tells
            whether it lives; epoch seconds.
    """
    first = _newest(instance)
    if first <= ours_until or time.time() - first > STALE_SECONDS:
        return False
    _tell(f"looking for up to {BEAT_SECONDS:.0f} s whether a daemon of another machine lives")
    deadline = time.monotonic() + BEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        if _newest(instance) > first:
            return True
    return False


def _newest(instance: dg.DagsterInstance) -> float:
    """When the last heartbeat was written, epoch seconds; 0 if there was none."""
    return max((beat.timestamp for beat in instance.get_daemon_heartbeats().values()), default=0.0)


def _heard_of(record: LeaseRecord | None) -> float:
    """Until when Signalbox's last daemon may have written heartbeats, epoch seconds."""
    if record is None:
        return 0.0
    if record.released_at is not None:
        return record.released_at.timestamp()
    return record.renewed_at.timestamp() + 2 * RENEW_SECONDS


# --- the lease --------------------------------------------------------------------------------


@contextmanager
def sole_daemon(home: Home) -> Iterator[Lease]:
    """Be the only one who works as the daemon of a home, or prepares to, until the block is left.

    A holder that died on this machine is replaced at once; one of another machine once it has been
    watched for 30 s without a sign of life.

    Raises:
        RefusedError: another process does; names it and its machine.
    """
    lease = _claim(home, holder(RESOURCE))
    with keeper(home.ledger_url).keep(lease):
        yield lease


def _claim(home: Home, me: Holder) -> Lease:
    leases = Leases(home.ledger_url)
    found = leases.claim(RESOURCE, me)
    if isinstance(found, Taken) and _has_gone(home, leases, found):
        found = leases.claim(RESOURCE, me, over=found)
    if isinstance(found, Lease):
        return found
    raise RefusedError(
        f"the daemon of {home.root} is {name_of(found.holder)}; one machine runs it, use its UI, "
        "or end it first"
    )


def _has_gone(home: Home, leases: Leases, found: Taken) -> bool:
    other = found.holder
    if other.machine == machine():
        return not _works_on(home, other)
    _tell(f"looking for up to {TIMEOUT_SECONDS:.0f} s whether the daemon, {name_of(other)}, lives")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        now = leases.find(RESOURCE)
        if now is None or now.released_at is not None:
            return True
        if (now.token, now.renewals) != (found.token, found.renewals):
            return False
    return True


def _works_on(home: Home, other: Holder) -> bool:
    """Whether a process of this machine works on this home; of a copy's ledger, it does not."""
    if is_dead(other):
        return False
    if not home.ledger_url.startswith("sqlite:"):
        return True
    try:
        return psutil.Process(other.pid).environ().get("DAGSTER_HOME") == str(home.dagster)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True  # somebody else's: nobody can tell


def end_without(home: Home, lease: Lease) -> None:
    """Have this process end, as by SIGTERM, once its lease is another's: it must have slept."""
    threading.Thread(target=_watch, args=(home, lease), name="daemon-lease", daemon=True).start()


def _watch(home: Home, lease: Lease) -> None:
    leases = Leases(home.ledger_url)
    while True:
        time.sleep(RENEW_SECONDS)
        try:
            found = leases.find(RESOURCE)
        except Exception:  # noqa: BLE001, S112 - a ledger that does not answer gives it to nobody
            continue
        if found is None or found.token != lease.token:
            now = name_of(found.holder) if found else "nobody"
            _tell(f"the daemon ends: it was not heard of for a while, and {now} works now")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _tell(message: str) -> None:
    print(f"signalbox: {message}", file=sys.stderr, flush=True)
