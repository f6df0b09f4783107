"""A small line for tests: two airports, three-day windows, few trees; and a hand on all of it.

Of JFK and LGA in January 2013 every day from the 2nd on is whole, but LGA's 6th: its weather lacks
06:00. So 2013-01-06 is held for good, the models of the 4th, 7th and 8th can be judged, and that
of the 5th, which is judged on the 6th, cannot.
"""

import fcntl
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult
from dagster._core.execution.execution_result import ExecutionResult

from platform_assets.component import pipeline_definitions
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.events import RESTATE_TAG
from platform_assets.factory.grid import asset_key, dagster_key
from platform_assets.line.days import as_partition_version
from platform_assets.line.landing import land_flights
from platform_assets.line.services import Services
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer
from resources.home import Home
from resources.ledger.records import VersionRecord
from resources.training import OnRound
from tests.homes import copy_home, drop_home
from tests.nyc import changed, flights_spec

HELD = "LGA|2013-01-06"
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def small_spec(**changes: Mapping[str, object]) -> PipelineSpec:
    """The small pipeline; with some fields replaced: small_spec(model={"min_days": 3})."""
    small: dict[str, Mapping[str, object]] = {
        "partitions": {"values": ["JFK", "LGA"], "start": "2013-01-02", "end": "2013-01-20"},
        "model": {
            "window_days": 3,
            "min_days": 2,
            "parameters": {
                "num_boost_round": 4,
                "num_leaves": 7,
                "min_data_in_leaf": 20,
                "num_threads": 1,
            },
        },
        "evaluation": {"days": 1},
        "schedule": {"live_from": "2013-01-08"},
    }
    for part, fields in changes.items():
        small[part] = {**small.get(part, {}), **fields}
    return changed(flights_spec(), **small)


def definitions(spec: PipelineSpec) -> dg.Definitions:
    """What the catalog would have made of the spec, with the executor of the code location."""
    return dg.Definitions.merge(
        pipeline_definitions(spec), dg.Definitions(executor=dg.in_process_executor)
    )


def repository() -> dg.RepositoryDefinition:
    """The code location of the small pipeline; found by name, so that runs can be re-executed."""
    return definitions(small_spec()).get_repository_def()


def reexecute(instance: dg.DagsterInstance, run_id: str) -> dg.JobExecutionResult:
    """Re-execute a failed run from its failure, with its tags, as the UI and retries do."""
    parent = instance.get_run_by_id(run_id)
    assert parent is not None
    found = ReconstructableRepository.for_module("tests.small", "repository")
    tags = {k: v for k, v in parent.tags.items() if k != "dagster/failure_reason"}
    return dg.execute_job(
        found.get_reconstructable_job(parent.job_name),
        instance=instance,
        reexecution_options=dg.ReexecutionOptions.from_failure(run_id, instance),
        tags=tags,
    )


def failure_of(result: ExecutionResult) -> str:
    """What the failed steps of a run say."""
    said = []
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None:
                said.append(error.message)
                error = error.cause
    return "\n".join(said)


@dataclass
class Line:
    """A pipeline on a home, with its real Dagster instance."""

    home: Home
    spec: PipelineSpec
    instance: dg.DagsterInstance

    @cached_property
    def services(self) -> Services:
        return Services.open(self.spec, self.home)

    @cached_property
    def defs(self) -> dg.Definitions:
        return definitions(self.spec)

    def key(self, stage: str) -> dg.AssetKey:
        return asset_key(self.spec.asset(stage))

    def land(
        self,
        first: str,
        last: str | None = None,
        until_hour: int | None = None,
        airports: Sequence[str] | None = None,
    ) -> None:
        """Land dates as `signalbox land` does; the landed clock moves on."""
        land_flights(
            self.services,
            date.fromisoformat(first),
            date.fromisoformat(last or first),
            until_hour,
            airports,
            quiet=True,
        )

    def dagster_key(self, partition: str) -> str:
        return dagster_key(self.spec, PartitionKey.parse(partition))

    def run(
        self,
        *stages: str,
        partition: str | None = None,
        span: tuple[str, str] | None = None,
        job: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExecuteInProcessResult:
        """Execute as a run from the UI does; with `job`, as one of that job does.

        Args:
            stages: the assets to materialize.
            partition: key of a run of one partition.
            span: first and last key of a run over several: it carries the range in its tags.
        """
        found = (
            self.defs.resolve_job_def(job)
            if job
            else self.defs.resolve_implicit_global_asset_job_def()
        )
        ranged = {START: self.dagster_key(span[0]), END: self.dagster_key(span[1])} if span else {}
        return found.execute_in_process(
            instance=self.instance,
            partition_key=self.dagster_key(partition) if partition else None,
            asset_selection=[self.key(stage) for stage in stages] or None,
            tags={**ranged, **(tags or {})},
            raise_on_error=False,
        )

    def must(self, *stages: str, **how: Any) -> ExecuteInProcessResult:
        """`run`, which has to succeed."""
        result = self.run(*stages, **how)
        assert result.success, failure_of(result)
        return result

    def materializations(self, stage: str) -> list[dg.AssetMaterialization]:
        """Every event of an asset that Dagster holds, oldest first."""
        found = self.instance.fetch_materializations(self.key(stage), limit=1000, ascending=True)
        events = [record.asset_materialization for record in found.records]
        return [event for event in events if event is not None]

    def versions(self, stage: str) -> dict[str, VersionRecord]:
        """The ledger's current version of each partition of an asset."""
        return self.services.ledger.current_versions(self.spec.asset(stage))

    def history(self, stage: str, partition: str) -> list[VersionRecord]:
        return self.services.ledger.history(self.spec.asset(stage), partition)

    def check(self, stage: str) -> dg.AssetCheckEvaluation:
        """The latest result of the asset check that tells clear from held."""
        record = self.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(self.key(stage), "clear"), limit=1
        )[0]
        assert record.event is not None
        assert record.event.dagster_event is not None
        return record.event.dagster_event.asset_check_evaluation_data


