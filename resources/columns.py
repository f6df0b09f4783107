"""The columns of a dataset and their lineage: they follow from the spec alone, without any data.

So an empty day has the same schema as any other day.
"""

from dataclasses import dataclass

from platform_assets.domain.errors import UsageError
from platform_assets.domain.source_spec import ColumnSpec
from platform_assets.domain.spec import PipelineSpec, names_in

DATE = "date"
RELEVANCE = "relevance"


@dataclass(frozen=True)
class OutputColumn:
    """One column of a dataset.

    Attributes:
        name: its name.
        type: string, int, float, bool, timestamp (UTC), date, or int8 (a class: 0 or 1).
        description: for people.
        inputs: the source columns that it is computed from, as (source, column).
        nullable: whether a row may lack it.
    """

    name: str
    type: str
    description: str
    inputs: tuple[tuple[str, str], ...]
    nullable: bool


def output_columns(spec: PipelineSpec) -> list[OutputColumn]:
    """The columns of the dataset, in order, with their lineage.

    The partition key, `date`, the time column, the columns that make a row unique (those known
    before the event), the features, the target, and `relevance` where the spec declares one.

    Raises:
        UsageError: two columns would share a name, or a feature is neither number nor category.
    """
    dataset, grid = spec.dataset, spec.partitions
    rows = spec.sources[dataset.rows]
    sources = _origins(spec)
    columns = [
        OutputColumn(grid.key, "string", "partition key", (), False),
        OutputColumn(DATE, "date", f"calendar day in {grid.timezone}", (), False),
    ]
    names = dict.fromkeys((rows.time_column, *rows.unique, *dataset.features))
    for name in names:
        if name == grid.key:
            continue
        if name in dataset.derive:
            expression = dataset.derive[name]
            kind = "string" if name in dataset.categories else "float"
            columns.append(
                OutputColumn(name, kind, f"= {expression}", _inputs(spec, expression), True)
            )
            continue
        source, column = sources[name]
        feature = name in dataset.features
        if column.known == "after" and not feature:
            continue  # checked for uniqueness, but the outcome does not enter the dataset
        kind = "string" if name in dataset.categories else column.type
        if feature and name not in dataset.categories and kind in ("string", "timestamp"):
            raise UsageError(
                f"dataset.features: {name!r} is a {kind}, a model reads numbers and categories; "
                "list it under dataset.categories, or derive a number from it"
            )
        nullable = source != dataset.rows or column.nullable
        columns.append(OutputColumn(name, kind, column.description, ((source, name),), nullable))
    target = dataset.target
    columns.append(
        OutputColumn(
            target.name,
            "int8" if spec.model.kind == "binary_classification" else "float",
            f"target = {target.expression}",
            _inputs(spec, target.expression),
            False,
        )
    )
    if dataset.relevance is not None:
        columns.append(
            OutputColumn(
                RELEVANCE,
                "float",
                f"gain in the day's ranking = {dataset.relevance}",
                _inputs(spec, dataset.relevance),
                False,
            )
        )
    listed = [column.name for column in columns]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise UsageError(
            f"dataset of pipeline {spec.pipeline} would hold {', '.join(map(repr, twice))} twice; "
            f"{DATE!r}, {RELEVANCE!r}, the key and the target are taken, give the other another "
            "name"
        )
    return columns


def _origins(spec: PipelineSpec) -> dict[str, tuple[str, ColumnSpec]]:
    """Source and spec of each column that expressions may read, without the partition key."""
    dataset = spec.dataset
    columns = spec.sources[dataset.rows].columns
    found = {name: (dataset.rows, column) for name, column in columns.items()}
    for join in dataset.joins:
        for name in join.columns:
            found[name] = (join.source, spec.sources[join.source].columns[name])
    return found


def _inputs(spec: PipelineSpec, expression: str) -> tuple[tuple[str, str], ...]:
    origins = _origins(spec)
    found: set[tuple[str, str]] = set()
    for name in names_in(expression):
        if name in spec.dataset.derive:
            found.update(_inputs(spec, spec.dataset.derive[name]))
        elif name in origins:
            found.add((origins[name][0], name))
    return tuple(sorted(found))
