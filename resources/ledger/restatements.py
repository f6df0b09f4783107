"""Partitions whose inputs changed after they were used, and days that need another look."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from resources.ledger.base import Store, chunks, fields_of, insert_into, upsert_statement
from resources.ledger.engine import writing
from resources.ledger.records import FolderRecord, RestatementRecord, utc
from resources.ledger.tables import tables

if TYPE_CHECKING:
    from sqlalchemy import Connection

OPEN_STATES = ("open", "approved")


class Restatements(Store):
    """The restatements of all pipelines; at the most one is open for a partition."""

    def found(self, record: RestatementRecord) -> bool:
        """Record a change; tells whether it is news.

        The same change again is none. An open one of another content is superseded; if a person
        had approved that, the approval is carried over to what is there now.
        """
        t = tables().restatements
        with writing(self.url) as connection:
            mine = (
                (t.c.pipeline == record.pipeline)
                & (t.c.partition == record.partition)
                & t.c.state.in_(OPEN_STATES)
            )
            before = connection.execute(t.select().where(mine)).all()
            if any(row.now_version == record.now_version for row in before):
                return False
            row = {k: v for k, v in fields_of(record).items() if k != "number"}
            for old in before:
                if old.state == "approved":
                    row |= {
                        "state": "approved",
                        "approved_at": old.approved_at,
                        "approved_by": old.approved_by,
                        "touches": {**row["touches"], **_kept(old.touches)},
                    }
            values = {"state": "superseded", "ended_at": utc(record.found_at)}
            connection.execute(t.update().where(mine).values(**values))
            connection.execute(t.insert(), row)
        return True

    def approve(
        self, pipeline: str, partitions: Sequence[str], by: str, *, retrain: bool = True
    ) -> list[str]:
        """Let open restatements go, or go again; returns the partitions that had one open.

        Without `retrain` what they touch is not trained again.
        """
        t = tables().restatements
        approved: list[str] = []
        with writing(self.url) as connection:
            for chunk in chunks(partitions):
                mine = t.c.partition.in_(chunk) & t.c.state.in_(OPEN_STATES)
                rows = connection.execute(t.select().where(t.c.pipeline == pipeline, mine)).all()
                for row in rows:
                    values = {
                        "state": "approved",
                        "approved_at": datetime.now(UTC),
                        "approved_by": by,
                        "touches": {**row.touches, "retrain": retrain},
                    }
                    connection.execute(t.update().where(t.c.id == row.id).values(**values))
                    approved.append(row.partition)
        return sorted(approved)

    def touch(self, number: int, touches: Mapping[str, Any]) -> None:
        """Say what an open one touches by now; whether it retrains a person says: it stays."""
        t = tables().restatements
        mine = (t.c.id == number) & t.c.state.in_(OPEN_STATES)
        with writing(self.url) as connection:
            row = connection.execute(t.select().where(mine)).one_or_none()
            if row is not None:
                others = {k: v for k, v in touches.items() if k != "retrain"}
                values = {"touches": {**others, **_kept(row.touches)}}
                connection.execute(t.update().where(mine).values(**values))

    def remark(
        self, number: int, outcome: str | None, blocked: Mapping[str, str] | None = None
    ) -> None:
        """Say how far an open one has come; and, if given, what is held that it needs."""
        t = tables().restatements
        mine = (t.c.id == number) & t.c.state.in_(OPEN_STATES)
        with writing(self.url) as connection:
            row = connection.execute(t.select().where(mine)).one_or_none()
            if row is not None:
                said = {} if blocked is None else {"blocked": dict(blocked)}
                values = {"outcome": outcome, "changes": {**row.changes, **said}}
                connection.execute(t.update().where(mine).values(**values))

    def relist(self, number: int, reason: str) -> None:
        """Have an open one wait for a person: what was tried has failed."""
        t = tables().restatements
        mine = (t.c.id == number) & t.c.state.in_(OPEN_STATES)
        values = {"decision": "list", "state": "open", "reason": reason, "outcome": None}
        with writing(self.url) as connection:
            connection.execute(t.update().where(mine).values(**values))

    def end(self, number: int, state: str, outcome: str, at: datetime) -> None:
        """Close one: `done`, or `superseded`; `outcome` says in words what came of it."""
        t = tables().restatements
        values = {"state": state, "outcome": outcome, "ended_at": utc(at)}
        with writing(self.url) as connection:
            connection.execute(t.update().where(t.c.id == number).values(**values))

    def all(
        self, pipeline: str, *, only_open: bool = False, partition: str | None = None
    ) -> list[RestatementRecord]:
        """The restatements of a pipeline, or of one of its partitions, oldest first."""
        t = tables().restatements
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.id)
        if only_open:
            query = query.where(t.c.state.in_(OPEN_STATES))
        if partition is not None:
            query = query.where(t.c.partition == partition)
        return [_record(row) for row in self._rows(query)]


def _kept(touches: Mapping[str, Any]) -> dict[str, Any]:
    """What a person has said beyond the approval, and holds for what supersedes it too."""
    return {"retrain": touches["retrain"]} if "retrain" in touches else {}


def _record(row: Any) -> RestatementRecord:
    values = dict(row._mapping)
    return RestatementRecord(number=values.pop("id"), **values)


class Watch(Store):
    """What the sweep has seen, and the days beyond the window that need another look."""

    def folders(self, pipeline: str, paths: Sequence[str]) -> dict[str, FolderRecord]:
        """What is known of some folders, by path."""
        t = tables().folders
        found: dict[str, FolderRecord] = {}
        for chunk in chunks(paths):
            query = t.select().where(t.c.pipeline == pipeline, t.c.path.in_(chunk))
            found |= {row.path: FolderRecord(*row) for row in self._rows(query)}
        return found

    def saw(self, records: Sequence[FolderRecord]) -> None:
        """Remember how folders were."""
        if not records:
            return
        with writing(self.url) as connection:
            statement = upsert_statement(tables().folders, connection.dialect.name)
            connection.execute(statement, [fields_of(record) for record in records])

    def attend(self, pipeline: str, dates: Mapping[date, str]) -> None:
        """Have another look at dates, by date why; one that is listed keeps its first reason.

        Being attended anew keeps a date from being settled by a look that began before.
        """
        with writing(self.url) as connection:
            attend_in(connection, pipeline, dates)

    def attended(self, pipeline: str) -> dict[date, str]:
        """The dates that need another look, by date why."""
        t = tables().attention
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.date)
        return {row.date: row.reason for row in self._rows(query)}

    def attended_since(self, pipeline: str) -> dict[date, datetime]:
        """The dates that need another look, by date since when: the name of that need."""
        t = tables().attention
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.date)
        return {row.date: row.since for row in self._rows(query)}

    def settle(
        self,
        pipeline: str,
        dates: Iterable[date],
        seen: Mapping[date, datetime] | None = None,
    ) -> None:
        """These dates need no further look.

        Args:
            pipeline: its name.
            dates: the dates.
            seen: `attended_since` when the look began that says so; what was attended anew since
                then stays. Compared for equality, since a clock may be set back meanwhile.
        """
        wanted = list(dates)
        if not wanted:
            return
        import sqlalchemy as sa

        t = tables().attention
        with writing(self.url) as connection:
            if seen is None:
                for start in range(0, len(wanted), 500):
                    mine = (t.c.pipeline == pipeline) & t.c.date.in_(wanted[start : start + 500])
                    connection.execute(t.delete().where(mine))
                return
            rows = [{"day": day, "when": seen[day]} for day in wanted if day in seen]
            if rows:
                same = (t.c.date == sa.bindparam("day")) & (t.c.since == sa.bindparam("when"))
                connection.execute(t.delete().where(t.c.pipeline == pipeline, same), rows)


def attend_in(connection: "Connection", pipeline: str, dates: Mapping[date, str]) -> None:
    """Attend dates, in the transaction of that which makes it necessary."""
    if not dates:
        return
    t, now = tables().attention, datetime.now(UTC)
    insert = insert_into(t, connection.dialect.name)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=list(t.primary_key), set_={"since": insert.excluded.since}
        ),
        [
            {"pipeline": pipeline, "date": day, "reason": why, "since": now}
            for day, why in dates.items()
        ],
    )
