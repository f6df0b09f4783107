"""Damaged and wrong hours: never read, told with a reason, set aside, and healed by a good file.

Each kind of damage is real: the file is on the disk, and is judged by the code of production.
"""

import errno
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platform_assets.cli.app import main
from platform_assets.domain.completeness import SourceReport, Verdict
from platform_assets.domain.errors import HeldError, RefusedError, TransientError
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.source_spec import NULL_SAMPLE, SourceSpec
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.features import build_features
from platform_assets.line.services import Services
from resources.home import Home
from resources.landing import LandingZone, atomic, hour_path, rawfile, setaside
from resources.landing.hourfile import HourFormat
from resources.landing.schema import arrow_schema
from resources.landing.setaside import SetAside
from resources.landing.values import ValueRules
from resources.ledger.quarantine import Quarantine
from resources.ledger.records import QuarantineRecord
from tests.landing_zone import (
    DAY,
    HOUR,
    LATER,
    flights_spec,
    make_zone,
    respecify,
    weather,
    without_rules,
)

REPO = Path(__file__).parent.parent
NEW_YORK = "America/New_York"
ROWS = 12


def flights(hour: datetime = HOUR, rows: int = ROWS, **columns: Any) -> pa.Table:
    """Good rows of the source `flights`, but for the columns that are given."""
    table: dict[str, Any] = {
        "time_hour": pa.array([hour] * rows, pa.timestamp("us", tz="UTC")),
        "carrier": ["UA"] * rows,
        "flight": pa.array(range(1, rows + 1), pa.int64()),
        "tailnum": [f"N{n}" for n in range(rows)],
        "dest": ["IAH"] * rows,
        "distance": [1400.0] * rows,
        "sched_dep_time": pa.array([1015] * rows, pa.int64()),
        "sched_arr_time": pa.array([1330] * rows, pa.int64()),
        **{
            name: [float(n) for n in range(rows)]
            for name in ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
        },
    }
    return pa.table({**table, **columns})


def guarded(folder: Path, spec: PipelineSpec | None = None) -> LandingZone:
    """A landing zone that sets aside what it refuses, in a home of its own."""
    zone = make_zone(folder, spec)
    zone.set_aside = SetAside(folder, Quarantine(zone.ledger.url))
    return zone


@pytest.fixture
def zone(tmp_path: Path) -> LandingZone:
    return guarded(tmp_path)


def place(zone: LandingZone, hour: datetime = HOUR) -> Path:
    path = zone.root / zone.spec.pipeline / hour_path("flights", "JFK", hour)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def land_the_rest(zone: LandingZone) -> None:
    """Every hour of the day but one, in which nothing happened."""
    for hour in local_hours(DAY, NEW_YORK):
        if hour != HOUR:
            zone.deliver("flights", "JFK", hour, flights(hour, rows=3))


def judged(zone: LandingZone) -> SourceReport:
    zone.refresh(DAY, DAY)
    return next(s for s in zone.report("JFK", DAY, LATER).sources if s.source == "flights")


def quarantined(zone: LandingZone, *, only_open: bool = True) -> list[QuarantineRecord]:
    assert zone.set_aside is not None
    return zone.set_aside.store.all(zone.spec.pipeline, only_open=only_open)


def home_of(zone: LandingZone) -> Path:
    assert zone.set_aside is not None
    return zone.set_aside.home


def plainly_read(zone: LandingZone) -> pd.DataFrame:
    """The day as somebody would read it without any platform: all files of its folders."""
    names = ["2013-02-09", "2013-02-10"]
    folder = zone.root / zone.spec.pipeline / "flights" / "JFK"
    paths = sorted(path for name in names for path in (folder / name).glob("*.parquet"))
    return pd.concat([pd.read_parquet(path) for path in paths])


# --- kinds of damage --------------------------------------------------------------------------


