"""What every part of the ledger does with its tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

from resources.ledger.engine import reading, writing

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select, Table

T = TypeVar("T")

CHUNK = 500
"""How many values one IN list holds: databases limit the variables of a statement."""

MOST_KEPT = 64
_kept: dict[tuple[object, ...], tuple[str | None, Any]] = {}
"""What was read by `_unless_same`, with its stamp."""


class Store:
    """Tables of the ledger at a database URL.

    Each method is one transaction, and raises:
        HomeError: the database is missing, unwritable, damaged, or has another schema.
        TransientError: the disk is full, the database locked; nothing was recorded.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def _rows(self, query: "Select[Any]") -> Sequence[Any]:
        with reading(self.url) as connection:
            return connection.execute(query).all()

    def _unless_same(
        self,
        named: tuple[object, ...],
        stamped: "Sequence[ColumnElement[Any]]",
        query: "Select[Any]",
        made: Callable[[Sequence[Any]], T],
    ) -> T:
        """What is made of the rows of a query; they are fetched only where one of them differs.

        For what is asked for at every look and hardly ever changes: one row is fetched then, in
        which the database has put the stamps of all of them side by side.

        Args:
            named: tells this query from others on the same database.
            stamped: columns, none of them null, that are never all the same once a row has changed.
            query: the rows.
            made: of the rows; it is given to whoever asks, and must not be changed.
        """
        import sqlalchemy as sa

        text: ColumnElement[str] = sa.literal("")
        for column in stamped:
            text = text + sa.cast(column, sa.Text) + " "
        stamp = query.with_only_columns(sa.func.aggregate_strings(text, "\n")).order_by(None)
        key = (self.url, *named)
        with reading(self.url) as connection:
            # Before the rows: should they be newer than it, the next look fetches them again.
            found: str | None = connection.execute(stamp).scalar()
            known = _kept.get(key)
            if known is not None and known[0] == found:
                return cast("T", known[1])
            result = made(connection.execute(query).all())
        if len(_kept) >= MOST_KEPT:
            _kept.clear()
        _kept[key] = found, result
        return result

    def _append(self, table: "Table", record: Any) -> None:
        with writing(self.url) as connection:
            connection.execute(table.insert(), fields_of(record))

    def _upsert(self, table: "Table", rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert or replace by primary key, all rows in one transaction."""
        if not rows:
            return
        with writing(self.url) as connection:
            connection.execute(upsert_statement(table, connection.dialect.name), rows)


def upsert_statement(table: "Table", dialect: str) -> Any:
    """INSERT .. ON CONFLICT (primary key) DO UPDATE, for sqlite or postgresql."""
    insert = insert_into(table, dialect)
    replaced = {c.name: insert.excluded[c.name] for c in table.c if not c.primary_key}
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=replaced)


def insert_into(table: "Table", dialect: str) -> Any:
    from sqlalchemy.dialects import postgresql, sqlite

    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def columns_of(table: "Table") -> "Select[Any]":
    """The record's columns: all but the row's own number."""
    import sqlalchemy as sa

    columns: list[ColumnElement[Any]] = [c for c in table.c if c.name != "id"]
    return sa.select(*columns)


def fields_of(record: Any) -> dict[str, Any]:
    # Not dataclasses.asdict: its deep copies take ten times as long as the database does.
    return {field.name: getattr(record, field.name) for field in fields(record)}


def chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[i : i + CHUNK] for i in range(0, len(values), CHUNK))
