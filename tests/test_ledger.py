"""The ledger: what is recorded stays, whole, whoever else writes at the same time."""

import contextlib
import multiprocessing
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from multiprocessing.synchronize import Barrier
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from platform_assets.domain.errors import HomeError, TransientError
from resources.ledger import (
    ArrivalRecord,
    Ledger,
    ScoreRecord,
    VerdictRecord,
    VersionRecord,
    engine,
    open_ledger,
    upgrade,
)
from resources.ledger.base import upsert_statement
from resources.ledger.tables import SCHEMA, tables
from tests.postgres import create_database, drop_database

unhurried = settings(deadline=None)  # a busy machine is no failure
NEW_YORK = ZoneInfo("America/New_York")
NOON = datetime(2013, 1, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
# Forked, since a spawned child would import for two seconds before it does anything.
fork = multiprocessing.get_context("fork")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(made)
    return made


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty ledger on each of the two databases."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    made = create_database(request.getfixturevalue("postgres"))
    upgrade(made)
    yield made
    drop_database(made)


@pytest.fixture
def sqlite_ledger(sqlite_url: str) -> Ledger:
    return open_ledger(sqlite_url)


@pytest.fixture
def ledger(url: str) -> Ledger:
    return open_ledger(url)


def arrival(number: int = 0, **changes: object) -> ArrivalRecord:
    fields: dict[str, object] = {
        "zone": "flights",
        "source": "weather",
        "key": "JFK",
        "hour": NOON + number * HOUR,
        "path": f"flights/weather/JFK/{number:06}.parquet",
        "size": 2048,
        "mtime_ns": 1_357_000_000_123_456_789,
        "rows": 1,
        "rejected": None,
        "seen_at": NOON,
    }
    return ArrivalRecord(**(fields | changes))  # type: ignore[arg-type]


def version(partition: str, number: int, asset: str = "flights/features") -> VersionRecord:
    return VersionRecord(
        asset=asset,
        partition=partition,
        data_version=f"{number:064x}",
        table_version=number,
        rows=10 * number,
        detail={"excluded": {"cancelled": number}, "note": None},
        run_id=f"run-{number}",
        committed_at=NOON,
    )


def score(**changes: object) -> ScoreRecord:
    fields: dict[str, object] = {
        "pipeline": "flights",
        "model_version": 3,
        "model_date": date(2013, 1, 28),
        "judged_date": date(2013, 1, 29),
        "rows_digest": "ab" * 32,
        "rows": 812,
        "metrics": {"log_loss": 0.43217, "auc": 0.71},
        "recorded_at": NOON,
    }
    return ScoreRecord(**(fields | changes))  # type: ignore[arg-type]


def verdict(partition: str, text: str, **changes: object) -> VerdictRecord:
    fields: dict[str, object] = {
        "pipeline": "flights",
        "asset": "flights/features",
        "partition": partition,
        "verdict": text,
        "report": {"sources": [{"missing": ["2013-01-05T10Z"], "observed": 23}]},
        "as_of": NOON,
        "recorded_at": NOON + HOUR,
    }
    return VerdictRecord(**(fields | changes))  # type: ignore[arg-type]


# --- arrivals ---------------------------------------------------------------------------------


def test_arrivals_come_back_as_they_were_recorded_in_utc(ledger: Ledger) -> None:
    local = datetime(2013, 11, 3, 1, tzinfo=NEW_YORK, fold=1)
    given_rows = [arrival(1), arrival(2, hour=local, rejected="column carrier is missing", rows=0)]
    ledger.upsert_arrivals(given_rows)
    found = ledger.arrivals("flights", "weather")
    assert found == given_rows
    assert [row.hour.tzinfo for row in found] == [UTC, UTC]
    assert found[1].hour == datetime(2013, 11, 3, 6, tzinfo=UTC), "the second one o'clock"


def test_a_known_path_is_replaced(ledger: Ledger) -> None:
    ledger.upsert_arrivals([arrival(1), arrival(2)])
    changed = arrival(1, size=9, mtime_ns=7, rows=0, rejected="truncated", seen_at=NOON + HOUR)
    ledger.upsert_arrivals([changed])
    assert ledger.arrivals("flights", "weather") == [changed, arrival(2)]


def test_of_equal_paths_in_one_batch_the_last_wins(ledger: Ledger) -> None:
    ledger.upsert_arrivals([arrival(1, rows=1), arrival(1, rows=2), arrival(1, rows=3)])
    assert ledger.arrivals("flights", "weather") == [arrival(1, rows=3)]


def test_nothing_to_record_is_fine(ledger: Ledger) -> None:
    ledger.upsert_arrivals([])
    ledger.forget_arrivals("flights", "weather", [])
    assert ledger.arrivals("flights", "weather") == []


def test_arrivals_are_found_by_key_and_hours_both_ends_included(ledger: Ledger) -> None:
    rows = [arrival(n) for n in range(10)]
    ledger.upsert_arrivals(rows[::-1])
    ledger.upsert_arrivals([arrival(3, key="EWR", path="e"), arrival(3, source="flights")])
    ledger.upsert_arrivals([arrival(3, zone="trains")])
    found = ledger.arrivals("flights", "weather", "JFK", rows[2].hour, rows[5].hour)
    assert found == rows[2:6], "ordered by hour"
    local = rows[8].hour.astimezone(NEW_YORK)
    assert ledger.arrivals("flights", "weather", "JFK", first=local) == rows[8:]
    assert ledger.arrivals("flights", "weather", "EWR", last=rows[2].hour) == []
    assert len(ledger.arrivals("flights", "weather")) == 11


def test_vanished_files_are_forgotten_and_nothing_else(ledger: Ledger) -> None:
    rows = [arrival(n) for n in range(1200)]
    others = [arrival(5, source="flights"), arrival(5, zone="trains")]
    ledger.upsert_arrivals([*rows, *others])
    ledger.forget_arrivals("flights", "weather", [row.path for row in rows[:1100]] + ["unknown"])
    assert ledger.arrivals("flights", "weather") == rows[1100:]
    assert ledger.arrivals("flights", "flights") == others[:1]
    assert ledger.arrivals("trains", "weather") == others[1:]


def test_five_thousand_arrivals_are_one_fast_transaction(ledger: Ledger) -> None:
    rows = [arrival(n) for n in range(5000)]
    ledger.upsert_arrivals(rows[:1])
    begun = time.process_time()
    ledger.upsert_arrivals(rows)
    ledger.upsert_arrivals(rows)
    assert time.process_time() - begun < 2, "0.3 CPU-s; one statement a row takes 5"
    assert ledger.arrivals("flights", "weather") == rows


def test_a_batch_is_recorded_whole_or_not_at_all(ledger: Ledger) -> None:
    bad = arrival(4999, rows=None)
    with pytest.raises(sa.exc.IntegrityError):
        ledger.upsert_arrivals([*(arrival(n) for n in range(4999)), bad])
    assert ledger.arrivals("flights", "weather") == []


@unhurried
@given(
    moment=st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - the strategy adds the timezone
        max_value=datetime(2199, 12, 30),  # noqa: DTZ001
        timezones=st.timezones() | st.just(timezone(timedelta(hours=5, minutes=45))),
    )
)
def test_every_instant_keeps_its_value_and_its_order_as_text(moment: datetime) -> None:
    kind = tables().clocks.c.as_of.type
    dialect = sa.create_engine("sqlite://").dialect
    text = kind.process_bind_param(moment, dialect)
    back = kind.process_result_value(text, dialect)
    assert back == moment.astimezone(UTC)
    assert back.tzinfo is UTC
    later = kind.process_bind_param(back + timedelta(microseconds=1), dialect)
    assert text < later, "text sorts as time does"


