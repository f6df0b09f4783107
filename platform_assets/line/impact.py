"""What reads a partition: snapshots, models, evaluations, and the champion."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.manifest import Snapshot
from platform_assets.domain.partition import PartitionKey, date_range
from platform_assets.line.days import manifest_path
from platform_assets.line.services import Services
from platform_assets.line.stages import stage_of
from resources.ledger.records import VersionRecord

UNKNOWN = ""
"""The version that is read by what can no longer tell: its manifest is gone or was changed."""


@dataclass(frozen=True)
class Impact:
    """Who reads one partition, and in which version.

    Attributes:
        partition: of the dataset.
        days: data version that the roll-up of its date holds; empty if there is none.
        snapshots: data version that each date's current snapshot reads.
        models: data version that each date's current model was trained on.
        evaluations: data version that each date's current evaluation was made on; None for one
            of a model that reads the partition, on other days.
        model_versions: registered version of each of these models.
        champion: registered version and date of the champion, if it was trained on the partition.
    """

    partition: str
    days: Mapping[date, str] = field(default_factory=dict)
    snapshots: Mapping[date, str] = field(default_factory=dict)
    models: Mapping[date, str] = field(default_factory=dict)
    evaluations: Mapping[date, str | None] = field(default_factory=dict)
    model_versions: Mapping[date, int] = field(default_factory=dict)
    champion: tuple[int, date] | None = None

    def stale(self, data_version: str) -> set[str]:
        """The other versions of the partition that are in use; not what cannot tell."""
        found = {*self.snapshots.values(), *self.models.values(), *self.evaluations.values()}
        return {version for version in found if version} - {data_version}

    def as_dict(self) -> dict[str, Any]:
        """As a restatement keeps it."""
        document: dict[str, Any] = {
            "snapshots": [day.isoformat() for day in sorted(self.snapshots)],
            "models": [
                {"date": day.isoformat(), "version": self.model_versions[day]}
                for day in sorted(self.models)
            ],
            "evaluations": [day.isoformat() for day in sorted(self.evaluations)],
        }
        if self.champion is not None:
            version, day = self.champion
            document["champion"] = {"version": version, "date": day.isoformat()}
        return document


class Readers:
    """What reads the partitions of some dates; looked up in few queries, however many they are."""

    def __init__(self, services: Services, first: date, last: date) -> None:
        """
        Args:
            services: of the pipeline.
            first, last: dates of the partitions that are asked for, both included.
        """
        spec, ledger = services.spec, services.ledger
        self._services = services
        dates = date_range(
            max(first - timedelta(days=spec.evaluation.days), spec.partitions.start),
            min(last + timedelta(days=spec.model.window_days - 1), spec.partitions.end),
        )
        names = [day.isoformat() for day in dates]

        def current(stage: str) -> dict[date, VersionRecord]:
            found = ledger.current_versions(spec.asset(stage), names)
            return {date.fromisoformat(name): record for name, record in found.items()}

        self.days, self.models = current("day"), current("model")
        self.evaluations = current("evaluation")
        self._snapshots = {
            day: self._manifest(day, record.data_version)
            for day, record in current("snapshot").items()
        }
        self._trained_on = {
            day: self._manifest(day, str(record.detail["snapshot"]))
            for day, record in self.models.items()
        }
        self._champion = self._read_champion()

    def of(self, partition: PartitionKey) -> Impact:
        """Who reads one partition."""
        name, day = str(partition), partition.date
        window_ends = day + timedelta(days=self._services.spec.model.window_days - 1)

        def reading(manifests: Mapping[date, Mapping[str, str] | None]) -> dict[date, str]:
            return {
                at: UNKNOWN if read is None else read[name]
                for at, read in manifests.items()
                if day <= at <= window_ends and (read is None or name in read)
            }

        models = reading(self._trained_on)
        evaluations: dict[date, str | None] = {}
        for at, record in self.evaluations.items():
            judged = _judged_on(record)
            if name in judged or at in models:
                evaluations[at] = judged.get(name)
        champion = None
        if self._champion is not None:
            version, at, read = self._champion
            if name in read:
                champion = (version, at)
        rolled = self.days.get(day)
        return Impact(
            partition=name,
            days={day: _judged_on(rolled).get(name, UNKNOWN)} if rolled else {},
            snapshots=reading(self._snapshots),
            models=models,
            evaluations=evaluations,
            model_versions={at: self.version(at) for at in models},
            champion=champion,
        )

    def version(self, day: date) -> int:
        """The registered version of a date's current model."""
        return int(self.models[day].detail["model_version"])

    def _manifest(self, day: date, version: str) -> Mapping[str, str] | None:
        try:
            return _reads(manifest_path(self._services, day, version), version)
        except RefusedError:
            return None

    def _read_champion(self) -> tuple[int, date, Mapping[str, str]] | None:
        services = self._services
        found = services.ledger.champion(services.spec.pipeline)
        if found is None:
            return None
        history = services.ledger.history(
            services.spec.asset("model"), found.model_date.isoformat()
        )
        for record in history:
            if int(record.detail["model_version"]) == found.version:
                read = self._manifest(found.model_date, str(record.detail["snapshot"]))
                return found.version, found.model_date, read or {}
        return None


