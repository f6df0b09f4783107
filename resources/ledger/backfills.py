"""Backfills and how fast they may go: read by the queue each time it looks for runs to start."""

from collections.abc import Sequence
from datetime import UTC, datetime

from platform_assets.domain.errors import UsageError
from resources.ledger.base import Store, fields_of, insert_into
from resources.ledger.engine import writing
from resources.ledger.records import BackfillRecord
from resources.ledger.tables import tables

RUNNING, PAUSED, ENDED = "running", "paused", "ended"

OF_THE_LAUNCH = ("pipeline", "selection", "launched_by", "launched_at")
"""What is known of a backfill for good; the rest is how it was steered."""


class Backfills(Store):
    """The backfills that were launched or steered here, those of the Dagster UI included."""

    def put(self, record: BackfillRecord) -> None:
        """Record what a backfill was launched for.

        How fast it may go counts only where nobody has recorded it before: somebody may have
        paused it since it was launched.
        """
        t = tables().backfills
        with writing(self.url) as connection:
            insert = insert_into(t, connection.dialect.name)
            facts = {name: insert.excluded[name] for name in OF_THE_LAUNCH}
            known = insert.on_conflict_do_update(index_elements=[t.c.id], set_=facts)
            connection.execute(known, [fields_of(record)])

    def add(self, record: BackfillRecord) -> None:
        """Record a backfill, unless it is known."""
        t = tables().backfills
        with writing(self.url) as connection:
            insert = insert_into(t, connection.dialect.name)
            unknown = insert.on_conflict_do_nothing(index_elements=[t.c.id])
            connection.execute(unknown, [fields_of(record)])

    def find(self, backfill_id: str) -> BackfillRecord | None:
        t = tables().backfills
        query = t.select().where(t.c.id == backfill_id)
        return next((BackfillRecord(*row) for row in self._rows(query)), None)

    def all(self, pipeline: str | None = None) -> list[BackfillRecord]:
        """All that are known, newest first."""
        t = tables().backfills
        query = t.select().order_by(t.c.launched_at.desc(), t.c.id)
        if pipeline is not None:
            query = query.where(t.c.pipeline == pipeline)
        return [BackfillRecord(*row) for row in self._rows(query)]

    def steered(self) -> list[BackfillRecord]:
        """Those that are paused, or have a size of their own, and are not known to have ended."""
        t = tables().backfills
        slowed = (t.c.state == PAUSED) | t.c.max_runs.is_not(None)
        query = t.select().where(slowed, t.c.state != ENDED)
        return [BackfillRecord(*row) for row in self._rows(query.order_by(t.c.id))]

    def note_ended(self, ids: Sequence[str]) -> None:
        """These have ended: nothing is left of them to slow down."""
        t = tables().backfills
        with writing(self.url) as connection:
            connection.execute(t.update().where(t.c.id.in_(ids)).values(state=ENDED))

    def set_state(self, backfill_id: str, state: str, by: str) -> None:
        """Pause it or let it go on.

        Raises:
            UsageError: it is not known.
        """
        self._set(backfill_id, by, state=state)

    def set_size(self, backfill_id: str, max_runs: int | None, by: str) -> None:
        """Say how many of its runs may be in progress at once.

        Raises:
            UsageError: it is not known.
        """
        self._set(backfill_id, by, max_runs=max_runs)

    def _set(self, backfill_id: str, by: str, **values: object) -> None:
        t = tables().backfills
        with writing(self.url) as connection:
            row = {**values, "changed_at": datetime.now(UTC), "changed_by": by}
            statement = t.update().where(t.c.id == backfill_id).values(**row)
            if connection.execute(statement).rowcount != 1:
                raise UsageError(
                    f"no backfill {backfill_id!r} is known; see `signalbox backfill status`"
                )