@pytest.mark.parametrize(
    "make",
    [
        lambda naive: arrival(hour=naive),
        lambda naive: arrival(seen_at=naive),
        lambda naive: verdict("p", "partial", as_of=naive),
        lambda naive: score(recorded_at=naive),
    ],
)
def test_a_naive_instant_is_refused_before_it_is_recorded(
    make: Callable[[datetime], object],
) -> None:
    with pytest.raises(ValueError, match="timezone-aware"):
        make(NOON.replace(tzinfo=None))


def test_a_naive_bound_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="timezone-aware"):
        ledger.arrivals("flights", "weather", first=NOON.replace(tzinfo=None))


# --- verdicts, versions, scores, champions ----------------------------------------------------


def test_the_latest_verdict_wins(ledger: Ledger) -> None:
    ledger.record_verdict(verdict("JFK|2013-01-05", "partial"))
    ledger.record_verdict(verdict("LGA|2013-01-05", "absent"))
    ledger.record_verdict(verdict("JFK|2013-01-05", "absent", pipeline="trains"))
    latest = verdict("JFK|2013-01-05", "complete", report={}, as_of=NOON + 3 * HOUR)
    ledger.record_verdict(latest)
    assert ledger.verdict("flights", "flights/features", "JFK|2013-01-05") == latest
    assert ledger.verdict("flights", "flights/features", "EWR|2013-01-05") is None
    assert ledger.verdicts("flights", "flights/features") == {
        "JFK|2013-01-05": latest,
        "LGA|2013-01-05": verdict("LGA|2013-01-05", "absent"),
    }
    assert ledger.verdicts("flights", "flights/model") == {}


