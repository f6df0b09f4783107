"""A home that was copied, while it was in use or not, or moved: a home of its own, or refused."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from platform_assets.cli.app import main
from platform_assets.cli.copying import take_over
from platform_assets.domain.errors import HomeError, RefusedError, SignalboxError
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.reproduction import Verdict
from platform_assets.factory.instance import end_orphaned_runs
from platform_assets.instance.whereabouts import PROCESS_TAG
from platform_assets.line.maintenance import maintain, vacuum
from platform_assets.line.reproduce import reproduce
from platform_assets.line.services import Services
from resources import adopting, copying, processes
from resources.home import Home
from resources.lake import Dataset, DatasetTable
from resources.ledger import open_ledger
from tests.lake_workers import DAY, rows
from tests.small import Line, Templates, copied, opened, small_spec

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(300)]


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """A home in use, with models."""
    with copied(Templates(shared_folder, home_template).models, tmp_path / "original") as found:
        yield found


def by_hand(line: Line, folder: Path) -> Home:
    """A plain copy, as `cp -a` makes it."""
    shutil.copytree(line.home.root, folder, symlinks=True)
    return Home.locate(folder)


def files(root: Path) -> dict[str, bytes]:
    found = (p for p in root.rglob("*") if p.is_file() and "tracking" not in p.parts)
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


def texts(database: Path) -> Iterator[tuple[str, str, str]]:
    """Every text in every table of a database, with its table and column."""
    with closing(sqlite3.connect(database)) as store:
        names = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in names:
            rows = store.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in rows.description]
            for row in rows:
                yield from ((table, c, v) for c, v in zip(columns, row, strict=True) if is_text(v))


def is_text(value: object) -> bool:
    return isinstance(value, str)


def rows_of(services: Services) -> dict[str, int]:
    """How many rows each partition of the features has, by the table itself."""
    frame = services.dataset.newest_rows().to_pandas()
    names = frame.groupby(["airport", "date"]).size().items()
    return {f"{key}|{day}": int(count) for (key, day), count in names}


def command(*arguments: str) -> int:
    """Type a command; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(str(ended.value.code))


# --- a copy reaches into its original, so it is refused ---------------------------------------


def test_a_used_home_is_refused_where_it_was_copied_to(line: Line, tmp_path: Path) -> None:
    copy = by_hand(line, tmp_path / "copy")
    for attempt in (copy.require, lambda: Services.open(small_spec(), copy)):
        with pytest.raises(HomeError, match="run `signalbox adopt`") as error:
            attempt()
        assert str(line.home.root) in str(error.value)
        assert "\n" not in str(error.value)
    line.home.require()


def test_without_the_refusal_a_copy_trains_into_its_original(line: Line, tmp_path: Path) -> None:
    copy = by_hand(line, tmp_path / "copy")
    copy.settle()  # as if it had been made there
    before = files(line.home.mlflow_artifacts)
    with opened(copy) as other:
        other.must("snapshot", "model", partition="2013-01-09")
    assert set(files(line.home.mlflow_artifacts)) - set(before), "its model lies in the original"


