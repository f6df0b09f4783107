"""Slots: one contract, on a folder and on a server that loads from it; and deaths half-way."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import resources.serving
from platform_assets.domain.errors import RefusedError, TransientError
from platform_assets.domain.serving import Served
from resources.serving import Endpoint, FolderSlot, digest_of_files
from resources.tracking import model_digest

fork = multiprocessing.get_context("fork")


def model_files(folder: Path, text: str) -> tuple[Path, str]:
    """A folder as MLflow writes one, and its digest."""
    (folder / "code" / "__pycache__").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: nowhere}}\n")
    (folder / "model.lgb").write_text(text)
    (folder / "code" / "loader.py").write_text("")
    (folder / "code" / "__pycache__" / "loader.pyc").write_text("not in the digest")
    return folder, model_digest(folder)


class Server:
    """Loads once, when it is started, and says what it loaded, as `signalbox serve` does."""

    def __init__(self, slot: FolderSlot) -> None:
        self.slot = slot
        self.loaded: Served | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.loaded.model_dump_json() if outer.loaded else "null"
                self.send_response(200 if self.path == "/signalbox" else 404)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def restart(self) -> None:
        self.loaded = self.slot.serves()


@dataclass
class Bench:
    """A slot, what looks at it, and what has to happen after a deployment for it to be seen."""

    slot: FolderSlot
    serves: Callable[[], Served | None]
    settle: Callable[[], None] = field(default=lambda: None)


@pytest.fixture(params=["folder", "http"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    slot = FolderSlot(tmp_path / "serving" / "m", keep=1)
    if request.param == "folder":
        yield Bench(slot, slot.serves)
        return
    server = Server(slot)
    yield Bench(slot, Endpoint(server.url).serves, server.restart)
    server.http.shutdown()
    server.http.server_close()


def test_the_contract_of_a_slot(bench: Bench, tmp_path: Path) -> None:
    slot = bench.slot
    assert slot.serves() is None
    files = {v: model_files(tmp_path / f"v{v}", f"trees {v}") for v in (1, 2, 3)}
    for version in (1, 2, 1, 3):
        folder, digest = files[version]
        slot.deploy("m", version, digest, folder)
        bench.settle()
        assert bench.serves() == Served(version=version, digest=digest)
    # Torn, tampered, or another's: refused, the former stays.
    for path, text in (("model.lgb", "tr"), ("MLmodel", "flavors: {}\n")):
        folder, digest = files[2]
        before = (folder / path).read_text()
        (folder / path).write_text(text)
        with pytest.raises(RefusedError, match=rf"the ledger has {digest}; they were not deployed"):
            slot.deploy("m", 4, digest, folder)
        (folder / path).write_text(before)
        bench.settle()
        assert bench.serves() == Served(version=3, digest=files[3][1])
    kept = {p.name.split("-")[0] for p in (slot.root / "versions").iterdir()}
    assert kept == {"3", "1"}
    assert not list(slot.files.rglob("__pycache__"))


@pytest.mark.parametrize("ahead", [0, 3600], ids=["at once", "after a clock set back"])
def test_the_versions_kept_are_those_in_force_last(tmp_path: Path, ahead: int) -> None:
    slot = FolderSlot(tmp_path / "m", keep=1)
    files = {v: model_files(tmp_path / f"v{v}", f"trees {v}") for v in (1, 2, 3)}
    for version in (1, 2, 1, 3):
        folder, digest = files[version]
        slot.deploy("m", version, digest, folder)
        # All in one tick of the clock of files, or by a clock that has gone back since.
        for place in (slot.root / "versions").iterdir() if version == 2 else ():
            os.utime(place, (time.time() + ahead,) * 2)
    assert {p.name.split("-")[0] for p in (slot.root / "versions").iterdir()} == {"3", "1"}


def test_a_server_goes_on_with_what_it_loaded_and_says_so(tmp_path: Path) -> None:
    slot = FolderSlot(tmp_path / "m")
    server = Server(slot)
    for version in (1, 2):
        folder, digest = model_files(tmp_path / f"v{version}", f"{version}")
        slot.deploy("m", version, digest, folder)
        if version == 1:
            server.restart()
    seen, there = Endpoint(server.url).serves(), slot.serves()
    assert seen is not None
    assert there is not None
    assert (seen.version, there.version) == (1, 2)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(TransientError, match="does not tell what it serves"):
        Endpoint(server.url).serves()


def test_changed_files_are_seen_though_sizes_and_times_are_as_before(tmp_path: Path) -> None:
    slot = FolderSlot(tmp_path / "m")
    folder, digest = model_files(tmp_path / "v", "trees")
    slot.deploy("m", 1, digest, folder)
    file = slot.files / "model.lgb"
    os.utime(file, (0, 0))
    assert slot.serves() == Served(version=1, digest=digest)
    file.write_text("Trees")
    os.utime(file, (0, 0))
    found = slot.serves()
    assert found is not None
    assert found.digest not in (digest, "")
    slot.deploy("m", 1, digest, folder)
    assert slot.serves() == Served(version=1, digest=digest)


def test_files_that_rest_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, digest = model_files(tmp_path / "v", "trees")
    monkeypatch.setattr(resources.serving, "SETTLED_NANOSECONDS", -(10**18))
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return model_digest(path)

    monkeypatch.setattr(resources.serving, "model_digest", counted)
    assert {digest_of_files(folder) for _ in range(3)} == {digest}
    assert len(read) == 1
    (folder / "model.lgb").write_text("others")
    assert digest_of_files(folder) != digest
    assert len(read) == 2


def dies(slot: FolderSlot, at: str, *deployment: object) -> None:
    """Deploy in a process that is gone as soon as it comes to a step."""

    def work() -> None:
        setattr(resources.serving, at, lambda *_: os._exit(9))
        slot.deploy(*deployment)  # type: ignore[arg-type]

    process = fork.Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 9


@pytest.mark.parametrize("at", ["_digest", "_synced", "_point"])
def test_who_dies_before_the_swap_leaves_the_former(tmp_path: Path, at: str) -> None:
    slot = FolderSlot(tmp_path / "m")
    old, new = (model_files(tmp_path / name, name) for name in ("old", "new"))
    slot.deploy("m", 1, old[1], old[0])
    dies(slot, at, "m", 2, new[1], new[0])
    assert slot.serves() == Served(version=1, digest=old[1])
    # The next one is not stopped by what lies there, and clears it away.
    slot.deploy("m", 2, new[1], new[0])
    assert slot.serves() == Served(version=2, digest=new[1])
    assert not list((slot.root / "versions").glob(".*"))


def test_a_copy_in_place_of_a_swap_would_be_torn(tmp_path: Path) -> None:
    """What the swap is for: files that are copied over those that are served."""
    import shutil

    slot = FolderSlot(tmp_path / "m")
    old, new = (model_files(tmp_path / name, name) for name in ("old", "new"))
    slot.deploy("m", 1, old[1], old[0])
    shutil.copy(new[0] / "model.lgb", slot.files)  # and dies
    found = slot.serves()
    assert found is not None
    assert found.version == 1
    assert found.digest != old[1]


def test_a_link_to_anywhere_is_seen_and_a_folder_in_its_place_moved_away(tmp_path: Path) -> None:
    slot = FolderSlot(tmp_path / "m")
    folder, digest = model_files(tmp_path / "v", "trees")
    slot.deploy("m", 1, digest, folder)
    link = slot.root / "current"
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    assert slot.serves() == Served(version=None, digest="")
    link.unlink()
    link.mkdir()
    (link / "signalbox.json").write_text(json.dumps({"version": "seven"}))
    assert slot.serves() == Served(version=None, digest="")
    slot.deploy("m", 1, digest, folder)
    assert slot.serves() == Served(version=1, digest=digest)
