"""The refused files of a pipeline, for people."""

from typing import Any
from zoneinfo import ZoneInfo

from platform_assets.line.services import Services
from resources.landing.misplaced import misplaced
from resources.ledger.records import QuarantineRecord

_AFTERWARDS = {
    "healed": "nothing: a good file has come in its place",
    "replaced": "nothing: another refused file has come in its place",
    "vanished": "nothing: the file is gone; its hour is missing until it is delivered",
}


def refused_files(services: Services, *, every: bool = False) -> list[dict[str, Any]]:
    """The refused files that nothing has come in the place of, oldest first.

    Args:
        services: of the pipeline.
        every: also those that have healed, were replaced or have vanished.
    """
    records = services.quarantine.all(services.spec.pipeline, only_open=not every)
    return [_described(services, record) for record in records]


def misplaced_folders(services: Services) -> list[str]:
    """Folders of the landing zone that no source reads now, each with what is expected there."""
    return misplaced(services.home.landing, services.spec)


def _described(services: Services, record: QuarantineRecord) -> dict[str, Any]:
    local = record.hour.astimezone(ZoneInfo(services.spec.partitions.timezone))
    return {
        "number": record.number,
        "pipeline": record.pipeline,
        "source": record.source,
        "key": record.key,
        "hour": record.hour.strftime("%Y-%m-%dT%HZ"),
        "hour_local": local.strftime("%Y-%m-%d %H:%M%z"),
        "path": record.path,
        "size": record.size,
        "sha256": record.digest,
        "reason": record.reason,
        "kept": record.kept,
        "since": record.found_at.isoformat(timespec="seconds"),
        "ended": record.ended_at.isoformat(timespec="seconds") if record.ended_at else None,
        "ended_by": record.ended_by,
        "what_to_do": advice(record),
    }


def advice(record: QuarantineRecord) -> str:
    """What to do about a refused file."""
    if record.ended_by is not None:
        return _AFTERWARDS.get(record.ended_by, "nothing")
    return (
        f"have {record.source} {record.key} {record.hour:%Y-%m-%dT%HZ} delivered again to the "
        "same path; the next look takes it and ends this"
    )
