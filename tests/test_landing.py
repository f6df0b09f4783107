"""What a landing zone takes, refuses and gives back."""

import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.domain.completeness import Verdict
from platform_assets.domain.errors import HomeError, RefusedError, UsageError
from platform_assets.domain.partition import PartitionKey, local_hours
from resources.landing import LandingZone, hour_path
from resources.landing.atomic import write_whole
from resources.landing.hourfile import HourFormat
from resources.landing.layout import hour_of
from resources.ledger import ArrivalRecord
from tests.landing_zone import (
    DAY,
    HOUR,
    LATER,
    arrivals,
    flights_spec,
    hours_of,
    make_zone,
    respecify,
    weather,
    without_rules,
)

REPO = Path(__file__).parent.parent
NEW_YORK = "America/New_York"


@pytest.fixture
def zone(tmp_path: Path) -> LandingZone:
    return make_zone(tmp_path)


def place(zone: LandingZone, hour: datetime = HOUR) -> Path:
    """Where the weather of JFK belongs; its folder exists."""
    path = zone.root / zone.spec.pipeline / hour_path("weather", "JFK", hour)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def only(zone: LandingZone) -> ArrivalRecord:
    (record,) = arrivals(zone)
    return record


# --- names ------------------------------------------------------------------------------------


def test_a_file_is_named_by_its_hour_in_utc() -> None:
    evening = datetime(2013, 2, 9, 20, tzinfo=timezone(timedelta(hours=-5)))
    path = hour_path("weather", "JFK", evening)
    assert str(path) == "weather/JFK/2013-02-10/2013-02-10T01Z.parquet"


def test_the_two_one_o_clocks_of_the_autumn_have_two_names() -> None:
    first, second = local_hours(date(2013, 11, 3), NEW_YORK)[1:3]
    assert hour_path("weather", "JFK", first).name == "2013-11-03T05Z.parquet"
    assert hour_path("weather", "JFK", second).name == "2013-11-03T06Z.parquet"


@pytest.mark.parametrize(
    ("hour", "complaint"),
    [
        (datetime(2013, 2, 9, 10), "no timezone"),  # noqa: DTZ001
        (datetime(2013, 2, 9, 10, 30, tzinfo=UTC), "no whole hour"),
        (datetime(2013, 2, 9, 10, tzinfo=timezone(timedelta(hours=5, minutes=30))), "no whole"),
    ],
)
def test_an_hour_without_an_honest_name_is_refused(hour: datetime, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        hour_path("weather", "JFK", hour)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))  # noqa: DTZ001
def test_a_name_gives_its_hour_back(moment: datetime) -> None:
    hour = moment.replace(minute=0, second=0, microsecond=0, tzinfo=UTC)
    path = hour_path("weather", "JFK", hour)
    assert hour_of(path.name, hour.date()) == hour
    assert hour_of(path.name, hour.date() + timedelta(days=1)) is None


@pytest.mark.parametrize(
    "name",
    [
        "2013-02-09T24Z.parquet",
        "2013-02-09T1Z.parquet",
        "2013-02-09T10.parquet",
        "2013-02-09T10Z.parquet.gz",
        "2013-02-09t10z.parquet",
        "2013-02-09T10Z.parquet\n",
        "2013-02-09T\u0661\u0660Z.parquet",
        "notes.txt",
    ],
)
def test_any_other_name_stands_for_no_hour(name: str) -> None:
    assert hour_of(name, DAY) is None


def test_ignored_names_are_logged_once_and_never_recorded(
    zone: LandingZone, caplog: pytest.LogCaptureFixture
) -> None:
    path = zone.deliver("weather", "JFK", HOUR, weather())
    content = path.read_bytes()
    path.with_name(f".{path.name}.123-abc.tmp").write_bytes(content[:100])
    path.with_name("readme.parquet").write_bytes(content)
    path.with_name("2013-02-10T15Z.parquet").write_bytes(content)  # another day's folder
    with caplog.at_level(logging.WARNING):
        assert zone.refresh(DAY, DAY) == 1
        assert zone.refresh(DAY, DAY) == 0
    assert only(zone).path == "flights/weather/JFK/2013-02-09/2013-02-09T15Z.parquet"
    warned = sorted(record.getMessage().split()[0] for record in caplog.records)
    folder = "flights/weather/JFK/2013-02-09"
    assert warned == [f"{folder}/2013-02-10T15Z.parquet", f"{folder}/readme.parquet"]