def test_versions_are_appended_and_the_last_is_current(ledger: Ledger) -> None:
    records = [version("JFK|2013-01-05", n) for n in (1, 2, 3)]
    # A restatement may be committed with an older time stamp: the order of recording decides.
    records.append(version("JFK|2013-01-05", 1))
    for record in records:
        ledger.record_version(record)
    ledger.record_version(version("JFK|2013-01-05", 9, asset="trains/features"))
    assert ledger.history("flights/features", "JFK|2013-01-05") == records
    assert ledger.current_version("flights/features", "JFK|2013-01-05") == records[-1]
    assert ledger.current_version("flights/features", "EWR|2013-01-05") is None
    assert ledger.history("flights/features", "EWR|2013-01-05") == []


def test_a_version_without_a_table_keeps_its_detail(ledger: Ledger) -> None:
    record = VersionRecord(
        asset="flights/snapshot",
        partition="2013-01-28",
        data_version="0" * 64,
        table_version=None,
        rows=0,
        detail={"days": ["2013-01-01"], "nested": {"é": [1, 2.5, True, None]}},
        run_id="",
        committed_at=NOON.replace(microsecond=123456),
    )
    ledger.record_version(record)
    assert ledger.current_version("flights/snapshot", "2013-01-28") == record


def test_current_versions_of_thousands_of_partitions(ledger: Ledger) -> None:
    keys = [f"{k}|{date(2000, 1, 1) + timedelta(days=n)}" for n in range(1500) for k in "ABC"]
    columns = VersionRecord.__slots__
    rows = [
        dict(zip(columns, ("flights/features", key, f"{n:x}", n, n, {}, "run", NOON), strict=True))
        for n in (1, 2)
        for key in keys
    ]
    with engine.writing(ledger.url) as connection:
        connection.execute(tables().partition_versions.insert(), rows)
    ledger.record_version(version("only|elsewhere", 5, asset="flights/model"))

    begun = time.process_time()
    everything = ledger.current_versions("flights/features")
    asked = ledger.current_versions("flights/features", (key for key in [*keys, "X|2000-01-01"]))
    some = ledger.current_versions("flights/features", keys[10:13])
    assert time.process_time() - begun < 2, "0.2 CPU-s; one query a partition takes 3"
    assert everything.keys() == set(keys)
    assert {record.table_version for record in everything.values()} == {2}
    assert asked == everything
    assert some.keys() == set(keys[10:13])
    assert ledger.current_versions("flights/features", []) == {}


