"""A fake of Kubernetes' API server, spoken to by the real client; its kubelet is a subprocess.

It keeps Jobs and pods, answers as the API server does (201, 404, 409), and says what it was sent.
A pod of a Job that it is told to run executes the container's `args` here, with its environment:
the real `dagster api`, without the image. It schedules nothing and judges no manifest.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

NAMESPACE = "signalbox"
# As in an image, the programs of the environment are found whether or not it is activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@dataclass
class Cluster:
    """What the fake knows.

    Attributes:
        jobs: as they were sent, by name.
        requests: method and path of every request that writes.
        runs: whether the containers of Jobs are executed.
        image_ids: what pods report as their imageID, by image; by default the image.
    """

    folder: Path
    runs: bool = False
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    image_ids: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def kubeconfig(self) -> str:
        return str(self.folder / "kubeconfig")

    def images(self) -> list[str]:
        """Every image of every Job, in the order of its containers."""
        return [
            container["image"]
            for job in self.jobs.values()
            for kind in ("initContainers", "containers")
            for container in job["spec"]["template"]["spec"].get(kind) or ()
        ]

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """One pod for each Job whose labels are these, started."""
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        found = []
        for name, job in self.jobs.items():
            template = job["spec"]["template"]
            if wanted.items() <= template["metadata"]["labels"].items():
                told = [
                    {
                        "name": c["name"],
                        "image": c["image"],
                        "imageID": self.image_ids.get(c["image"], c["image"]),
                        "ready": True,
                        "restartCount": 0,
                    }
                    for c in template["spec"]["containers"]
                ]
                metadata = {"name": f"{name}-pod", "labels": template["metadata"]["labels"]}
                status = {"phase": "Running", "containerStatuses": told}
                spec = {**template["spec"], "nodeName": "node-1"}
                found.append({"metadata": metadata, "spec": spec, "status": status})
        return found

    def create(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = job["metadata"]["name"]
        with self.lock:
            if name in self.jobs:
                return 409, failure(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
            self.jobs[name] = {**job, "status": {"active": 1}}
        if self.runs:
            self._start(name, job["spec"]["template"]["spec"]["containers"][0])
        return 201, self.jobs[name]

    def _start(self, name: str, container: dict[str, Any]) -> None:
        own = {e["name"]: e["value"] for e in container.get("env", ()) if "value" in e}
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [*container.get("command", ()), *container["args"]],
            env={**os.environ, "PATH": PATH, **own},
            stdout=log,
            stderr=log,
        )
        self.processes[name] = process

        def follow() -> None:
            ended = "succeeded" if process.wait() == 0 else "failed"
            with self.lock:
                if name in self.jobs:
                    self.jobs[name]["status"] = {ended: 1}

        threading.Thread(target=follow, daemon=True).start()


def failure(code: int, reason: str, message: str) -> dict[str, Any]:
    """The API server's word for what went wrong."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**status, "code": code, "reason": reason, "message": message}


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, code: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> Any:
            length = int(self.headers.get("Content-Length") or 0)
            return json.loads(self.rfile.read(length) or b"null")

        def _name(self) -> str:
            parts = self.path.partition("?")[0].split("/jobs")
            return parts[1].split("/")[1] if len(parts) > 1 and parts[1] else ""

        def do_POST(self) -> None:
            body = self._body()
            cluster.requests.append(("POST", self.path))
            if self.path.partition("?")[0].endswith("/jobs"):
                self._answer(*cluster.create(body))
            else:
                self._answer(201, body)

        def do_PATCH(self) -> None:
            body = self._body()
            cluster.requests.append(("PATCH", self.path))
            self._answer(200, body)

        def do_GET(self) -> None:
            name = self._name()
            if name in cluster.jobs:
                self._answer(200, cluster.jobs[name])
            elif name:
                self._answer(404, failure(404, "NotFound", f'jobs.batch "{name}" not found'))
            else:
                place = urlsplit(self.path)
                selector = parse_qs(place.query).get("labelSelector", [""])[0]
                pods = cluster.pods(selector) if place.path.endswith("/pods") else []
                self._answer(200, {"kind": "List", "apiVersion": "v1", "items": pods})

        def do_DELETE(self) -> None:
            self._body()
            cluster.requests.append(("DELETE", self.path))
            with cluster.lock:
                job = cluster.jobs.pop(self._name(), None)
            process = cluster.processes.get(self._name())
            if process is not None:
                process.terminate()
            if job:
                self._answer(200, {"kind": "Status", "status": "Success"})
            else:
                self._answer(404, failure(404, "NotFound", "not found"))

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def running(folder: Path, *, runs: bool = False) -> Iterator[Cluster]:
    """A fake API server on the loopback, and a kubeconfig that leads to it."""
    cluster = Cluster(folder, runs)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    context = {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "fake", "user": {"token": "fake"}}],
        "contexts": [{"name": "fake", "context": context}],
        "current-context": "fake",
    }
    Path(cluster.kubeconfig).write_text(yaml.safe_dump(document))
    try:
        yield cluster
    finally:
        for process in cluster.processes.values():
            if process.poll() is None:
                process.kill()
        server.shutdown()
        server.server_close()
