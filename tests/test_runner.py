"""The runner behind `make test`: what it counts, and where it finds a browser."""

import stat
from collections import Counter
from pathlib import Path

import pytest

from tests import podman
from tests.conftest import REGISTRY
from tests.tools import run
from tests.tools.browser import VARIABLE, find_browser
from tests.tools.run import Part, parts, run_part, run_parts

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


@pytest.mark.heavy
def test_a_part_beside_another_is_counted_and_printed_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each waits until the other has begun: one after the other they would not end."""
    file = tmp_path / "test_sample.py"
    file.write_text(
        "import os, time, pathlib\n"
        "def test_both():\n"
        "    here = pathlib.Path(__file__).parent\n"
        "    (here / os.environ['OWN']).touch()\n"
        "    until = time.monotonic() + 60\n"
        "    while not (here / 'a').exists() or not (here / 'b').exists():\n"
        "        assert time.monotonic() < until\n"
        "        time.sleep(0.05)\n"
    )
    (tmp_path / "none.ini").write_text("[pytest]\n")
    arguments = [str(file), f"--rootdir={tmp_path}", "-c", str(tmp_path / "none.ini")]
    first = Part("not none", (), (("OWN", "a"),))
    beside = Part("not none", (), (("OWN", "b"),), beside=True)
    found = run_parts([first, beside], arguments)
    assert found == [(0, Counter(passed=1))] * 2
    assert capfd.readouterr().out.count("1 passed") == 2


def test_every_test_is_in_one_part() -> None:
    markers = dict.fromkeys(("e2e", "browser", "heavy", "image", "torch"), False)
    kinds = [(), ("e2e",), ("browser",), ("heavy",), ("heavy", "e2e"), ("heavy", "e2e", "image")]
    kinds += [("torch",), ("torch", "heavy")]
    for name in kinds:
        found = {**markers, **dict.fromkeys(name, True)}
        wanted = parts(browser=True, heavy=True, torch=True)
        inside = [p for p in wanted if eval(p.marker, {}, found)]
        assert len(inside) == 1, name


@pytest.mark.parametrize(
    ("postgres", "marked", "times"),
    [
        ("none", (), 2),
        ("none", ("heavy",), 1),
        ("registry", (), 2),
        ("registry", ("heavy",), 1),
        ("registry", ("heavy", "registry"), 2),
        ("all", ("heavy",), 2),
        ("all", ("e2e",), 1),
    ],
)
def test_what_works_on_a_home_runs_on_postgres_too(
    postgres: str, marked: tuple[str, ...], times: int
) -> None:
    names = ("e2e", "browser", "heavy", "registry", "image", "torch")
    found = {"store": True, **{name: name in marked for name in names}}
    wanted = parts(browser=True, heavy=True, postgres=postgres)
    inside = [p for p in wanted if eval(p.marker, {}, found)]
    on = [dict(part.environment) for part in inside]
    assert on == [{}, {"SIGNALBOX_TEST_STORE": "postgres"}][:times]


def test_the_registry_is_what_its_files_are_called() -> None:
    here = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert here >= REGISTRY


def test_without_a_browser_only_the_browser_tests_are_left_out() -> None:
    for part in parts(browser=False, heavy=True):
        others = {"e2e": False, "heavy": False, "image": False, "torch": False}
        assert not eval(part.marker, {}, {**others, "browser": True})
    e2e = {"e2e": True, "browser": False, "heavy": False, "image": False, "torch": False}
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


@pytest.mark.parametrize("user", [0, 1000])
def test_in_ci_another_user_than_root_is_told_what_needs_root_and_fails(
    user: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("shutil.which", lambda program, **_: f"/usr/bin/{program}")
    monkeypatch.setattr(run, "find_browser", lambda: Path("/usr/bin/chromium"))
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr("tests.postgres.is_there", lambda: False)
    # What needs root is skipped, as tests.podman.engine does it.
    skipped = 1 if podman.missing() else 0
    done = (0, Counter(passed=3, skipped=skipped))
    monkeypatch.setattr(run, "run_part", lambda *_: done)
    code = run.main([])
    said = capsys.readouterr().out
    assert code == (0 if user == 0 else 1)
    assert (podman.NEEDS_ROOT in said) is (user != 0)
    assert ("in CI every test must run" in said) is (user != 0)
    if user:
        with pytest.raises(pytest.skip.Exception), podman.engine("localhost:1"):
            pass


def test_what_else_is_missing_is_named() -> None:
    assert "(there is no buildah, root)" in podman.advice(["buildah", "root"])