@contextmanager
def opened(home: Home, spec: PipelineSpec | None = None) -> Iterator[Line]:
    """A line on a home, the environment pointing at it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment().items():
            patch.setenv(name, value)
        with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
            yield Line(home, spec or small_spec(), instance)


def replace_rows(line: Line, partition: str) -> VersionRecord:
    """Commit other rows to a partition, as a correction would."""
    key, services = PartitionKey.parse(partition), line.services
    before = line.versions("features")[partition]
    held = services.dataset.read([as_partition_version(before)])
    done = services.dataset.commit(key, held.slice(1), previous=before.data_version)
    record = replace(
        before,
        data_version=done.data_version,
        table_version=done.table_version,
        rows=done.rows,
        detail={**before.detail, "inputs": f"other than before {done.table_version}"},
    )
    services.ledger.record_version(record)
    return record


def built_once(shared: Path, name: str, source: Path, build: Callable[[Line], None]) -> Path:
    """A home that one worker of the test run builds on a copy of another, the others wait."""
    root = shared / name
    done = shared / f"{name}.done"
    with (shared / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            with opened(copy_home(source, root)) as line:
                build(line)
            done.touch()
    return root


def build_features(line: Line) -> None:
    """Land 2013-01-02 to 2013-01-09 and build all features and roll-ups but the held one."""
    line.land("2013-01-02", "2013-01-09")
    line.must("features", span=("JFK|2013-01-02", "JFK|2013-01-09"))
    line.must("features", span=("LGA|2013-01-02", "LGA|2013-01-05"))
    line.must("features", span=("LGA|2013-01-07", "LGA|2013-01-09"))
    line.must("day", span=("2013-01-02", "2013-01-09"))


def train_models(line: Line) -> None:
    """Train the models of three days; nothing is judged."""
    line.must("snapshot", "model", span=("2013-01-04", "2013-01-05"))
    line.must("snapshot", "model", span=("2013-01-07", "2013-01-08"))


@dataclass(frozen=True)
class Templates:
    """Homes to copy, each built once in a test run."""

    shared: Path
    empty: Path

    @property
    def features(self) -> Path:
        return built_once(self.shared, "small-features", self.empty, build_features)

    @property
    def models(self) -> Path:
        return built_once(self.shared, "small-models", self.features, train_models)


@contextmanager
def copied(template: Path, folder: Path, spec: PipelineSpec | None = None) -> Iterator[Line]:
    """A line on a fresh copy of a home."""
    home = copy_home(template, folder / "home")
    try:
        with opened(home, spec) as line:
            yield line
    finally:
        drop_home(home.root)


class FailingTrainer(LightGBMTrainer):
    """Starts, reports a round, and fails."""

    def fit(self, frame: Any, target: Any, *, on_round: OnRound, **_: Any) -> object:
        on_round(1, {"train_log_loss": 0.5})
        raise RuntimeError("the trainer gave up")


class PartsTrainer(LightGBMTrainer):
    """Takes its rows in parts, and trains on all of them together."""

    seen: ClassVar[list[int]] = []

    def fit_stream(self, frames: Callable[[], Iterator[Any]], **how: Any) -> object:
        import pandas as pd
        from pandas.api.types import union_categoricals

        parts = list(frames())
        self.seen.append(len(parts))
        columns = {}
        for name in parts[0][0].columns:
            cut = [frame[name] for frame, _ in parts]
            if isinstance(cut[0].dtype, pd.CategoricalDtype):
                columns[name] = union_categoricals(cut, sort_categories=True)
            else:
                columns[name] = pd.concat(cut, ignore_index=True)
        target = pd.concat([target for _, target in parts], ignore_index=True)
        return self.fit(pd.DataFrame(columns), target, **how)


class KilledTrainer(LightGBMTrainer):
    """Starts, and its process is killed."""

    def fit(self, frame: Any, target: Any, *, on_round: OnRound, **_: Any) -> object:
        on_round(1, {"train_log_loss": 0.5})
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


def main(arguments: Sequence[str]) -> None:
    """`python -m tests.small STAGE… PARTITION`: materialize in a process of its own.

    Prints the ledger's data version of the last stage. `--restate` first makes it again though
    nothing has changed. With `--killed-while-training` as the
    stage, the process does not come back from the model; with `--disk-full` no file may become
    larger than 0.9 MB, and it prints why the features failed.
    """
    *stages, partition = arguments
    if stages == ["--disk-full"]:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, hard))
        with opened(Home.locate()) as line:
            print(failure_of(line.run("features", partition=partition)))
        return
    if stages == ["--killed-while-training"]:
        with opened(
            Home.locate(), small_spec(model={"trainer": "tests.small:KilledTrainer"})
        ) as line:
            line.run("model", partition=partition)
        return
    tags = {}
    if stages[0] == "--restate":
        tags, stages = {RESTATE_TAG: "true"}, stages[1:]
    with opened(Home.locate()) as line:
        line.must(*stages, partition=partition, tags=tags)
        print(line.versions(stages[-1])[partition].data_version)


if __name__ == "__main__":
    main(sys.argv[1:])
