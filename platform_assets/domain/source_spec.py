"""What a source is: its columns, and the contract that a day of it has to meet."""

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from platform_assets.domain.digests import digest_of

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")

ColumnType = Literal["string", "int", "float", "bool", "timestamp"]


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("allowed are lower-case letters, digits and _, starting with a letter")
    return text


def iana_timezone(text: str) -> str:
    """The name, if there is such a timezone."""
    try:
        ZoneInfo(text)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError("allowed are IANA timezone names, such as America/New_York") from error
    return text


def _partition_value(text: str) -> str:
    if not text or set(text) & set("|/\\,[]") or text != text.strip() or text.startswith("."):
        raise ValueError("a key must be non-empty, without any of | / \\ , [ ] or outer spaces")
    if not text.isprintable() or _DATE.fullmatch(text):
        raise ValueError("a key must be printable, and must not look like a date")
    return text


Name = Annotated[str, AfterValidator(_name)]
PartitionValue = Annotated[str, AfterValidator(_partition_value)]


def listed(names: Iterable[str]) -> str:
    """Names in order, for a message."""
    return ", ".join(sorted(names)) or "none"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnSpec(Frozen):
    """One column of a source, and the rules that each delivered hour of it has to keep.

    Attributes:
        type: string, int, float, bool, or timestamp (an instant in UTC).
        known: when its value exists: `before` the event that a row predicts, or `after` it; a
            feature may read only the former.
        nullable: whether a value may be missing.
        minimum: the least value that is allowed, of a number.
        maximum: the greatest.
        allowed: the only values that are allowed, of a string or int.
        max_null_fraction: share of an hour's rows that may be null, from `NULL_SAMPLE` rows on; an
            hour above it is refused.
        max_day_null_fraction: the same of a day's rows; a day above it is suspicious. It is judged
            when the rows are read to build from them.
    """

    type: ColumnType
    known: Literal["before", "after"] = "before"
    nullable: bool = False
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[str | int, ...] = ()
    max_null_fraction: float | None = Field(default=None, ge=0, le=1)
    max_day_null_fraction: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _rules_fit(self) -> "ColumnSpec":
        ranged = self.minimum is not None or self.maximum is not None
        if ranged and self.type not in ("int", "float"):
            raise ValueError(
                f"minimum and maximum are for int and float, the type here is {self.type}"
            )
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) is above maximum ({self.maximum})")
        if self.allowed and self.type not in ("string", "int"):
            raise ValueError(f"allowed is for string and int, the type here is {self.type}")
        kind = str if self.type == "string" else int
        wrong = [value for value in self.allowed if not isinstance(value, kind)]
        if wrong:
            raise ValueError(f"allowed holds {wrong[0]!r}, which is no {self.type}")
        for rule in ("max_null_fraction", "max_day_null_fraction"):
            if getattr(self, rule) is not None and not self.nullable:
                raise ValueError(f"{rule} needs nullable: true, else no null is allowed")
        return self

    @property
    def has_value_rules(self) -> bool:
        """Whether values have to be looked at, beyond their type and whether they are there."""
        found = (self.minimum, self.maximum, self.max_null_fraction)
        return bool(self.allowed) or any(rule is not None for rule in found)


NULL_SAMPLE = 10
"""Rows that an hour or day needs before its share of nulls is judged: of three, two say nothing."""


class WeekdayRowsSpec(Frozen):
    """A day's rows against the median of the same weekday in the weeks before.

    Attributes:
        weeks: how many weeks are looked back.
        at_least: how many of these days must be complete, else the rule is not applied.
        low: rows below this multiple of the median are suspicious.
        high: rows above this multiple are.
    """

    weeks: int = Field(default=4, ge=1, le=26)
    at_least: int = Field(default=2, ge=1)
    low: float = Field(default=0.5, ge=0, lt=1)
    high: float = Field(default=2.0, gt=1)

    @model_validator(mode="after")
    def _reachable(self) -> "WeekdayRowsSpec":
        if self.at_least > self.weeks:
            raise ValueError(
                f"at_least is {self.at_least}; allowed are 1 to weeks ({self.weeks}), else the "
                "rule would never be applied"
            )
        return self


