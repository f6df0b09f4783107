"""Maintenance of the lake: compaction, checkpoints, and files that no version ever had."""

import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from platform_assets.domain.lease import Lease
from platform_assets.line.services import Services
from resources import processes, upkeep
from resources.leasing import keeper

RESOURCE = "maintenance"


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
