"""Waivers in the ledger: given once, revoked at the most once, never deleted."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from platform_assets.domain.errors import UsageError
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.waiver import Waiver
from resources.ledger.base import Store, chunks
from resources.ledger.engine import writing
from resources.ledger.records import utc
from resources.ledger.restatements import attend_in
from resources.ledger.tables import tables


class Waivers(Store):
    """The waivers of all pipelines."""

    def give(self, waiver: Waiver) -> Waiver:
        """Record a waiver; returns it with the name that it was given (`W-0007`).

        Its date is attended in the same transaction: whoever dies after it leaves nothing undone.
        """
        t = tables().waivers
        row = {
            "pipeline": waiver.pipeline,
            "partition": waiver.partition,
            "reason": waiver.reason,
            "by": waiver.by,
            "given_at": utc(waiver.given_at),
            "until": utc(waiver.until),
            "covers": {s: c.model_dump(mode="json") for s, c in waiver.covers.items()},
            "recorded_at": datetime.now(UTC),
        }
        with writing(self.url) as connection:
            number = connection.execute(t.insert().returning(t.c.id), row).scalar_one()
            day = PartitionKey.parse(waiver.partition).date
            attend_in(connection, waiver.pipeline, {day: f"waiver W-{number:04d}"})
        return waiver.model_copy(update={"name": f"W-{number:04d}"})

    def revoke(self, pipeline: str, name: str, by: str, reason: str, at: datetime) -> Waiver:
        """End a waiver before its time; its date is attended in the same transaction.

        Raises:
            UsageError: there is none of that name, or it was revoked already.
        """
        t = tables().waivers
        number = name.removeprefix("W-")
        row = int(number) if number.isascii() and number.isdigit() and len(number) < 18 else 0
        mine = (t.c.id == row) & (t.c.pipeline == pipeline)
        with writing(self.url) as connection:
            values = {"revoked_at": utc(at), "revoked_by": by, "revoke_reason": reason}
            done = connection.execute(
                t.update().where(mine, t.c.revoked_at.is_(None)).values(**values)
            )
            found = connection.execute(t.select().where(mine)).one_or_none()
            if done.rowcount and found is not None:
                day = PartitionKey.parse(found.partition).date
                attend_in(connection, pipeline, {day: f"waiver {name} was revoked"})
        if found is None:
            raise UsageError(
                f"pipeline {pipeline} has no waiver {name!r}; see them with `signalbox waivers`"
            )
        if not done.rowcount:
            raise UsageError(
                f"waiver {name} was revoked already, by {found.revoked_by}: it cannot be revoked "
                "again; see it with `signalbox waivers --all`"
            )
        return _waiver(found)

    def of(self, pipeline: str, partitions: Iterable[str] | None = None) -> list[Waiver]:
        """All waivers of a pipeline, or of some of its partitions, oldest first."""
        t = tables().waivers
        query = t.select().where(t.c.pipeline == pipeline).order_by(t.c.id)
        if partitions is None:
            return [_waiver(row) for row in self._rows(query)]
        found: list[Waiver] = []
        for chunk in chunks(sorted(set(partitions))):
            rows = self._rows(query.where(t.c.partition.in_(chunk)))
            found.extend(_waiver(row) for row in rows)
        return found

    def recorded_at(self, pipeline: str, partition: str) -> dict[str, datetime]:
        """When each waiver of a partition was written down, on the machine's clock, by name."""
        t = tables().waivers
        query = t.select().where(t.c.pipeline == pipeline, t.c.partition == partition)
        return {f"W-{row.id:04d}": row.recorded_at for row in self._rows(query)}


def _waiver(row: Any) -> Waiver:
    fields = {k: v for k, v in row._mapping.items() if k not in ("id", "recorded_at")}
    return Waiver(name=f"W-{row.id:04d}", **fields)