def test_a_score_belongs_to_the_very_rows(ledger: Ledger) -> None:
    ledger.record_score(score())
    assert ledger.score("flights", 3, date(2013, 1, 29), "ab" * 32) == score()
    assert ledger.score("flights", 3, date(2013, 1, 29), "cd" * 32) is None, "restated rows"
    assert ledger.score("flights", 3, date(2013, 1, 30), "ab" * 32) is None
    assert ledger.score("flights", 4, date(2013, 1, 29), "ab" * 32) is None
    assert ledger.score("trains", 3, date(2013, 1, 29), "ab" * 32) is None
    again = score(metrics={"log_loss": 0.5}, rows=813)
    ledger.record_score(again)
    assert ledger.score("flights", 3, date(2013, 1, 29), "ab" * 32) == again


def test_metrics_that_json_cannot_hold_survive(ledger: Ledger) -> None:
    ledger.record_score(score(metrics={"auc": float("nan"), "rmse": float("inf"), "mae": 1}))
    found = ledger.score("flights", 3, date(2013, 1, 29), "ab" * 32)
    assert found is not None
    assert found.metrics["auc"] != found.metrics["auc"], "not a number"
    assert found.metrics["rmse"] == float("inf")
    assert found.metrics["mae"] == 1.0


# --- clocks -----------------------------------------------------------------------------------


def test_a_clock_never_moves_back(ledger: Ledger) -> None:
    assert ledger.clock("flights") is None
    assert ledger.advance_clock("flights", NOON) == NOON
    assert ledger.advance_clock("flights", NOON - HOUR) == NOON
    later = (NOON + timedelta(microseconds=1)).astimezone(NEW_YORK)
    assert ledger.advance_clock("flights", later) == later
    assert ledger.clock("flights") == later
    assert ledger.clock("trains") is None


def _advance(url: str, barrier: Barrier, steps: list[int]) -> None:
    ledger = open_ledger(url)
    barrier.wait()
    reached = NOON
    for step in steps:
        now = ledger.advance_clock("shared", NOON + step * HOUR)
        assert now >= max(reached, NOON + step * HOUR)
        reached = now


def test_a_clock_that_several_processes_advance_ends_at_the_latest(url: str) -> None:
    run_together(_advance, [(url, [7 * (n + k) % 101 for n in range(40)]) for k in range(3)])
    assert open_ledger(url).clock("shared") == NOON + 98 * HOUR


# --- several writers --------------------------------------------------------------------------


def run_together(target: Callable[..., None], calls: list[tuple[object, ...]]) -> None:
    """Run target(url, barrier, rest...) in as many processes as there are calls, all at once."""
    barrier = fork.Barrier(len(calls))
    children = [fork.Process(target=target, args=(c[0], barrier, *c[1:])) for c in calls]
    for child in children:
        child.start()
    for child in children:
        child.join(90)
    assert [child.exitcode for child in children] == [0] * len(calls)


def _write_many(url: str, barrier: Barrier, writer: int) -> None:
    ledger = open_ledger(url)
    barrier.wait()
    for number in range(50):
        ledger.upsert_arrivals([arrival(1000 * writer + number), arrival(999_999, rows=writer)])
        ledger.record_version(version("JFK|2013-01-05", 1000 * writer + number))


def test_four_processes_that_write_at_once_lose_nothing(url: str) -> None:
    run_together(_write_many, [(url, writer) for writer in range(4)])
    ledger = open_ledger(url)
    assert len(ledger.arrivals("flights", "weather")) == 4 * 50 + 1
    history = ledger.history("flights/features", "JFK|2013-01-05")
    assert sorted(record.table_version or 0 for record in history) == sorted(
        1000 * writer + number for writer in range(4) for number in range(50)
    )


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    def write(writer: int) -> None:
        for number in range(20):
            ledger.upsert_arrivals([arrival(1000 * writer + number)])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ledger.arrivals("flights", "weather")) == 160


