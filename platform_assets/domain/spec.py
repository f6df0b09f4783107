"""What a user writes: one frozen PipelineSpec a pipeline, from YAML, Python or a Component."""

import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator, model_validator

from platform_assets.domain.canary import EnvironmentTerms
from platform_assets.domain.checkpoints import CheckpointsSpec
from platform_assets.domain.digests import digest_of
from platform_assets.domain.errors import UsageError
from platform_assets.domain.expressions import names_in as names_in
from platform_assets.domain.gate import EvaluationSpec as EvaluationSpec
from platform_assets.domain.gpu_shapes import GpusSpec
from platform_assets.domain.image_spec import ImagesSpec
from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.domain.promotion import Kind
from platform_assets.domain.serving import ServingSpec
from platform_assets.domain.source_spec import (
    ColumnSpec,
    Frozen,
    LocalTime,
    Name,
    PartitionValue,
    SourceSpec,
    iana_timezone,
    listed,
)

# As Dagster checks owners, and the names of teams that its UI can filter by.
_OWNER = re.compile(
    r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:[A-Za-z0-9_.-]+",
)
_ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class JoinSpec(Frozen):
    """Columns of another source, joined to each row by partition key and time column."""

    source: Name
    columns: tuple[str, ...] = Field(min_length=1)


class TargetSpec(Frozen):
    """What the model predicts, as an expression over the columns of `rows` and joins."""

    name: Name
    expression: str


class DatasetSpec(Frozen):
    """How source rows become training rows."""

    description: str = ""
    rows: Name
    joins: tuple[JoinSpec, ...] = ()
    exclude: Mapping[Name, str] = {}
    min_rows: int = Field(default=0, ge=0)
    """Rows that `exclude` has to leave of a partition, at the least; fewer are suspicious."""
    derive: Mapping[Name, str] = {}
    features: tuple[str, ...] = Field(min_length=1)
    categories: tuple[str, ...] = ()
    target: TargetSpec
    relevance: str | None = None
    """Gain of a row in the day's ranking (NDCG); none: no ranking metric."""


class ModelSpec(Frozen):
    """What is trained, by whom, on how much."""

    description: str = ""
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    kind: Kind
    trainer: str
    parameters: Mapping[str, bool | int | float | str] = {}
    seed: int = Field(default=0, ge=0, lt=2**31)
    window_days: int = Field(ge=1, le=366)
    min_days: int = Field(ge=1)
    # Of no version: it decides where a model is trained, not of what.
    gpus: GpusSpec | None = Field(default=None, exclude=True)
    # Of no version: it decides when a training is saved, not what it makes.
    checkpoints: CheckpointsSpec = Field(default=CheckpointsSpec(), exclude=True)
    # As little; how many begin together is in the fingerprint, for it decides the last bits.
    processes: ProcessesSpec | None = Field(default=None, exclude=True)
    stream: bool = Field(default=False, exclude=True)
    """Whether the trainer takes its rows in parts, for they do not fit into memory."""

    @field_validator("trainer")
    @classmethod
    def _entry_point(cls, text: str) -> str:
        if not _ENTRY_POINT.fullmatch(text):
            raise ValueError("an entry point is written package.module:object")
        return text

    @model_validator(mode="after")
    def _enough_days(self) -> "ModelSpec":
        if self.min_days > self.window_days:
            raise ValueError(
                f"min_days is {self.min_days}; allowed are 1 to window_days ({self.window_days}), "
                "else no model would ever train"
            )
        if self.gpus is not None and self.processes is not None:
            ranks = self.processes
            layout = f"{ranks.nodes}x{ranks.max // ranks.nodes}"
            if set(self.gpus.shapes) != {layout}:
                raise ValueError(
                    f"processes asks for {ranks.max} ranks on {ranks.nodes} nodes, a GPU each, and "
                    f"gpus has the shapes {', '.join(self.gpus.shapes)}; allowed is {layout}, for "
                    "in another one the numbers would be added in another order"
                )
        return self


class PartitionsSpec(Frozen):
    """The grid: a key dimension (an airport) and calendar days of one timezone."""

    key: Name
    values: tuple[PartitionValue, ...] = Field(min_length=1)
    timezone: Annotated[str, AfterValidator(iana_timezone)]
    start: date
    end: date

    @field_validator("key")
    @classmethod
    def _not_date(cls, text: str) -> str:
        if text == "date":
            raise ValueError("the other dimension is called date already")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> "PartitionsSpec":
        if self.end < self.start:
            raise ValueError(f"end ({self.end}) lies before start ({self.start})")
        if len(set(self.values)) != len(self.values):
            raise ValueError("values must differ from each other")
        zone = ZoneInfo(self.timezone)
        for day in date_range(self.start, self.end):
            offset = datetime(day.year, day.month, day.day, tzinfo=zone).utcoffset() or timedelta()
            if offset % timedelta(hours=1):
                raise ValueError(
                    f"timezone {self.timezone} is no whole number of hours away from UTC on {day}, "
                    "the hourly files, named in UTC, would lie across its days; allowed are "
                    "timezones that are"
                )
        return self


