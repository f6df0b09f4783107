"""A registry of images on the loopback, for a drill: Debian's docker-registry, or a stand-in.

The stand-in answers the four requests of the OCI distribution specification that a pull is made
of. It is there so that the drill can be played where nothing is installed; it is named as such.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from platform_assets.domain.errors import RefusedError

PROGRAM = "docker-registry"
REAL, STAND_IN = "Debian's docker-registry", "a stand-in for a registry, in this process"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
READY_SECONDS = 30.0


class Store(Protocol):
    """Where an image is pushed to.

    Attributes:
        host: with its port.
        kind: what it is, for the report.
    """

    host: str
    kind: str

    def put_blob(self, repository: str, content: bytes) -> None: ...

    def put_manifest(self, repository: str, tag: str, content: bytes) -> None: ...


def push(store: Store, repository: str, tag: str, layers: Sequence[Mapping[str, bytes]]) -> str:
    """Push an image of layers with these files under a tag, which moves; returns its digest."""
    config = json.dumps({"os": "linux", "architecture": "amd64", "config": {}}).encode()
    blobs = [_layer(files) for files in layers]
    for content in (config, *blobs):
        store.put_blob(repository, content)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": _sha256(config), "size": len(config)},
        "layers": [
            {"mediaType": LAYER, "digest": _sha256(blob), "size": len(blob)} for blob in blobs
        ],
    }
    content = json.dumps(manifest).encode()
    store.put_manifest(repository, tag, content)
    return _sha256(content)


@contextmanager
def a_registry(folder: Path) -> Iterator[Store]:
    """A registry that ends with the block.

    Raises:
        RefusedError: the program is there and does not start.
    """
    program = shutil.which(PROGRAM)
    with _real(program, folder) if program else _stand_in() as store:
        yield store


@dataclass
class _Real:
    host: str
    kind: str = REAL

    def put_blob(self, repository: str, content: bytes) -> None:
        import httpx

        with httpx.Client(timeout=30) as client:
            began = client.post(f"http://{self.host}/v2/{repository}/blobs/uploads/")
            began.raise_for_status()
            place = httpx.URL(began.headers["Location"])
            place = place.copy_merge_params({"digest": _sha256(content)})
            client.put(place, content=content).raise_for_status()

    def put_manifest(self, repository: str, tag: str, content: bytes) -> None:
        import httpx

        url = f"http://{self.host}/v2/{repository}/manifests/{tag}"
        answer = httpx.put(url, content=content, headers={"Content-Type": MANIFEST}, timeout=30)
        answer.raise_for_status()


@contextmanager
def _real(program: str, folder: Path) -> Iterator[Store]:
    import httpx

    folder.mkdir(parents=True, exist_ok=True)
    host = f"127.0.0.1:{_free_port()}"
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": host},
    }
    (folder / "config.yml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    # It takes every variable that begins with REGISTRY_ for a setting of its own.
    clean = {name: v for name, v in os.environ.items() if not name.startswith("REGISTRY_")}
    log = folder / "log"
    with log.open("wb") as file:
        command = [program, "serve", str(folder / "config.yml")]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=clean)
    try:
        until = time.monotonic() + READY_SECONDS
        while True:
            try:
                httpx.get(f"http://{host}/v2/", timeout=5)
                break
            except httpx.TransportError as error:
                if time.monotonic() > until or process.poll() is not None:
                    said = log.read_text(errors="replace")[-300:].strip()
                    raise RefusedError(
                        f"{PROGRAM} does not start ({said or error}); correct it, or remove it: "
                        "the drill is then played with a stand-in"
                    ) from error
                time.sleep(0.05)
        yield _Real(host)
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class _StandIn:
    host: str
    kind: str = STAND_IN
    held: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def put_blob(self, repository: str, content: bytes) -> None:
        path = f"/v2/{repository}/blobs/{_sha256(content)}"
        self.held[path] = ("application/octet-stream", content)

    def put_manifest(self, repository: str, tag: str, content: bytes) -> None:
        for reference in (tag, _sha256(content)):
            self.held[f"/v2/{repository}/manifests/{reference}"] = (MANIFEST, content)


@contextmanager
def _stand_in() -> Iterator[Store]:
    store = _StandIn("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server asks for
            kind, content = store.held.get(self.path, ("", b""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nobody waits for it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _layer(files: Mapping[str, bytes]) -> bytes:
    """The same files, the same bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return gzip.compress(target.getvalue(), mtime=0)


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
