"""Makes up the readings of grid_load, and lands them as docs/landing-zone.md says.

THE DATA IS SYNTHETIC: schedules, loads and gaps come from a seeded generator, no grid was
measured. Nothing of Signalbox is imported here, as any program that writes Parquet may be a
producer.

    python -m tests.pipelines.grid_load_producer 2024-03-27T23 2024-04-05T22
"""

import math
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 20240328
STATIONS = {"north": ("n1", "n2", "n3"), "south": ("s1", "s2")}
HOUR = timedelta(hours=1)


def readings(station: str, hour: datetime) -> pa.Table:
    """The rows of one station and hour; equal arguments give equal rows."""
    feeders = STATIONS[station]
    index = int(hour.timestamp()) // 3600
    random = np.random.default_rng([SEED, index, *station.encode()])
    daily = 1 - 0.4 * math.cos(2 * math.pi * (hour.hour - 2) / 24)
    base = np.array([8.0 + 3 * n for n in range(len(feeders))])
    planned = np.round(base * daily, 2)
    maintenance = random.random(len(feeders)) < 0.1
    load = planned * np.where(maintenance, 0.5, 1.05) + random.normal(0, 0.3, len(feeders))
    unmetered = random.random(len(feeders)) < 0.02
    return pa.table(
        {
            "hour": pa.array([hour] * len(feeders), pa.timestamp("us", tz="UTC")),
            "feeder": list(feeders),
            "planned_mw": planned,
            "maintenance": maintenance,
            "load_mw": pa.array(load, mask=unmetered),
        }
    )


def forecast(station: str, hour: datetime) -> pa.Table:
    """The temperature that was forecast for one station and hour."""
    random = np.random.default_rng([SEED + 1, int(hour.timestamp()) // 3600, *station.encode()])
    temperature = 9 - 5 * math.cos(2 * math.pi * (hour.hour - 3) / 24) + random.normal(0, 1)
    return pa.table(
        {
            "hour": pa.array([hour], pa.timestamp("us", tz="UTC")),
            "temperature": [round(temperature, 1)],
        }
    )


def land(home: Path, pipeline: str, source: str, key: str, hour: datetime, rows: pa.Table) -> Path:
    """Write one hour's file under a name that nobody looks at, then rename it."""
    folder = home / "landing" / pipeline / source / key / f"{hour:%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{hour:%H}.{os.getpid()}.tmp"
    pq.write_table(rows, draft)
    return draft.replace(folder / f"{hour:%Y-%m-%dT%H}Z.parquet")


def produce(home: Path, first: datetime, end: datetime) -> int:
    """Land every hour from first until before end, at all stations; returns the files written."""
    files = 0
    hour = first
    while hour < end:
        for station in STATIONS:
            land(home, "grid_load", "feeders", station, hour, readings(station, hour))
            files += 1
        hour += HOUR
    return files


if __name__ == "__main__":
    begin, stop = (
        datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC) for text in sys.argv[1:3]
    )
    print(f"{produce(Path(os.environ['SIGNALBOX_HOME']), begin, stop)} files landed")
