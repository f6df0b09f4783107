"""docs/add-a-pipeline.md shows the files that the tests run, and its commands do what it says."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from platform_assets.domain.spec import (
    DatasetSpec,
    EvaluationSpec,
    ModelSpec,
    PartitionsSpec,
    ScheduleSpec,
    SourceSpec,
)
from resources.home import Home
from tests.pipelines.cases import ROOT, copy_project, run_in
from tests.pipelines.page import PAGE, Page


def test_the_page_shows_the_files_as_they_are() -> None:
    shown = set()
    for block in Page.read().blocks:
        kind, _, rest = block.what.partition(": ")
        if kind == "file":
            assert block.text == (ROOT / rest).read_text(), f"{rest} differs from the page"
            shown.add(Path(rest).name)
        elif kind == "from":
            path, name = rest.split()
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            assert block.text == inspect.getsource(getattr(module, name))
            shown.add(name)
    assert shown == {
        "grid_load.yaml",
        "tree_trainer.py",
        "land",
        "grid_load_backfill.py",
        "forecast_join.yaml",
    }


def test_the_page_explains_every_field_that_must_be_given() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    first_cells = " ".join(row.split("|")[1] for row in rows)
    explained = set(re.findall(r"(\w+)`", first_cells))
    for part in (
        PartitionsSpec,
        SourceSpec,
        DatasetSpec,
        ModelSpec,
        EvaluationSpec,
        ScheduleSpec,
    ):
        required = {name for name, field in part.model_fields.items() if field.is_required()}
        assert required, part
        assert required <= explained, f"{part.__name__}: {required - explained}"


@pytest.mark.heavy
def test_the_commands_of_the_page_do_what_it_says(home: Home, tmp_path: Path) -> None:
    page = Page.read()
    script = ["set -e"]
    for block in page.blocks:
        if block.what == "run":
            script += [block.text]
        elif block.what == "run, and the message is this one":
            script += ["set +e", f"{{ {block.text} }} 2> message", "echo $? > code", "set -e"]
    assert len(script) > 6, "the page has commands"
    project = copy_project(tmp_path / "project")
    done = run_in(project, home.root, "bash", "-c", "\n".join(script))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "code").read_text() == "2\n"
    assert (project / "message").read_text() == page.block("message")
    assert f"{2 * (7 * 24 - 4)} files landed" in done.stdout
    assert "grid_load/features north|2024-04-03: held" in done.stdout
    assert "feeders: 21 of 24 hours, missing 21:00-23:00 (local time)" in done.stdout
    assert "All definitions loaded successfully." in done.stdout
