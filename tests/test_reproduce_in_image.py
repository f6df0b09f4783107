"""A model that was trained in an image is rebuilt in that image, where something can run it.

The engine is a fake: it takes podman's arguments, and its container is a process of this virtual
environment with the variables that were handed on and no others. tests/test_image.py runs a real
image by podman.
"""

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platform_assets.cli.app import main
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.rebuilding import place_of
from platform_assets.line.models import train_model
from resources.containers import ENGINE
from resources.environment import IMAGE
from resources.images import VARIABLE
from tests.small import Line, Templates, copied
from tests.test_reproduction import catalog, command

__all__ = ["catalog"]

DIGEST = "sha256:" + "5a" * 32
OTHER = "sha256:" + "6b" * 32
TRAINED_IN = f"registry.example:5000/team/train@{DIGEST}"

PODMAN = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
at = next(n for n, word in enumerate(words) if "@sha256:" in word)
options, image, inside = words[:at], words[at], words[at + 1:]
names = [word.removeprefix("--env=") for word in options if word.startswith("--env=")]
with open({log!r}, "w") as log:
    json.dump({{"options": options, "image": image, "command": inside}}, log)
{before}
code = "from platform_assets.cli import main; main()"
assert inside[0] == "signalbox"
variables = {{name: os.environ[name] for name in names}} | {{"PATH": os.environ["PATH"]}}
variables["PYTHONPATH"] = {root!r}
sys.exit(subprocess.run([sys.executable, "-c", code, *inside[1:]], env=variables).returncode)
"""


@pytest.fixture
def line(
    shared_folder: Path, home_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Line]:
    """The model of a day was trained in an image, in which this process does not run."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "images.lock.yaml"))
    with copied(Templates(shared_folder, home_template).models, tmp_path) as found:
        with monkeypatch.context() as inside:
            inside.setenv(IMAGE, TRAINED_IN)
            train_model(found.services, PartitionKey.parse("2013-01-05"), "by-hand", lane="adhoc")
        yield found


@pytest.fixture
def lock(line: Line, tmp_path: Path) -> None:
    """The image stands in the lock, by its repository."""
    (tmp_path / "images.lock.yaml").write_text(
        json.dumps(
            {
                "registries": ["registry.example:5000"],
                "images": {
                    "train": {
                        "repository": "registry.example:5000/team/train",
                        "tag": "2026-11",
                        "digest": DIGEST,
                        "config": OTHER,
                        "platform": "linux/amd64",
                        "resolved_at": "2026-11-01T00:00:00Z",
                        "resolved_by": "ann",
                    }
                },
            }
        )
    )


def engine(folder: Path, monkeypatch: pytest.MonkeyPatch, before: str = "") -> Path:
    """An engine on the PATH; what it was asked for stands in the file that is returned."""
    log, program = folder / "asked.json", folder / "bin" / "fake-podman"
    program.parent.mkdir()
    root = str(Path(__file__).parents[1])
    program.write_text(PODMAN.format(python=sys.executable, log=str(log), root=root, before=before))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(ENGINE, str(program))
    return log


def reproduced(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code, out, err = command(capsys, "reproduce", "flights@5", "--json", *more)
    assert err == ""
    return code, json.loads(out)


def test_it_is_rebuilt_in_its_image(
    line: Line,
    lock: None,
    catalog: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without: the environments differ in the image, and the one at hand is taken.
    code, here = reproduced(capsys, "--here")
    (environment,) = [c for c in here["comparisons"] if c["aspect"] == "environment"]
    assert [d["field"] for d in environment["differences"]] == ["image_digest"]
    assert "rebuilt_in" not in here

    log = engine(tmp_path, monkeypatch)
    code, told = reproduced(capsys)
    assert (code, told["verdict"], told["rebuilt_in"]) == (0, "identical", TRAINED_IN)
    (environment,) = [c for c in told["comparisons"] if c["aspect"] == "environment"]
    assert environment["differences"] == []
    asked = json.loads(log.read_text())
    assert asked["image"] == TRAINED_IN
    assert f"--volume={line.home.root}:{line.home.root}:rw" in asked["options"]
    assert f"--volume={catalog.parent}:{catalog.parent}:ro" in asked["options"]
    assert not [
        word
        for word in asked["options"]
        if "=" in word.removeprefix("--env=") and word.startswith("--env=")
    ], "no value of a variable on the command line"
    code, out, _ = command(capsys, "reproduce", "flights@5")
    assert code == 0
    assert f"where: it was trained in {TRAINED_IN}, and is again" in out


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.exit('no such image')", "ended with code 1 and said: no such image; mend that"),
        ("print('[]'); sys.exit(0)", "ended with code 0 and said: []"),
        ("print(json.dumps({'good': True, 'version': 5})); sys.exit(125)", "told of version 5"),
        ("print(json.dumps({'good': True, 'version': 4})); sys.exit(0)", "told of version 4"),
    ],
    ids=["no image", "no verdict", "it failed", "another model"],
)
def test_a_container_that_comes_to_no_verdict_is_none(
    line: Line,
    lock: None,
    catalog: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    said: str,
) -> None:
    engine(tmp_path, monkeypatch, before)
    code, out, err = command(capsys, "reproduce", "flights@5")
    assert (code, out) == (1, "")
    assert said in err
    assert "--here" in err


def test_an_engine_that_is_not_there_is_a_refusal(
    line: Line,
    lock: None,
    catalog: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENGINE, "no-such-engine")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "flights@5"])
    assert ended.value.code not in (0, None)
    assert "SIGNALBOX_CONTAINER_ENGINE is 'no-such-engine'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recorded", "digest", "here", "program", "image", "said"),
    [
        ("", "", "", "podman", "", "no image was recorded"),
        (TRAINED_IN, DIGEST, DIGEST, "podman", "", "this process runs in the image"),
        ("", DIGEST, OTHER, "podman", "", "stands in no images.lock.yaml"),
        (TRAINED_IN, DIGEST, OTHER, "", "", "neither podman nor docker is here"),
        (TRAINED_IN, DIGEST, OTHER, "podman", TRAINED_IN, "and is again, by podman"),
        (TRAINED_IN, DIGEST, "", "docker", TRAINED_IN, "and is again, by docker"),
    ],
)
def test_where_a_model_is_rebuilt(
    recorded: str, digest: str, here: str, program: str, image: str, said: str
) -> None:
    found = place_of(recorded, digest, here, program)
    assert found.image == image
    assert said in found.reason
