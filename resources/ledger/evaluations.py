"""The gate's verdicts, and the versions that may not be promoted whatever one says."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError
from resources.ledger.base import Store, fields_of
from resources.ledger.engine import reading, writing
from resources.ledger.promotion_records import EvaluationRecord, HoldRecord
from resources.ledger.records import utc
from resources.ledger.tables import tables

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Evaluations(Store):
    """The verdicts on all models' versions, and the holds."""

    # --- verdicts -------------------------------------------------------------------------------

    def record_evaluation(self, record: EvaluationRecord) -> EvaluationRecord:
        """Append a verdict; returns it with its number."""
        t = tables().evaluations
        row = {k: v for k, v in fields_of(record).items() if k != "id"}
        with writing(self.url) as connection:
            number = connection.execute(t.insert().returning(t.c.id), row).scalar_one()
        return EvaluationRecord(**row, id=int(number))

    def evaluation(
        self, model: str, candidate: int, champion: int | None
    ) -> EvaluationRecord | None:
        """The newest verdict on exactly this pair."""
        t = tables().evaluations
        pair = (t.c.model == model) & (t.c.candidate == candidate)
        against = t.c.champion.is_(None) if champion is None else t.c.champion == champion
        query = t.select().where(pair, against).order_by(t.c.id.desc()).limit(1)
        return next((evaluation_of(row) for row in self._rows(query)), None)

    def evaluations(self, model: str, candidate: int | None = None) -> list[EvaluationRecord]:
        """All verdicts on a model's versions, or on one of them, oldest first."""
        t = tables().evaluations
        query = t.select().where(t.c.model == model).order_by(t.c.id)
        if candidate is not None:
            query = query.where(t.c.candidate == candidate)
        return [evaluation_of(row) for row in self._rows(query)]

    # --- holds ----------------------------------------------------------------------------------

    def hold(
        self,
        model: str,
        version: int,
        *,
        reason: str,
        by: str,
        since: datetime,
        until: datetime | None = None,
    ) -> HoldRecord:
        """Have a version not be promoted."""
        with writing(self.url) as connection:
            return put_hold(connection, model, version, reason, by, since, until)

    def holds(self, model: str, at: datetime) -> list[HoldRecord]:
        """The holds in force at an instant of the pipeline's clock, oldest first."""
        with reading(self.url) as connection:
            return holds_in(connection, model, at)

    def release_hold(self, hold_id: int, at: datetime) -> HoldRecord:
        """End a hold before its time.

        Raises:
            UsageError: there is none of that number, or it has ended.
        """
        t = tables().holds
        with writing(self.url) as connection:
            mine = (t.c.id == hold_id) & t.c.ended_at.is_(None)
            ended = connection.execute(t.update().where(mine).values(ended_at=utc(at)))
            row = connection.execute(t.select().where(t.c.id == hold_id)).one_or_none()
        if row is None or not ended.rowcount:
            raise UsageError(
                f"no hold {hold_id} is in force; see them with `signalbox promotions PIPELINE`"
            )
        return HoldRecord(*row)


def put_hold(
    connection: "Connection",
    model: str,
    version: int,
    reason: str,
    by: str,
    since: datetime,
    until: datetime | None,
) -> HoldRecord:
    """Within a transaction: have a version not be promoted."""
    t = tables().holds
    row: dict[str, Any] = {
        "model": model,
        "version": version,
        "reason": reason,
        "by": by,
        "since": utc(since),
        "until": utc(until) if until else None,
        "ended_at": None,
    }
    number = connection.execute(t.insert().returning(t.c.id), row).scalar_one()
    return HoldRecord(id=int(number), **row)


def holds_in(connection: "Connection", model: str, at: datetime) -> list[HoldRecord]:
    """Within a transaction: the holds in force at an instant of the pipeline's clock."""
    t = tables().holds
    query = t.select().where(t.c.model == model, t.c.ended_at.is_(None)).order_by(t.c.id)
    found = (HoldRecord(*row) for row in connection.execute(query))
    return [hold for hold in found if hold.holds(at)]


def evaluation_of(row: Any) -> EvaluationRecord:
    """The record of a row of the table."""
    return EvaluationRecord(**row._mapping)
