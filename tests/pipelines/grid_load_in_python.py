"""The pipeline of grid_load.yaml as spec objects: the second door."""

from datetime import date

from platform_assets.domain.spec import (
    ColumnSpec,
    DatasetSpec,
    EvaluationSpec,
    ModelSpec,
    PartitionsSpec,
    PipelineSpec,
    ScheduleSpec,
    SourceSpec,
    TargetSpec,
)

TIMEZONE = "Europe/Berlin"

GRID_LOAD = PipelineSpec(
    pipeline="grid_load",
    description="Load of the feeders of two substations, retrained every day (synthetic data).",
    owners=("team:grid", "grid@example.com"),
    partitions=PartitionsSpec(
        key="station",
        values=("north", "south"),
        timezone=TIMEZONE,
        start=date(2024, 3, 28),
        end=date(2024, 4, 5),
    ),
    sources={
        "feeders": SourceSpec(
            description="Each feeder's schedule and measured load, by the hour.",
            time_column="hour",
            unique=("hour", "feeder"),
            columns={
                "hour": ColumnSpec(type="timestamp", description="start of the hour, UTC"),
                "feeder": ColumnSpec(type="string"),
                "planned_mw": ColumnSpec(
                    type="float", description="schedule of the day before, megawatts"
                ),
                "maintenance": ColumnSpec(
                    type="bool", description="part of the feeder is switched off"
                ),
                "load_mw": ColumnSpec(
                    type="float", known="after", nullable=True, description="measured, megawatts"
                ),
            },
        )
    },
    dataset=DatasetSpec(
        description="One row a feeder and hour.",
        rows="feeders",
        exclude={"unmetered": "load_mw.isnull()"},
        derive={
            "clock_hour": f'hour.dt.tz_convert("{TIMEZONE}").dt.hour',
            "weekend": f'hour.dt.tz_convert("{TIMEZONE}").dt.dayofweek >= 5',
        },
        features=("station", "feeder", "planned_mw", "maintenance", "clock_hour", "weekend"),
        categories=("station", "feeder"),
        target=TargetSpec(name="load", expression="load_mw"),
    ),
    model=ModelSpec(
        description="Measured load of a feeder and hour, megawatts.",
        name="grid-load",
        kind="regression",
        trainer="tests.pipelines.tree_trainer:TreeTrainer",
        parameters={"max_depth": 6},
        seed=11,
        window_days=3,
        min_days=2,
    ),
    evaluation=EvaluationSpec(days=1),
    schedule=ScheduleSpec(live_from=date(2024, 4, 2), sensor_interval_seconds=2),
)
