"""The rows of recorded hours: the very bytes that arrived, by the rules as they are now."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from platform_assets.domain.errors import RefusedError
from resources.landing.hourfile import HourFormat, UnreadableError
from resources.landing.intake import was_fresh
from resources.landing.rawfile import ChangedError, RawFile, read_raw

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

    from resources.ledger import Ledger
    from resources.ledger.records import ArrivalRecord


def read_hours(
    root: Path,
    rules: HourFormat,
    records: Sequence[ArrivalRecord],
    boundary: str,
    ledger: Ledger,
) -> list[pa.Table]:
    """The rows of accepted hours of one source.

    Args:
        root: the landing folder of the home.
        rules: of the source.
        records: of the hours, as they arrived.
        boundary: the real path that no file may lie outside of.
        ledger: forgets a file that changed unseen, so that the next look judges it anew.

    Raises:
        RefusedError: a file changed or vanished since its arrival was recorded, or breaks a rule
            that it did not have to keep then.
    """
    tables = [_read_hour(root, rules, record, boundary, ledger) for record in records]
    # The rules may be stricter now than they were when a file arrived.
    files = [(table, r.hour) for table, r in zip(tables, records, strict=True)]
    broken = rules.values.judge(files) if rules.values is not None else {}
    for number, reason in broken.items():
        record = records[number]
        raise RefusedError(
            f"{root / record.path} breaks the rules of source {record.source} as they are now: "
            f"{reason}; have the hour delivered again, or correct the catalog"
        )
    return tables


def _read_hour(
    root: Path, rules: HourFormat, record: ArrivalRecord, boundary: str, ledger: Ledger
) -> pa.Table:
    path = root / record.path
    try:
        raw = read_raw(path, rules.source.contract.max_hour_bytes, boundary)
        _require_recorded(path, record, raw)
        if raw.content is None:
            raise UnreadableError(raw.refused)
        if record.digest and hashlib.sha256(raw.content).hexdigest() != record.digest:
            if was_fresh(record):
                ledger.forget_arrivals(record.zone, record.source, [record.path])
            raise UnreadableError("its bytes are not those that arrived")
        return rules.read(raw.content, record.hour)
    except FileNotFoundError as error:
        raise RefusedError(
            f"{path} has vanished since its arrival was recorded; refresh the landing zone"
        ) from error
    except ChangedError as error:
        raise RefusedError(f"{error}; refresh the landing zone") from error
    except UnreadableError as error:
        raise RefusedError(
            f"{path} cannot be read ({error}), although it was in order when it arrived; have "
            "the hour delivered again"
        ) from error


def _require_recorded(path: Path, record: ArrivalRecord, found: RawFile) -> None:
    if (found.size, found.mtime_ns) != (record.size, record.mtime_ns):
        raise RefusedError(
            f"{path} has changed since its arrival was recorded ({record.size} bytes of "
            f"{_stamp(record.mtime_ns)} then, {found.size} bytes of "
            f"{_stamp(found.mtime_ns)} now); refresh the landing zone"
        )


def _stamp(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")