class ScheduleSpec(Frozen):
    """Which days the sensors look after, and by which clock."""

    live_from: date
    clock: Literal["wall", "landed"] = "wall"
    """`landed`: a replay, as_of is what `signalbox land` has reached."""
    sensor_interval_seconds: int = Field(default=10, ge=1)


class FreshnessSpec(Frozen):
    """Dagster's freshness policy on dataset and model, and what it cannot tell: what is due.

    Attributes:
        warn_after_hours, fail_after_hours: of Dagster's policy, on the wall clock.
        trained_by: local time of the next day by which a date's model has to be there, on the
            pipeline's clock.
    """

    warn_after_hours: int = Field(default=24, ge=1)
    fail_after_hours: int = Field(default=30, ge=1)
    trained_by: LocalTime = time(8, 0)

    @model_validator(mode="after")
    def _ordered(self) -> "FreshnessSpec":
        if self.warn_after_hours >= self.fail_after_hours:
            raise ValueError(
                f"warn_after_hours ({self.warn_after_hours}) must be less than fail_after_hours "
                f"({self.fail_after_hours})"
            )
        return self


class LimitsSpec(Frozen):
    """How much one run may carry."""

    partitions_per_run: int = Field(default=15, ge=1)
    models_per_run: int = Field(default=15, ge=1)


