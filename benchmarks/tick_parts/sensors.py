"""The sensors of a pipeline, evaluated as the daemon's code server does, one after the other."""

import json
import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.sensor_definition import SensorExecutionData

from benchmarks.tick_parts.history import LAST, History
from platform_assets.component import pipeline_definitions
from platform_assets.domain.attention import rules_version
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.days import build_day
from platform_assets.line.inputs import stage_version
from sensors.tracking_truth import tracking_truth_sensors


def cpu_seconds() -> float:
    """CPU of this process, its threads and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(action: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    used = cpu_seconds()
    action()
    return cpu_seconds() - used


@dataclass
class Sensors:
    """All sensors of a history's pipeline, with their cursors and an instance of its home.

    A tick is the evaluation and the report of the events that it hands over; runs that it requests
    are not launched.
    """

    history: History
    cursors: dict[str, str | None] = field(default_factory=dict)
    requested: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec, home = self.history.spec, self.history.home
        self._variables = home.environment()
        os.environ |= self._variables
        self._instance = dg.DagsterInstance.from_config(str(home.dagster))
        truth = tracking_truth_sensors({spec.pipeline: spec})
        self._repository = dg.Definitions.merge(
            pipeline_definitions(spec), dg.Definitions(sensors=truth)
        ).get_repository_def()
        self.names = sorted(sensor.name for sensor in self._repository.sensor_defs)
        # As a daemon would have it that has run all the while.
        self.cursors[f"{spec.pipeline}_readiness"] = json.dumps(
            {
                "live_from": spec.schedule.live_from.isoformat(),
                "open_from": LAST.isoformat(),
                "told": {},
                "looked_to": LAST.isoformat(),
                "rules": rules_version(spec, stage_version(spec, "features")),
                "held": self.history.held,
            }
        )

    def tick(self, name: str) -> SensorExecutionData:
        """Evaluate one sensor, and report what it tells."""
        os.environ |= self._variables
        sensor = self._repository.get_sensor_def(name)
        with dg.build_sensor_context(
            instance=self._instance,
            cursor=self.cursors.get(name),
            repository_def=self._repository,
            sensor_name=name,
        ) as context:
            context.log.setLevel(logging.CRITICAL)
            data = sensor.evaluate_tick(context)
        for event in data.asset_events:
            self._instance.report_runless_asset_event(event)
        self.cursors[name] = data.cursor
        self.requested[name] = len(data.run_requests or [])
        return data

    def settle(self) -> None:
        """Tick until every change has been told and the requested roll-ups have run."""
        for _ in range(40):
            news = False
            for name in self.names:
                data = self.tick(name)
                news |= bool(data.asset_events)
                for request in data.run_requests or []:
                    news = True
                    key = PartitionKey.parse(str(request.partition_key))
                    if not str(request.job_name).endswith("_day"):
                        raise SystemExit(f"{request.run_key} was requested of a built history")
                    build_day(self.history.services, key, "benchmark")
            if not news:
                return
        raise SystemExit("the history does not come to rest")


class Eager:
    """Dagster's own sensor over the same graph, with `eager()` on what is computed."""

    def __init__(self, defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
        sensor = dg.AutomationConditionSensorDefinition(
            "eager", target="*", use_user_code_server=True
        )
        merged = dg.Definitions.merge(defs, dg.Definitions(sensors=[sensor]))
        self._repository = merged.get_repository_def()
        self._instance, self._cursor = instance, None
        self.requested = 0

    def tick(self) -> None:
        """One evaluation, from the cursor of the last."""
        sensor: Any = self._repository.get_sensor_def("eager")
        with dg.build_sensor_context(
            instance=self._instance, cursor=self._cursor, repository_def=self._repository
        ) as context:
            context.log.setLevel(logging.CRITICAL)
            data = sensor.evaluate_tick(context)
        self._cursor = data.cursor
        self.requested = len(data.run_requests or [])
