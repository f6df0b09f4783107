"""The catalog: what a user writes is read, or refused with file, line and reason."""

from pathlib import Path

import pytest
import yaml

from platform_assets.domain.errors import SpecError, UsageError
from resources.catalog import catalog_folder, load_catalog

FLIGHTS = (catalog_folder() / "flights.yaml").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "catalog"
    made.mkdir()
    return made


def another(name: str, model: str) -> str:
    document = yaml.safe_load(FLIGHTS)
    document["pipeline"] = name
    document["model"]["name"] = model
    return yaml.safe_dump(document)


def refused(folder: Path, name: str) -> SpecError:
    with pytest.raises(SpecError) as error:
        load_catalog(folder)
    assert error.value.exit_code == 2
    assert error.value.origin == str(folder / name)
    assert str(error.value).startswith(f"{folder / name} is refused, no pipeline is loaded from it")
    assert "\n" not in str(error.value)
    return error.value


def test_the_catalog_that_comes_with_the_project_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGNALBOX_CATALOG", raising=False)
    specs = load_catalog()
    assert list(specs) == ["flights"]
    assert specs["flights"].partitions.values == ("EWR", "JFK", "LGA")
    assert str(specs["flights"].first_model_date) == "2013-01-28"


def test_another_folder_can_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "trains.yaml").write_text(another("trains", "train-delay"))
    monkeypatch.setenv("SIGNALBOX_CATALOG", str(folder))
    assert catalog_folder() == folder
    assert list(load_catalog()) == ["trains"]


def test_files_are_read_in_the_order_of_their_names_and_others_are_left_alone(
    folder: Path,
) -> None:
    (folder / "b.yaml").write_text(another("first", "one"))
    (folder / "a.yaml").write_text(another("second", "two"))
    (folder / ".b.yaml").write_text("an editor's: [copy")
    (folder / "README.md").write_text("text")
    assert list(load_catalog(folder)) == ["second", "first"]


def test_a_byte_order_mark_is_no_problem(folder: Path) -> None:
    (folder / "flights.yaml").write_bytes(b"\xef\xbb\xbf" + FLIGHTS.encode())
    assert list(load_catalog(folder)) == ["flights"]


# --- no catalog -------------------------------------------------------------------------------


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder; set SIGNALBOX_CATALOG") as error:
        load_catalog(tmp_path / "absent")
    assert error.value.exit_code == 2
    assert str(tmp_path / "absent") in str(error.value)


def test_an_empty_folder_is_refused(folder: Path) -> None:
    (folder / "notes.txt").write_text("pipeline: flights")
    with pytest.raises(UsageError, match=r"holds no \*\.yaml; write one file a pipeline"):
        load_catalog(folder)


def test_a_yml_file_is_not_passed_over_in_silence(folder: Path) -> None:
    (folder / "flights.yaml").write_text(FLIGHTS)
    (folder / "trains.yml").write_text(another("trains", "train-delay"))
    assert "rename it" in refused(folder, "trains.yml").problems["(file)"]


# --- no YAML ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("pipeline: flights\nowners: [a, b\nmodel: x\n", "line 3, column 6", "but got ':'"),
        ("pipeline: flights\n\tmodel: x\n", "line 2, column 1", "'\\t'"),
        ("a: 1\nb: 'open\nc: 2\n", "line 4, column 1", "quoted scalar"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1", "another document"),
        ("a: *nobody\n", "line 1, column 4", "undefined alias"),
        ("a: !!python/object:os.system x\n", "line 1, column 4", "python/object"),
        ("a: 1\n? [1, 2]\n: 3\n", "line 2, column 3", "unhashable"),
        ("pipeline: flights\nmodel: 1\npipeline: trains\n", "line 3, column 1", "stands twice"),
        ("partitions:\n  start: 2013-02-30\n", "line 2, column 10", "'2013-02-30'"),
        ("a: 1\nb: \x07\n", "line 2", "'\\x07'"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(
    folder: Path, text: str, where: str, found: str
) -> None:
    (folder / "flights.yaml").write_text(text)
    problems = refused(folder, "flights.yaml").problems
    assert list(problems) == [where]
    assert found in problems[where]


def test_a_field_that_stands_twice_would_be_lost_by_yaml_itself() -> None:
    """Why the catalog's own loader is needed."""
    assert yaml.safe_load("model: 1\nmodel: 2\n") == {"model": 2}
    with pytest.raises(ValueError, match="day is out of range"):
        yaml.safe_load("start: 2013-02-30")


def test_a_file_that_is_not_utf8_is_refused_with_its_line(folder: Path) -> None:
    (folder / "flights.yaml").write_bytes("pipeline: flights\n# café\n".encode("latin-1"))
    problems = refused(folder, "flights.yaml").problems
    assert problems == {
        "line 2": "found byte 0xe9, which is not UTF-8; save the file as UTF-8",
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "NoneType"), ("# only a comment\n", "NoneType"), ("- a\n- b\n", "list"), ("7", "int")],
)
def test_a_file_without_a_mapping_is_refused(folder: Path, text: str, found: str) -> None:
    (folder / "flights.yaml").write_text(text)
    problem = refused(folder, "flights.yaml").problems["(file)"]
    assert f"found {found}, a mapping with the fields of" in problem
    assert "pipeline" in problem


def test_a_folder_with_the_name_of_a_file_is_refused(folder: Path) -> None:
    (folder / "flights.yaml").mkdir()
    assert "cannot be read: Is a directory" in refused(folder, "flights.yaml").problems["(file)"]


def test_a_link_to_nothing_is_refused(folder: Path) -> None:
    (folder / "flights.yaml").symlink_to(folder / "absent")
    assert "No such file" in refused(folder, "flights.yaml").problems["(file)"]


# --- clashes ----------------------------------------------------------------------------------


def test_two_pipelines_of_one_name_are_refused(folder: Path) -> None:
    (folder / "a.yaml").write_text(FLIGHTS)
    (folder / "b.yaml").write_text(another("flights", "another-model"))
    problems = refused(folder, "b.yaml").problems
    assert problems == {
        "pipeline": "found 'flights', which a.yaml has taken; each needs its own",
    }


def test_two_pipelines_of_one_model_are_refused(folder: Path) -> None:
    """Both would promote onto the same alias of the same registered model."""
    (folder / "a.yaml").write_text(FLIGHTS)
    (folder / "b.yaml").write_text(another("trains", "flight-delay"))
    problems = refused(folder, "b.yaml").problems
    assert problems == {
        "model.name": "found 'flight-delay', which a.yaml has taken; each needs its own",
    }


def test_a_wrong_spec_names_its_file(folder: Path) -> None:
    (folder / "flights.yaml").write_text(FLIGHTS.replace("min_days: 21", "min_days: 40"))
    assert list(refused(folder, "flights.yaml").problems) == ["model"]
