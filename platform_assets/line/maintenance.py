"""Maintenance of the lake: compaction, checkpoints, orphans, and versions that nobody needs.

What a registered model was trained or judged on is pinned: it stays, however old it is.
"""

import time
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lease import Lease
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.days import as_partition_version, load_snapshot
from platform_assets.line.services import Services
from resources import processes, upkeep
from resources.leasing import keeper
from resources.ledger.records import VersionRecord
from resources.vacuum import Pins, sort_files

RESOURCE = "maintenance"
KEEP_DAYS = 7
"""What was replaced less than these days ago stays: a training may still be reading it."""


def maintain(services: Services, run_id: str) -> dict[str, Any]:
    """Look after the table of a pipeline; one at a time, while runs go on.

    A file is removed only if no version of the table ever had it, it is a day old, and nobody is
    at work on its partition.

    Raises:
        LeaseTakenError: another maintenance is at work.
        RefusedError: the table's log is not whole.
    """
    spec, table = services.spec, services.table
    with services.claim(f"{spec.pipeline}/{RESOURCE}", None, run_id):
        began = table.version()
        compacted = upkeep.compact(table.path)
        found = upkeep.orphans(table.path, time.time())
        removed = [file for file in found if _removed(services, file, run_id)]
        return {
            "table": table.path,
            "version_before": began,
            "version": table.version(),
            "files_compacted": compacted.removed,
            "compaction_conflict": compacted.conflict,
            "orphans": len(found),
            "orphans_removed": [str(file.relative_to(table.path)) for file in removed],
        }


def _removed(services: Services, file: Path, run_id: str) -> bool:
    """Remove a file unless somebody is at work on its partition; tells whether it did."""
    folders = file.relative_to(services.table.path).parts[:-1]
    values = {name: unquote(value) for name, _, value in (f.partition("=") for f in folders)}
    key, day = values.get(services.table.key_column), values.get("date")
    if key is None or day is None:
        return False
    resource = f"{services.spec.asset('features')} {key}|{day}"
    lease = services.leases.claim(resource, processes.holder(run_id))
    if not isinstance(lease, Lease):
        return False
    with keeper(services.home.ledger_url).keep(lease):
        file.unlink(missing_ok=True)
        return True


def pinned_versions(services: Services) -> Pins:
    """The table versions at which partitions have to stay readable, whatever is removed.

    Those are what each registered model was trained on, and judged on; what the current snapshots
    name; and the current version of each partition.

    Raises:
        RefusedError: the manifest of a model is gone or was changed, so that nobody can tell.
    """
    ledger, spec = services.ledger, services.spec
    pins: dict[int, set[PartitionKey]] = {}

    def pin(partitions: Iterable[PartitionVersion]) -> None:
        found = list(partitions)
        keys = {PartitionKey.parse(p.partition) for p in found}
        if found:
            # At once, as a training reads them; and each where it was committed, which is where
            # it is looked for when it was replaced before the last of them was.
            pins.setdefault(max(p.table_version for p in found), set()).update(keys)
        for version in found:
            own = pins.setdefault(version.table_version, set())
            own.add(PartitionKey.parse(version.partition))

    named = {(model.partition, str(model.detail["snapshot"])) for model in _models(services)}
    current = ledger.current_versions(spec.asset("snapshot"))
    named |= {(day, record.data_version) for day, record in current.items()}
    for day, version in sorted(named):
        try:
            pin(load_snapshot(services, date.fromisoformat(day), version).partitions)
        except RefusedError as error:
            raise RefusedError(
                f"nobody can tell which versions the snapshot of {day} pins, nothing was removed: "
                f"{error}"
            ) from error
    for judgement in ledger.versions(spec.asset("evaluation")):
        pin(PartitionVersion(**p) for p in judgement.detail["partitions"])
    for record in ledger.current_versions(spec.asset("features")).values():
        pin([as_partition_version(record)])
    return pins


def vacuum(
    services: Services,
    run_id: str,
    *,
    keep: timedelta = timedelta(days=KEEP_DAYS),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Remove the files of versions that no registered model pins and that are old enough.

    Args:
        services: of the pipeline.
        run_id: who does it.
        keep: what was replaced less than this ago stays.
        dry_run: tell what would be removed, and remove nothing.

    Raises:
        LeaseTakenError: a maintenance is at work.
        RefusedError: a manifest or the log is not whole, or the table is remote.
    """
    spec, table = services.spec, services.table
    with services.claim(f"{spec.pipeline}/{RESOURCE}", None, run_id):
        pins = pinned_versions(services)
        cutoff = int((time.time() - keep.total_seconds()) * 1000)
        found = sort_files(table.path, table.key_column, pins, cutoff)
        sizes = {file: file.stat().st_size for file in found.expired}
        removed = [f for f in found.expired if not dry_run and _removed(services, f, run_id)]
        return {
            "table": table.path,
            "version": table.version(),
            "models": len({m.detail["model_version"] for m in _models(services)}),
            "pinned_files": len(found.pinned),
            "recent_files": len(found.recent),
            "expired_files": len(found.expired),
            "expired_bytes": sum(sizes.values()),
            "removed_bytes": sum(sizes[file] for file in removed),
            "removed": [str(file.relative_to(table.path)) for file in removed],
            "dry_run": dry_run,
        }


def _models(services: Services) -> list[VersionRecord]:
    """Every model that was ever registered, also those that were trained again since."""
    return services.ledger.versions(services.spec.asset("model"))
