"""Signalbox as it really is, its sensor and its jobs, ticked by hand in this process."""

from dataclasses import dataclass
from datetime import date

import dagster as dg
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult

from platform_assets.component import pipeline_definitions
from platform_assets.domain.partition import PartitionKey
from platform_assets.drills.plain_dagster import QUIET
from platform_assets.factory.grid import asset_key, dagster_key
from platform_assets.line.services import Services


@dataclass
class SignalboxSide:
    """The real pipeline, its sensor and its jobs, in this process."""

    services: Services
    instance: dg.DagsterInstance

    def __post_init__(self) -> None:
        self.spec = self.services.spec
        self.defs = dg.Definitions.merge(
            pipeline_definitions(self.spec), dg.Definitions(executor=dg.in_process_executor)
        )
        self.cursor: str | None = None

    def tick(self) -> list[tuple[str, str]]:
        """One look of the readiness sensor; its requests are executed as the daemon does.

        Returns:
            job and partition of each request.
        """
        sensor = self.defs.resolve_sensor_def(f"{self.spec.pipeline}_readiness")
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self.defs.get_repository_def(),
            sensor_name=sensor.name,
        ) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        requested = []
        for request in data.run_requests or []:
            job, partition = str(request.job_name), str(request.partition_key)
            short = job.removeprefix(f"{self.spec.pipeline}_")
            requested.append((short, str(PartitionKey.parse(partition))))
            self.defs.resolve_job_def(job).execute_in_process(
                instance=self.instance, partition_key=partition, tags=request.tags, run_config=QUIET
            )
        return requested

    def materialize(
        self, stage: str, *, first: str, last: str | None = None
    ) -> ExecuteInProcessResult:
        """A run as the UI launches it, of one partition or of a range."""
        tags = {}
        if last is not None:
            ends = (dagster_key(self.spec, PartitionKey.parse(key)) for key in (first, last))
            names = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
            tags = dict(zip(names, ends, strict=True))
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[asset_key(self.spec.asset(stage))],
            partition_key=None if last else dagster_key(self.spec, PartitionKey.parse(first)),
            tags=tags,
            run_config=QUIET,
            raise_on_error=False,
        )

    def model(self, day: date) -> int | None:
        """Rows that the date's model was trained on; None if there is none."""
        name = self.spec.asset("model")
        record = self.services.ledger.current_version(name, day.isoformat())
        return record.rows if record else None


def failure_of(result: ExecuteInProcessResult) -> str:
    """What a failed run says, the innermost reason."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error is not None:
                return data.error.message.strip()
    return ""
