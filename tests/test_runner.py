"""The runner behind `make test`: what it counts, and where it finds a browser."""

import stat
from collections import Counter
from pathlib import Path

import pytest

from tests.tools.browser import VARIABLE, find_browser
from tests.tools.run import Part, parts, run_part

SAMPLE = """
import pytest

def test_good(): pass
def test_bad(): assert False
@pytest.mark.skip(reason="sample")
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError
def test_error(broken): pass
"""


def executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.heavy
def test_a_part_counts_what_passed_failed_and_was_skipped(tmp_path: Path) -> None:
    file = tmp_path / "test_sample.py"
    file.write_text(SAMPLE)
    arguments = [str(file), f"--rootdir={tmp_path}", "-c", str(tmp_path / "none.ini")]
    (tmp_path / "none.ini").write_text("[pytest]\n")
    code, counts = run_part(Part("not none", ("-n", "2")), arguments)
    assert code == 1
    assert counts == Counter(passed=1, failed=2, skipped=1)


def test_every_test_is_in_one_part() -> None:
    markers = {"e2e": False, "browser": False, "heavy": False}
    for name in (None, *markers):
        found = {**markers, **({name: True} if name else {})}
        inside = [p for p in parts(browser=True, heavy=True) if eval(p.marker, {}, found)]
        assert len(inside) == 1, name


def test_what_works_on_a_home_runs_on_postgres_too() -> None:
    found = {"e2e": False, "browser": False, "heavy": False, "store": True}
    inside = [
        p for p in parts(browser=True, heavy=True, postgres=True) if eval(p.marker, {}, found)
    ]
    assert [dict(part.environment) for part in inside] == [{}, {"SIGNALBOX_TEST_STORE": "postgres"}]


def test_without_a_browser_only_the_browser_tests_are_left_out() -> None:
    for part in parts(browser=False, heavy=True):
        assert not eval(part.marker, {}, {"e2e": False, "browser": True, "heavy": False})
    e2e = {"e2e": True, "browser": False, "heavy": False}
    assert any(eval(p.marker, {}, e2e) for p in parts(browser=False, heavy=False))


def test_the_browser_is_the_one_named_else_the_one_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert find_browser() is None
    found = executable(tmp_path / "google-chrome")
    assert find_browser() == found
    own = executable(tmp_path / "mine")
    monkeypatch.setenv(VARIABLE, str(own))
    assert find_browser() == own
    monkeypatch.setenv(VARIABLE, str(tmp_path / "not-there"))
    assert find_browser() is None