def _clock_time(value: object) -> object:
    # YAML reads 16:00 without quotes as a number of base 60.
    if isinstance(value, bool | int | float):
        raise ValueError('a local time is written in quotes: "06:00"')
    return value


LocalTime = Annotated[dt.time, BeforeValidator(_clock_time)]


class ContractSpec(Frozen):
    """What a local day of a source has to be before anything is built from it.

    Attributes:
        sub_window: what is delivered: each hour of the local day, 23 or 25 on two days a year.
        min_rows: rows of a day, at the least; fewer are suspicious.
        weekday_rows: rows against the same weekday's trailing median; none: not judged.
        max_hour_rows: more rows in one delivered file are refused unread.
        max_hour_bytes: a larger file is refused unopened.
        deadline: local time of the next day by which the day is due.
        at_deadline: what happens to a day that is not whole by then: `hold` it until it is, or a
            person waives what is missing; or `accept` it, with `accept_lacking` sub-windows lacking
            at the most, if its rows are not suspicious.
        accept_lacking: sub-windows that an accepted day may lack, whether it has 23, 24 or 25.
        lateness_hours: after the end of the day; what arrives or changes within is restated.
        within_lateness: whether by itself (`restate`) or by a person (`list`).
    """

    sub_window: Literal["hour"] = "hour"
    min_rows: int = Field(default=0, ge=0)
    weekday_rows: WeekdayRowsSpec | None = None
    max_hour_rows: int = Field(default=1_000_000, ge=1)
    max_hour_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    deadline: LocalTime = dt.time(6, 0)
    at_deadline: Literal["hold", "accept"] = "hold"
    accept_lacking: int | None = Field(default=None, ge=1, le=22)
    lateness_hours: int = Field(default=72, ge=0)
    within_lateness: Literal["restate", "list"] = "restate"

    @model_validator(mode="before")
    @classmethod
    def _former(cls, document: object) -> object:
        if isinstance(document, Mapping) and "accept_from" in document:
            raise ValueError(
                f"accept_from: {document['accept_from']!r} counted the hours that must be there, "
                "which are not the same on days of 23 and 25 hours; write accept_lacking, the "
                "hours that may be lacking: 24 less that number"
            )
        return document

    @model_validator(mode="after")
    def _acceptance(self) -> "ContractSpec":
        if self.at_deadline == "accept" and self.accept_lacking is None:
            raise ValueError(
                "at_deadline: accept needs accept_lacking, the hours that may be lacking (1 to 22)"
            )
        if self.at_deadline == "hold" and self.accept_lacking is not None:
            raise ValueError("accept_lacking is for at_deadline: accept, with hold none may lack")
        if self.deadline.tzinfo is not None:
            raise ValueError("the deadline is local time of the pipeline, without an offset")
        return self


class SourceSpec(Frozen):
    """Hourly files of one producer."""

    description: str = ""
    time_column: str
    columns: Mapping[str, ColumnSpec] = Field(min_length=1)
    unique: tuple[str, ...] = ()
    contract: ContractSpec = ContractSpec()

    @model_validator(mode="after")
    def _columns_exist(self) -> "SourceSpec":
        for column in (self.time_column, *self.unique):
            if column not in self.columns:
                raise ValueError(
                    f"{column!r} is no column of this source; allowed are {listed(self.columns)}"
                )
        if self.columns[self.time_column].type != "timestamp":
            raise ValueError(f"time_column {self.time_column!r} must be of type timestamp")
        return self

    @property
    def has_value_rules(self) -> bool:
        """Whether the rows of a delivered hour have to be looked at, beyond its schema."""
        return bool(self.unique) or any(c.has_value_rules for c in self.columns.values())

    @property
    def rules_digest(self) -> str:
        """Digest of all that a delivered hour is judged by."""
        columns = {
            name: column.model_dump(mode="json", exclude={"description", "max_day_null_fraction"})
            for name, column in self.columns.items()
        }
        limits = [self.contract.max_hour_rows, self.contract.max_hour_bytes]
        return digest_of([self.time_column, columns, self.unique, limits])

    @property
    def day_null_limits(self) -> dict[str, float]:
        """The greatest share of nulls in a day's rows, by column."""
        limits = {name: c.max_day_null_fraction for name, c in self.columns.items()}
        return {name: limit for name, limit in limits.items() if limit is not None}
