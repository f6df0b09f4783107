"""Runs in other processes that are killed or stopped between two of their steps.

They come from a fork server, which has imported everything but started no thread.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import platform_assets.line.features
import platform_assets.line.models
import tests.lake_workers  # noqa: F401 - first, it names itself alone to the fork server
from platform_assets.domain.lease import Lease
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.features import build_features
from platform_assets.line.models import train_model
from platform_assets.line.services import Services
from resources import processes
from resources.lake import Dataset, DatasetTable
from resources.ledger.leases import Leases
from resources.tracking.run import TrackedRun
from tests.homes import home_at
from tests.small import small_spec

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.lake_workers", __name__])

FEATURE_STEPS = ("claimed", "read", "joined", "opened", "committed", "recorded", "done")
MODEL_STEPS = ("claimed", "trained", "registered", "recorded")


def services_of(root: Path) -> Services:
    home = home_at(root)
    os.environ.update(home.environment())
    return Services.open(small_spec(), home)


def start(task: Callable[..., Any], *arguments: Any) -> Any:
    process = context.Process(target=task, args=arguments, daemon=True)
    process.start()
    return process


def before(owner: Any, name: str, do: Callable[[], None]) -> None:
    """Have something done the first time that a function is about to be called."""
    whole = getattr(owner, name)
    once = [do]

    def first(*arguments: Any, **named: Any) -> Any:
        while once:
            once.pop()()
        return whole(*arguments, **named)

    setattr(owner, name, first)


def without_leases() -> None:
    """Have this process work as if there were none: each guard passes."""
    lease = Lease("nothing", 1, processes.holder("nobody"))
    Services.claim = lambda *_: nullcontext(lease)  # type: ignore[method-assign, assignment]
    Leases.require = lambda *_: None  # type: ignore[method-assign, assignment]
    whole = Services.record

    def record(self: Services, *, lease: Lease, **named: Any) -> bool:
        return whole(self, lease=None, **named)  # type: ignore[arg-type]

    Services.record = record  # type: ignore[method-assign, assignment]


def build(
    root: Path, partition: str, step: str, by: signal.Signals, run_id: str, guarded: bool
) -> None:
    """Build features, and send oneself a signal between two steps."""
    if not guarded:
        without_leases()
    features = platform_assets.line.features
    place = {
        "claimed": (features, "assess"),
        "read": (features, "build_rows"),
        "joined": (DatasetTable, "commit"),
        "opened": (DatasetTable, "_overwrite"),
        "committed": (Services, "record"),
        "recorded": (Leases, "release"),
    }
    if step in place:
        before(*place[step], do=lambda: os.kill(os.getpid(), by))
    build_features(services_of(root), PartitionKey.parse(partition), run_id)
    if step == "done":
        os.kill(os.getpid(), by)


def train(root: Path, day: str, step: str, by: signal.Signals, run_id: str) -> None:
    """Train a model, and send oneself a signal between two steps."""
    models = platform_assets.line.models
    place = {
        "claimed": (models, "require_snapshot"),
        "trained": (TrackedRun, "log_model"),
        "registered": (Services, "record"),
        "recorded": (Services, "attend"),
    }
    if step in place:
        before(*place[step], do=lambda: os.kill(os.getpid(), by))
    train_model(services_of(root), PartitionKey.parse(day), run_id, lane="adhoc")


def build_all(root: Path, partitions: list[str], run_id: str, barrier: Any, results: Any) -> None:
    """Build partitions one by one, as a batch does; tell which of them it changed."""
    services = services_of(root)
    barrier.wait()
    done = {}
    for partition in partitions:
        outcome = build_features(services, PartitionKey.parse(partition), run_id)
        done[partition] = (outcome.changed, outcome.metadata.get("already_done_by"))
    results.put(done)


def write_in_turn(
    url: str, table: DatasetTable | Dataset, partition: str, mark: float, results: Any
) -> None:
    """Commit one partition under its lease, and record it."""
    from datetime import UTC, datetime

    from resources.leasing import acquire, keeper
    from resources.ledger import Ledger, VersionRecord
    from tests.lake_workers import rows

    leases = Leases(url)
    key = PartitionKey.parse(partition)
    name = f"flights/features {partition}"
    lease = acquire(leases, name, processes.holder(f"run {mark}"), limit=120)
    with keeper(url).keep(lease):
        commit = table.commit(
            key,
            rows(key, mark=mark),
            previous=None,
            guard=lambda: leases.require(lease),
            token=lease.token,
            fence=lease.after_crash,
        )
        record = VersionRecord(
            asset="flights/features",
            partition=partition,
            data_version=commit.data_version,
            table_version=commit.table_version,
            rows=commit.rows,
            detail={"token": lease.token},
            run_id=f"run {mark}",
            committed_at=datetime.now(UTC),
        )
        Ledger(url).record_version(record, lease)
    results.put((lease.token, mark))
