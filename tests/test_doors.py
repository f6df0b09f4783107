"""One path, three doors: YAML in the catalog, spec objects in Python, a Dagster Component."""

import ast
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pytest
import yaml
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value
from dagster.components.testing.utils import create_defs_folder_sandbox

import platform_assets.line.inputs
from platform_assets.component import SignalboxPipeline, _starter, pipeline_definitions
from platform_assets.definitions import build_definitions
from platform_assets.domain.errors import SpecError
from platform_assets.domain.parse import parse_spec
from platform_assets.domain.spec import PipelineSpec
from resources.catalog import catalog_environment, load_catalog, load_entries, read_pipeline
from resources.home import Home
from resources.versions import module_file
from tests.pipelines.cases import GRID_LOAD_YAML, copy_project, run_in
from tests.pipelines.grid_load_in_python import GRID_LOAD
from tests.pipelines.page import Page

Door = Callable[[Path], dg.Definitions]


@pytest.fixture(autouse=True)
def _no_beta_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


# --- the doors: each takes a pipeline's file -----------------------------------------------------


def in_code_location(definitions: dg.Definitions) -> dg.Definitions:
    """With the executor, of which a code location has one."""
    return dg.Definitions.merge(definitions, dg.Definitions(executor=dg.in_process_executor))


def through_catalog(file: Path) -> dg.Definitions:
    """The code location, with a catalog that holds the file."""
    before = os.environ.get("SIGNALBOX_CATALOG")
    os.environ["SIGNALBOX_CATALOG"] = str(file.parent)
    try:
        return build_definitions()
    finally:
        if before is None:
            del os.environ["SIGNALBOX_CATALOG"]
        else:
            os.environ["SIGNALBOX_CATALOG"] = before


def through_python(file: Path) -> dg.Definitions:
    return in_code_location(pipeline_definitions(read_pipeline(file), str(file)))


def through_component(file: Path) -> dg.Definitions:
    """A defs folder that `dg scaffold` has made, loaded as Dagster loads it."""
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(SignalboxPipeline, defs_path="scaffolded")
        shutil.copy(file, folder / "pipeline.yaml")
        with sandbox.build_all_defs() as defs:
            return in_code_location(defs)


DOORS: Mapping[str, Door] = {
    "catalog": through_catalog,
    "python": through_python,
    "component": through_component,
}


def snapshot(definitions: dg.Definitions) -> dict[str, Any]:
    """All that Dagster's host processes are told of the definitions: assets with dependencies,
    partitions, versions, metadata and lineage; checks, jobs with their tags, sensors."""
    found: dict[str, Any] = json.loads(
        serialize_value(RepositorySnap.from_def(definitions.get_repository_def()))
    )
    for part in ("component_tree", "metadata"):
        found.pop(part, None)  # where the definitions stand: a file of a component, or none
    cleaned: dict[str, Any] = _without_origin(found)
    return cleaned


def _without_origin(value: Any) -> Any:
    """Without the link to the component's file, which the UI shows for each of its assets."""
    origin = ("dagster/code_references", "dagster/component_origin")
    if isinstance(value, dict):
        cleaned = {k: _without_origin(v) for k, v in value.items() if k not in origin}
        return {k: v for k, v in cleaned.items() if not (k == "metadata" and v == [])}
    if isinstance(value, list):
        kept = [v for v in value if not (isinstance(v, dict) and v.get("label") in origin)]
        return [_without_origin(v) for v in kept]
    return value


def only_pipeline(found: dict[str, Any], pipeline: str) -> dict[str, Any]:
    """Without the sensors that a code location has once for all of its pipelines."""
    sensors = [s for s in found["external_sensor_datas"] if s["name"].startswith(pipeline)]
    return {**found, "external_sensor_datas": sensors}


# --- the same graph ------------------------------------------------------------------------------


def test_the_spec_objects_are_what_the_yaml_says() -> None:
    assert read_pipeline(GRID_LOAD_YAML) == GRID_LOAD