@pytest.mark.parametrize(("source", "key"), [("wether", "JFK"), ("weather", "BOS")])
def test_unknown_sources_and_keys_are_refused(zone: LandingZone, source: str, key: str) -> None:
    with pytest.raises(UsageError, match=r"wether.*flights, weather|BOS.*EWR, JFK, LGA"):
        zone.deliver(source, key, HOUR, weather())
    with pytest.raises(UsageError):
        zone.read(source, key, DAY)
    with pytest.raises(UsageError):
        zone.refresh(DAY, DAY, keys=["JFK", "BOS"])
    with pytest.raises(UsageError):
        zone.report("BOS", DAY, LATER)
    assert not (zone.root / "flights").exists()


# --- delivering -------------------------------------------------------------------------------


def test_what_is_delivered_is_read(zone: LandingZone) -> None:
    hours = local_hours(DAY, NEW_YORK)
    for i, hour in reversed(list(enumerate(hours))):
        zone.deliver("weather", "JFK", hour, weather(hour, temp=float(i)))
    zone.deliver("weather", "JFK", hours[-1] + timedelta(hours=1), weather(temp=99.0))
    zone.deliver("weather", "LGA", hours[0], weather(hours[0], temp=99.0))
    assert zone.refresh(DAY, DAY) == 26
    table = zone.read("weather", "JFK", DAY)
    assert table.schema == pa.schema(
        [
            ("time_hour", pa.timestamp("us", tz="UTC")),
            *((name, pa.float64()) for name in weather().column_names[1:]),
        ]
    )
    assert hours_of(table) == list(hours)
    assert table["temp"].to_pylist() == [float(i) for i in range(24)]


def test_an_empty_file_is_a_delivery(zone: LandingZone) -> None:
    zone.deliver("weather", "JFK", HOUR, weather().slice(0, 0))
    assert zone.refresh(DAY, DAY) == 1
    assert (only(zone).rows, only(zone).rejected) == (0, None)
    report = zone.report("JFK", DAY, LATER).sources[1]
    assert (report.source, report.observed, report.rows) == ("weather", 1, 0)
    assert zone.read("weather", "JFK", DAY).num_rows == 0


def test_nothing_delivered_reads_as_no_rows_of_the_right_columns(zone: LandingZone) -> None:
    assert zone.refresh(DAY, DAY) == 0
    table = zone.read("flights", "JFK", DAY)
    assert table.num_rows == 0
    assert table.schema.field("time_hour").type == pa.timestamp("us", tz="UTC")
    assert zone.report("JFK", DAY, LATER).verdict is Verdict.LATE
    assert zone.report("JFK", DAY, HOUR).verdict is Verdict.ABSENT


def test_the_same_content_leaves_the_file_alone(zone: LandingZone) -> None:
    path = zone.deliver("weather", "JFK", HOUR, weather())
    before = path.stat()
    zone.deliver("weather", "JFK", HOUR, weather())
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_content_of_the_same_size_is_noticed(zone: LandingZone) -> None:
    path = zone.deliver("weather", "JFK", HOUR, weather(temp=1.0))
    # As if it had been written in the same tick of the kernel's clock, or by a clock that was off.
    ahead = path.stat().st_mtime_ns + 10**12
    os.utime(path, ns=(ahead, ahead))
    assert zone.refresh(DAY, DAY) == 1
    size = path.stat().st_size
    zone.deliver("weather", "JFK", HOUR, weather(temp=2.0))
    assert path.stat().st_size == size
    assert path.stat().st_mtime_ns > ahead
    assert zone.refresh(DAY, DAY) == 1
    assert zone.read("weather", "JFK", DAY)["temp"].to_pylist() == [2.0]


def test_a_link_to_the_same_content_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"./././target")
    link = tmp_path / "link"
    link.symlink_to("./././target")  # as long as the content, so that their sizes agree
    assert write_whole(link, b"./././target")
    assert not link.is_symlink()
    assert not write_whole(link, b"./././target")


def torn_reads(write: Callable[[Path], object], path: Path) -> tuple[int, int]:
    """How often a reader finds a whole file, and how often a part, while it is being written."""
    whole = torn = 0
    done = threading.Event()

    def write_all() -> None:
        for _ in range(10):
            write(path)
        done.set()

    writer = threading.Thread(target=write_all)
    writer.start()
    while not done.is_set():
        try:
            pq.read_metadata(path)
            whole += 1
        except FileNotFoundError:
            continue
        except (pa.ArrowInvalid, OSError):
            torn += 1
    writer.join()
    return whole, torn


