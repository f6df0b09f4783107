"""Leases in the ledger: one row a resource, its token counts its holders."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from platform_assets.domain.lease import Holder, Lease, LeaseLostError, Taken
from resources.ledger.base import Store, insert_into
from resources.ledger.engine import writing
from resources.ledger.tables import tables

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True)
class LeaseRecord:
    """A lease as the ledger has it; the instants are for people, nothing is decided by them."""

    resource: str
    token: int
    holder: Holder
    renewals: int
    taken_at: datetime
    renewed_at: datetime
    released_at: datetime | None


class Leases(Store):
    """Who may write what, now."""

    def claim(self, resource: str, holder: Holder, over: Taken | None = None) -> Lease | Taken:
        """Take a lease that nobody holds, or take over one that shows no sign of life.

        Args:
            resource: what is to be written.
            holder: who is.
            over: the lease that is to be taken over; it is, if it has not been renewed since.

        Returns:
            the lease, with a token that is higher than any before; or who holds it.
        """
        t = tables().leases
        now = datetime.now(UTC)
        row: dict[str, Any] = {
            "run_id": holder.run_id,
            "machine": holder.machine,
            "pid": holder.pid,
            "started": holder.started,
            "renewals": 0,
            "taken_at": now,
            "renewed_at": now,
            "released_at": None,
        }
        with writing(self.url) as connection:
            first = insert_into(t, connection.dialect.name).values(
                resource=resource, token=1, **row
            )
            first = first.on_conflict_do_nothing(index_elements=[t.c.resource])
            if connection.execute(first).rowcount == 1:
                return Lease(resource, 1, holder)
            found = _locked(connection, resource)
            free = found.released_at is not None
            known = _taken(found)
            if not free and not (over is not None and over.same_sign_of_life(known)):
                return known
            token = int(found.token) + 1
            connection.execute(
                t.update().where(t.c.resource == resource).values(token=token, **row)
            )
            return Lease(resource, token, holder, after_crash=not free)

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Show that the holder lives; returns those that are no longer its own."""
        t = tables().leases
        lost = []
        with writing(self.url) as connection:
            for lease in leases:
                mine = (
                    (t.c.resource == lease.resource)
                    & (t.c.token == lease.token)
                    & t.c.released_at.is_(None)
                )
                values = {"renewals": t.c.renewals + 1, "renewed_at": datetime.now(UTC)}
                if connection.execute(t.update().where(mine).values(**values)).rowcount != 1:
                    lost.append(lease)
        return lost

    def release(self, lease: Lease) -> bool:
        """Give a lease back; False if it had been taken over."""
        t = tables().leases
        mine = (t.c.resource == lease.resource) & (t.c.token == lease.token)
        with writing(self.url) as connection:
            values = {"released_at": datetime.now(UTC)}
            return connection.execute(t.update().where(mine).values(**values)).rowcount == 1

    def require(self, lease: Lease) -> None:
        """Refuse to go on with a lease that is lost.

        Raises:
            LeaseLostError: somebody else has a higher token.
        """
        with writing(self.url) as connection:
            require_held(connection, lease)

    def find(self, resource: str) -> LeaseRecord | None:
        """The lease of a resource as it stands, held or given back."""
        t = tables().leases
        query = t.select().where(t.c.resource == resource)
        return next((_record(row) for row in self._rows(query)), None)

    def held(self, prefix: str = "") -> list[LeaseRecord]:
        """The leases that are held, of resources whose names start so, by name."""
        t = tables().leases
        query = t.select().where(t.c.released_at.is_(None)).order_by(t.c.resource)
        if prefix:
            query = query.where(t.c.resource.startswith(prefix, autoescape=True))
        return [_record(row) for row in self._rows(query)]


def require_held(connection: "Connection", lease: Lease) -> None:
    """Within a transaction that writes: refuse, and so roll back, if a lease is lost.

    Raises:
        LeaseLostError: somebody else has a higher token, or the lease is not in the ledger.
    """
    found = _locked(connection, lease.resource)
    if found is None:
        raise LeaseLostError(lease, "the ledger does not know of it")
    if int(found.token) != lease.token:
        raise LeaseLostError(lease, f"run {found.run_id} has token {found.token} since")


def _locked(connection: "Connection", resource: str) -> Any:
    """The row, locked until the transaction ends; SQLite has locked all of them already."""
    t = tables().leases
    query = t.select().where(t.c.resource == resource).with_for_update()
    return connection.execute(query).one_or_none()


def _holder(row: Any) -> Holder:
    return Holder(row.run_id, row.machine, int(row.pid), row.started)


def _taken(row: Any) -> Taken:
    return Taken(row.resource, int(row.token), _holder(row), int(row.renewals))


def _record(row: Any) -> LeaseRecord:
    return LeaseRecord(
        row.resource,
        int(row.token),
        _holder(row),
        int(row.renewals),
        row.taken_at,
        row.renewed_at,
        row.released_at,
    )