def test_a_spec_written_in_python_can_be_kept_as_a_catalog_file(tmp_path: Path) -> None:
    file = tmp_path / "grid_load.yaml"
    file.write_text(GRID_LOAD.model_dump_json(indent=2))
    assert load_catalog(tmp_path) == {"grid_load": GRID_LOAD}


def test_three_doors_lead_to_the_same_definitions(tmp_path: Path) -> None:
    file = tmp_path / "any_name.yaml"
    shutil.copy(GRID_LOAD_YAML, file)
    expected = snapshot(in_code_location(pipeline_definitions(GRID_LOAD)))

    assert only_pipeline(snapshot(through_catalog(file)), "grid_load") == expected
    assert snapshot(through_component(file)) == expected

    assets = {"/".join(a["asset_key"]["path"]): a for a in expected["external_asset_graph_data"]}
    assert set(assets) == {
        f"grid_load/{stage}"
        for stage in (
            *("landed_feeders", "features", "day", "snapshot"),
            *("model", "evaluation", "champion"),
        )
    }
    # The comparison above is not one of emptiness.
    computed = [a for name, a in assets.items() if "landed" not in name]
    assert all(a["code_version"] and a["dependencies"] for a in computed)
    assert all(a["partitions_def_data"] for name, a in assets.items() if "champion" not in name)
    jobs = {p["name"] for p in expected["external_pipeline_datas"]}
    assert {f"grid_load_{job}" for job in ("features", "day", "train", "judge")} <= jobs
    sensors = {s["name"] for s in expected["external_sensor_datas"]}
    assert {"grid_load_readiness", "grid_load_late_data", "grid_load_due"} <= sensors


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("field", "value", "stage"),
    [
        (("model", "parameters"), {"max_depth": 7}, "model"),
        (("dataset", "exclude"), {"unmetered": "load_mw < 0"}, "features"),
    ],
)
def test_code_versions_follow_the_spec_through_every_door(
    door: str, field: tuple[str, str], value: object, stage: str, tmp_path: Path
) -> None:
    def versions(file: Path) -> dict[str, str]:
        found = snapshot(DOORS[door](file))["external_asset_graph_data"]
        return {"/".join(a["asset_key"]["path"]): a["code_version"] for a in found}

    document = yaml.safe_load(GRID_LOAD_YAML.read_text())
    file = tmp_path / "grid_load.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    before = versions(file)
    document[field[0]][field[1]] = value
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    after = versions(file)
    assert after[f"grid_load/{stage}"] != before[f"grid_load/{stage}"]
    assert after["grid_load/champion"] == before["grid_load/champion"]


def modules_that_build_rows() -> set[str]:
    """resources.dataset, and what it imports of its own package."""
    found, new = set(), {"resources.dataset"}
    while new:
        module = new.pop()
        found.add(module)
        file = module_file(module)
        assert file is not None
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("resources."):
                new |= {str(node.module)} - found
    return found


