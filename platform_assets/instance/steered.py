"""The instance, whose queue asks the ledger how fast each backfill may go."""

import logging
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.events import DagsterEventBatchMetadata
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.config import ConcurrencyConfig
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import RunLauncher
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES
from dagster._core.storage.tags import WILL_RETRY_TAG

from platform_assets.domain.lane_limits import (
    InProgress,
    Steering,
    beyond,
    with_steering,
    without_backfills,
)
from platform_assets.instance.interrupted import launched_again
from resources.home import Home
from resources.ledger.backfills import PAUSED, Backfills

log = logging.getLogger("dagster.signalbox")
"""Goes where Dagster's own messages go; into nothing where a command opens the instance."""
log.addHandler(logging.NullHandler())


class SignalboxInstance(dg.DagsterInstance):
    """Dagster's instance; `dagster.yaml` names it as instance_class.

    The queue asks for its limits each time it looks for runs to start, so that a backfill that is
    paused, resumed or resized is so at once, in every process, without a restart. The limits of
    `concurrency` stand in the way of any other place: Dagster prefers them to the coordinator's.
    """

    _steering: list[Steering] | None = None
    _unknown: str | None = None

    @classmethod
    def config_schema(cls) -> Mapping[str, Any]:
        """No configuration of its own."""
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Mapping[str, Any]:
        """Dagster's, but storage and compute logs that cost less; dagster.yaml may name others."""
        defaults = InstanceRef.config_defaults(base_dir)
        storage, logs = defaults["storage"], defaults["compute_logs"]
        assert storage is not None
        assert logs is not None
        return {
            **defaults,
            "storage": storage._replace(
                module_name="platform_assets.instance.storage", class_name="OneEngineStorage"
            ),
            "compute_logs": logs._replace(
                module_name="platform_assets.instance.compute_logs",
                class_name="FileComputeLogManager",
            ),
        }

    def _initialize_run_monitoring(self) -> None:
        """Dagster's, but whether runs can be resumed is asked of a launcher that is there.

        Dagster makes it for that as the instance is opened: each step's pod would import the
        client of the cluster, to launch no run.
        """
        if self._run_launcher is not None:
            super()._initialize_run_monitoring()
        else:
            self._run_monitoring_enabled = self.run_monitoring_settings.get("enabled", False)

    @property
    def run_launcher(self) -> RunLauncher:
        """The launcher; made, and asked whether it can do what is configured, once needed."""
        there = self._run_launcher is not None
        launcher = super().run_launcher
        if not there:
            self._initialize_run_monitoring()
        return launcher

    def handle_new_event(
        self, event: EventLogEntry, *, batch_metadata: DagsterEventBatchMetadata | None = None
    ) -> None:
        """Dagster's; whether a run is launched again that was interrupted is said before it ends.

        Dagster's daemon decides by its own rule about a run that it finds failed before the tag.
        """
        found = event.dagster_event
        if found is not None and found.is_run_failure and self.run_retries_enabled:
            run = self.get_run_by_id(event.run_id)
            reason = getattr(found.event_specific_data, "failure_reason", None)
            again = launched_again(self, run, reason) if run is not None else None
            if again is not None:
                self.add_run_tags(event.run_id, {WILL_RETRY_TAG: str(again).lower()})
        super().handle_new_event(event, batch_metadata=batch_metadata)

    def _should_retry_run(self, run: dg.DagsterRun, run_failure_reason: Any) -> bool:
        """What was said before, of an interrupted run; of any other Dagster's rule."""
        said = run.tags.get(WILL_RETRY_TAG)
        if said is not None:
            return said == "true"
        return bool(super()._should_retry_run(run, run_failure_reason))  # type: ignore[no-untyped-call]

    def get_concurrency_config(self) -> ConcurrencyConfig:
        """`steered_limits`, and more slots where runs that the queue never saw take them.

        What is executed past the queue is in progress while it waits for a slot of its lane, and
        counts against all slots: six of `dg launch` would leave the daily lane none.
        """
        config = self.steered_limits()
        queue = config.run_queue_config
        if queue is None:
            return config
        slots = queue.max_concurrent_runs + self._beyond(queue)
        return _with(config, queue._replace(max_concurrent_runs=slots))

    def steered_limits(self) -> ConcurrencyConfig:
        """The limits of dagster.yaml, and those of the backfills that are steered."""
        config = super().get_concurrency_config()
        queue = config.run_queue_config
        if queue is None:
            return config
        steering = self._read_steering()
        declared = queue.tag_concurrency_limits
        limits = (
            without_backfills(declared) if steering is None else with_steering(declared, steering)
        )
        return _with(config, queue._replace(tag_concurrency_limits=limits))

    def _beyond(self, queue: RunQueueConfig) -> int:
        """Asks for the runs only where they fill the slots: a count a second is cheap."""
        found = dg.RunsFilter(statuses=ACTIVE_RUN_STATUSES)
        if not 0 <= queue.max_concurrent_runs <= self.get_runs_count(found):
            return 0
        runs = self.get_runs(found)
        # What executes in the process that has made it has no origin that a queue could start.
        in_progress = [InProgress(run.tags, run.remote_job_origin is not None) for run in runs]
        return beyond(queue.tag_concurrency_limits, in_progress)

    def _read_steering(self) -> list[Steering] | None:
        """How fast backfills may go; the last that was known while the ledger does not answer."""
        try:
            records = Backfills(Home.locate().ledger_url).steered()
        except Exception as error:  # noqa: BLE001 - whatever it is, the queue has to go on
            self._complain(str(error))
            return self._steering
        self._unknown = None
        self._steering = [
            Steering(r.id, 0 if r.state == PAUSED else int(r.max_runs or 0)) for r in records
        ]
        return self._steering

    def _complain(self, why: str) -> None:
        """Say it once, not at every look of the queue."""
        if why == self._unknown:
            return
        self._unknown = why
        state = (
            "backfills wait until it does"
            if self._steering is None
            else f"{len(self._steering)} steered backfill(s) go on as last known"
        )
        log.warning("how fast backfills may go cannot be read (%s): %s", why, state)


def limits_in_force(instance: dg.DagsterInstance) -> ConcurrencyConfig:
    """The limits of an instance as they were set, whoever is in progress now."""
    if isinstance(instance, SignalboxInstance):
        return instance.steered_limits()
    return instance.get_concurrency_config()


def _with(config: ConcurrencyConfig, queue: RunQueueConfig) -> ConcurrencyConfig:
    return ConcurrencyConfig(pool_config=config.pool_config, run_queue_config=queue)