def test_a_forked_child_inherits_no_connection_and_writes_on_its_own(
    sqlite_url: str, sqlite_ledger: Ledger
) -> None:
    sqlite_ledger.upsert_arrivals([arrival(0)])
    assert open_ledger_files(sqlite_url) >= 1, "the parent keeps its connection"
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            inherited = open_ledger_files(sqlite_url)
            for number in range(100, 130):
                sqlite_ledger.upsert_arrivals([arrival(number)])
            code = 0 if inherited == 0 else 2
        os._exit(code)
    for number in range(200, 230):
        sqlite_ledger.upsert_arrivals([arrival(number)])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(sqlite_ledger.arrivals("flights", "weather")) == 61


def open_ledger_files(url: str) -> int:
    """How many open files of this process are the ledger's."""
    path = url.removeprefix("sqlite:///")
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(link.readlink()).startswith(path)
    return found


# --- the schema -------------------------------------------------------------------------------


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(engine.MIGRATIONS))
    return config


def test_the_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [SCHEMA]
    with engine.reading(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables().metadata) == []
        for table in tables().metadata.sorted_tables:
            found = sa.inspect(connection).get_pk_constraint(table.name)["constrained_columns"]
            assert set(found) == {column.name for column in table.primary_key}


def test_the_database_is_set_up_for_several_processes(sqlite_url: str) -> None:
    with engine.reading(sqlite_url) as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "busy_timeout": 30_000, "foreign_keys": 1}


def test_what_is_searched_is_indexed(sqlite_ledger: Ledger) -> None:
    seen: list[tuple[str, object]] = []

    def listen(_c: object, _k: object, statement: str, values: object, *_: object) -> None:
        seen.append((statement, values))

    opened = engine._engine(sqlite_ledger.url)
    sa.event.listen(opened, "before_cursor_execute", listen)
    try:
        sqlite_ledger.arrivals("flights", "weather", "JFK", NOON, NOON + HOUR)
        sqlite_ledger.forget_arrivals("flights", "weather", ["a", "b"])
        sqlite_ledger.verdict("flights", "flights/features", "JFK|2013-01-05")
        sqlite_ledger.verdicts("flights", "flights/features")
        sqlite_ledger.current_versions("flights/features")
        sqlite_ledger.current_version("flights/features", "JFK|2013-01-05")
        sqlite_ledger.history("flights/features", "JFK|2013-01-05")
        sqlite_ledger.score("flights", 1, date(2013, 1, 1), "ab")
        sqlite_ledger.champion("flights")
        sqlite_ledger.clock("flights")
    finally:
        sa.event.remove(opened, "before_cursor_execute", listen)
    queries = [(s, v) for s, v in seen if s.startswith(("SELECT", "DELETE"))]
    assert len(queries) == 10
    with contextlib.closing(
        sqlite3.connect(sqlite_ledger.url.removeprefix("sqlite:///"))
    ) as database:
        for statement, values in queries:
            plan = database.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            steps = [row[3] for row in plan]
            assert not [step for step in steps if step.startswith("SCAN")], (statement, steps)


def _upgrade(url: str, barrier: Barrier) -> None:
    barrier.wait()
    upgrade(url)


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a schema."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new.db"
        return
    made = create_database(request.getfixturevalue("postgres"))
    yield made
    drop_database(made)


class _Busy:
    """A connection that another one keeps from the write-ahead log, as SQLite says so: at once."""

    def __init__(self, code: int) -> None:
        self.refusals, self.code, self.asked = 3, code, 0

    def execute(self, statement: str) -> None:
        self.asked += 1
        if self.asked <= self.refusals:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.code
            raise error


def test_the_write_ahead_log_is_asked_for_until_nobody_else_does() -> None:
    busy, broken = _Busy(sqlite3.SQLITE_BUSY), _Busy(sqlite3.SQLITE_IOERR)
    engine._use_wal(busy)
    assert busy.asked == 4
    with pytest.raises(sqlite3.OperationalError):
        engine._use_wal(broken)
    assert broken.asked == 1


