"""What was refused, and what came of it: an append-only list."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from resources.ledger.base import Store, chunks, fields_of
from resources.ledger.engine import writing
from resources.ledger.records import QuarantineRecord, utc
from resources.ledger.tables import tables


class Quarantine(Store):
    """The refused files of all pipelines."""

    def add(self, records: Sequence[QuarantineRecord]) -> list[QuarantineRecord]:
        """Record refused files; one that is open with the same digest and reason is not repeated.

        An open record of the same path with other content ends as `replaced`.

        Returns:
            what was new.
        """
        t = tables().quarantine
        new = []
        with writing(self.url) as connection:
            for record in records:
                mine = (
                    (t.c.pipeline == record.pipeline)
                    & (t.c.path == record.path)
                    & t.c.ended_at.is_(None)
                )
                found = connection.execute(t.select().where(mine)).all()
                if any((r.digest, r.reason) == (record.digest, record.reason) for r in found):
                    continue
                ended = {"ended_at": utc(record.found_at), "ended_by": "replaced"}
                connection.execute(t.update().where(mine).values(**ended))
                row = {k: v for k, v in fields_of(record).items() if k != "number"}
                connection.execute(t.insert(), row)
                new.append(record)
        return new

    def kept(self, number: int, kept: str, digest: str) -> None:
        """Note where a file was set aside at last, which could not be when it was recorded."""
        t = tables().quarantine
        with writing(self.url) as connection:
            connection.execute(t.update().where(t.c.id == number).values(kept=kept, digest=digest))

    def end(
        self, pipeline: str, paths: Sequence[str], by: str, at: datetime
    ) -> list[QuarantineRecord]:
        """End the open records of paths, `healed` or `vanished`; returns what was open."""
        t = tables().quarantine
        ended: list[QuarantineRecord] = []
        with writing(self.url) as connection:
            for chunk in chunks(paths):
                mine = (t.c.pipeline == pipeline) & t.c.path.in_(chunk) & t.c.ended_at.is_(None)
                ended.extend(_record(r) for r in connection.execute(t.select().where(mine)))
                values = {"ended_at": utc(at), "ended_by": by}
                connection.execute(t.update().where(mine).values(**values))
        return ended

    def all(self, pipeline: str, *, only_open: bool = False) -> list[QuarantineRecord]:
        """The refused files of a pipeline, oldest first."""
        t = tables().quarantine
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.id)
        if only_open:
            query = query.where(t.c.ended_at.is_(None))
        return [_record(row) for row in self._rows(query)]


def _record(row: Any) -> QuarantineRecord:
    values = dict(row._mapping)
    return QuarantineRecord(number=values.pop("id"), **values)