def test_a_plain_write_is_read_torn_and_a_delivery_never(zone: LandingZone) -> None:
    hour = weather()
    large = pa.concat_tables([hour] * 100_000).combine_chunks()
    path = place(zone)

    _, torn = torn_reads(lambda final: pq.write_table(large, final, row_group_size=5_000), path)
    assert torn > 0, "the accident: a part of the file is there under its final name"

    path.unlink()
    variants = [large, large.slice(1)]

    def deliver(_: Path) -> None:
        variants.reverse()
        zone.deliver("weather", "JFK", HOUR, variants[0])

    whole, torn = torn_reads(deliver, path)
    assert torn == 0
    assert whole > 0


def test_files_that_are_being_replaced_are_never_taken_for_vanished(zone: LandingZone) -> None:
    for hour in local_hours(DAY, NEW_YORK):
        zone.deliver("weather", "JFK", hour, weather(hour))
    zone.refresh(DAY, DAY)
    done = threading.Event()

    def redeliver() -> None:
        for n in range(20):
            for hour in local_hours(DAY, NEW_YORK):
                zone.deliver("weather", "JFK", hour, weather(hour, temp=float(n)))
        done.set()

    writer = threading.Thread(target=redeliver)
    writer.start()
    while not done.is_set():
        zone.refresh(DAY, DAY)
        found = arrivals(zone)
        assert len(found) == 24
        assert all(record.rejected is None for record in found)
    writer.join()
    zone.refresh(DAY, DAY)
    assert set(zone.read("weather", "JFK", DAY)["temp"].to_pylist()) == {19.0}


