"""A real OCI registry of the tests' own (Debian's docker-registry), and images made by hand."""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port

READY_SECONDS = 30.0
ADVICE = (
    "NOT RUN: the tests on a registry of images; get one with `apt-get install docker-registry`, "
    "then run `make test` again"
)
NO_SKOPEO = ADVICE.replace("docker-registry", "skopeo").replace("a registry of images", "digests")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# bcrypt of "secret": a registry reads no other kind of password file.
HTPASSWD = "ada:$2b$04$CY8dEd59aQGGPmlQ52InZeVoDKxw1kRe9LUSb35HeZeWZbMEymlSy"


def is_there() -> bool:
    """Whether there is a registry to start."""
    return shutil.which("docker-registry") is not None


@dataclass(frozen=True)
class RunningRegistry:
    """A registry that runs."""

    host: str
    folder: Path
    auth: tuple[str, str] | None = None

    def push_blob(self, repository: str, content: bytes) -> str:
        digest = sha256(content)
        with httpx.Client(auth=self.auth, timeout=30) as client:
            began = client.post(f"http://{self.host}/v2/{repository}/blobs/uploads/")
            began.raise_for_status()
            place = httpx.URL(began.headers["Location"]).copy_merge_params({"digest": digest})
            client.put(place, content=content).raise_for_status()
        return digest

    def push_document(self, repository: str, reference: str, document: dict[str, Any]) -> str:
        content = json.dumps(document).encode()
        answer = httpx.put(
            f"http://{self.host}/v2/{repository}/manifests/{reference}",
            content=content,
            headers={"Content-Type": document["mediaType"]},
            auth=self.auth,
        )
        answer.raise_for_status()
        return sha256(content)

    def push_image(
        self,
        repository: str,
        tag: str,
        *layers: Mapping[str, str],
        platform: str = "linux/amd64",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        packed: bool = True,
    ) -> dict[str, Any]:
        """An image of layers with these files; returns its manifest."""
        system, architecture, *variant = platform.split("/")
        config = {
            "os": system,
            "architecture": architecture,
            **({"variant": variant[0]} if variant else {}),
            "config": {"Labels": dict(labels or {})},
        }
        content = json.dumps(config).encode()
        described = []
        for files in layers:
            archive = archived(files, packed=packed)
            digest = self.push_blob(repository, archive)
            kind = LAYER if packed else LAYER.removesuffix("+gzip")
            described.append({"mediaType": kind, "digest": digest, "size": len(archive)})
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": CONFIG,
                "digest": self.push_blob(repository, content),
                "size": len(content),
            },
            "layers": described,
            "annotations": dict(annotations or {}),
        }
        digest = self.push_document(repository, tag, manifest)
        return {"digest": digest, "size": len(json.dumps(manifest).encode()), "manifest": manifest}

    def push_index(self, repository: str, tag: str, images: Mapping[str, dict[str, Any]]) -> str:
        """An index over images by platform."""
        entries = []
        for platform, image in images.items():
            system, architecture, *variant = platform.split("/")
            own = {"os": system, "architecture": architecture}
            if variant:
                own["variant"] = variant[0]
            entry = {"mediaType": MANIFEST, "digest": image["digest"], "size": image["size"]}
            entries.append({**entry, "platform": own})
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        return self.push_document(repository, tag, document)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def archived(files: Mapping[str, str], *, packed: bool) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    content = target.getvalue()
    return gzip.compress(content, mtime=0) if packed else content


def metadata(name: str, version: str, python: str = "3.11") -> dict[str, str]:
    """The file by which an installed distribution is known."""
    folder = f"usr/lib/python{python}/site-packages/{name}-{version}.dist-info"
    return {f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}


def status(**packages: str) -> dict[str, str]:
    """dpkg's file of what is installed."""
    told = [
        f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n"
        for name, version in packages.items()
    ]
    return {"var/lib/dpkg/status": "\n".join(told)}


def login(path: Path, host: str, auth: tuple[str, str]) -> Path:
    """The file that `docker login` writes."""
    text = base64.b64encode(":".join(auth).encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": text}}}))
    return path


@contextlib.contextmanager
def running(folder: Path, *, htpasswd: str | None = None) -> Iterator[RunningRegistry]:
    """A registry on the loopback; where there is no program for it, the test is skipped."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip(ADVICE)
    host = f"127.0.0.1:{free_port()}"
    settings: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": host},
    }
    if htpasswd is not None:
        (folder / "htpasswd").write_text(htpasswd + "\n")
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")],
            stdout=log,
            stderr=log,
            # It takes every variable that begins with REGISTRY_ for a setting of its own.
            env={n: v for n, v in os.environ.items() if not n.startswith("REGISTRY_")},
        )
    try:
        _wait(process, host, folder / "log")
        yield RunningRegistry(host, folder)
    finally:
        process.terminate()
        process.wait(10)


def _wait(process: "subprocess.Popen[bytes]", host: str, log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://{host}/v2/")
            return
        time.sleep(0.05)
    raise RuntimeError(f"the registry did not start: {log.read_text()[-500:]}")
