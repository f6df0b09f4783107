"""A registered model is rebuilt from what was recorded, or it is said why not, and where it parted.

A plain second training shows what would come of it otherwise: it reads what the partitions hold
now, with the catalog and the trainer as they are now.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from platform_assets.cli.app import main
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.manifest import PartitionVersion
from platform_assets.domain.model_ref import ModelRef
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.domain.reproduction import Aspect, Reproduction, Verdict
from platform_assets.line.days import as_partition_version, build_day, build_snapshot, load_snapshot
from platform_assets.line.features import build_features
from platform_assets.line.judging import evaluate_model
from platform_assets.line.models import train_model
from platform_assets.line.recipes import RECIPE
from platform_assets.line.registered import model_record
from platform_assets.line.reproduce import reproduce
from platform_assets.line.services import Services
from resources.landing.layout import hour_path
from resources.ledger.records import VersionRecord
from resources.tracking import Tracking
from tests.small import Line, Templates, copied, small_spec

DAY = "2013-01-05"
IN_WINDOW = "JFK|2013-01-04"


@pytest.fixture
def line(shared_folder: Path, home_template: Path, tmp_path: Path) -> Iterator[Line]:
    """The models of four days are trained, of windows of three days."""
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        yield found


def of_day(services: Services, day: str = DAY) -> VersionRecord:
    record = services.ledger.current_version("flights/model", day)
    assert record is not None
    return record


def rebuilt(services: Services, **how: Any) -> Reproduction:
    return reproduce(services, of_day(services), **how)


def correct(line: Line, partition: str = IN_WINDOW) -> None:
    """Deliver an hour of a partition again, its flights three hours later, and build it anew."""
    key = PartitionKey.parse(partition)
    assert key.key is not None
    hour = local_hours(key.date, line.spec.partitions.timezone)[10]
    path = line.home.landing / "flights" / hour_path("flights", key.key, hour)
    table = pq.read_table(path)
    late = [None if v is None else v + 180.0 for v in table["arr_delay"].to_pylist()]
    at = table.column_names.index("arr_delay")
    pq.write_table(table.set_column(at, "arr_delay", pa.array(late, pa.float64())), path)
    before = line.versions("features")[partition].data_version
    build_features(line.services, key, "late data")
    assert line.versions("features")[partition].data_version != before


def counts(services: Services) -> tuple[int, int]:
    """What a reproduction must not add to: recorded versions, and runs of MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(services.home.mlflow_uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    recorded = [services.ledger.versions(f"flights/{s}") for s in ("features", "snapshot", "model")]
    return sum(map(len, recorded)), len(client.search_runs(experiments))


# --- it is rebuilt ----------------------------------------------------------------------------


def test_a_model_is_rebuilt_to_the_byte_and_nothing_is_registered(line: Line) -> None:
    before = counts(line.services)
    found = rebuilt(line.services)
    assert found.verdict is Verdict.IDENTICAL
    assert found.digest_now == found.digest_then == of_day(line.services).data_version
    assert found.diverged is None
    assert counts(line.services) == before


@pytest.mark.heavy
def test_it_is_rebuilt_after_late_data_a_backfill_and_a_retraining(line: Line) -> None:
    """The same partitions hold other rows now: whoever trains on those gets another model."""
    services, first = line.services, of_day(line.services)
    correct(line)
    assert reproduce(services, first).verdict is Verdict.IDENTICAL

    # A backfill over the whole window, and the date's snapshot and model anew.
    again = replace(services, restate="a backfill")
    for n in (3, 4, 5):
        for airport in ("JFK", "LGA"):
            build_features(again, PartitionKey.parse(f"{airport}|2013-01-0{n}"), "backfill")
        build_day(again, PartitionKey.parse(f"2013-01-0{n}"), "backfill")
    build_snapshot(again, PartitionKey.parse(DAY), "backfill")
    train_model(again, PartitionKey.parse(DAY), "backfill", lane="backfill")
    second = of_day(services)
    assert second.data_version != first.data_version
    for record in (first, second):
        found = reproduce(services, record)
        assert found.verdict is Verdict.IDENTICAL
        assert found.digest_now == record.data_version


def test_without_time_travel_the_model_would_be_another_one(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure itself: the partitions are read as they are now, and nobody is told."""
    dataset, read = line.services.dataset, line.services.dataset.read

    def newest(partitions: tuple[PartitionVersion, ...]) -> pa.Table:
        current = line.versions("features")
        now = [as_partition_version(current[p.partition]) for p in partitions]
        return read(now)

    monkeypatch.setattr(dataset, "read", newest)
    assert rebuilt(line.services).verdict is Verdict.IDENTICAL
    correct(line)
    found = rebuilt(line.services)
    assert found.verdict is Verdict.DIFFERENT
    assert found.predictions is not None
    assert found.predictions.differing > 0


def test_the_predictions_are_compared_on_the_judged_rows(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_model(line.services, PartitionKey.parse("2013-01-04"), "by hand")
    record = of_day(line.services, "2013-01-04")
    spec = small_spec(model={"parameters": {"num_boost_round": 5, "num_threads": 1}})
    found = reproduce(replace(line.services, spec=spec), record, declared=True)
    assert found.verdict is Verdict.DIFFERENT
    assert found.predictions is not None
    assert found.predictions.on == "the judged rows of 2013-01-05 to 2013-01-05"
    # What is let pass is the caller's to say, and how far it was is told.
    wide = reproduce(replace(line.services, spec=spec), record, declared=True, tolerance=1.0)
    assert wide.verdict is Verdict.WITHIN
    assert wide.predictions == found.predictions


# --- it is refused ----------------------------------------------------------------------------


def files_of(line: Line, partition: str) -> list[Path]:
    key = PartitionKey.parse(partition)
    table = Path(line.services.dataset.table_of(key).path)
    folder = table / f"airport={key.key}" / f"date={key.date}"
    return sorted(folder.glob("*.parquet"))


def test_a_file_that_is_gone_is_a_clear_refusal(line: Line) -> None:
    for file in files_of(line, IN_WINDOW):
        file.unlink()
    with pytest.raises(RefusedError) as caught:
        rebuilt(line.services)
    said = str(caught.value)
    assert "flight-delay version 2 of 2013-01-05 cannot be rebuilt" in said
    assert "diverged: data" in said


def test_rows_that_were_tampered_with_are_refused(line: Line) -> None:
    for file in files_of(line, IN_WINDOW):
        table = pq.read_table(file)
        flipped = [1 - int(v) for v in table["delayed"].to_pylist()]
        at = table.column_names.index("delayed")
        kind = table.schema.field("delayed").type
        pq.write_table(table.set_column(at, "delayed", pa.array(flipped, kind)), file)
    with pytest.raises(RefusedError, match="it was tampered with"):
        rebuilt(line.services)


def test_a_manifest_that_was_changed_is_refused(line: Line) -> None:
    record = of_day(line.services)
    name = f"{record.detail['snapshot']}.json"
    path = line.home.lake / "flights" / "snapshots" / DAY / name
    document = json.loads(path.read_text())
    document["partitions"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(RefusedError, match="nobody can tell what it was trained on"):
        rebuilt(line.services)


# --- where it parted --------------------------------------------------------------------------


def test_what_the_catalog_says_now_is_not_what_a_model_is_rebuilt_with(line: Line) -> None:
    """A changed parameter, seed and feature: the recorded ones count, and the change is told."""
    spec = small_spec(
        model={"seed": 8, "parameters": {"num_boost_round": 9}},
        dataset={"features": ["distance", "dep_minute"], "categories": []},
    )
    services = replace(line.services, spec=spec)
    found = rebuilt(services)
    assert found.verdict is Verdict.IDENTICAL
    notes = {c.aspect: c.note for c in found.comparisons}
    assert "num_boost_round was 4, is 9" in notes[Aspect.PARAMETERS]
    assert "seed was 20130128, is 8" in notes[Aspect.SEED]
    assert "features was [" in notes[Aspect.CODE]

    # As the catalog says now it is another model, and it first parted in what is read.
    declared = rebuilt(services, declared=True)
    assert declared.verdict is Verdict.DIFFERENT
    assert declared.diverged is Aspect.CODE


@pytest.mark.parametrize(
    ("change", "aspect", "said"),
    [
        ({"parameters": {"num_boost_round": 9, "num_threads": 1}}, "parameters", "was 4, is 9"),
        # A learner that draws: with another seed it is another model.
        ({"seed": 8}, "seed", "seed was 20130128, is 8"),
    ],
)
def test_a_changed_parameter_or_seed_is_where_it_parted(
    line: Line, change: Mapping[str, object], aspect: str, said: str
) -> None:
    drawn = {**line.spec.model.parameters, "feature_fraction": 0.5}
    own = small_spec(model={"parameters": drawn})
    services = replace(line.services, spec=own)
    train_model(replace(services, restate="own"), PartitionKey.parse(DAY), "run", lane="adhoc")
    assert rebuilt(services).verdict is Verdict.IDENTICAL
    changed = small_spec(model={"parameters": drawn, **change})
    found = rebuilt(replace(services, spec=changed), declared=True)
    assert found.verdict is Verdict.DIFFERENT
    assert found.diverged is Aspect(aspect)
    assert said in found.reason


TRAINER = """
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer


class EditedTrainer(LightGBMTrainer):
    def fit(self, frame, target, *, parameters, **rest):
        rounds = {rounds}
        return super().fit(
            frame, target, parameters={{**parameters, "num_boost_round": rounds}}, **rest
        )
"""


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write the source of a trainer; the next one who loads it gets that."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(rounds: str) -> None:
        sys.modules.pop("edited_trainer", None)
        (folder / "edited_trainer.py").write_text(TRAINER.format(rounds=rounds))
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("edited_trainer", None)


def with_trainer(line: Line) -> Services:
    spec = small_spec(model={"trainer": "edited_trainer:EditedTrainer"})
    services = replace(line.services, spec=spec)
    train_model(replace(services, restate="own"), PartitionKey.parse(DAY), "run", lane="adhoc")
    return services


def test_changed_trainer_code_is_where_it_parted(line: Line, edited: Callable[[str], None]) -> None:
    edited("3")
    services = with_trainer(line)
    assert rebuilt(services).verdict is Verdict.IDENTICAL
    edited("6")
    found = rebuilt(services)
    assert found.verdict is Verdict.DIFFERENT
    assert found.diverged is Aspect.CODE
    assert "code.trainer/edited_trainer.py" in found.reason
    # A change that changes nothing is told, and the model is the same.
    edited("3  # the same")
    found = rebuilt(services)
    assert found.verdict is Verdict.IDENTICAL
    assert any(c.differences for c in found.comparisons if c.aspect is Aspect.CODE)


def test_a_trainer_that_does_not_repeat_itself_is_told_apart(
    line: Line, edited: Callable[[str], None]
) -> None:
    """Nothing differs that was recorded; a second rebuilding shows whose fault it is."""
    edited("3")
    source = """
from platform_assets.trainers.lightgbm_tabular import LightGBMTrainer

ROUNDS = iter(range(2, 99))


class EditedTrainer(LightGBMTrainer):
    def fit(self, frame, target, *, parameters, **rest):
        given = {**parameters, "num_boost_round": next(ROUNDS)}
        return super().fit(frame, target, parameters=given, **rest)
"""
    place = next(Path(p) for p in sys.path if (Path(p) / "edited_trainer.py").exists())
    (place / "edited_trainer.py").write_text(source)
    services = with_trainer(line)
    found = rebuilt(services)
    assert found.verdict is Verdict.DIFFERENT
    assert found.diverged is None
    assert "the trainer does not repeat itself" in found.reason


def remembered(services: Services, **packages: str) -> None:
    """Have the ledger say that the model was trained with other packages than it was."""
    record = of_day(services)
    environment = dict(record.detail["environment"])
    environment["packages"] = {**environment["packages"], **packages}
    detail = {**record.detail, "environment": environment}
    services.ledger.record_version(replace(record, detail=detail))


def test_a_changed_package_is_where_it_parted(
    line: Line, edited: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that trains otherwise in another version: the trainer's source is the same."""
    real = importlib.metadata.version("lightgbm")
    monkeypatch.setenv("LIBRARY_ROUNDS", "3")
    edited('int(__import__("os").environ["LIBRARY_ROUNDS"])')
    services = with_trainer(line)
    assert rebuilt(services).verdict is Verdict.IDENTICAL

    monkeypatch.setenv("LIBRARY_ROUNDS", "6")
    remembered(services, lightgbm="0.0.1")
    found = rebuilt(services)
    assert found.verdict is Verdict.DIFFERENT
    assert found.diverged is Aspect.ENVIRONMENT
    assert f"packages.lightgbm was 0.0.1, is {real}" in found.reason


def test_another_version_that_trains_the_same_gives_equal_predictions(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The versions stand in the model's files: other bytes, but the same numbers."""
    remembered(line.services, gone="1.0")
    versions = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "99.0" if n == "lightgbm" else versions(n)
    )
    found = rebuilt(line.services)
    assert found.verdict is Verdict.EQUAL
    assert found.diverged is Aspect.ENVIRONMENT
    assert "packages.gone was 1.0, is nothing" in found.reason


def test_what_was_not_recorded_is_said_to_be_so(line: Line) -> None:
    record = of_day(line.services)
    detail = {k: v for k, v in record.detail.items() if k not in (RECIPE, "environment")}
    line.services.ledger.record_version(replace(record, detail=detail))
    found = rebuilt(line.services)
    assert found.verdict is Verdict.IDENTICAL
    unknown = {c.aspect for c in found.comparisons if not c.recorded}
    assert unknown == {Aspect.CODE, Aspect.ENVIRONMENT, Aspect.PARAMETERS, Aspect.SEED}


def test_a_registry_without_the_model_does_not_hinder_an_identical_rebuilding(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's digest is enough; where bytes differ, what is gone is said."""

    def gone(*_: object, **__: object) -> object:
        raise UsageError("there is no such version in the registry")

    monkeypatch.setattr(Tracking, "load", gone)
    assert rebuilt(line.services).verdict is Verdict.IDENTICAL
    changed = small_spec(model={"parameters": {"num_boost_round": 5, "num_threads": 1}})
    found = rebuilt(replace(line.services, spec=changed), declared=True)
    assert found.verdict is Verdict.DIFFERENT
    assert "cannot be compared: there is no such version" in found.reason


# --- who is meant -----------------------------------------------------------------------------


def test_a_version_that_was_never_trained_is_wrong_use(line: Line) -> None:
    with pytest.raises(UsageError, match="has no version 99 in the ledger; it has 1 to 4"):
        model_record(line.services, ModelRef.parse("flights@99"))
    assert model_record(line.services, ModelRef.parse("flights@2")).partition == DAY


def test_a_champion_that_is_not_there_yet_is_a_refusal(line: Line) -> None:
    with pytest.raises(RefusedError, match="has no champion yet"):
        model_record(line.services, ModelRef.parse("flights"))


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    said = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, said.out, said.err


@pytest.fixture
def catalog(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small pipeline as a catalog of its own."""
    path = tmp_path / "catalog" / "flights.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(line.spec.model_dump(mode="json")))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(path.parent))
    return path


def test_the_command(line: Line, catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, "reproduce", "flight-delay@2", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["verdict"], told["version"], told["good"]) == ("identical", 2, True)
    assert told["digest_now"] == told["digest_then"]
    code, out, _ = command(capsys, "reproduce", "flights@2")
    assert code == 0
    assert out.startswith("flight-delay version 2 of 2013-01-05: identical\n")

    # The catalog changes: what it says now is another model, what was recorded is not.
    document = yaml.safe_load(catalog.read_text())
    document["model"]["parameters"]["num_boost_round"] = 9
    catalog.write_text(yaml.safe_dump(document))
    assert command(capsys, "reproduce", "flights@2")[0] == 0
    code, out, _ = command(capsys, "reproduce", "flights@2", "--declared")
    assert code == 1
    assert "it first diverged in parameters: num_boost_round was 4, is 9" in out
    assert command(capsys, "reproduce", "flights@2", "--declared", "--tolerance", "1")[0] == 0


@pytest.mark.heavy
@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_fresh_process_rebuilds_the_same_bytes(line: Line, catalog: Path, seed: str) -> None:
    """Sets have another order in each process: nothing of that may be in the digest."""
    code = "from platform_assets.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "reproduce", "flights@2", "--json"],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "identical"


def test_wrong_use_of_the_command(
    line: Line, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, said in (
        (("nothing@1",), 2, "'nothing' is no model of the catalog; allowed are flight-delay"),
        (("flights@0",), 2, "'0' is neither a version nor an alias"),
        (("flights@77",), 2, "has no version 77 in the ledger; it has 1 to 4"),
        (("flights",), 1, "has no champion yet"),
        (("flights@1", "--tolerance", "-1"), 2, "--tolerance -1.0 is no tolerance"),
        (("flights@1", "--tolerance", "nan"), 2, "--tolerance nan is no tolerance"),
    ):
        found, out, err = command(capsys, "reproduce", *arguments)
        assert (found, out) == (code, ""), arguments
        assert said in err
        assert err.count("\n") == 1


def test_a_snapshot_names_what_it_reads(line: Line) -> None:
    """Guards the fixture: the corrected partition is one that the model was trained on."""
    record = of_day(line.services)
    snapshot = load_snapshot(
        line.services, PartitionKey.parse(DAY).date, str(record.detail["snapshot"])
    )
    assert IN_WINDOW in {p.partition for p in snapshot.partitions}