def encoded(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


def written(table: pa.Table, **options: Any) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(encoded(table, **options))


def cut(share: float) -> Callable[[Path], object]:
    content = encoded(flights())
    return lambda path: path.write_bytes(content[: int(len(content) * share)])


def with_a_hole(path: Path) -> None:
    """A valid file of 64 gigabytes, most of which the disk does not hold."""
    content = encoded(flights())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    with path.open("wb") as handle:
        handle.write(content[:-footer])
        handle.seek(2**36)
        handle.write(content[-footer:])


def with_lying_statistics(path: Path) -> None:
    """The footer tells of the right hour, the row is of another."""
    table = flights(rows=1)
    content = encoded(table, use_dictionary=False, compression="none")
    instant = int(HOUR.timestamp() * 1e6).to_bytes(8, "little")
    other = int((HOUR + timedelta(hours=5)).timestamp() * 1e6).to_bytes(8, "little")
    footer = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    at = content.rindex(instant, 0, footer)
    path.write_bytes(content[:at] + other + content[at + 8 :])


def a_bomb(path: Path) -> None:
    """A long string, once in the file, and a thousand times in its rows."""
    tailnum = pa.array(["N" * 10**4] * 1000).dictionary_encode()
    path.write_bytes(encoded(flights(rows=1000, tailnum=tailnum), compression="zstd"))


def a_flipped_bit(path: Path) -> None:
    """The footer's schema says FLOAT where the pages hold DOUBLE."""
    content = HourFormat(flights_spec().sources["flights"]).encode(flights())
    for at in range(len(content) - int.from_bytes(content[-8:-4], "little"), len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 2
        try:
            schema = pq.ParquetFile(pa.BufferReader(bytes(flipped))).schema
        except (pa.ArrowException, OSError):
            continue
        if schema.column(8).physical_type == "FLOAT":
            path.write_bytes(flipped)
            return
    raise AssertionError("no bit of the footer makes FLOAT of DOUBLE")


LONG_AGO = datetime(1913, 2, 9, 15, tzinfo=UTC)
OTHERS = pa.array([HOUR] * 11 + [HOUR + timedelta(hours=1)], pa.timestamp("us", tz="UTC"))


@dataclass(frozen=True)
class Damage:
    """How a bad file comes to be, what is told of it, and what is kept of it.

    Attributes:
        plain: whether a plain read of the folder takes its rows.
        kept: whether its bytes can be set aside.
    """

    write: Callable[[Path], object]
    reason: str
    plain: bool = True
    kept: bool = True


DAMAGED = {
    "truncated": Damage(cut(0.99), "no readable Parquet file, it may have been cut", plain=False),
    "half a file": Damage(cut(0.5), "no readable Parquet file", plain=False),
    "zero bytes": Damage(lambda path: path.touch(), "the file has 0 bytes", plain=False),
    "text": Damage(lambda path: path.write_text("a,b\n1,2\n"), "no readable", plain=False),
    "wrong type": Damage(
        written(flights(distance=["far"] * ROWS)), "column distance is string, float is expected"
    ),
    "missing column": Damage(written(flights().drop_columns(["dest"])), "column dest is missing"),
    "another hour": Damage(
        written(flights(time_hour=OTHERS)),
        "column time_hour runs from 2013-02-09T15:00:00Z to 2013-02-09T16:00:00Z, only instants",
    ),
    "another century": Damage(written(flights(LONG_AGO)), "runs from 1913-02-09T15:00:00Z to"),
    "lying statistics": Damage(
        with_lying_statistics, "column time_hour runs from 2013-02-09T20:00:00Z to"
    ),
    "duplicates": Damage(
        written(flights(flight=pa.array([*range(1, 11), 10, 10], pa.int64()))),
        "3 of 12 rows share their time_hour, carrier, flight with another, such as "
        "2013-02-09T15:00:00Z, UA, 10; each is allowed once (unique)",
    ),
    "flood of nulls": Damage(
        written(flights(tailnum=pa.nulls(ROWS, pa.string()))),
        "column tailnum is null in 12 of 12 rows, a share of 0.9 at most is allowed",
    ),
    "flood of NaN": Damage(
        written(flights(distance=[float("nan")] * ROWS)),
        "column distance is null in 12 of 12 rows, a value is expected in each",
    ),
    "nulls": Damage(
        written(flights(dest=["IAH"] * 11 + [None])), "column dest is null in 1 of 12 rows"
    ),
    "too small": Damage(
        written(flights(distance=[1400.0] * 11 + [-1.0])),
        "column distance has 1 of 12 rows with a value that is not allowed, such as -1.0; 1 or "
        "more is allowed",
    ),
    "too large": Damage(
        written(flights(sched_dep_time=pa.array([1015] * 10 + [2400, 9999], pa.int64()))),
        "column sched_dep_time has 2 of 12 rows with a value that is not allowed, such as 2400; 0 "
        "to 2359 are allowed",
    ),
    "unknown value": Damage(
        written(flights(carrier=["UA"] * 11 + ["??\n"])),
        "column carrier has 1 of 12 rows with a value that is not allowed, such as '??\\n'; "
        "allowed are UA, B6",
    ),
    "flipped bit in the footer": Damage(
        a_flipped_bit,
        "(column dep_time is FLOAT by the footer's schema and DOUBLE by its row",
        plain=False,
    ),
    "too many rows": Damage(
        written(flights(rows=10_001)), "10001 rows, at most 10000 are allowed (max_hour_rows)"
    ),
    "huge": Damage(
        with_a_hole,
        " bytes, at most 1000000 are allowed (max_hour_bytes)",
        kept=False,
    ),
    "bomb": Damage(a_bomb, "the strings take 10005000 bytes when unpacked, at most 8000000 are"),
    "folder": Damage(lambda path: path.mkdir(), "not a regular file", plain=False, kept=False),
    "pipe": Damage(lambda path: os.mkfifo(path), "not a regular file", plain=False, kept=False),
}


def strict_spec() -> PipelineSpec:
    """Flights of two carriers alone, in files of a megabyte at most."""
    sources = flights_spec().model_dump(mode="json")["sources"]
    flights = sources["flights"]
    carrier = {**flights["columns"]["carrier"], "allowed": ["UA", "B6"]}
    contract = {**flights["contract"], "max_hour_bytes": 10**6}
    columns = {**flights["columns"], "carrier": carrier}
    strict = {**flights, "columns": columns, "contract": contract}
    return respecify(flights_spec(), sources={**sources, "flights": strict})


@pytest.mark.parametrize("case", DAMAGED)
def test_a_bad_hour_is_refused_set_aside_and_healed(tmp_path: Path, case: str) -> None:
    damage = DAMAGED[case]
    zone = guarded(tmp_path, strict_spec())
    land_the_rest(zone)
    path = place(zone)
    damage.write(path)
    before = path.stat()

    if damage.plain:
        assert len(plainly_read(zone)) > 23 * 3, "the accident: the bad rows are read"

    report = judged(zone)
    assert report.verdict is Verdict.QUARANTINED
    assert report.observed == 23
    assert damage.reason in report.rejected["2013-02-09T15Z"]
    assert zone.read("flights", "JFK", DAY).num_rows == 23 * 3
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)

    (record,) = quarantined(zone)
    assert (record.path, record.hour) == (str(path.relative_to(zone.root)), HOUR)
    assert record.reason == report.rejected["2013-02-09T15Z"]
    if damage.kept:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"quarantine/flights/flights/JFK/2013-02-09T15Z__{digest[:12]}.parquet"
        assert (record.kept, record.digest) == (name, digest)
        copy = home_of(zone) / record.kept
        assert copy.read_bytes() == content
        note = json.loads(copy.with_suffix(".json").read_text())
        assert note["reason"] == record.reason
        assert (note["path"], note["size"], note["sha256"]) == (record.path, len(content), digest)
        assert datetime.fromisoformat(note["found_at"]) == record.found_at
    else:
        assert (record.kept, record.digest) == ("", "")
        assert not (home_of(zone) / "quarantine").exists()

    assert zone.refresh(DAY, DAY) == 0
    assert quarantined(zone, only_open=False) == [record], "it is told once"

    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    zone.deliver("flights", "JFK", HOUR, flights())
    healed = judged(zone)
    assert (healed.verdict, healed.observed) == (Verdict.COMPLETE, 24)
    assert zone.read("flights", "JFK", DAY).num_rows == 23 * 3 + ROWS
    assert quarantined(zone) == []
    (ended,) = quarantined(zone, only_open=False)
    assert ended.ended_by == "healed"
    if damage.kept:
        assert (home_of(zone) / ended.kept).is_file(), "what was kept stays, as evidence"


def test_without_rules_the_same_rows_are_taken(tmp_path: Path) -> None:
    """What the rules are good for: the same files, and a catalog that has none."""
    broken = ("duplicates", "flood of nulls", "flood of NaN", "too small", "too large")
    for number, case in enumerate(broken):
        folder = tmp_path / str(number)
        folder.mkdir()
        zone = guarded(folder, without_rules(flights_spec()))
        DAMAGED[case].write(place(zone))
        assert judged(zone).observed == 1, case
        assert zone.read("flights", "JFK", DAY).num_rows == ROWS


@pytest.mark.parametrize("case", ["another hour", "lying statistics", "nulls", "bomb", "huge"])
def test_what_needs_no_rule_is_refused_without_rules(tmp_path: Path, case: str) -> None:
    zone = guarded(tmp_path, without_rules(strict_spec()))
    DAMAGED[case].write(place(zone))
    assert DAMAGED[case].reason in judged(zone).rejected["2013-02-09T15Z"]


def test_pyarrow_takes_a_flipped_type_and_gives_other_numbers(tmp_path: Path) -> None:
    """The accident that the footer's own contradiction tells of."""
    a_flipped_bit(tmp_path / "flipped.parquet")
    taken = pq.ParquetFile(tmp_path / "flipped.parquet").read()
    assert taken["dep_time"].to_pylist() != flights()["dep_time"].to_pylist()


def test_a_huge_file_is_never_opened(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_hole(place(zone))
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(
        rawfile.os, "open", lambda path, *more: (opened.append(path), real(path, *more))[1]
    )
    assert judged(zone).rejected
    assert opened == []
    zone.deliver("flights", "JFK", HOUR, flights())
    assert judged(zone).observed == 1
    assert opened == [str(place(zone))]


def test_a_file_of_too_many_rows_is_not_decoded(
    zone: LandingZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGED["too many rows"].write(place(zone))
    decoded: list[object] = []
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *a, **k: decoded.append(a))
    assert "max_hour_rows" in judged(zone).rejected["2013-02-09T15Z"]
    assert decoded == []


def test_a_few_nulls_in_a_small_hour_say_nothing(zone: LandingZone) -> None:
    rows = NULL_SAMPLE - 1
    nulls = pa.nulls(rows, pa.string())
    zone.deliver("flights", "JFK", HOUR, flights(rows=rows, tailnum=nulls))
    assert judged(zone).rejected == {}
    nulls = pa.nulls(rows + 1, pa.string())
    zone.deliver("flights", "JFK", HOUR, flights(rows=rows + 1, tailnum=nulls))
    assert "max_null_fraction" in judged(zone).rejected["2013-02-09T15Z"]


def test_the_same_row_in_two_hours_is_no_duplicate(tmp_path: Path) -> None:
    sources = flights_spec().model_dump(mode="json")["sources"]
    spec = respecify(
        flights_spec(), sources={"flights": {**sources["flights"], "unique": ["carrier", "flight"]}}
    )
    zone = guarded(tmp_path, spec)
    zone.deliver("flights", "JFK", HOUR, flights())
    zone.deliver("flights", "JFK", HOUR + timedelta(hours=1), flights(HOUR + timedelta(hours=1)))
    assert judged(zone).observed == 2


def test_each_bad_file_of_a_bulk_gets_its_own_reason(zone: LandingZone) -> None:
    hours = local_hours(DAY, NEW_YORK)
    for number, hour in enumerate(hours):
        bad = {1: {"distance": [0.5] * 3}, 2: {"flight": pa.array([1, 2, 2], pa.int64())}}
        zone.deliver("flights", "JFK", hour, flights(hour, 3, **bad.get(number % 5, {})))
    report = judged(zone)
    assert report.observed == 24 - 10
    told = list(report.rejected.values())
    assert told[0] == (
        "column distance has 3 of 3 rows with a value that is not allowed, such as 0.5; 1 or more "
        "is allowed"
    )
    second = hours[2].strftime("%Y-%m-%dT%H:%M:%SZ")
    assert told[1] == (
        "2 of 3 rows share their time_hour, carrier, flight with another, such as "
        f"{second}, UA, 2; each is allowed once (unique)"
    )
    assert len(quarantined(zone)) == 10


# --- what becomes of it -----------------------------------------------------------------------


def test_another_bad_file_replaces_the_record_and_both_are_kept(zone: LandingZone) -> None:
    for case in ("truncated", "duplicates"):
        DAMAGED[case].write(place(zone))
        judged(zone)
    first, second = quarantined(zone, only_open=False)
    assert (first.ended_by, second.ended_by) == ("replaced", None)
    assert (home_of(zone) / first.kept).read_bytes() != (home_of(zone) / second.kept).read_bytes()


def test_a_refused_file_that_is_taken_away_has_vanished(zone: LandingZone) -> None:
    DAMAGED["truncated"].write(place(zone))
    judged(zone)
    place(zone).unlink()
    report = judged(zone)
    assert HOUR in report.missing
    assert quarantined(zone) == []
    assert quarantined(zone, only_open=False)[0].ended_by == "vanished"


def test_only_the_days_that_are_looked_at_are_said_to_have_vanished(zone: LandingZone) -> None:
    DAMAGED["truncated"].write(place(zone))
    judged(zone)
    place(zone).unlink()
    zone.refresh(DAY + timedelta(days=9), DAY + timedelta(days=9))
    zone.refresh(DAY, DAY, keys=["LGA"])
    assert len(quarantined(zone)) == 1


def test_a_corrected_catalog_heals_too(tmp_path: Path) -> None:
    zone = guarded(tmp_path)
    DAMAGED["duplicates"].write(place(zone))
    assert judged(zone).observed == 0
    corrected = guarded(tmp_path, without_rules(flights_spec()))
    assert judged(corrected).observed == 1
    assert quarantined(corrected, only_open=False)[0].ended_by == "healed"


def test_a_stricter_catalog_refuses_to_read_what_it_took(tmp_path: Path) -> None:
    zone = guarded(tmp_path, without_rules(flights_spec()))
    DAMAGED["duplicates"].write(place(zone))
    assert judged(zone).observed == 1
    assert zone.read("flights", "JFK", DAY).num_rows == ROWS
    with pytest.raises(RefusedError, match=r"breaks the rules of source flights as they are now"):
        guarded(tmp_path).read("flights", "JFK", DAY)


WITHOUT_ROOM = """
import json, resource, sys
from pathlib import Path
from tests.test_quarantine import DAMAGED, guarded, judged, place, quarantined
zone = guarded(Path(sys.argv[1]))
DAMAGED[sys.argv[2]].write(place(zone))
assert judged(zone.__class__(zone.root, zone.spec, zone.ledger)).observed == 0
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
zone.ledger.arrivals("flights", "flights")
import resources.landing.setaside as setaside
real = setaside.write_whole
def limited(path, content):
    # The database writes too: only the copies meet a disk without room.
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), hard))
    try:
        return real(path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
setaside.write_whole = limited
report = judged(zone)
setaside.write_whole = real
(record,) = quarantined(zone)
folder = Path(sys.argv[1], "quarantine")
left = [p.name for p in folder.rglob("*") if p.is_file()]
judged(zone)
(again,) = quarantined(zone, only_open=False)
same = again.number == record.number
print(json.dumps([report.verdict, record.kept, record.digest, left, again.kept, same]))
"""


@pytest.mark.parametrize(("case", "room"), [("duplicates", 512), ("text", 50)])
def test_a_full_disk_keeps_the_hour_refused_and_the_copy_for_later(
    tmp_path: Path, case: str, room: int
) -> None:
    """No room for the copy; and room for the copy, but not for the reason beside it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ROOM, str(tmp_path), case, str(room)],
        capture_output=True, text=True, cwd=REPO, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict, kept, digest, left, later, same = json.loads(done.stdout)
    assert verdict == Verdict.QUARANTINED
    assert (kept, digest, left) == ("", "", []), "nothing half-written"
    assert "could not be set aside" in done.stderr
    assert (tmp_path / later).is_file(), "tried again at the next look"
    assert same


def test_a_kill_between_the_two_records_is_made_good(
    zone: LandingZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGED["duplicates"].write(place(zone))

    class KilledError(BaseException):
        """As if the process had ended."""

    @contextmanager
    def killed_before_the_arrivals() -> Iterator[None]:
        def die(*_: object) -> None:
            raise KilledError

        with monkeypatch.context() as patched:
            patched.setattr(zone.ledger, "note_files", die)
            with pytest.raises(KilledError):
                zone.refresh(DAY, DAY)
            yield

    with killed_before_the_arrivals():
        assert len(quarantined(zone)) == 1
        assert zone.report("JFK", DAY, LATER).sources[0].rejected == {}
    assert judged(zone).rejected
    assert len(quarantined(zone, only_open=False)) == 1

    zone.deliver("flights", "JFK", HOUR, flights())
    with killed_before_the_arrivals():
        assert quarantined(zone) == []
    assert judged(zone).observed == 1

    # And a file that was set aside, and taken away before its arrival was recorded.
    DAMAGED["duplicates"].write(place(zone, HOUR + timedelta(hours=1)))
    with killed_before_the_arrivals():
        assert len(quarantined(zone)) == 1
    place(zone, HOUR + timedelta(hours=1)).unlink()
    judged(zone)
    assert quarantined(zone) == []


# --- files that change while they are read ----------------------------------------------------


def large(value: float) -> bytes:
    """Half a megabyte of rows that all hold one value; its pages have no checksums."""
    rows = 9_000
    times = [float(value)] * rows
    return encoded(
        flights(rows=rows, dep_time=times, air_time=times), use_dictionary=False, compression="none"
    )


def in_place(path: Path, contents: list[bytes], done: threading.Event) -> None:
    """Write over the same file again and again, part by part, as careless producers do."""
    turn = 0
    while not done.is_set():
        turn += 1
        content = contents[turn % len(contents)]
        with path.open("r+b") as handle:
            for start in range(0, len(content), 16_384):
                handle.write(content[start : start + 16_384])
                handle.flush()


def test_a_file_that_changes_while_it_is_read_is_quarantined_until_it_rests(
    zone: LandingZone,
) -> None:
    land_the_rest(zone)
    contents = [large(1.0), large(2.0)]
    assert len(contents[0]) == len(contents[1])
    path = place(zone)
    path.write_bytes(contents[0])
    assert judged(zone).observed == 24

    done = threading.Event()
    writer = threading.Thread(target=in_place, args=(path, contents, done))
    writer.start()
    try:
        for _ in range(5_000):
            if path.read_bytes() not in contents:
                break
        else:
            pytest.fail("no plain read met a half-written file")
        for _ in range(500):
            if judged(zone).rejected.get("2013-02-09T15Z") == rawfile.CHANGING:
                break
        else:
            pytest.fail("no refresh met the writer")
        report = next(s for s in zone.report("JFK", DAY, LATER).sources if s.source == "flights")
        assert (report.verdict, report.observed) == (Verdict.QUARANTINED, 23)
        assert rawfile.CHANGING in quarantined(zone)[0].reason
        assert zone.read("flights", "JFK", DAY).num_rows == 23 * 3
    finally:
        done.set()
        writer.join()

    path.write_bytes(contents[1])
    assert judged(zone).verdict is Verdict.COMPLETE
    assert quarantined(zone) == []
    air_time = zone.read("flights", "JFK", DAY)["air_time"].to_pylist()
    assert air_time.count(2.0) >= 9_000


@contextmanager
def written_to_during(monkeypatch: pytest.MonkeyPatch, call: str, path: Path) -> Iterator[None]:
    """Every time a file is read, a producer appends to it right after one call of the system."""
    real = getattr(os, call)

    def and_then(*given: Any) -> Any:
        found = real(*given)
        with path.open("ab") as handle:
            handle.write(b"more")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(rawfile.os, call, and_then)
        yield


@pytest.mark.parametrize("before", [False, True], ids=["new", "accepted before"])
@pytest.mark.parametrize("call", ["fstat", "read"])
def test_a_file_that_changes_between_stat_and_read_or_during_it_is_told_once_and_heals(
    zone: LandingZone, monkeypatch: pytest.MonkeyPatch, call: str, before: bool
) -> None:
    path = zone.deliver("flights", "JFK", HOUR, flights())
    if before:
        assert judged(zone).observed == 1
        os.utime(path, ns=(0, 0))  # noticed, and opened
    with written_to_during(monkeypatch, call, path):
        report = judged(zone)
        assert (report.verdict, report.observed) == (Verdict.QUARANTINED, 0)
        assert report.rejected == {"2013-02-09T15Z": rawfile.CHANGING}
        assert zone.read("flights", "JFK", DAY).num_rows == 0
        (record,) = quarantined(zone)
        assert (record.reason, record.kept) == (rawfile.CHANGING, "")
        # It goes on changing: nothing new is told, neither here nor to whoever reads the day.
        assert zone.refresh(DAY, DAY) == 0
        assert judged(zone).data_version() == report.data_version()
        assert quarantined(zone, only_open=False) == [record]

    # It rests, half-written: judged for what it is now.
    assert "no readable Parquet" in judged(zone).rejected["2013-02-09T15Z"]
    zone.deliver("flights", "JFK", HOUR, flights())
    assert judged(zone).observed == 1
    assert zone.read("flights", "JFK", DAY).num_rows == ROWS
    ended = [r.ended_by for r in quarantined(zone, only_open=False)]
    assert ended == ["replaced", "healed"]


def test_a_file_that_rests_just_as_it_was_first_seen_is_taken_up(
    zone: LandingZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time of change are those of the refused one: it is opened all the same."""
    path = zone.deliver("flights", "JFK", HOUR, flights())
    age(path)
    state, content = path.stat(), path.read_bytes()
    with written_to_during(monkeypatch, "read", path):
        assert judged(zone).observed == 0
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert judged(zone).observed == 1
    assert quarantined(zone) == []


def test_a_write_that_no_stamp_tells_of_is_not_read_and_looked_at_again(zone: LandingZone) -> None:
    """Two writes in one tick of the clock: same size, same time of change, other bytes."""
    path = place(zone)
    path.write_bytes(encoded(flights(distance=[1.0] * ROWS), compression="none"))
    assert judged(zone).observed == 1
    before = path.stat()
    path.write_bytes(encoded(flights(distance=[2.0] * ROWS), compression="none"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert set(plainly_read(zone)["distance"]) == {2.0}, "a plain read does not know"
    with pytest.raises(RefusedError, match="its bytes are not those that arrived"):
        zone.read("flights", "JFK", DAY)
    assert judged(zone).observed == 1
    assert set(zone.read("flights", "JFK", DAY)["distance"].to_pylist()) == {2.0}


def test_a_file_that_is_rewritten_between_look_and_read_is_whole_or_refused(
    zone: LandingZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zone.deliver("flights", "JFK", HOUR, flights())
    assert judged(zone).observed == 1
    real = os.fstat
    states = []

    def grows_meanwhile(opened: int) -> os.stat_result:
        states.append(real(opened))
        with path.open("ab") as handle:
            handle.write(b"more")
        return states[-1]

    monkeypatch.setattr(rawfile.os, "fstat", grows_meanwhile)
    with pytest.raises(RefusedError, match=r"changed while it was read; refresh"):
        zone.read("flights", "JFK", DAY)


# --- paths that climb out ---------------------------------------------------------------------


def outside_of(zone: LandingZone) -> Path:
    folder = home_of(zone) / "elsewhere"
    folder.mkdir()
    (folder / place(zone).name).write_bytes(encoded(flights()))
    return folder


def link_the_file(zone: LandingZone) -> None:
    place(zone).symlink_to(outside_of(zone) / place(zone).name)


def link_by_dots(zone: LandingZone) -> None:
    outside = outside_of(zone) / place(zone).name
    place(zone).symlink_to(os.path.relpath(outside, place(zone).parent))
    assert str(place(zone).readlink()).startswith("../..")


def link_through_a_link(zone: LandingZone) -> None:
    within = place(zone).with_name(".within")
    within.symlink_to(outside_of(zone) / place(zone).name)
    place(zone).symlink_to(within)


def link_a_folder(levels: int) -> Callable[[LandingZone], None]:
    """The day's folder (1), the key's (2), the source's (3) or the pipeline's (4)."""

    def link(zone: LandingZone) -> None:
        path = place(zone)
        outside = outside_of(zone)
        below = path.relative_to(path.parents[levels - 1])
        target = outside / "folder"
        (target / below).parent.mkdir(parents=True)
        (target / below).write_bytes(encoded(flights()))
        for parent in list(path.parents)[:levels]:
            parent.rmdir()
        path.parents[levels - 1].symlink_to(target)

    return link


CLIMBING: dict[str, Callable[[LandingZone], None]] = {
    "file": link_the_file,
    "dots": link_by_dots,
    "chain": link_through_a_link,
    "day": link_a_folder(1),
    "key": link_a_folder(2),
    "source": link_a_folder(3),
    "pipeline": link_a_folder(4),
}


@pytest.mark.parametrize("case", CLIMBING)
def test_a_path_that_climbs_out_is_refused_unread(
    zone: LandingZone, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    CLIMBING[case](zone)
    assert len(plainly_read(zone)) == ROWS, "the accident: the links are followed"
    opened: list[object] = []
    monkeypatch.setattr(rawfile, "_read", lambda *a: opened.append(a))
    report = judged(zone)
    assert "outside of the landing zone" in report.rejected["2013-02-09T15Z"]
    assert zone.read("flights", "JFK", DAY).num_rows == 0
    assert opened == [], "what lies outside is not even read"
    (record,) = quarantined(zone)
    assert (record.kept, record.digest) == ("", "")


def test_a_folder_that_becomes_a_link_after_the_look_is_refused(
    zone: LandingZone, tmp_path: Path
) -> None:
    path = zone.deliver("flights", "JFK", HOUR, flights())
    assert judged(zone).observed == 1
    target = tmp_path / "moved"
    path.parent.rename(target)
    path.parent.symlink_to(target)
    assert len(plainly_read(zone)) == ROWS
    with pytest.raises(RefusedError, match="outside of the landing zone"):
        zone.read("flights", "JFK", DAY)


def test_links_that_lead_in_a_circle_stop_nothing(
    zone: LandingZone, caplog: pytest.LogCaptureFixture
) -> None:
    zone.deliver("flights", "EWR", HOUR, flights())
    place(zone).symlink_to(place(zone))
    day = place(zone, HOUR + timedelta(days=1)).parent
    day.rmdir()
    day.symlink_to(day)
    with caplog.at_level(logging.WARNING):
        zone.refresh(DAY, DAY)
    assert "lead in a circle" in caplog.text
    report = next(s for s in zone.report("JFK", DAY, LATER).sources if s.source == "flights")
    assert "a symbolic link to nothing readable" in report.rejected["2013-02-09T15Z"]
    assert zone.read("flights", "EWR", DAY).num_rows == ROWS


def test_a_socket_is_no_file(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place(zone).parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place(zone).name)
        assert "not a regular file" in judged(zone).rejected["2013-02-09T15Z"]


@pytest.mark.parametrize(
    "name",
    [
        b"2013-02-09T15Z.parquet\xff",
        "2013-02-09T\uff11\uff15Z.parquet".encode(),
        "2013-02-09T15Z\u202e.parquet".encode(),
        b"2013-02-09T15Z\n.parquet",
        b"..2013-02-09T15Z.parquet",
    ],
)
def test_odd_names_are_ignored_and_never_break_a_log(
    zone: LandingZone, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = os.fsencode(place(zone).parent) + b"/" + name
    with open(path, "wb") as handle:  # noqa: PTH123
        handle.write(encoded(flights()))
    with caplog.at_level(logging.WARNING):
        assert zone.refresh(DAY, DAY) == 0
    for record in caplog.records:
        assert record.getMessage().encode()
        assert record.getMessage().isprintable()
    assert len(caplog.records) == (0 if name.startswith(b".") else 1)


def test_a_link_to_an_odd_name_can_be_recorded(zone: LandingZone, tmp_path: Path) -> None:
    target = os.fsencode(tmp_path) + b"/\xff\n.parquet"
    with open(target, "wb") as handle:  # noqa: PTH123
        handle.write(encoded(flights()))
    place(zone).symlink_to(os.fsdecode(target))
    reason = judged(zone).rejected["2013-02-09T15Z"]
    assert "outside of the landing zone" in reason
    assert reason.isprintable()
    assert quarantined(zone)[0].reason == reason


def test_a_pipe_in_the_place_of_a_file_that_was_there_is_not_waited_for(
    zone: LandingZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the name and the opening of it."""
    path = zone.deliver("flights", "JFK", HOUR, flights())
    was = path.lstat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(rawfile.os, "lstat", lambda _: was)
    assert "not a regular file" in judged(zone).rejected["2013-02-09T15Z"]


# --- copies -----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_keeps_the_hour_refused(
    zone: LandingZone, caplog: pytest.LogCaptureFixture
) -> None:
    (home_of(zone) / "quarantine").write_text("in the way")
    DAMAGED["duplicates"].write(place(zone))
    with caplog.at_level(logging.WARNING):
        assert judged(zone).verdict is Verdict.QUARANTINED
    assert "could not be set aside" in caplog.text
    assert quarantined(zone)[0].kept == ""
    (home_of(zone) / "quarantine").unlink()
    judged(zone)
    (record,) = quarantined(zone, only_open=False)
    assert (home_of(zone) / record.kept).is_file()


def test_a_copy_is_never_half_written(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up between the two files: neither stays."""
    real = setaside.write_whole

    def full_for_notes(path: Path, content: bytes) -> bool:
        if path.suffix == ".json":
            raise TransientError(os.strerror(errno.ENOSPC))
        return real(path, content)

    monkeypatch.setattr(setaside, "write_whole", full_for_notes)
    DAMAGED["duplicates"].write(place(zone))
    assert judged(zone).rejected
    assert [p for p in (home_of(zone) / "quarantine").rglob("*") if p.is_file()] == []
    assert atomic.write_whole is real


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def said(home: Home, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `signalbox quarantine` prints; it ends with 0."""

    def say(*options: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["quarantine", *options])
        assert ended.value.code == 0
        return capsys.readouterr().out

    return say


def test_the_command_lists_what_is_open_and_what_has_ended(
    services: Services, said: Callable[..., str]
) -> None:
    assert said() == "flights: no refused file\n"
    zone = services.zone
    path = place(zone)
    DAMAGED["duplicates"].write(path)
    judged(zone)

    shown = said("--pipeline", "flights")
    assert "flights JFK 2013-02-09T15Z, local 2013-02-09 10:00-0500" in shown
    assert "found    3 of 12 rows share their time_hour" in shown
    (found,) = json.loads(said("--json"))["pipelines"]["flights"]
    assert found["hour"] == "2013-02-09T15Z"
    assert found["hour_local"] == "2013-02-09 10:00-0500"
    assert found["path"] == str(path.relative_to(zone.root))
    assert "3 of 12 rows share their time_hour, carrier, flight" in found["reason"]
    assert (services.home.root / found["kept"]).read_bytes() == path.read_bytes()
    assert "delivered again to the same path" in found["what_to_do"]
    assert found["ended_by"] is None

    zone.deliver("flights", "JFK", HOUR, flights())
    judged(zone)
    assert json.loads(said("--json")) == {
        "pipelines": {"flights": []},
        "misplaced": {"flights": []},
    }
    (ended,) = json.loads(said("--all", "--json"))["pipelines"]["flights"]
    assert ended["ended_by"] == "healed"
    assert ended["what_to_do"].startswith("nothing: a good file")
    assert ", healed\n    to do    nothing" in said("--all")


def test_a_held_partition_says_why_and_the_dataset_is_not_built(services: Services) -> None:
    """Through the whole line: features are held, and built once the hour has healed."""
    zone, hours = services.zone, local_hours(DAY, NEW_YORK)
    for hour in hours:
        zone.deliver("flights", "JFK", hour, flights(hour, rows=3))
        zone.deliver("weather", "JFK", hour, weather(hour))
    DAMAGED["duplicates"].write(place(zone))
    services.ledger.advance_clock("flights", LATER)
    partition = PartitionKey(DAY, "JFK")
    with pytest.raises(HeldError, match=r"rejected 2013-02-09T15Z: 3 of 12 rows share"):
        build_features(services, partition, "run")
    zone.deliver("flights", "JFK", HOUR, flights(rows=3))
    assert build_features(services, partition, "run").metadata["rows"] == 24 * 3


def test_a_person_sees_that_a_file_changes_while_it_is_read(
    services: Services,
    said: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The refused run, `explain` and the list of refused files say it; nothing is built."""
    zone, partition = services.zone, PartitionKey(DAY, "JFK")
    for hour in local_hours(DAY, NEW_YORK):
        zone.deliver("flights", "JFK", hour, flights(hour, rows=3))
        zone.deliver("weather", "JFK", hour, weather(hour))
    services.ledger.advance_clock("flights", LATER)
    with written_to_during(monkeypatch, "read", place(zone)):
        with pytest.raises(HeldError, match="rejected 2013-02-09T15Z: the file changed while"):
            build_features(services, partition, "run")
        assert rawfile.CHANGING in said()
        with pytest.raises(SystemExit):
            main(["explain", "flights/features", str(partition)])
        assert "the file changed while it was read" in capsys.readouterr().out
    assert services.dataset.versions() == {}
    zone.deliver("flights", "JFK", HOUR, flights(rows=3))
    assert build_features(services, partition, "run").metadata["rows"] == 24 * 3


# --- any damage -------------------------------------------------------------------------------

SOURCE = flights_spec().sources["flights"]
ORIGINAL = flights(rows=4)
WITH_CHECKSUMS = HourFormat(SOURCE).encode(ORIGINAL)
WITHOUT = encoded(ORIGINAL)


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes flipped, cut out, or put in."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["flip", "cut", "insert", "truncate", "zero"])):
            case "flip":
                flipped = bytes([content[at] ^ draw(st.integers(1, 255))])
                content = content[:at] + flipped + content[at + 1 :]
            case "cut":
                content = content[:at] + content[at + draw(st.integers(1, 64)) :]
            case "insert":
                content = content[:at] + draw(st.binary(min_size=1, max_size=64)) + content[at:]
            case "truncate":
                content = content[:at]
            case _:
                content = content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :]
        if not content:
            break
    return content


def taken(folder: Path, content: bytes) -> pa.Table | None:
    """The rows that a file of these bytes is taken for, by the code that judges and reads."""
    path = folder / "damaged.parquet"
    path.write_bytes(content)
    source = HourFormat(SOURCE)
    look = source.inspect(path, HOUR)
    if look.rejected is not None:
        assert look.rejected.isprintable()
        return None
    assert look.table is not None
    assert source.values is not None
    if source.values.judge([(look.table, HOUR)]):
        return None
    read = source.read(content, HOUR)
    assert read.equals(look.table), "what is read is what was judged"
    return read


@settings(max_examples=250, deadline=None)
@given(damages(WITH_CHECKSUMS))
def test_a_damaged_file_with_checksums_gives_the_same_rows_or_none(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    rows = taken(tmp_path_factory.getbasetemp(), content)
    assert rows is None or rows.equals(ORIGINAL)


@settings(max_examples=250, deadline=None)
@given(damages(WITHOUT))
def test_a_damaged_file_without_checksums_keeps_the_rules_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    rows = taken(tmp_path_factory.getbasetemp(), content)
    if rows is None:
        return
    assert rows.schema.equals(ORIGINAL.schema)
    frame = rows.to_pandas()
    assert not frame.duplicated(["time_hour", "carrier", "flight"]).any()
    hours = frame["time_hour"].dt.floor("h")
    assert (hours == pd.Timestamp(HOUR)).all()
    assert frame["sched_dep_time"].between(0, 2359).all()
    assert (frame["distance"] >= 1).all()


def test_a_flipped_byte_is_taken_by_a_plain_read() -> None:
    """The accident of which the two tests above tell: other rows, and no error."""
    content = encoded(ORIGINAL, compression="none", use_dictionary=False)
    at = content.index(pa.array([1400.0] * 4).buffers()[1].to_pybytes())
    flipped = content[: at + 6] + bytes([content[at + 6] ^ 255]) + content[at + 7 :]
    assert not pq.read_table(pa.BufferReader(flipped)).equals(ORIGINAL)


ABORTING = """
import os, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from tests.test_quarantine import HOUR, WITH_CHECKSUMS, taken
content = WITH_CHECKSUMS
begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
for at in range(begin, len(content)):
    for mask in (8,):
        damaged = content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]
        if sys.argv[1] == "plain":
            try:
                footer = pq.read_metadata(pa.BufferReader(damaged))
                for i in range(footer.num_row_groups):
                    [footer.row_group(i).column(j).statistics for j in range(footer.num_columns)]
            except (pa.ArrowException, OSError, ValueError, OverflowError):
                continue
        else:
            rows = taken(Path(sys.argv[2]), damaged)
print("alive")
"""


@pytest.mark.heavy
def test_no_damaged_footer_ends_the_process(tmp_path: Path) -> None:
    """Whoever asks a damaged footer for its columns is ended by pyarrow, without an exception."""

    def ends(how: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", ABORTING, how, str(tmp_path)],
            capture_output=True, text=True, cwd=REPO, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, said = ends("plain")
    assert code < 0, "the accident"
    assert "terminate called" in said
    assert ends("judged") == (0, "alive\n")


# --- the look and the verdict -----------------------------------------------------------------

NUMBERS = st.sampled_from([None, float("nan"), -0.0, 0.0, 0.5, 1.0, 99.0, float("inf")])
WHOLE = st.sampled_from([None, -1, 0, 1, 2, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
TIMES = st.sampled_from([None, 0, 1, 3_599_999_999, 3_600_000_000, -1, -(2**62), 2**62])


def ruled() -> dict[str, Any]:
    columns = {
        "time_hour": {"type": "timestamp"},
        "name": {"type": "string", "nullable": True, "allowed": ["a", "b"]},
        "share": {"type": "float", "nullable": True, "max_null_fraction": 0.5, "maximum": 98.5},
        "count": {"type": "int", "nullable": True, "minimum": 0.5, "maximum": 2**53},
        "grade": {"type": "int", "allowed": [0, 1, 2]},
    }
    unique = ["name", "share", "count"]
    return {"time_column": "time_hour", "columns": columns, "unique": unique}


RULED = SourceSpec.model_validate(ruled())
RULES = ValueRules(RULED)
ROW = st.tuples(TIMES, st.sampled_from([None, "a", "b", "c", "\n"]), NUMBERS, WHOLE, WHOLE)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(ROW, max_size=14), min_size=1, max_size=4))
def test_the_look_in_bulk_doubts_just_what_pandera_refuses(files: list[list[Any]]) -> None:
    schema = arrow_schema(RULED)
    start = int(HOUR.timestamp() * 1e6)
    tables = []
    for rows in files:
        columns = list(zip(*rows, strict=True)) or [()] * 5
        moments = [None if t is None else start + t for t in columns[0]]
        values = [pa.array(moments, pa.int64()).cast(schema.field(0).type)]
        values += [pa.array(c, f.type) for c, f in zip(columns[1:], list(schema)[1:], strict=True)]
        tables.append((pa.table(values, schema=schema), HOUR))
    refused = RULES.verdict(tables)
    assert RULES.doubt(tables) == set(refused)
    assert RULES.judge(tables) == refused, "whatever stands beside it, a file is told the same"
    for reason in refused.values():
        assert reason.isprintable()


# --- what an unchanged refused file costs --------------------------------------------------------


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The landed files that are opened, in order."""
    found: list[str] = []
    real = os.open

    def counted(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("Z.parquet"):
            found.append(str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(rawfile.os, "open", counted)
    return found


def age(path: Path, seconds: int = 3_600) -> None:
    """As if it had been written a while ago."""
    moment = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(moment, moment))


def test_a_refused_file_is_opened_once_while_nothing_changes(
    zone: LandingZone, opens: list[str]
) -> None:
    hours = local_hours(DAY, NEW_YORK)[:6]
    for hour in hours:
        zone.deliver("flights", "JFK", hour, flights(hour, distance=[0.5] * ROWS))
        age(place(zone, hour))
    assert zone.refresh(DAY, DAY) == len(hours) == len(opens)
    report = judged(zone)
    assert len(opens) == len(hours), "nothing changed: none is read again"
    assert len(report.rejected) == len(quarantined(zone)) == len(hours)

    # Other bytes, even of the same length, are looked at, and heal.
    zone.deliver("flights", "JFK", hours[0], flights(hours[0]))
    assert judged(zone).observed == 1
    assert len(opens) == len(hours) + 1


def test_other_rules_look_at_refused_files_again_and_then_no_more(
    tmp_path: Path, opens: list[str]
) -> None:
    zone = guarded(tmp_path)
    zone.deliver("flights", "JFK", HOUR, flights(distance=[0.5] * ROWS))
    age(place(zone))
    judged(zone)
    sources = flights_spec().model_dump(mode="json")["sources"]
    sources["flights"]["columns"]["distance"]["minimum"] = 0.7
    stricter = guarded(tmp_path, respecify(flights_spec(), sources=sources))
    assert "0.7 or more is allowed" in str(judged(stricter).rejected)
    assert len(opens) == 2
    judged(stricter)
    assert len(opens) == 2
    sources["flights"]["columns"]["distance"]["minimum"] = 0.5
    assert judged(guarded(tmp_path, respecify(flights_spec(), sources=sources))).observed == 1


def test_a_refused_file_that_was_just_written_is_looked_at_until_it_is_settled(
    zone: LandingZone, opens: list[str]
) -> None:
    """Its size and time of change would be the same had it been written to within that moment."""
    zone.deliver("flights", "JFK", HOUR, flights(distance=[0.5] * ROWS))
    written = datetime.fromtimestamp(place(zone).stat().st_mtime, UTC)
    for seconds, expected in ((0, 1), (1, 2), (3, 3), (60, 3)):
        zone.refresh(DAY, DAY, now=written + timedelta(seconds=seconds))
        assert len(opens) == expected, f"after {seconds} s"


def test_a_refused_file_without_a_copy_is_tried_again(
    zone: LandingZone, opens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zone.deliver("flights", "JFK", HOUR, flights(distance=[0.5] * ROWS))
    age(place(zone))
    with monkeypatch.context() as full:

        def no_room(*_: object) -> bool:
            raise TransientError("the disk is full")

        full.setattr(setaside, "write_whole", no_room)
        judged(zone)
        judged(zone)
    assert [r.kept for r in quarantined(zone)] == [""]
    assert len(opens) == 2
    judged(zone)
    judged(zone)
    assert quarantined(zone)[0].kept
    assert len(opens) == 3