WRITE_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from platform_assets.domain.errors import TransientError
from tests.landing_zone import HOUR, make_zone, weather
zone = make_zone(Path(sys.argv[1]))
zone.deliver("weather", "JFK", HOUR, weather(temp=1.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
try:
    zone.deliver("weather", "JFK", HOUR, weather(temp=2.0))
except TransientError as error:
    print(error)
"""


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITHOUT_ROOM, str(tmp_path)],
        capture_output=True, text=True, cwd=REPO, check=True,
    )  # fmt: skip
    assert "could not be written (File too large), nothing was left of it" in done.stdout
    (path,) = [p for p in (tmp_path / "landing").rglob("*") if p.is_file()]
    assert pq.read_table(path)["temp"].to_pylist() == [1.0]


def test_a_file_in_the_way_of_a_folder_is_told(zone: LandingZone) -> None:
    zone.root.mkdir()
    (zone.root / "flights").write_text("not a folder")
    with pytest.raises(HomeError, match=r"Not a directory.*must be made of folders"):
        zone.deliver("weather", "JFK", HOUR, weather())
    assert zone.refresh(DAY, DAY) == 0


# --- what is refused at arrival ---------------------------------------------------------------


def _truncated(path: Path) -> None:
    pq.write_table(weather(), path)
    path.write_bytes(path.read_bytes()[:-20])


def _named_pipe(path: Path) -> None:
    os.mkfifo(path)


def _other_hour(path: Path, **options: object) -> None:
    rows = [weather(HOUR), weather(HOUR + timedelta(hours=1))]
    pq.write_table(pa.concat_tables(rows), path, **options)


def _null_time(path: Path, **options: object) -> None:
    rows = pa.concat_tables([weather().set_column(0, "time_hour", _no_time()), *[weather()] * 2])
    pq.write_table(rows, path, **options)


def _no_time() -> pa.Array:
    return pa.nulls(1, pa.timestamp("us", tz="UTC"))


def _naive(path: Path) -> None:
    naive = weather()["time_hour"].cast(pa.timestamp("us"))
    pq.write_table(weather().set_column(0, "time_hour", naive), path)


def _doubled(path: Path) -> None:
    table = weather()
    pq.write_table(
        pa.Table.from_arrays([*table.columns, table["temp"]], names=[*table.column_names, "temp"]),
        path,
    )


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero bytes": (lambda p: p.touch(), "0 bytes; an hour without rows is a Parquet file"),
    "cut off": (_truncated, "no readable Parquet file, it may have been cut off"),
    "text": (lambda p: p.write_text("time_hour,temp\n"), "no readable Parquet file"),
    "folder": (lambda p: p.mkdir(), "not a regular file"),
    "pipe": (_named_pipe, "not a regular file"),
    "missing column": (
        lambda p: pq.write_table(weather().drop_columns(["temp", "visib"]), p),
        "column temp is missing, float is expected; column visib is missing, float is expected",
    ),
    "string for float": (
        lambda p: pq.write_table(weather(temp="30.5"), p),
        "column temp is string, float is expected",
    ),
    "naive time": (_naive, r"column time_hour is timestamp[us], timestamp with timezone UTC"),
    "doubled column": (_doubled, "column temp is there 2 times, once is expected"),
    "other hour": (
        _other_hour,
        "column time_hour runs from 2013-02-09T15:00:00Z to 2013-02-09T16:00:00Z, only instants",
    ),
    "other hour, no statistics": (
        lambda p: _other_hour(p, write_statistics=False),
        "column time_hour runs from 2013-02-09T15:00:00Z to 2013-02-09T16:00:00Z, only instants",
    ),
    "null": (_null_time, "column time_hour is null in 1 of 3 rows"),
    "null, no statistics": (
        lambda p: _null_time(p, write_statistics=False),
        "column time_hour is null in 1 of 3 rows",
    ),
    "null in another row group": (
        lambda p: _null_time(p, row_group_size=2),
        "column time_hour is null in 1 of 3 rows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_file_does_not_count_and_heals(zone: LandingZone, case: str) -> None:
    write, reason = REFUSED[case]
    before = HOUR - timedelta(hours=1)
    zone.deliver("weather", "JFK", before, weather(before))
    path = place(zone)
    write(path)

    assert zone.refresh(DAY, DAY) == 2
    assert zone.refresh(DAY, DAY) == 0, "a refused file is looked at again and told once"
    record = arrivals(zone)[1]
    assert record.rejected is not None
    assert reason in record.rejected
    assert record.rows == 0
    report = zone.report("JFK", DAY, LATER)
    assert report.sources[1].observed == 1
    assert HOUR not in report.sources[1].missing
    assert f"rejected 2013-02-09T15Z: {record.rejected}" in report.reason()
    assert hours_of(zone.read("weather", "JFK", DAY)) == [before]

    if path.is_dir():
        path.rmdir()
    zone.deliver("weather", "JFK", HOUR, weather())
    assert zone.refresh(DAY, DAY) == 1
    assert zone.report("JFK", DAY, LATER).sources[1].observed == 2
    assert hours_of(zone.read("weather", "JFK", DAY)) == [before, HOUR]


def test_the_verdict_does_not_depend_on_the_file_before(zone: LandingZone) -> None:
    # Parquet stores both as plain whole numbers; only the metadata tells a duration.
    whole = weather(temp=30)
    duration = whole.set_column(1, "temp", pa.array([30], pa.duration("us")))
    pq.write_table(whole, place(zone), store_schema=False)
    later = HOUR + timedelta(hours=1)
    moment = pa.array([later], pa.timestamp("us", tz="UTC"))
    pq.write_table(duration.set_column(0, "time_hour", moment), place(zone, later))
    zone.refresh(DAY, DAY)
    assert [record.rejected for record in arrivals(zone)] == [
        None,
        "column temp is duration[us], float is expected",
    ]


def test_every_part_of_a_file_is_refused(zone: LandingZone) -> None:
    path = zone.deliver("weather", "JFK", HOUR, weather())
    content = path.read_bytes()
    look = HourFormat(zone.spec.sources["weather"]).inspect
    assert look(path, HOUR).rejected is None
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert look(path, HOUR).rejected is not None, length


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 10_000), st.integers(0, 64))
def test_damage_never_ends_in_a_crash(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, cut: int
) -> None:
    source = HourFormat(flights_spec().sources["weather"])
    content = source.encode(weather())
    at %= len(content)
    damaged = content[:at] + noise + content[at + cut :]
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(damaged)
    look = source.inspect(path, HOUR)
    assert look.size == len(damaged)
    assert look.rejected is None or "\n" not in look.rejected


def test_a_column_of_nulls_and_wider_types_are_taken(zone: LandingZone) -> None:
    table = weather(temp=30)
    table = table.set_column(2, "dewp", pa.nulls(1))
    table = table.set_column(3, "humid", pa.array([1.5], pa.float32()))
    instant = table["time_hour"].cast(pa.timestamp("ns", tz="UTC"))
    table = table.set_column(0, "time_hour", instant).append_column("extra", pa.array(["ignored"]))
    pq.write_table(table.select(list(reversed(table.column_names))), place(zone))
    zone.refresh(DAY, DAY)
    assert only(zone).rejected is None
    read = zone.read("weather", "JFK", DAY)
    assert read.schema.field("time_hour").type == pa.timestamp("us", tz="UTC")
    assert read.to_pylist() == [
        {
            **weather().to_pylist()[0], "temp": 30.0, "dewp": None, "humid": 1.5
        }
    ]  # fmt: skip


def test_strings_of_any_encoding_are_read_as_strings(zone: LandingZone) -> None:
    row = {
        "time_hour": pa.array([HOUR] * 2, pa.timestamp("ms", tz="UTC")),
        "carrier": pa.array(["UA", "B6"]).dictionary_encode(),
        "flight": pa.array([1, 2], pa.int16()),
        "tailnum": pa.array(["N1", None], pa.large_string()),
        "dest": pa.array(["IAH", "BOS"]),
    }
    for name, column in zone.spec.sources["flights"].columns.items():
        row.setdefault(name, pa.array([1, 2], pa.int32() if column.type == "int" else pa.float64()))
    path = place(zone).parents[3] / hour_path("flights", "JFK", HOUR)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(row), path)
    assert zone.refresh(DAY, DAY) == 1
    table = zone.read("flights", "JFK", DAY)
    assert table.column_names == list(zone.spec.sources["flights"].columns)
    assert table["carrier"].to_pylist() == ["UA", "B6"]
    assert table["tailnum"].to_pylist() == ["N1", None]
    assert {table.schema.field(n).type for n in ("carrier", "tailnum")} == {pa.string()}
    assert table.schema.field("flight").type == pa.int64()


def test_values_that_do_not_fit_are_refused(zone: LandingZone) -> None:
    pq.write_table(weather(temp=2**60 + 1), place(zone))
    zone.refresh(DAY, DAY)
    assert "Integer value 1152921504606846977 not in range" in str(only(zone).rejected)


def test_values_that_do_not_fit_are_refused_when_read(tmp_path: Path) -> None:
    # Nobody looks at the rows of a source without rules for values before they are read.
    zone = make_zone(tmp_path, without_rules(flights_spec()))
    pq.write_table(weather(temp=2**60 + 1), place(zone))
    zone.refresh(DAY, DAY)
    assert only(zone).rejected is None
    with pytest.raises(RefusedError, match=r"cannot be read .*delivered again"):
        zone.read("weather", "JFK", DAY)


def test_a_corrected_spec_takes_what_it_refused(tmp_path: Path) -> None:
    spec = flights_spec()
    columns = spec.sources["weather"].model_dump()["columns"]
    columns["snow"] = {"type": "float", "nullable": True}
    sources = spec.model_dump(mode="json")["sources"]
    mistaken = respecify(spec, sources={"weather": {**sources["weather"], "columns": columns}})
    zone = make_zone(tmp_path, mistaken)
    zone.deliver("weather", "JFK", HOUR, weather())
    zone.refresh(DAY, DAY)
    assert only(zone).rejected == "column snow is missing, float is expected"

    zone = make_zone(tmp_path, spec)
    assert zone.refresh(DAY, DAY) == 1
    assert only(zone).rejected is None
    # And the other way round: what an older spec took is refused when it is read.
    with pytest.raises(RefusedError, match="column snow is missing"):
        make_zone(tmp_path, mistaken).read("weather", "JFK", DAY)


# --- symbolic links ---------------------------------------------------------------------------


def test_a_link_out_of_the_zone_is_refused(zone: LandingZone, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.parquet"
    pq.write_table(weather(), outside)
    place(zone).symlink_to(outside)
    zone.refresh(DAY, DAY)
    assert f"a symbolic link leads to {outside}, outside of the landing zone" in str(
        only(zone).rejected
    )
    assert zone.read("weather", "JFK", DAY).num_rows == 0
    zone.deliver("weather", "JFK", HOUR, weather())
    assert not place(zone).is_symlink()
    assert pq.read_table(outside).num_rows == 1
    zone.refresh(DAY, DAY)
    assert only(zone).rejected is None


def test_a_folder_that_leads_out_of_the_zone_is_refused(zone: LandingZone, tmp_path: Path) -> None:
    outside = tmp_path / "2013-02-09"
    outside.mkdir()
    folder = place(zone).parent
    pq.write_table(weather(), outside / place(zone).name)
    folder.rmdir()
    folder.symlink_to(outside)
    zone.refresh(DAY, DAY)
    assert "outside of the landing zone" in str(only(zone).rejected)


def test_links_within_the_zone_are_followed_and_dead_ones_refused(zone: LandingZone) -> None:
    kept = zone.root / "flights" / "kept.parquet"
    target = place(zone)
    pq.write_table(weather(), kept)
    target.symlink_to(kept)
    zone.refresh(DAY, DAY)
    assert only(zone).rejected is None
    assert zone.read("weather", "JFK", DAY).num_rows == 1
    kept.unlink()
    assert zone.refresh(DAY, DAY) == 1
    assert "a symbolic link to nothing readable" in str(only(zone).rejected)


def test_a_home_behind_a_link_is_no_link_out_of_the_zone(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    zone = make_zone(tmp_path / "home")
    zone.deliver("weather", "JFK", HOUR, weather())
    zone.refresh(DAY, DAY)
    assert only(zone).rejected is None


# --- what happens after arrival ---------------------------------------------------------------


def test_a_file_that_changed_after_its_arrival_is_not_read(zone: LandingZone) -> None:
    zone.deliver("weather", "JFK", HOUR, weather(temp=1.0))
    zone.refresh(DAY, DAY)
    zone.deliver("weather", "JFK", HOUR, weather(temp=2.0))
    with pytest.raises(RefusedError, match=r"has changed since its arrival.*refresh"):
        zone.read("weather", "JFK", DAY)
    assert zone.refresh(DAY, DAY) == 1
    assert zone.read("weather", "JFK", DAY)["temp"].to_pylist() == [2.0]
    place(zone).write_bytes(b"PAR1 of somebody else")
    with pytest.raises(RefusedError, match="has changed since its arrival"):
        zone.read("weather", "JFK", DAY)


def test_a_file_that_vanished_is_missing_after_the_next_look(zone: LandingZone) -> None:
    path = zone.deliver("weather", "JFK", HOUR, weather())
    zone.refresh(DAY, DAY)
    path.unlink()
    with pytest.raises(RefusedError, match="has vanished since its arrival"):
        zone.read("weather", "JFK", DAY)
    assert zone.refresh(DAY, DAY) == 1
    assert arrivals(zone) == []
    assert HOUR in zone.report("JFK", DAY, LATER).sources[1].missing
    assert zone.refresh(DAY, DAY) == 0


def test_a_vanished_folder_takes_its_hours_along(zone: LandingZone) -> None:
    path = zone.deliver("weather", "JFK", HOUR, weather())
    zone.refresh(DAY, DAY)
    path.unlink()
    path.parent.rmdir()
    assert zone.refresh(DAY, DAY) == 1
    assert arrivals(zone) == []


def test_rows_that_rotted_on_the_disk_are_not_read(zone: LandingZone) -> None:
    path = zone.deliver("weather", "JFK", HOUR, weather(temp=30.5))
    zone.refresh(DAY, DAY)
    before = path.stat()
    content = path.read_bytes()
    temp = pa.array([30.5]).buffers()[1].to_pybytes()
    path.write_bytes(content.replace(temp, pa.array([31.5]).buffers()[1].to_pybytes(), 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pq.read_table(path)["temp"].to_pylist() == [31.5], "without checksums it is believed"
    with pytest.raises(RefusedError, match="cannot be read"):
        zone.read("weather", "JFK", DAY)


def test_only_the_asked_days_and_keys_are_looked_at(zone: LandingZone) -> None:
    for key in ("EWR", "JFK"):
        for days in (0, 1, 3):
            hour = HOUR + timedelta(days=days)
            zone.deliver("weather", key, hour, weather(hour))
    assert zone.refresh(DAY, DAY, keys=["JFK"]) == 1 + 1  # 2013-02-10 UTC holds the evening
    assert arrivals(zone, key="EWR") == []
    assert zone.refresh(DAY, DAY + timedelta(days=9)) == 4
    assert zone.refresh(DAY + timedelta(days=1), DAY) == 0


def test_the_time_of_seeing_is_the_callers(zone: LandingZone) -> None:
    zone.deliver("weather", "JFK", HOUR, weather())
    zone.refresh(DAY, DAY, now=LATER)
    assert only(zone).seen_at == LATER


# --- reports ----------------------------------------------------------------------------------

DAYS = [date(2013, 3, 9), date(2013, 3, 10), date(2013, 3, 11)]
AUTUMN = [date(2013, 11, 2), date(2013, 11, 3), date(2013, 11, 4)]
_examples = iter(range(10**9))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> LandingZone:
    return make_zone(tmp_path_factory.mktemp("shared"))


@settings(max_examples=40, deadline=None)
@given(
    days=st.sampled_from([DAYS, AUTUMN]),
    data=st.data(),
    as_of_hours=st.integers(-3, 80),
)
def test_report_and_reports_agree(
    shared: LandingZone, days: list[date], data: st.DataObject, as_of_hours: int
) -> None:
    # A pipeline of its own, so that no example sees the arrivals of another.
    spec = flights_spec().model_copy(update={"pipeline": f"example{next(_examples)}"})
    zone = LandingZone(shared.root, spec, shared.ledger)
    begin = local_hours(days[0], NEW_YORK)[0]
    picked = data.draw(
        st.sets(
            st.tuples(
                st.sampled_from(["flights", "weather"]),
                st.sampled_from(["EWR", "JFK"]),
                st.integers(-2, 75),
                st.sampled_from([None, "it was cut off"]),
            ),
            max_size=60,
        )
    )
    zone.ledger.upsert_arrivals(
        [
            ArrivalRecord(
                zone=spec.pipeline,
                source=source,
                key=key,
                hour=begin + timedelta(hours=n),
                path=str(hour_path(source, key, begin + timedelta(hours=n))),
                size=1,
                mtime_ns=1,
                rows=0 if rejected else n + 2,
                rejected=rejected,
                seen_at=LATER,
            )
            for source, key, n, rejected in picked
        ]
    )
    as_of = begin + timedelta(hours=as_of_hours)
    bulk = zone.reports(days[0], days[-1], as_of)
    assert list(bulk) == sorted(
        PartitionKey(day, key) for day in days for key in spec.partitions.values
    )
    for partition, report in bulk.items():
        assert partition.key is not None
        assert zone.report(partition.key, partition.date, as_of) == report
        for source in report.sources:
            told = [*source.missing, *source.not_due]
            assert source.observed + len(told) + len(source.rejected) == source.expected
    assert zone.reports(days[1], days[1], as_of) == {
        partition: report for partition, report in bulk.items() if partition.date == days[1]
    }
    assert zone.reports(days[1], days[0], as_of) == {}


# --- the rest ---------------------------------------------------------------------------------


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, resources.landing, resources.nycflights; "
        "print([m for m in ('pyarrow', 'pandas', 'numpy', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True
    )
    assert done.stdout == "[]\n"


def test_the_producer_of_the_documentation_works(tmp_path: Path) -> None:
    text = (REPO / "docs" / "landing-zone.md").read_text()
    program = text.split("<!-- a test runs this -->\n```python\n")[1].split("```")[0]
    environment = {**os.environ, "SIGNALBOX_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=tmp_path)

    zone = make_zone(tmp_path)
    assert zone.refresh(DAY, DAY) == 1
    assert only(zone).rejected is None
    table = zone.read("weather", "JFK", DAY)
    assert (table.num_rows, table["temp"].to_pylist()) == (1, [30.9])
    shown = "landing/flights/weather/JFK/2013-02-09/2013-02-09T23Z.parquet"
    assert shown in text
    assert (tmp_path / shown).is_file()
    assert sorted(p.name for p in (tmp_path / shown).parent.iterdir()) == [Path(shown).name]


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_of_garbage_is_as_it_was_after_taking_files_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    zone = make_zone(tmp_path)
    zone.deliver("weather", "JFK", HOUR, weather())
    seen: list[bool] = []
    real = HourFormat.inspect

    def inspect(*given: Any) -> Any:
        seen.append(gc.isenabled())
        if len(seen) > 1:
            raise HomeError("the disk is gone")
        return real(*given)

    monkeypatch.setattr(HourFormat, "inspect", inspect)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        assert zone.refresh(DAY, DAY) == 1
        assert gc.isenabled() is enabled
        zone.deliver("weather", "JFK", HOUR, weather(temp=1.0))
        with pytest.raises(HomeError):
            zone.refresh(DAY, DAY)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False, False]
