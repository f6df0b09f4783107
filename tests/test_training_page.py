"""docs/training.md shows the trainer as it is, and its commands do what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.cases import ROOT
from tests.pipelines.page import Page

PAGE = Page.read(ROOT / "docs" / "training.md")


def test_the_page_shows_the_trainer_as_it_is() -> None:
    file = "tests/pipelines/descent_trainer.py"
    assert PAGE.block(f"file: {file}") == (ROOT / file).read_text()


@pytest.mark.heavy
def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{PAGE.block('run')}"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was interrupted by a signal, step " in done.stdout
    assert "goes on from step " in done.stdout
    assert done.stdout.rstrip().endswith("the same model")
