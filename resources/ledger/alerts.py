"""Alerts: raised once each, kept until the receiver has taken them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from platform_assets.domain.alert import OpenAlert
from platform_assets.domain.alerts import MOST_WAIT
from resources.ledger.base import Store, chunks, fields_of, insert_into
from resources.ledger.engine import writing
from resources.ledger.records import AlertRecord, utc
from resources.ledger.tables import tables

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause

LOGGED_ONLY = "no receiver is set, it was only logged"
"""Stands in `last_error` of an alert that there was no receiver for."""


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

    def retell(self, texts: Mapping[int, tuple[str, str, str]]) -> None:
        """Replace text, advice and key of open alerts, by number; they are not delivered again."""
        t = tables().alerts
        with writing(self.url) as connection:
            for number, (text, advice, key) in texts.items():
                mine = (t.c.id == number) & t.c.closed_at.is_(None)
                told = {"text": text, "advice": advice, "key": key}
                connection.execute(t.update().where(mine).values(**told))

    def settle(
        self, last_words: Mapping[int, AlertRecord | None], at: datetime
    ) -> list[AlertRecord]:
        """Close open alerts by number, each with an alert that says so, which is closed itself.

        Both happen or neither does; of several processes one does it.

        Returns:
            the alerts that were raised by it.
        """
        t = tables().alerts
        raised = []
        with writing(self.url) as connection:
            for number, record in last_words.items():
                mine = (t.c.id == number) & t.c.closed_at.is_(None)
                done = connection.execute(t.update().where(mine).values(closed_at=utc(at)))
                if done.rowcount and record is not None:
                    row = {k: v for k, v in fields_of(record).items() if k != "number"}
                    connection.execute(t.insert(), row | {"closed_at": utc(at)})
                    raised.append(record)
        return raised

    def undelivered(self, pipeline: str, most: int = 500) -> list[AlertRecord]:
        """The alerts of a pipeline that no receiver has taken, oldest first.

        Those that were over before there was a receiver are left out.
        """
        t = tables().alerts
        query = t.select().where(t.c.pipeline == pipeline, _waits(t))
        return [_record(row) for row in self._rows(query.order_by(t.c.id).limit(most))]

    def due(self, pipeline: str, now: datetime, most: int) -> list[AlertRecord]:
        """What is to be delivered now: of each subject the oldest alert that waits.

        In the order in which they came to be due: one that was tried stands in line again behind
        those that were due before, so that what the receiver refuses for good, however much it
        is, keeps nothing waiting for good.
        """
        import sqlalchemy as sa

        t = tables().alerts
        waits = _waits(t)
        earlier = t.alias("earlier")
        query = t.select().where(
            t.c.pipeline == pipeline,
            waits,
            _is_due(t, now),
            ~sa.exists().where(
                earlier.c.pipeline == pipeline,
                earlier.c.subject == t.c.subject,
                earlier.c.id < t.c.id,
                _waits(earlier),
            ),
        )
        query = query.order_by(t.c.next_attempt_at, t.c.id).limit(most)
        return [_record(row) for row in self._rows(query)]

    def untold(self, pipeline: str) -> list[AlertRecord]:
        """The alerts that were not logged yet, oldest first."""
        t = tables().alerts
        query = t.select().where(t.c.pipeline == pipeline, t.c.told_at.is_(None))
        return [_record(row) for row in self._rows(query.order_by(t.c.id))]

    def told(self, numbers: Sequence[int], at: datetime) -> None:
        """They have been logged."""
        if not numbers:
            return
        t = tables().alerts
        with writing(self.url) as connection:
            for number in numbers:
                connection.execute(t.update().where(t.c.id == number).values(told_at=utc(at)))

    def logged_only(self, pipeline: str) -> None:
        """Note that there was no receiver for the alerts that nobody has tried to deliver."""
        t = tables().alerts
        mine = (
            (t.c.pipeline == pipeline)
            & t.c.delivered_at.is_(None)
            & t.c.last_error.is_(None)
            & (t.c.attempts == 0)
        )
        if not self._rows(t.select().where(mine).limit(1)):
            return
        with writing(self.url) as connection:
            connection.execute(t.update().where(mine).values(last_error=LOGGED_ONLY))

    def claim(self, record: AlertRecord, until: datetime) -> bool:
        """Take an alert for delivery; nobody else does until then. Tells whether it was free."""
        t = tables().alerts
        mine = (
            (t.c.id == record.number)
            & t.c.delivered_at.is_(None)
            & (t.c.next_attempt_at == utc(record.next_attempt_at))
        )
        with writing(self.url) as connection:
            found = connection.execute(t.update().where(mine).values(next_attempt_at=utc(until)))
            return bool(found.rowcount)

    def postpone(self, numbers: Sequence[int], until: datetime, why: str) -> None:
        """Leave waiting alerts alone until then, and note why; that is no attempt."""
        t = tables().alerts
        values = {"next_attempt_at": utc(until), "last_error": why}
        with writing(self.url) as connection:
            for number in numbers:
                mine = (
                    (t.c.id == number)
                    & t.c.delivered_at.is_(None)
                    & (t.c.next_attempt_at < utc(until))
                )
                connection.execute(t.update().where(mine).values(**values))

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
        query = t.select().where(t.c.delivered_at.is_(None), _is_due(t, now))
        return [_record(row) for row in self._rows(query.order_by(t.c.id).limit(most))]

    def delivered(self, number: int, at: datetime) -> None:
        """The receiver has taken it."""
        t = tables().alerts
        with writing(self.url) as connection:
            values = {"delivered_at": utc(at), "last_error": None}
            connection.execute(t.update().where(t.c.id == number).values(**values))

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

    def opened(self, pipeline: str) -> Sequence[OpenAlert]:
        """What the open alerts of a pipeline say, oldest first; fetched only where that changed."""
        t = tables().alerts
        query = t.select().where(t.c.pipeline == pipeline, t.c.closed_at.is_(None))
        return self._unless_same(
            ("opened", pipeline),
            [t.c.id, t.c.kind, t.c.subject, t.c.key, t.c.text, t.c.advice, t.c.raised_at],
            query.order_by(t.c.id),
            lambda rows: tuple(_opened(_record(row)) for row in rows),
        )

    def all(self, pipeline: str, *, only_open: bool = False) -> list[AlertRecord]:
        """The alerts of a pipeline, oldest first."""
        t = tables().alerts
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.id)
        if only_open:
            query = query.where(t.c.closed_at.is_(None))
        return [_record(row) for row in self._rows(query)]


def _waits(t: "FromClause") -> "ColumnElement[bool]":
    """Not delivered; what was over before there was a receiver is not delivered any more."""
    import sqlalchemy as sa

    return sa.and_(
        t.c.delivered_at.is_(None),
        sa.or_(t.c.closed_at.is_(None), t.c.last_error.is_(None), t.c.last_error != LOGGED_ONLY),
    )


def _opened(record: AlertRecord) -> OpenAlert:
    return OpenAlert(
        number=record.number,
        kind=record.kind,
        subject=record.subject,
        key=record.key,
        text=record.text,
        advice=record.advice,
        raised_at=record.raised_at,
    )


def _is_due(t: "FromClause", now: datetime) -> "ColumnElement[bool]":
    """Its next attempt is to be made; also where the clock was set back since that was written."""
    import sqlalchemy as sa

    ahead = t.c.next_attempt_at > utc(now + MOST_WAIT)
    return sa.or_(t.c.next_attempt_at <= utc(now), ahead)


def _record(row: Any) -> AlertRecord:
    values = dict(row._mapping)
    return AlertRecord(number=values.pop("id"), **values)