def test_processes_that_make_the_schema_at_once_make_one(empty_url: str) -> None:
    run_together(_upgrade, [(empty_url,)] * 3)
    with engine.reading(empty_url) as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").all()
    assert [tuple(row) for row in found] == [(SCHEMA,)]
    assert open_ledger(empty_url).clock("flights") is None


def plain_upgrade(url: str, on_statement: Callable[[str], None]) -> None:
    """The same migrations as Alembic runs them by itself: no transaction that is begun early."""
    plain = sa.create_engine(url)

    @sa.event.listens_for(plain, "before_cursor_execute")
    def listen(_c: object, _k: object, statement: str, *_: object) -> None:
        on_statement(statement.strip())

    config = alembic_config()
    with plain.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _plain_upgrade(url: str, barrier: Barrier) -> None:
    def meet(statement: str) -> None:
        if statement.startswith("CREATE TABLE alembic_version"):
            barrier.wait(60)

    plain_upgrade(url, meet)


def test_without_the_lock_making_the_schema_at_once_fails(empty_url: str) -> None:
    with pytest.raises(AssertionError):
        run_together(_plain_upgrade, [(empty_url,)] * 3)


def _die_at_the_third_table(url: str, _: Barrier, guarded: bool) -> None:
    def count(statement: str) -> None:
        tally.append(statement.startswith("CREATE TABLE"))
        if sum(tally) == 4:
            os._exit(0)

    tally: list[bool] = []
    if not guarded:
        plain_upgrade(url, count)
    else:
        create = engine._create_engine

        def watched(url: str) -> sa.Engine:
            made = create(url)

            @sa.event.listens_for(made, "before_cursor_execute")
            def listen(_c: object, _k: object, statement: str, *_: object) -> None:
                count(statement.strip())

            return made

        engine._create_engine = watched
        upgrade(url)
    os._exit(1)


def test_a_migration_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    run_together(_die_at_the_third_table, [(url, True)])
    with pytest.raises(HomeError, match="has schema none, this version needs 0007"):
        open_ledger(url).clock("flights")
    upgrade(url)
    assert open_ledger(url).clock("flights") is None


def test_without_the_transaction_a_killed_migration_blocks_all_later_ones(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    run_together(_die_at_the_third_table, [(url, False)])
    with pytest.raises(sa.exc.OperationalError, match="already exists"):
        plain_upgrade(url, lambda _: None)


# --- what bad databases get -------------------------------------------------------------------


def one_sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_missing_ledger_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match=r"there is no ledger at .* run `signalbox init`") as error:
        open_ledger(f"sqlite:///{tmp_path}/absent.db").clock("flights")
    one_sentence(error)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_is_deleted_while_in_use_is_noticed(
    sqlite_url: str, sqlite_ledger: Ledger
) -> None:
    """SQLite itself would go on writing into the file that is gone."""
    sqlite_ledger.advance_clock("flights", NOON)
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    for file in path.parent.glob("ledger.db*"):
        file.unlink()
    with pytest.raises(HomeError, match="there is no ledger"):
        sqlite_ledger.advance_clock("flights", NOON + HOUR)
    upgrade(sqlite_url)
    assert sqlite_ledger.clock("flights") is None, "a new ledger, used from now on"
    sqlite_ledger.advance_clock("flights", NOON)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM clocks").fetchone() == (1,)


@pytest.mark.parametrize("call", [upgrade, lambda url: Ledger(url).clock("flights")])
def test_a_ledger_of_a_newer_version_is_refused(url: str, call: Callable[[str], object]) -> None:
    later = sa.create_engine(url)
    with later.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    later.dispose()
    with pytest.raises(HomeError, match="0099") as error:
        call(url)
    assert "version that wrote it" in one_sentence(error)


@pytest.mark.parametrize("call", [upgrade, lambda url: Ledger(url).clock("flights")])
def test_a_file_that_is_no_database_is_refused(
    tmp_path: Path, call: Callable[[str], object]
) -> None:
    (tmp_path / "ledger.db").write_text("this is not SQLite " * 500)
    with pytest.raises(HomeError, match=r"is damaged .*restore it from a copy") as error:
        call(f"sqlite:///{tmp_path}/ledger.db")
    one_sentence(error)


