"""One page over a pipeline: how far it is, what is complete, what is held, what is open."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from platform_assets.domain.completeness import CompletenessReport, deadline_of
from platform_assets.domain.heat_map import Cell, CellState, HeatMap, heat_map
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.history import read_grid
from platform_assets.line.services import Services
from platform_assets.line.status import EMPTY, reached, status

COLUMNS = tuple(EMPTY)


def overview(services: Services) -> dict[str, Any]:
    """What `signalbox status` tells and what lies behind it, as values for a page.

    Returns:
        the document of `status`, and: `counts` of partitions by state, `months` (cells by month
        and key, 31 a row, None where there is none), and `blocks`, tables of text.
    """
    spec, last = services.spec, reached(services)
    grid = None
    reports: Mapping[PartitionKey, CompletenessReport] = {}
    if last is not None:
        grid = read_grid(services, spec.partitions.start, last, as_if_built=False)
        reports = grid.reports
    found = heat_map(
        (report for _, report in sorted(reports.items(), key=lambda item: _order(item[0]))),
        grid.refused if grid else {},
    )
    document = status(services, grid)
    return {
        **document,
        "description": spec.description,
        "timezone": spec.partitions.timezone,
        "key": spec.partitions.key,
        "columns": COLUMNS,
        "counts": found.counts(),
        "months": months(found),
        "blocks": [
            *([_due_now(document["due"])] if "due" in document else []),
            _held(services, reports, found),
            _failed(document),
            _waivers(services),
            _quarantine(services),
            _restatements(services),
            _alerts(services),
        ],
    }


def _order(partition: PartitionKey) -> tuple[str, date]:
    return partition.key or "", partition.date


def months(found: HeatMap) -> dict[str, dict[str, list[Cell | None]]]:
    """Cells by month (`2013-10`) and key, in a row of 31."""
    names = sorted({f"{day:%Y-%m}" for day in found.dates})
    table: dict[str, dict[str, list[Cell | None]]] = {
        name: {row.key: [None] * 31 for row in found.rows} for name in names
    }
    for row in found.rows:
        for cell in row.cells:
            table[f"{cell.date:%Y-%m}"][row.key][cell.date.day - 1] = cell
    return table


def _block(
    heading: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str
) -> dict[str, Any]:
    text = [["-" if value is None else str(value) for value in row] for row in rows]
    return {"heading": heading, "columns": list(columns), "rows": text, "empty": empty}


def _due_now(due: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rows = [(asset, found["state"], found["text"]) for asset, found in due.items()]
    return _block("Due", ("asset", "state", "what is due"), rows, "Nothing is due.")


def _held(
    services: Services,
    reports: Mapping[PartitionKey, CompletenessReport],
    found: HeatMap,
) -> dict[str, Any]:
    by_name = {str(partition): report for partition, report in reports.items()}
    cells = [cell for row in found.rows for cell in row.cells]
    held = [c for c in cells if not c.is_clear and c.state is not CellState.NOT_YET]
    rows = [
        (
            cell.partition,
            cell.state.value,
            _deadline(services, by_name[cell.partition], cell.date),
            cell.text.partition(": ")[2],
        )
        for cell in sorted(held, key=lambda cell: (-cell.date.toordinal(), cell.key))
    ]
    columns = ("partition", "verdict", "due", "what it lacks")
    return _block("Held partitions", columns, rows, "Nothing is held.")


def _failed(document: Mapping[str, Any]) -> dict[str, Any]:
    rows = [(f["asset"], f["partition"], f["reason"]) for f in document["failed"]]
    columns = ("asset", "partition", "how its run ended")
    return _block("Failed runs", columns, rows, "None waits to be made up for.")


def _deadline(services: Services, report: CompletenessReport, day: date) -> str:
    """The earliest deadline of the sources that do not let it leave."""
    spec = services.spec
    moments = [
        deadline_of(spec.sources[source.source].contract, day, spec.partitions.timezone)
        for source in report.sources
        if not source.is_clear
    ]
    return _moment(min(moments)) if moments else "-"


def _waivers(services: Services) -> dict[str, Any]:
    as_of = services.clock.as_of()
    rows = [
        (w.name, w.partition, w.state(as_of), w.by, _moment(w.until), w.reason)
        for w in reversed(services.waivers.of(services.spec.pipeline))
    ]
    columns = ("waiver", "partition", "state", "by", "until", "reason")
    return _block("Waivers", columns, rows, "None was given.")


def _quarantine(services: Services) -> dict[str, Any]:
    rows = [
        (r.path, _moment(r.found_at), r.reason, r.kept or "nothing could be kept")
        for r in reversed(services.quarantine.all(services.spec.pipeline, only_open=True))
    ]
    columns = ("file", "found", "why it was refused", "kept as")
    return _block("Quarantined files", columns, rows, "No file is in quarantine.")


def _restatements(services: Services) -> dict[str, Any]:
    rows = [
        (r.partition, r.state, _moment(r.found_at), r.decision, r.reason)
        for r in reversed(services.restatements.all(services.spec.pipeline, only_open=True))
    ]
    columns = ("partition", "state", "found", "decision", "reason")
    return _block("Open restatements", columns, rows, "None is open.")


def _alerts(services: Services) -> dict[str, Any]:
    rows = [
        (r.subject, r.kind, _moment(r.raised_at), r.text, r.advice)
        for r in reversed(services.alerts.all(services.spec.pipeline, only_open=True))
    ]
    columns = ("subject", "kind", "raised", "what", "what to do")
    return _block("Open alerts", columns, rows, "None is open.")


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}Z"
