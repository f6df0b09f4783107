"""`make image`: what it tells the build, by a buildah that only writes down what it was asked."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = f"registry.example:5000/team/base@sha256:{'a' * 64}"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    own = {name: text for name, text in os.environ.items() if not name.startswith(("GIT_", "MAKE"))}
    path = f"{folder.parent / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env={**own, "PATH": path}, check=True, capture_output=True, text=True
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with what decides the image."""
    (tmp_path / "bin").mkdir()
    buildah = tmp_path / "bin" / "buildah"
    buildah.write_text('#!/bin/sh\nfor one in "$@"; do echo "$one"; done\n')
    buildah.chmod(0o755)
    folder = tmp_path / "project"
    (folder / "platform_assets").mkdir(parents=True)
    for name in ("Makefile", "Dockerfile", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "platform_assets" / "images.lock.yaml").write_text("version: 1\n")
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", ".")
    name = ("-c", "user.name=ada", "-c", "user.email=ada@example.org")
    run(folder, "git", *name, "commit", "--quiet", "--message=x")
    return folder


def told(project: Path) -> list[str]:
    said = run(project, "make", "--silent", "image", f"BASE={BASE}", "IMAGE=r/t:1").stdout
    return said.splitlines()


def test_the_image_is_told_its_commit_and_one_commit_is_told_the_same(project: Path) -> None:
    commit = run(project, "git", "rev-parse", "HEAD").stdout.strip()
    first = told(project)
    assert f"GIT_COMMIT={commit}" in first
    assert f"BASE_DIGEST=sha256:{'a' * 64}" in first
    # Neither the lock, which names the image, nor what is not inside makes it another one.
    (project / "platform_assets" / "images.lock.yaml").write_text("version: 1\nimages: {}\n")
    (project / "notes.txt").write_text("x")
    assert told(project) == first
    dockerfile = (project / "Dockerfile").read_text()
    assert 'ENV SIGNALBOX_GIT_COMMIT="${GIT_COMMIT}"' in dockerfile


@pytest.mark.parametrize("name", ["Dockerfile", "platform_assets/new.py"])
def test_a_commit_that_is_not_what_is_inside_is_not_named(project: Path, name: str) -> None:
    with (project / name).open("a") as file:
        file.write("# changed\n")
    assert "GIT_COMMIT=" in told(project)
