"""Refused files: a copy of each is set aside, with the reason beside it, and recorded.

The landed file itself is its producer's: it is neither moved nor changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from platform_assets.domain.errors import SignalboxError
from resources.landing.atomic import write_whole
from resources.ledger.records import QuarantineRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from resources.ledger.quarantine import Quarantine
    from resources.ledger.records import ArrivalRecord

_log = logging.getLogger(__name__)

FOLDER = "quarantine"
_DIGITS = 12


class SetAside:
    """The refused files of one home: their copies in its folder, their records in its ledger."""

    def __init__(self, home: Path, store: Quarantine) -> None:
        """
        Args:
            home: the copies lie in its folder `quarantine`.
            store: where refused files are recorded.
        """
        self.home = home
        self.store = store
        self._warned: set[str] = set()

    def open_records(self, pipeline: str) -> dict[str, QuarantineRecord]:
        """The refused files of a pipeline that nothing has come in the place of, by path."""
        return {record.path: record for record in self.store.all(pipeline, only_open=True)}

    def refuse(
        self, arrival: ArrivalRecord, content: bytes | None, known: QuarantineRecord | None
    ) -> QuarantineRecord | None:
        """Set a refused file aside, unless that is done already.

        Args:
            arrival: of the file, with the reason.
            content: its bytes; None where they were not read.
            known: the open record of its path.

        Returns:
            what is to be recorded; None where nothing is new.
        """
        digest = "" if content is None else hashlib.sha256(content).hexdigest()
        reason = arrival.rejected or ""
        if (
            known is not None
            and (known.reason, known.size) == (reason, arrival.size)
            and (known.digest == digest and (known.kept or content is None))
        ):
            return None
        record = QuarantineRecord(
            pipeline=arrival.zone,
            source=arrival.source,
            key=arrival.key,
            hour=arrival.hour,
            path=arrival.path,
            size=arrival.size,
            digest="",
            reason=reason,
            kept="",
            found_at=arrival.seen_at,
        )
        kept = "" if content is None else self._keep(record, content, digest)
        if known is not None and not kept and _is_same_but_for_its_copy(known, record):
            return None
        return replace(record, kept=kept, digest=digest if kept else "")

    def _keep(self, record: QuarantineRecord, content: bytes, digest: str) -> str:
        """Copy the bytes, and the reason beside them; empty where there is no room for both."""
        stem = f"{PurePosixPath(record.path).stem}__{digest[:_DIGITS]}"
        kept = PurePosixPath(FOLDER, record.pipeline, record.source, record.key, f"{stem}.parquet")
        note = {
            "reason": record.reason,
            "pipeline": record.pipeline,
            "source": record.source,
            "key": record.key,
            "hour": record.hour.isoformat(),
            "path": record.path,
            "size": record.size,
            "sha256": digest,
            "found_at": record.found_at.isoformat(),
        }
        copy = self.home / kept
        written = False
        try:
            written = write_whole(copy, content)
            text = json.dumps(note, indent=2, ensure_ascii=False) + "\n"
            write_whole(copy.with_suffix(".json"), text.encode())
        except SignalboxError as error:
            if written:  # without its reason beside it nobody knows what it is
                copy.unlink(missing_ok=True)
            if record.path not in self._warned:
                self._warned.add(record.path)
                _log.warning(
                    "%s is refused, but could not be set aside, which is tried again at the next "
                    "look: %s",
                    record.path,
                    error,
                )
            return ""
        return str(kept)

    def record(
        self,
        pipeline: str,
        refused: Iterable[QuarantineRecord],
        known: Mapping[str, QuarantineRecord],
        ended: Mapping[str, Iterable[str]],
        at: datetime,
    ) -> None:
        """Write down what was refused, and what has ended, before the arrivals are recorded.

        In this order a process that is killed in between leaves arrivals that are looked at again.

        Args:
            pipeline: of all of them.
            refused: as `refuse` returned them.
            known: the open records, by path.
            ended: paths by what came of them, `healed` or `vanished`.
            at: when that was found.
        """
        new = []
        for record in refused:
            before = known.get(record.path)
            if before is not None and _is_same_but_for_its_copy(before, record):
                self.store.kept(before.number, record.kept, record.digest)
            else:
                new.append(record)
        if new:
            self.store.add(new)
        for by, paths in ended.items():
            mine = [path for path in paths if path in known]
            if mine:
                self.store.end(pipeline, mine, by, at)


def _is_same_but_for_its_copy(before: QuarantineRecord, now: QuarantineRecord) -> bool:
    return not before.kept and (before.reason, before.size) == (now.reason, now.size)
