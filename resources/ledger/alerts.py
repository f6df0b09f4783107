"""Alerts: raised once each, kept until the receiver has taken them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from resources.ledger.base import Store, chunks, fields_of, insert_into
from resources.ledger.engine import writing
from resources.ledger.records import AlertRecord, utc
from resources.ledger.tables import tables


class Alerts(Store):
    """The alerts of all pipelines: an outbox."""

    def raise_all(self, records: Sequence[AlertRecord]) -> list[AlertRecord]:
        """Record alerts; one whose key is open already is the same and is not repeated.

        Returns:
            what was new.
        """
        t = tables().alerts
        new = []
        with writing(self.url) as connection:
            for record in records:
                row = {k: v for k, v in fields_of(record).items() if k != "number"}
                insert = insert_into(t, connection.dialect.name).on_conflict_do_nothing()
                if connection.execute(insert, row).rowcount:
                    new.append(record)
        return new

    def close(self, keys: Sequence[str], at: datetime) -> list[AlertRecord]:
        """End the open alerts of these keys; returns what was open."""
        t = tables().alerts
        closed: list[AlertRecord] = []
        with writing(self.url) as connection:
            for chunk in chunks(keys):
                mine = t.c.key.in_(chunk) & t.c.closed_at.is_(None)
                closed.extend(_record(row) for row in connection.execute(t.select().where(mine)))
                connection.execute(t.update().where(mine).values(closed_at=utc(at)))
        return closed

    def waiting(self, now: datetime, most: int) -> list[AlertRecord]:
        """The alerts that are to be delivered now, oldest first."""
        t = tables().alerts
        query = t.select().where(t.c.delivered_at.is_(None), t.c.next_attempt_at <= utc(now))
        return [_record(row) for row in self._rows(query.order_by(t.c.id).limit(most))]

    def delivered(self, number: int, at: datetime) -> None:
        """The receiver has taken it."""
        t = tables().alerts
        with writing(self.url) as connection:
            connection.execute(t.update().where(t.c.id == number).values(delivered_at=utc(at)))

    def failed(self, number: int, error: str, next_attempt_at: datetime) -> None:
        """The receiver has not; try again later."""
        t = tables().alerts
        values = {
            "attempts": t.c.attempts + 1,
            "last_error": error,
            "next_attempt_at": utc(next_attempt_at),
        }
        with writing(self.url) as connection:
            connection.execute(t.update().where(t.c.id == number).values(**values))

    def all(self, pipeline: str, *, only_open: bool = False) -> list[AlertRecord]:
        """The alerts of a pipeline, oldest first."""
        t = tables().alerts
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.id)
        if only_open:
            query = query.where(t.c.closed_at.is_(None))
        return [_record(row) for row in self._rows(query)]


def _record(row: Any) -> AlertRecord:
    values = dict(row._mapping)
    return AlertRecord(number=values.pop("id"), **values)
