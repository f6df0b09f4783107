"""The environments that models were trained in, each once, and the canaries between two of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import RefusedError
from resources.ledger.base import Store, fields_of, insert_into
from resources.ledger.engine import writing
from resources.ledger.records import utc
from resources.ledger.tables import tables

if TYPE_CHECKING:
    from sqlalchemy import Connection

UNRECORDED = ""
"""In place of the value of an environment that nobody has recorded."""


_noted: set[tuple[str, str]] = set()
"""What is known to be in which ledger: an environment is never removed from one."""


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """The champion's own snapshot, trained again in another environment; never altered.

    Attributes:
        champion: the version that was in force.
        digest: of its files.
        then: value of the environment that it was trained in; `UNRECORDED` where nobody knows.
        now: of that which it was trained again in.
        passed: whether the metrics were the same, within the tolerance of that moment.
        report: JSON of the numbers.
        id: 0 before it is recorded.
    """

    pipeline: str
    model: str
    champion: int
    digest: str
    then: str
    now: str
    passed: bool
    report: Mapping[str, Any]
    by: str
    run_id: str
    recorded_at: datetime
    id: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "recorded_at", utc(self.recorded_at))


@dataclass(frozen=True, slots=True)
class CanaryNeeded:
    """A promotion across a change of environment: which canary it goes by.

    Attributes:
        canary: number of the one that counts, by its numbers and the tolerance; None: none does.
    """

    champion: int
    digest: str
    then: str
    now: str
    canary: int | None


class Environments(Store):
    """The environments and canaries of all pipelines."""

    def note(self, value: str, document: Mapping[str, Any]) -> bool:
        """Keep an environment, unless it is known; tells whether it was new."""
        if (self.url, value) in _noted:
            return False
        if self.find(value) is not None:
            _noted.add((self.url, value))
            return False
        t = tables().environments
        row = {"value": value, "document": dict(document), "first_seen_at": datetime.now(UTC)}
        with writing(self.url) as connection:
            insert = insert_into(t, connection.dialect.name).values(**row)
            done = connection.execute(insert.on_conflict_do_nothing())
        _noted.add((self.url, value))
        return bool(done.rowcount)

    def find(self, value: str) -> Mapping[str, Any] | None:
        """The document of an environment."""
        t = tables().environments
        rows = self._rows(t.select().where(t.c.value == value))
        return next((dict(row.document) for row in rows), None)

    def record_canary(self, record: CanaryRecord) -> CanaryRecord:
        """Append a canary; returns it with its number."""
        t = tables().canaries
        row = {k: v for k, v in fields_of(record).items() if k != "id"}
        with writing(self.url) as connection:
            number = connection.execute(t.insert().returning(t.c.id), row).scalar_one()
        return CanaryRecord(**row, id=int(number))

    def canary(
        self, model: str, champion: int, digest: str, then: str, now: str
    ) -> CanaryRecord | None:
        """The newest canary of exactly this champion between exactly these environments."""
        query = _of_pair(model, champion, digest, then, now)
        return next((_canary(row) for row in self._rows(query)), None)

    def canaries(self, model: str) -> list[CanaryRecord]:
        """All canaries of a model, oldest first."""
        t = tables().canaries
        query = t.select().where(t.c.model == model).order_by(t.c.id)
        return [_canary(row) for row in self._rows(query)]


def require_canary(connection: "Connection", model: str, needed: CanaryNeeded) -> None:
    """Within a transaction: refuse unless the newest canary is the one that was decided by.

    Raises:
        RefusedError: there is none, none counted, or another one was recorded since.
    """
    key = (needed.champion, needed.digest, needed.then, needed.now)
    row = connection.execute(_of_pair(model, *key)).one_or_none()
    if row is None or row.id != needed.canary:
        found = "there is none" if row is None else f"the newest is canary {row.id}"
        raise RefusedError(
            f"{model}: champion {needed.champion} was trained in another environment, and no "
            f"canary stands behind the promotion ({found}); run `signalbox canary MODEL` in the "
            "new environment, then decide again"
        )


def _of_pair(model: str, champion: int, digest: str, then: str, now: str) -> Any:
    t = tables().canaries
    return (
        t.select()
        .where(
            t.c.model == model,
            t.c.champion == champion,
            t.c.digest == digest,
            t.c.then == then,
            t.c.now == now,
        )
        .order_by(t.c.id.desc())
        .limit(1)
    )


def _canary(row: Any) -> CanaryRecord:
    return CanaryRecord(**row._mapping)