def _judged_on(record: VersionRecord) -> dict[str, str]:
    """The partitions that an evaluation or a roll-up names, with their versions."""
    listed: Iterable[Mapping[str, Any]] = record.detail.get("partitions", ())
    return {str(p["partition"]): str(p["data_version"]) for p in listed}


@lru_cache(maxsize=4096)
def _reads(path: Path, version: str) -> Mapping[str, str]:
    """The partitions that a manifest names, with their versions; manifests never change.

    Raises:
        RefusedError: it is gone, or is not the one that was recorded.
    """
    try:
        snapshot = Snapshot.model_validate_json(path.read_text())
    except (OSError, ValueError) as error:
        raise RefusedError(f"the manifest {path} cannot be read: {error}") from error
    if snapshot.data_version() != version:
        raise RefusedError(f"the manifest {path} was changed by hand")
    return {p.partition: p.data_version for p in snapshot.partitions}


def read_impact(services: Services, asset: str, partition: str) -> dict[str, Any]:
    """Who reads a partition of features, of a source, or all partitions of a day.

    Raises:
        UsageError: unknown asset or partition, or an asset that nothing is trained on.
    """
    spec = services.spec
    stage = stage_of(spec, asset)
    if stage not in ("features", "day") and not stage.startswith("landed_"):
        raise UsageError(
            f"{spec.asset(stage)} is not what models are trained on; allowed are "
            f"{', '.join(spec.asset(s) for s in ('features', 'day'))} and the sources "
            f"{', '.join(spec.landed(s) for s in spec.sources)}"
        )
    key = services.partition(partition, keyed=stage != "day")
    keys = [key] if key.key else [PartitionKey(key.date, v) for v in spec.partitions.values]
    readers = Readers(services, key.date, key.date)
    found = [readers.of(one) for one in keys]
    together = Impact(
        partition=str(key),
        snapshots={day: read for one in found for day, read in one.snapshots.items()},
        models={day: read for one in found for day, read in one.models.items()},
        evaluations={day: read for one in found for day, read in one.evaluations.items()},
        model_versions={day: v for one in found for day, v in one.model_versions.items()},
        champion=next((one.champion for one in found if one.champion), None),
    )
    return {
        "asset": spec.asset(stage),
        "partition": str(key),
        "champion": None,
        **together.as_dict(),
        "registered": registered(services, keys),
    }


def registered(services: Services, keys: Sequence[PartitionKey]) -> list[dict[str, Any]]:
    """Every registered model version that was trained on one of some partitions, oldest first.

    Also those that were trained again since: one of them may be champion, or may be rolled back
    to. Of each: which version of which partition it read, and whether that is still the current
    one; `unknown` is one whose manifest is gone or was changed, so that it cannot tell.
    """
    spec, ledger = services.spec, services.ledger
    names = {str(key): key for key in keys}
    current = ledger.current_versions(spec.asset("features"), names)
    crowned = {change.version for change in ledger.promotions(spec.model.name)}
    span = timedelta(days=spec.model.window_days - 1)
    found: dict[int, dict[str, Any]] = {}
    for record in ledger.versions(spec.asset("model")):
        day, version = date.fromisoformat(record.partition), int(record.detail["model_version"])
        inside = [name for name, key in names.items() if key.date <= day <= key.date + span]
        if not inside:
            continue
        snapshot = str(record.detail["snapshot"])
        try:
            read = _reads(manifest_path(services, day, snapshot), snapshot)
        except RefusedError:
            used = dict.fromkeys(inside, "unknown")
        else:
            used = {name: read[name] for name in inside if name in read}
        if used:
            held = {n: current[n].data_version if n in current else None for n in used}
            found[version] = {
                "version": version,
                "date": record.partition,
                "read": used,
                "current": used == held,
                "was_champion": version in crowned,
            }
    return [found[version] for version in sorted(found)]
