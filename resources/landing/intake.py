"""What one refresh takes in: the values of new files judged in bulk, and what is refused set aside.

The order in which things are written: copies of refused files, the records of the quarantine, the
arrivals. Whoever is killed in between is finished by the next refresh.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    import pyarrow as pa

    from resources.landing.setaside import SetAside
    from resources.landing.values import ValueRules
    from resources.ledger.records import ArrivalRecord, QuarantineRecord

# Bounds what is held in memory until it is judged: the bytes of the files, and their rows.
_BATCH_BYTES = 32 * 1024 * 1024
_BATCH_ROWS = 200_000

_FRESH_NS = 2 * 10**9


@dataclass(frozen=True)
class Look:
    """One file that was looked at.

    Attributes:
        before: its arrival as the ledger has it; None if it is new.
        fresh: its arrival as it is now.
        content: its bytes; None where they were not read.
        table: its rows, where its values are still to be judged.
    """

    before: ArrivalRecord | None
    fresh: ArrivalRecord
    content: bytes | None
    table: pa.Table | None


class Intake:
    """The new, changed and vanished files of some days of one source."""

    def __init__(
        self,
        rules: ValueRules | None,
        version: str,
        set_aside: SetAside | None,
        pipeline: str,
        at: datetime,
    ) -> None:
        """
        Args:
            rules: of the source, for values; None: it has none.
            version: of all rules of the source; stands in the arrivals that they refuse.
            set_aside: where refused files go.
            pipeline: of all of them.
            at: when they are said to be seen.
        """
        self.arrived: list[ArrivalRecord] = []
        self.again: list[ArrivalRecord] = []
        """Refused files that are what they were, of which that is certain only now."""
        self._version = version
        self.gone: list[str] = []
        self._rules = rules
        self._set_aside = set_aside
        self._pipeline = pipeline
        self._at = at
        self._waiting: list[Look] = []
        self._bytes = self._rows = 0
        self._refused: list[QuarantineRecord] = []
        self._accepted: list[str] = []

    @cached_property
    def open(self) -> dict[str, QuarantineRecord]:
        """The refused files that nothing has come in the place of, before this refresh."""
        return self._set_aside.open_records(self._pipeline) if self._set_aside else {}

    def unchanged(self, path: str) -> None:
        """Note an accepted file; whoever recorded it may have been killed before it was healed."""
        if path in self.open:
            self._accepted.append(path)

    def is_kept(self, record: ArrivalRecord) -> bool:
        """Whether nothing is left to be done about a refused file."""
        if self._set_aside is None:
            return True
        known = self.open.get(record.path)
        return (
            known is not None
            and bool(known.kept)
            and (known.reason, known.size) == (record.rejected, record.size)
        )

    def add(self, look: Look) -> None:
        """Take a file in; its values are judged together with those of others."""
        if look.table is None:
            self._decide(look, look.fresh.rejected)
            return
        self._waiting.append(look)
        self._bytes += look.fresh.size
        self._rows += look.fresh.rows
        if self._bytes > _BATCH_BYTES or self._rows > _BATCH_ROWS:
            self.judge()

    def judge(self) -> None:
        """Judge the values of the files that wait for it."""
        waiting, self._waiting = self._waiting, []
        self._bytes = self._rows = 0
        if not waiting:
            return
        assert self._rules is not None
        files = [(look.table, look.fresh.hour) for look in waiting if look.table is not None]
        refused = self._rules.judge(files)
        for number, look in enumerate(waiting):
            self._decide(look, refused.get(number))

    def _decide(self, look: Look, rejected: str | None) -> None:
        fresh = look.fresh
        if rejected is None:
            self._accepted.append(fresh.path)
        else:
            if fresh.rejected is None:
                fresh = replace(fresh, rejected=rejected, rows=0, digest=self._version)
            if self._set_aside is not None:
                known = self.open.get(fresh.path)
                record = self._set_aside.refuse(fresh, look.content, known)
                if record is not None:
                    self._refused.append(record)
        before = look.before
        if before is None or _content(before) != _content(fresh):
            self.arrived.append(fresh)
        elif rejected is not None and was_fresh(before):
            self.again.append(fresh)

    def settle(self, vanished: Iterable[str]) -> None:
        """Record what was refused, what has healed, and which refused files have vanished."""
        if self._set_aside is None:
            return
        ended = {"healed": self._accepted, "vanished": list(vanished)}
        if self._refused or any(ended.values()):
            self._set_aside.record(self._pipeline, self._refused, self.open, ended, self._at)


@contextmanager
def no_collection() -> Iterator[None]:
    """Take files in without Python looking for cycles, of which none come up.

    Each of a thousand files leaves a few objects that stay until they are recorded; the search
    among all objects of the process would take a tenth of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def was_fresh(record: ArrivalRecord) -> bool:
    """Whether a file may have been written to as it was looked at, in one tick of its clock.

    Then it must be looked at again, though neither its size nor its time of change is another.
    """
    return abs(record.seen_at.timestamp() * 1e9 - record.mtime_ns) < _FRESH_NS


def _content(record: ArrivalRecord) -> tuple[object, ...]:
    return (
        record.hour,
        record.size,
        record.mtime_ns,
        record.rows,
        record.rejected,
        record.digest,
    )
