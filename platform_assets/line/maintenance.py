"""Maintenance of the lake: compaction, checkpoints, orphans, and versions that nobody needs.

What a registered model was trained or judged on is pinned: it stays, however old it is.
"""

import time
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any
from urllib.parse import unquote

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.lease import Lease
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.days import as_partition_version, load_snapshot
from platform_assets.line.services import Services
from resources import processes, upkeep
from resources.files import Files, Listed
from resources.lake import ONE, DatasetTable
from resources.leasing import keeper
from resources.ledger.records import VersionRecord
from resources.vacuum import Pins, sort_files

RESOURCE = "maintenance"
KEEP_DAYS = 7
"""What was replaced less than these days ago stays: a training may still be reading it."""


def maintain(services: Services, run_id: str) -> dict[str, Any]:
    """Look after the tables of a pipeline; one at a time, while runs go on.

    A file is removed only if no version of its table ever had it, it is a day old, and nobody is
    at work on its partition.

    Raises:
        LeaseTakenError: another maintenance is at work.
        RefusedError: the log of a table is not whole; then nothing is removed of any.
    """
    spec, dataset = services.spec, services.dataset
    with services.claim(f"{spec.pipeline}/{RESOURCE}", None, run_id):
        tables = dataset.tables(_built(services))
        began = {name: table.version() for name, table in tables.items()}
        compacted = {name: upkeep.compact(table.path) for name, table in tables.items()}
        now = time.time()
        found = {name: upkeep.orphans(table.path, now) for name, table in tables.items()}
        removed = [
            _named(name, file)
            for name, files in found.items()
            for file in files
            if _removed(services, tables[name], file, run_id)
        ]
        return {
            "dataset": dataset.path,
            "tables": {
                name: {"version_before": began[name], "version": table.version()}
                for name, table in tables.items()
            },
            "files_compacted": sum(done.removed for done in compacted.values()),
            "compaction_conflicts": [name for name, done in compacted.items() if done.conflict],
            "orphans": sum(map(len, found.values())),
            "orphans_removed": removed,
        }


def _built(services: Services) -> list[PartitionKey]:
    """The partitions that the ledger knows rows of: they tell which tables there are on S3."""
    found = services.ledger.current_versions(services.spec.asset("features"))
    return [PartitionKey.parse(name) for name in found]


def _named(table: str, file: Listed) -> str:
    """A file by its name in the dataset."""
    return file.name if table == ONE else f"{table}/{file.name}"


def _removed(services: Services, table: DatasetTable, file: Listed, run_id: str) -> bool:
    """Remove a file unless somebody is at work on its partition; tells whether it did."""
    folders = file.name.split("/")[:-1]
    values = {name: unquote(value) for name, _, value in (f.partition("=") for f in folders)}
    key, day = values.get(table.key_column), values.get("date")
    if key is None or day is None:
        return False
    resource = f"{services.spec.asset('features')} {key}|{day}"
    lease = services.leases.claim(resource, processes.holder(run_id))
    if not isinstance(lease, Lease):
        return False
    with keeper(services.home.ledger_url).keep(lease):
        Files(table.path).delete(file.name)
        return True


def pinned_versions(services: Services) -> dict[str, Pins]:
    """By table: its versions at which partitions have to stay readable, whatever is removed.

    Those are what each registered model was trained on, and judged on; what the current snapshots
    name; and the current version of each partition.

    Raises:
        RefusedError: the manifest of a model is gone or was changed, so that nobody can tell.
    """
    ledger, spec, dataset = services.ledger, services.spec, services.dataset
    pins: dict[str, dict[int, set[PartitionKey]]] = {}

    def pin(partitions: Iterable[PartitionVersion]) -> None:
        for table, found in dataset.by_table(partitions).items():
            # At once, as a training reads them; and each where it was committed, which is where
            # it is looked for when it was replaced before the last of them was.
            own = pins.setdefault(table, {})
            own.setdefault(max(v.table_version for v in found.values()), set()).update(found)
            for key, version in found.items():
                own.setdefault(version.table_version, set()).add(key)

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
    return dict(sorted(pins.items()))


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
        RefusedError: a manifest or the log is not whole.
    """
    spec, dataset = services.spec, services.dataset
    with services.claim(f"{spec.pipeline}/{RESOURCE}", None, run_id):
        pins = pinned_versions(services)
        cutoff = int((time.time() - keep.total_seconds()) * 1000)
        tables = {name: dataset.table_named(name) for name in pins}
        tables |= dataset.tables(_built(services))
        # All of them are looked at before a file of one is removed.
        found = {
            name: sort_files(table.path, table.key_column, pins.get(name, {}), cutoff)
            for name, table in tables.items()
        }
        expired = [file for files in found.values() for file in files.expired]
        removed = [
            (name, file)
            for name, files in found.items()
            for file in files.expired
            if not dry_run and _removed(services, tables[name], file, run_id)
        ]
        return {
            "dataset": dataset.path,
            "tables": {name: table.version() for name, table in tables.items()},
            "models": len({m.detail["model_version"] for m in _models(services)}),
            "pinned_files": sum(len(files.pinned) for files in found.values()),
            "recent_files": sum(len(files.recent) for files in found.values()),
            "expired_files": len(expired),
            "expired_bytes": sum(file.size for file in expired),
            "removed_bytes": sum(file.size for _, file in removed),
            "removed": [_named(*one) for one in removed],
            "dry_run": dry_run,
        }


def _models(services: Services) -> list[VersionRecord]:
    """Every model that was ever registered, also those that were trained again since."""
    return services.ledger.versions(services.spec.asset("model"))