def test_an_adopted_copy_is_a_home_of_its_own(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original may go: nothing of it is read or written any more."""
    copy = by_hand(line, tmp_path / "copy")
    before = files(line.home.root)
    monkeypatch.setenv("SIGNALBOX_HOME", str(copy.root))
    assert command("adopt", "--was-idle", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["home"], said["from"]) == (str(copy.root), str(line.home.root))
    assert said["locations"] > 0
    assert command("adopt") == 0
    assert "a home of its own already" in capsys.readouterr().out

    old = str(line.home.root) + "/"
    database = copy.root / "mlflow" / "mlflow.db"
    assert [(t, c) for t, c, text in texts(database) if old in text] == []
    assert any(str(copy.root) in text for _, _, text in texts(database))

    known = files(line.home.root)
    assert known.keys() == before.keys()
    line.home.root.rename(tmp_path / "gone")
    with opened(copy) as other:
        tracking = other.services.tracking
        for record in other.versions("model").values():
            number, digest = record.detail["model_version"], record.data_version
            with tracking.verified(other.spec.model.name, number, digest=digest) as folder:
                assert any(folder.iterdir())
        other.must("snapshot", "model", partition="2013-01-09")
        found = other.versions("model")["2013-01-09"]
        assert tracking.absence(other.spec.model.name, found.detail["model_version"]) is None
        # Runs of before are this ledger's own, also for the sensor that ends those of the killed.
        owners = {v for t, _, v in texts(database) if t == "tags" and v == tracking.owner}
        assert owners == {tracking.owner}
    (tmp_path / "gone").rename(line.home.root)
    assert files(line.home.root).keys() == known.keys()


def test_a_moved_home_is_adopted_too(line: Line, tmp_path: Path) -> None:
    line.home.root.rename(tmp_path / "moved")
    moved = Home.locate(tmp_path / "moved")
    with pytest.raises(HomeError, match="or that home moved"):
        moved.require()
    take_over(moved, idle=True)
    moved.require()


def test_a_copy_of_a_home_that_says_not_where_it_was_made_is_known_by_mlflow(
    line: Line, tmp_path: Path
) -> None:
    marker = line.home.root / "home.json"
    written = json.loads(marker.read_text())
    del written["root"]
    marker.write_text(json.dumps(written))
    line.home.require()
    copy = by_hand(line, tmp_path / "copy")
    with pytest.raises(HomeError, match="run `signalbox adopt`"):
        copy.require()
    assert take_over(copy, idle=True)["from"]


def test_a_home_in_which_nothing_was_built_may_be_copied(
    home_template: Path, tmp_path: Path
) -> None:
    shutil.copytree(home_template, tmp_path / "copy")
    copy = Home.locate(tmp_path / "copy")
    assert copy.made_at() != str(copy.root)
    copy.require()
    assert copy.made_at() == str(copy.root)


# --- torn copies ------------------------------------------------------------------------------


def test_a_database_that_was_copied_before_its_log_is_refused_though_sqlite_sees_nothing(
    line: Line, tmp_path: Path
) -> None:
    """The file is of one moment and the log of a later one: what lay between is lost in silence."""
    original = line.home.root / "ledger.db"
    ledger = open_ledger(line.home.ledger_url)
    with closing(sqlite3.connect(original)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = by_hand(line, tmp_path / "copy")
    ledger.advance_clock("between", datetime(2013, 1, 5, tzinfo=UTC))
    with closing(sqlite3.connect(original)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    line.services.watch.attend("flights", {small_spec().partitions.start: "after"})
    log = copy.root / "ledger.db-wal"
    shutil.copyfile(original.with_name(log.name), log)
    assert log.stat().st_size

    with pytest.raises(RefusedError, match=r"mixture of two moments.*--was-idle") as error:
        take_over(copy, idle=False)
    assert "\n" not in str(error.value)
    with pytest.raises(HomeError):
        copy.require()

    # What would have come of it: SQLite finds it well, and something is gone.
    adopting.require_sound(copy.root)
    torn = open_ledger(copy.ledger_url)
    assert ledger.clock("between") is not None
    assert torn.clock("between") is None


def newest_log(home: Home) -> Path:
    return max((home.lake / "flights" / "features").glob("airport=JFK/*/_delta_log/*.json"))


def cut_database(home: Home) -> None:
    path = home.root / "mlflow" / "mlflow.db"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def drop_data(home: Home) -> None:
    path = next(
        p
        for p in (home.lake / "flights" / "features").rglob("*.parquet")
        if "_delta_log" not in p.parts
    )
    path.unlink()


def drop_table(home: Home) -> None:
    shutil.rmtree(home.lake / "flights" / "features" / "airport=LGA")


def drop_models(home: Home) -> None:
    shutil.rmtree(home.mlflow_artifacts)
    home.mlflow_artifacts.mkdir()


def drop_registry(home: Home) -> None:
    with closing(sqlite3.connect(home.root / "mlflow" / "mlflow.db")) as store, store:
        store.execute("DELETE FROM model_versions")


TEARS: dict[str, tuple[Callable[[Home], object], str]] = {
    "the newest commits": (lambda home: newest_log(home).unlink(), "in the ledger"),
    "data of a commit": (drop_data, "is missing"),
    "half a database": (cut_database, "is damaged"),
    "the files of models": (drop_models, "the files of model version"),
    "registered models": (drop_registry, "MLflow's registry has not"),
    "one of the tables": (drop_table, "no table"),
    "all tables": (lambda home: shutil.rmtree(home.lake / "flights"), "no table"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_copy_that_lacks_what_the_ledger_names_is_refused(
    line: Line, tmp_path: Path, tear: str
) -> None:
    copy = by_hand(line, tmp_path / "copy")
    lose, why = TEARS[tear]
    lose(copy)
    with pytest.raises(SignalboxError, match=why) as error:
        take_over(copy, idle=True)
    assert "signalbox copy" in str(error.value) or "restore" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(HomeError):
        copy.require()


# --- a copy that is whole while others write --------------------------------------------------

DATES = ("2013-01-10", "2013-01-11", "2013-01-12")


def in_use(
    line: Line, monkeypatch: pytest.MonkeyPatch, rank: Callable[[Home, Path], tuple[int, str]]
) -> Callable[[Path], Home]:
    """`copy_home`, while between any two kinds of database the original goes on by a date."""
    line.land("2013-01-10", "2013-01-12")
    plain, left, seen = copying._copy_database, list(DATES), set[int]()

    def go_on(source: Path, target: Path) -> None:
        plain(source, target)
        kind = copying._rank(line.home, source)[0]
        if kind not in seen:
            seen.add(kind)
            day = left.pop(0)
            line.must("features", span=(f"JFK|{day}", f"JFK|{day}"))
            line.must("features", span=(f"LGA|{day}", f"LGA|{day}"))
            line.must("day", partition=day)
            line.must("snapshot", "model", partition=day)

    monkeypatch.setattr(copying, "_rank", rank)
    monkeypatch.setattr(copying, "_copy_database", go_on)
    return lambda folder: copying.copy_home(line.home, folder)


def test_a_commit_while_the_files_are_listed_is_copied_whole_or_not_at_all(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk may come through a partition's folder before it and its log after it."""
    keys = [PartitionKey(DAY + timedelta(days=n), "JFK") for n in range(3)]
    dataset = Dataset(home.dataset_path("flights"), "airport")
    dataset.commit(keys[0], rows(keys[0]), previous=None)
    walk, left = Path.rglob, keys[1:]

    def slowly(folder: Path, pattern: str) -> Iterator[Path]:
        yield from [p for p in walk(folder, pattern) if copying.DELTA_LOG not in p.parts]
        if folder == home.root and left and pattern == "*":
            key = left.pop(0)
            dataset.commit(key, rows(key), previous=None)
        yield from [p for p in walk(folder, pattern) if copying.DELTA_LOG in p.parts]

    monkeypatch.setattr(Path, "rglob", slowly)
    copy = copying.copy_home(home, tmp_path / "copy")
    monkeypatch.undo()
    assert not left
    copied_there = Dataset(copy.dataset_path("flights"), "airport").newest_rows()
    dates = set(copied_there["date"].to_pylist())
    assert keys[0].date in dates
    assert copied_there.num_rows == 50 * len(dates)


@pytest.mark.heavy
def test_a_home_whose_features_are_one_table_goes_on_and_is_copied(
    home: Home, tmp_path: Path
) -> None:
    """As an earlier version left it: built, trained, looked after, copied, and found torn."""
    with opened(home) as line:
        line.land("2013-01-02", "2013-01-04")
        path = line.services.dataset.path
        line.must("features", span=("JFK|2013-01-02", "JFK|2013-01-04"))
        schema = line.services.dataset.newest_rows().schema
        shutil.rmtree(path)
        DatasetTable(path, "airport")._create(schema)
        for airport in ("JFK", "LGA"):
            line.must("features", span=(f"{airport}|2013-01-02", f"{airport}|2013-01-04"))
        line.must("day", span=("2013-01-02", "2013-01-04"))
        line.must("snapshot", "model", partition="2013-01-04")
        assert line.services.dataset.versions() == {".": 6}
        held = rows_of(line.services)
        assert len(held) == 6
        assert maintain(line.services, "me")["tables"].keys() == {"."}
        done = vacuum(line.services, "me", keep=timedelta(0))
        assert done["pinned_files"] == 0 == len(done["removed"])
        trained = line.versions("model")["2013-01-04"]
        assert reproduce(line.services, trained).verdict is Verdict.IDENTICAL
        whole = copying.copy_home(line.home, tmp_path / "copy")
        torn = copying.copy_home(line.home, tmp_path / "torn")
    take_over(whole, idle=True)
    with opened(whole) as other:
        assert other.services.dataset.versions() == {".": 6}
        assert rows_of(other.services) == held
    max((torn.lake / "flights" / "features" / "_delta_log").glob("*.json")).unlink()
    with pytest.raises(RefusedError, match="of the table's log cannot be read"):
        take_over(torn, idle=True)


@pytest.mark.heavy
def test_a_copy_made_while_the_home_is_in_use_is_whole_and_goes_on(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = in_use(line, monkeypatch, copying._rank)(tmp_path / "copy")
    take_over(copy, idle=True)
    monkeypatch.undo()
    with opened(copy) as other:
        assert len(other.versions("features")) < len(line.versions("features"))
        for day in DATES:
            other.must("features", span=(f"JFK|{day}", f"JFK|{day}"))
            other.must("features", span=(f"LGA|{day}", f"LGA|{day}"))
            other.must("day", partition=day)
            other.must("snapshot", "model", partition=day)
        assert rows_of(other.services) == rows_of(line.services)
        for stage in ("features", "day"):
            mine, theirs = other.versions(stage), line.versions(stage)
            assert {k: v.data_version for k, v in mine.items()} == {
                k: v.data_version for k, v in theirs.items()
            }


@pytest.mark.heavy
def test_with_the_ledger_last_the_copy_names_what_it_has_not(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the order matters, and that the look at the copy sees it."""

    def backwards(home: Home, path: Path) -> tuple[int, str]:
        return {"ledger.db": 1, "mlflow.db": 0}.get(path.name, 2), str(path)

    copy = in_use(line, monkeypatch, backwards)
    with pytest.raises(HomeError, match="MLflow's registry has not"):
        take_over(copy(tmp_path / "copy"), idle=True)


def test_the_command_copies_and_adopts(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("copy", str(tmp_path / "copy"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["home"] == str(tmp_path / "copy")
    copy = Home.locate(tmp_path / "copy")
    copy.require()
    assert rows_of(Services.open(small_spec(), copy)) == rows_of(line.services)
    assert command("copy", str(tmp_path / "copy")) == 1
    assert "name a folder that does not exist" in capsys.readouterr().err


# --- runs of the original ---------------------------------------------------------------------


def test_runs_that_go_on_in_the_original_are_ended_in_the_copy_and_only_there(
    line: Line, tmp_path: Path
) -> None:
    """Their process is alive, so that a daemon of the copy would watch it, and Cancel kill it."""
    mine = processes.holder("run")
    place = {"machine": mine.machine, "pid": mine.pid, "started": mine.started}
    run = create_run_for_test(
        line.instance,
        job_name="flights_train",
        status=dg.DagsterRunStatus.STARTED,
        tags={PROCESS_TAG: json.dumps(place)},
    )
    copy = by_hand(line, tmp_path / "copy")
    assert end_orphaned_runs(copy) == [], "it is taken for a run of the copy"
    assert take_over(copy, idle=True)["runs"] == [run.run_id]

    def state(instance: dg.DagsterInstance) -> dg.DagsterRunStatus:
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        return found.status

    with dg.DagsterInstance.from_config(str(copy.dagster)) as instance:
        assert state(instance) is dg.DagsterRunStatus.FAILURE
    assert state(line.instance) is dg.DagsterRunStatus.STARTED