class WrongReferencesError(ValueError):
    """Parts of a spec that do not fit together; `problems` has the reason by field."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{field}: {why}" for field, why in self.problems.items()))


class PipelineSpec(Frozen):
    """One pipeline, from landing zone to champion."""

    pipeline: Name
    description: str = ""
    owners: tuple[str, ...] = ()
    partitions: PartitionsSpec
    sources: Mapping[Name, SourceSpec] = Field(min_length=1)
    dataset: DatasetSpec
    model: ModelSpec
    evaluation: EvaluationSpec
    schedule: ScheduleSpec
    freshness: FreshnessSpec = FreshnessSpec()
    limits: LimitsSpec = LimitsSpec()
    serving: ServingSpec = ServingSpec()
    images: ImagesSpec = ImagesSpec()
    environment: EnvironmentTerms = EnvironmentTerms()

    @field_validator("owners")
    @classmethod
    def _owners(cls, owners: tuple[str, ...]) -> tuple[str, ...]:
        for owner in owners:
            if not _OWNER.fullmatch(owner):
                raise ValueError(
                    f"{owner!r}: an owner is an e-mail address or team:name, the name of letters, "
                    "digits, _, . and -"
                )
        return owners

    @model_validator(mode="after")
    def _references(self) -> "PipelineSpec":
        problems: dict[str, str] = {}
        readable = self._readable(problems)
        if not problems:
            self._expressions(readable, problems)
        # After the others: of a wrong list of categories this would only be the echo.
        for n, column in enumerate(() if problems else self.evaluation.gate.slices):
            if column not in self.dataset.categories:
                problems[f"evaluation.gate.slices.{n}"] = (
                    f"{column!r} is not among the categories; allowed are "
                    f"{listed(self.dataset.categories)}"
                )
        ranking = f"ndcg_at_{self.evaluation.ndcg_at}" if self.dataset.relevance else ""
        problems |= self.serving.problems(self.model.kind, ranking)
        asked, most = self.model.processes, self.limits.models_per_run
        if asked is not None and asked.nodes > 1 and most > 1:
            problems["limits.models_per_run"] = (
                f"is {most}, and model.processes asks for {asked.nodes} nodes, which start with a "
                "step and train one model; allowed is 1"
            )
        if self.first_model_date > self.last_judged_date:
            problems["partitions"] = (
                f"run from {self.partitions.start} to {self.partitions.end}, too short for one "
                f"window of {self.model.window_days} days and {self.evaluation.days} days to "
                "judge it"
            )
        if problems:
            raise WrongReferencesError(problems)
        return self

    def _readable(self, problems: dict[str, str]) -> dict[str, ColumnSpec]:
        """The columns that an expression may read: key, source of the rows, joins."""
        dataset, key = self.dataset, self.partitions.key
        for field, name in (
            ("dataset.rows", dataset.rows),
            *((f"dataset.joins.{n}.source", j.source) for n, j in enumerate(dataset.joins)),
        ):
            if name not in self.sources:
                problems[field] = f"found {name!r}; declared sources are {listed(self.sources)}"
        for name, source in self.sources.items():
            for taken in sorted({key, "date"} & set(source.columns)):
                problems[f"sources.{name}.columns.{taken}"] = (
                    "is added to each row from the folder of the landing file, leave it out"
                )
        if problems:
            return {}
        readable = {key: ColumnSpec(type="string"), **self.sources[dataset.rows].columns}
        for n, join in enumerate(dataset.joins):
            columns = self.sources[join.source].columns
            for column in join.columns:
                if column not in columns:
                    problems[f"dataset.joins.{n}.columns"] = (
                        f"found {column!r}; the columns of {join.source} are {listed(columns)}"
                    )
                elif column in readable:
                    problems[f"dataset.joins.{n}.columns"] = (
                        f"found {column!r}, but a column of that name is there already"
                    )
                else:
                    readable[column] = columns[column]
        return readable

    def _expressions(self, readable: Mapping[str, ColumnSpec], problems: dict[str, str]) -> None:
        dataset = self.dataset
        late = {name for name, column in readable.items() if column.known == "after"}
        known = set(readable)

        def check(field: str, expression: str) -> frozenset[str]:
            try:
                read = names_in(expression)
            except ValueError as error:
                problems[field] = str(error)
                return frozenset()
            if unknown := read - known:
                problems[field] = (
                    f"{expression!r} reads {listed(unknown)}, which no source declares; allowed "
                    f"are {listed(known)}"
                )
            return read

        for name, expression in dataset.derive.items():
            read = check(f"dataset.derive.{name}", expression)
            if name in readable:
                problems[f"dataset.derive.{name}"] = "a column of that name is there already"
            known.add(name)
            if read & late:
                late.add(name)
        for name, expression in dataset.exclude.items():
            check(f"dataset.exclude.{name}", expression)
        check("dataset.target.expression", dataset.target.expression)
        if dataset.relevance is not None:
            check("dataset.relevance", dataset.relevance)
        if dataset.target.name in known:
            problems["dataset.target.name"] = f"{dataset.target.name!r} is a column already"
        allowed = f"allowed are {listed(known - late)}"
        for n, feature in enumerate(dataset.features):
            field = f"dataset.features.{n}"
            if feature not in known:
                problems[field] = f"{feature!r} is neither a column nor derived; {allowed}"
            elif feature in late:
                problems[field] = (
                    f"{feature!r} is known only after the event that it would predict (known: "
                    f"after), the model would leak; {allowed}"
                )
            elif feature in dataset.features[:n]:
                problems[field] = f"{feature!r} is listed twice; once is allowed"
        for n, category in enumerate(dataset.categories):
            if category not in dataset.features:
                problems[f"dataset.categories.{n}"] = (
                    f"{category!r} is not among the features; allowed are "
                    f"{listed(dataset.features)}"
                )

    # --- assets, keys and dates -------------------------------------------------------------

    def asset(self, stage: str) -> str:
        """The asset key of a stage, `flights/features`."""
        return f"{self.pipeline}/{stage}"

    def landed(self, source: str) -> str:
        """The asset key of a source, `flights/landed_weather`."""
        return self.asset(f"landed_{source}")

    @property
    def read_sources(self) -> tuple[str, ...]:
        """The sources that the dataset reads, the one of its rows first."""
        return (self.dataset.rows, *(join.source for join in self.dataset.joins))

    @property
    def judged_sources(self) -> tuple[str, ...]:
        """The sources whose rows are judged before anything is built: read ones, and with rules."""
        ruled = (name for name, source in self.sources.items() if source.day_null_limits)
        return tuple(dict.fromkeys((*self.read_sources, *ruled)))

    @property
    def row_rules(self) -> str:
        """Digest of what the rows of a whole day have to keep; empty where nothing is asked."""
        limits = {name: s.day_null_limits for name, s in self.sources.items() if s.day_null_limits}
        dataset = self.dataset
        if not limits and not dataset.min_rows:
            return ""
        built = [dataset.min_rows, dict(dataset.exclude), dict(dataset.derive)]
        return digest_of([limits, built if dataset.min_rows else []])

    @property
    def first_model_date(self) -> date:
        """The first date whose window is not clipped by the start of the data."""
        return self.partitions.start + timedelta(days=self.model.window_days - 1)

    @property
    def last_judged_date(self) -> date:
        """The last date whose following days lie within the partitions."""
        return self.partitions.end - timedelta(days=self.evaluation.days)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.partitions.timezone)

    def dates(self) -> tuple[date, ...]:
        return date_range(self.partitions.start, self.partitions.end)

    def keys_of(self, day: date) -> tuple[str, ...]:
        """The partition keys of one date, `EWR|2013-01-05` and so on."""
        return tuple(str(PartitionKey(day, value)) for value in self.partitions.values)

    def judged_on(self, day: date) -> tuple[date, ...]:
        """The dates that a model of this date is judged on."""
        return date_range(day + timedelta(days=1), day + timedelta(days=self.evaluation.days))

    def require_partition(self, key: PartitionKey, *, keyed: bool) -> PartitionKey:
        """Refuse a partition that this pipeline does not have.

        Raises:
            UsageError: the key or the date lies outside of what is declared.
        """
        grid = self.partitions
        example = str(PartitionKey(grid.start, grid.values[0] if keyed else None))
        if keyed and key.key not in grid.values:
            raise UsageError(
                f"partition {str(key)!r} of pipeline {self.pipeline}: {grid.key} "
                f"{key.key or 'is missing'}; allowed are {listed(grid.values)}, as in {example}"
            )
        if not keyed and key.key is not None:
            raise UsageError(
                f"partition {str(key)!r}: this asset has one partition a date, as in {example}"
            )
        if not grid.start <= key.date <= grid.end:
            raise UsageError(
                f"partition {str(key)!r} lies outside of pipeline {self.pipeline}; allowed are "
                f"dates from {grid.start} to {grid.end}"
            )
        return key