def test_a_place_where_nobody_may_write_is_refused() -> None:
    with pytest.raises(HomeError, match=r"cannot be written .*give yourself the right") as error:
        upgrade("sqlite:////proc/ledger.db")
    one_sentence(error)


def test_a_database_that_is_read_only_is_explained(sqlite_url: str) -> None:
    """SQLite's own error, from a connection that it was told not to write on."""
    path = sqlite_url.removeprefix("sqlite:///")
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with contextlib.closing(database), pytest.raises(sqlite3.OperationalError) as raised:
        database.execute("INSERT INTO clocks VALUES ('x', 'y')")
    mine = engine.explain_sqlite(raised.value, "the ledger")
    assert isinstance(mine, HomeError)
    assert "readonly" in str(mine)


def test_an_error_of_ours_is_not_dressed_up_as_the_users(sqlite_url: str) -> None:
    with (
        pytest.raises(sa.exc.OperationalError, match="no such table"),
        engine.reading(sqlite_url) as c,
    ):
        c.exec_driver_sql("SELECT * FROM nowhere")


@pytest.mark.parametrize(
    "bad", ["garbage", "mysql://host/db", "sqlite://", "sqlite:///:memory:", "oracle://u:pw@h/d"]
)
def test_a_database_url_that_cannot_be_used_is_refused(bad: str) -> None:
    for call in (upgrade, lambda url: Ledger(url).clock("flights")):
        with pytest.raises(HomeError, match="SIGNALBOX_LEDGER_URL cannot be used") as error:
            call(bad)
        assert "pw" not in one_sentence(error), "no password in a message"


@pytest.fixture
def locked(sqlite_url: str) -> Iterator[str]:
    """Another process is in the middle of writing, and stays there."""
    database = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    yield sqlite_url
    database.execute("ROLLBACK")
    database.close()


def test_a_locked_ledger_is_transient_and_can_be_read(
    locked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.2)
    ledger = Ledger(locked)
    assert ledger.clock("flights") is None, "readers do not wait for a writer"
    with pytest.raises(TransientError, match="locked by another process") as error:
        ledger.advance_clock("flights", NOON)
    one_sentence(error)
    upgrade(locked)  # has nothing to do, and does not wait


def _write_on_a_full_disk(url: str, _: Barrier, report: Path) -> None:
    """No file may grow beyond the limit: the kernel refuses the write, as on a full disk."""
    ledger = open_ledger(url)
    ledger.upsert_arrivals([arrival(1)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    try:
        ledger.upsert_arrivals([arrival(n) for n in range(10_000)])
        text = "no error"
    except BaseException as error:
        text = f"{type(error).__name__} {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    text += f"; {len(ledger.arrivals('flights', 'weather'))} known"
    ledger.upsert_arrivals([arrival(2)])
    report.write_text(text)


def test_a_full_disk_is_transient_and_leaves_nothing_half_written(
    sqlite_url: str, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    run_together(_write_on_a_full_disk, [(sqlite_url, report)])
    text = report.read_text()
    assert text.startswith("TransientError")
    assert "nothing was recorded; free some disk space and try again" in text
    assert text.endswith("; 1 known")
    assert open_ledger(sqlite_url).arrivals("flights", "weather") == [arrival(1), arrival(2)]


# --- Postgres ---------------------------------------------------------------------------------


def test_the_same_statements_compile_for_postgres() -> None:
    dialect = postgresql.dialect()
    text = str(upsert_statement(tables().arrivals, "postgresql").compile(dialect=dialect))
    assert "ON CONFLICT (zone, source, path) DO UPDATE SET key = excluded.key" in text
    made = str(sa.schema.CreateTable(tables().partition_versions).compile(dialect=dialect))
    assert "id BIGSERIAL NOT NULL" in made
    assert "committed_at TIMESTAMP WITH TIME ZONE NOT NULL" in made
    assert "detail JSONB NOT NULL" in made
