"""`signalbox land`: the replay, with progress."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from platform_assets.domain.errors import UsageError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from resources.nycflights import replay


def check_range(
    spec: PipelineSpec, first: date, last: date, until_hour: int | None, keys: Sequence[str]
) -> None:
    """Refuse what the data does not have.

    Raises:
        UsageError: a date, hour or airport that does not exist.
    """
    grid = spec.partitions
    if not (grid.start <= first <= grid.end and grid.start <= last <= grid.end):
        raise UsageError(
            f"--from {first} --to {last} leaves the data; allowed are dates from {grid.start} to "
            f"{grid.end}"
        )
    if last < first:
        raise UsageError(f"--to {last} lies before --from {first}; give them the other way round")
    if until_hour is not None and not 1 <= until_hour <= 24:
        raise UsageError(
            f"--until-hour {until_hour}: allowed are 1 to 24; it is exclusive, 18 lands the local "
            "hours 0 to 17"
        )
    unknown = [key for key in keys if key not in grid.values]
    if unknown:
        raise UsageError(f"--{grid.key} {', '.join(unknown)}: allowed are {', '.join(grid.values)}")


def land_flights(
    services: Services,
    first: date,
    last: date,
    until_hour: int | None = None,
    airports: Sequence[str] | None = None,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Deliver a range of dates and move the replay's clock on; returns what was landed."""
    spec = services.spec
    check_range(spec, first, last, until_hour, airports or ())
    keys = list(airports) if airports else None
    if quiet:
        as_of = replay(spec, services.zone, first, last, until_hour, keys, None)
    else:
        as_of = _with_progress(services, first, last, until_hour, keys)
    reached = services.ledger.advance_clock(spec.pipeline, as_of)
    return {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "until_hour": until_hour,
        "airports": keys or list(spec.partitions.values),
        "as_of": reached.isoformat(),
        "landing": str(services.home.landing / spec.pipeline),
    }


def _with_progress(
    services: Services,
    first: date,
    last: date,
    until_hour: int | None,
    keys: list[str] | None,
) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("landing"), BarColumn(), MofNCompleteColumn(), TextColumn("hours"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("landing")
        return replay(
            services.spec,
            services.zone,
            first,
            last,
            until_hour,
            keys,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
