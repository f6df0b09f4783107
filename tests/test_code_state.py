"""Whether what a process has loaded is still what lies on the disk."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from platform_assets.instance.code_state import changed_since, own_files, read_state


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "flights.yaml").write_text("pipeline: flights")
    (tmp_path / "catalog" / "notes.txt").write_text("nobody loads this")
    return tmp_path / "catalog"


def same_size(folder: Path) -> None:
    (folder / "flights.yaml").write_text("pipeline: fl1ghts")


def older(folder: Path) -> None:
    """As a copy that keeps times does: the new content is older than the one that was loaded."""
    same_size(folder)
    os.utime(folder / "flights.yaml", (1, 1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (same_size, "flights.yaml"),
        (older, "flights.yaml"),
        (lambda folder: (folder / "flights.yaml").unlink(), "flights.yaml"),
        (lambda folder: (folder / "new.yaml").write_text(""), "new.yaml"),
    ],
)
def test_a_change_is_seen(catalog: Path, change: Callable[[Path], object], named: str) -> None:
    os.utime(catalog / "flights.yaml", (10, 10))
    before = read_state([catalog])
    assert changed_since(before, [catalog]) is None
    change(catalog)
    found = changed_since(before, [catalog])
    assert found is not None
    assert found.endswith(named)


def test_what_nobody_loads_is_no_change(catalog: Path) -> None:
    before = read_state([catalog])
    (catalog / "notes.txt").write_text("another note")
    assert changed_since(before, [catalog]) is None


def test_own_modules_are_watched_and_installed_ones_by_their_folder() -> None:
    own = own_files()
    assert __file__ in own
    assert not any("site-packages" in path for path in own)
    assert pytest.__file__ not in own
    assert str(Path(pytest.__file__).resolve().parents[1]) in read_state([])