@pytest.mark.parametrize("module", sorted(modules_that_build_rows()))
def test_the_code_version_of_features_follows_the_code_that_builds_rows(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version() -> str | None:
        definitions = pipeline_definitions(GRID_LOAD).get_repository_def()
        return definitions.asset_graph.get(dg.AssetKey(["grid_load", "features"])).code_version

    def with_another_line(name: str) -> Path | None:
        file = module_file(name)
        if name != module or file is None:
            return file
        changed = tmp_path / file.name
        changed.write_text(file.read_text() + "# another line\n")
        return changed

    before = version()
    monkeypatch.setattr(platform_assets.line.inputs, "module_file", with_another_line)
    assert version() != before


# --- the same refusal ----------------------------------------------------------------------------

TEXT = GRID_LOAD_YAML.read_text()
MALFORMED = {
    "no YAML": (TEXT.replace("values: [north, south]", "values: [north, south"), "line "),
    "no mapping": ("- grid_load\n", "found list"),
    "unknown field": (TEXT.replace("  seed: 11", "  sed: 11"), "model.sed: is no field here"),
    "wrong value": (TEXT.replace("kind: regression", "kind: regresion"), "found 'regresion'"),
    "leaking feature": (TEXT.replace("planned_mw, maint", "load_mw, maint"), "would leak"),
    "unusable column": (
        TEXT.replace("categories: [station, feeder]", "categories: [station]"),
        "'feeder' is a string",
    ),
    "no such name": (TEXT.replace(":TreeTrainer", ":NoTrainer"), "it defines"),
    "no such trainer": (TEXT.replace("tree_trainer", "no_trainer"), "there is no module"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", MALFORMED)
def test_a_wrong_file_meets_the_same_sentence_at_every_door(
    door: str, case: str, tmp_path: Path
) -> None:
    text, clue = MALFORMED[case]
    assert text != TEXT
    file = tmp_path / "grid_load.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as direct:
        through_python(file)
    sentence = str(direct.value).removeprefix(str(file))
    assert sentence.startswith(" is refused, no pipeline is loaded from it: ")
    assert clue in sentence

    with pytest.raises(Exception) as refused:  # noqa: PT011 - Dagster wraps a component's
        DOORS[door](file)
    assert sentence_in_chain(refused.value, sentence)


def sentence_in_chain(error: BaseException | None, sentence: str) -> bool:
    """Whether an error, or what caused it, is a SpecError that ends with the sentence."""
    while error is not None:
        if isinstance(error, SpecError) and str(error).endswith(sentence):
            return True
        error = error.__cause__ or error.__context__
    return False


def test_a_wrong_spec_object_is_refused_for_the_same_reason() -> None:
    document = GRID_LOAD.model_dump()
    document["dataset"]["features"] = ("load_mw",)
    with pytest.raises(SpecError) as through_file:
        parse_spec(document, "file")
    with pytest.raises(ValueError, match="would leak") as in_python:
        PipelineSpec(**document)
    for field, reason in through_file.value.problems.items():
        assert f"{field}: {reason}" in str(in_python.value)


# --- the catalog and the components --------------------------------------------------------------


def component(
    folder: Path, text: str, kind: str = "platform_assets.component.SignalboxPipeline"
) -> None:
    folder.mkdir(parents=True)
    (folder / "defs.yaml").write_text(f"type: {kind}\n\nattributes: {{}}\n")
    (folder / "pipeline.yaml").write_text(text)


def test_the_catalog_knows_the_pipelines_of_components(tmp_path: Path) -> None:
    catalog, defs = tmp_path / "catalog", tmp_path / "defs"
    catalog.mkdir()
    shutil.copy(GRID_LOAD_YAML, catalog)
    component(defs / "a" / "deep", _starter("deep"))
    component(defs / "other", "steps: []", "somebody.elses.Pipeline")
    (defs / "left_over").mkdir()
    (defs / "left_over" / "pipeline.yaml").write_text(_starter("left_over"))
    found = load_entries(catalog, defs)
    assert {name: entry.component for name, entry in found.items()} == {
        "grid_load": False,
        "deep": True,
    }


def test_a_pipeline_in_the_catalog_and_in_a_component_is_refused(tmp_path: Path) -> None:
    catalog, defs = tmp_path / "catalog", tmp_path / "defs"
    catalog.mkdir()
    shutil.copy(GRID_LOAD_YAML, catalog)
    component(defs / "again", GRID_LOAD_YAML.read_text())
    with pytest.raises(SpecError, match=r"pipeline: found 'grid_load', which .*grid_load.yaml has"):
        load_entries(catalog, defs)
    component(defs / "model", GRID_LOAD_YAML.read_text().replace("pipeline: grid", "pipeline: g"))
    shutil.rmtree(defs / "again")
    with pytest.raises(SpecError, match=r"model\.name: found 'grid-load'"):
        load_entries(catalog, defs)


def test_a_child_process_finds_a_catalog_that_was_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIGNALBOX_CATALOG", raising=False)
    assert catalog_environment() == {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNALBOX_CATALOG", "mine")
    assert catalog_environment() == {"SIGNALBOX_CATALOG": str(tmp_path / "mine")}


def test_a_catalog_may_consist_of_components_alone(tmp_path: Path) -> None:
    catalog, defs = tmp_path / "catalog", tmp_path / "defs"
    catalog.mkdir()
    component(defs / "alone", _starter("alone"))
    assert list(load_entries(catalog, defs)) == ["alone"]


def test_the_starter_is_a_good_pipeline() -> None:
    spec = parse_spec(yaml.safe_load(_starter("my_pipeline")), "starter")
    assert (spec.pipeline, spec.model.name) == ("my_pipeline", "my-pipeline")
    assert spec.partitions.start < spec.first_model_date < spec.schedule.live_from
    pipeline_definitions(spec).get_repository_def()


# --- dg, for real, in a copy of the project ------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("project"))


def test_a_refused_scaffold_leaves_nothing() -> None:
    with create_defs_folder_sandbox() as sandbox:
        for name, clue in (
            ("flights", "there is a pipeline 'flights' already"),
            ("2nd", "'2nd' cannot name a pipeline"),
            ("Upper", "'Upper' cannot name a pipeline"),
        ):
            with pytest.raises(click.UsageError, match=clue):
                sandbox.scaffold_component(SignalboxPipeline, defs_path=name)
        with pytest.raises(click.UsageError, match="written in Python"):
            sandbox.scaffold_component(
                SignalboxPipeline, defs_path="fine", scaffold_format="python"
            )
        assert list(sandbox.defs_folder_path.iterdir()) == []


@pytest.mark.e2e
@pytest.mark.heavy
def test_dg_scaffolds_a_pipeline_that_loads_and_that_the_commands_know(
    project: Path, home: Home
) -> None:
    kind, root = "platform_assets.component.SignalboxPipeline", home.root
    assert kind in run_in(project, root, "dg", "list", "components").stdout
    made = run_in(project, root, "dg", "scaffold", "defs", kind, "my_pipeline")
    assert made.returncode == 0, made.stderr
    # And the Python door beside it, as the page says.
    page = Page.read()
    block = page.block("into: platform_assets/defs/grid_load.py")
    (project / "platform_assets/defs/grid_load.py").write_text(block)
    checked = run_in(project, root, "dg", "check", "defs")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    listed = run_in(project, root, "dg", "list", "defs", "--json")
    assert listed.returncode == 0, listed.stderr
    document = json.loads(listed.stdout)
    assets = {asset["asset_key"] for asset in document["assets"]}
    assert {"flights/champion", "my_pipeline/landed_readings", "my_pipeline/champion"} <= assets
    assert "grid_load/champion" in assets
    assert "my_pipeline_readiness" in {sensor["name"] for sensor in document["sensors"]}

    status = run_in(project, root, "signalbox", "status", "--pipeline", "my_pipeline", "--json")
    assert status.returncode == 0, status.stderr
    known = json.loads(status.stdout)["pipelines"]["my_pipeline"]["assets"]
    assert {"my_pipeline/landed_readings", "my_pipeline/features"} <= set(known)

    file = project / "platform_assets/defs/my_pipeline/pipeline.yaml"
    good = file.read_text()
    file.write_text(good.replace("kind: regression", "kind: regresion"))
    by_command = run_in(project, root, "signalbox", "status", "--pipeline", "my_pipeline")
    assert by_command.returncode == 2
    sentence = by_command.stderr.removeprefix("signalbox: ").strip()
    assert "model.kind: found 'regresion'" in sentence
    assert "\n" not in sentence
    by_dagster = run_in(project, root, "dg", "check", "defs")
    assert by_dagster.returncode != 0
    assert f"SpecError: {sentence}" in by_dagster.stdout + by_dagster.stderr

    # What only the building of definitions finds comes without Dagster's wrapping too.
    file.write_text(good.replace("sklearn_linear:", "sklearn_liner:"))
    unbuilt = run_in(project, root, "dg", "check", "defs")
    assert unbuilt.returncode != 0
    assert f"SpecError: {file} is refused" in unbuilt.stdout + unbuilt.stderr
