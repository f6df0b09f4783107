"""The API server of the fake: HTTP on the loopback, and a kubeconfig that leads to it."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.fakes.kubernetes import jobsets
from tests.fakes.kubernetes.cluster import NAMESPACE, Cluster, Fault, failure

TURN_SECONDS = 0.1
_REASONS = {401: "Unauthorized", 403: "Forbidden", 409: "Conflict", 429: "TooManyRequests"}
_NONE = failure(404, "NotFound", "not found")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A connection that the fake broke, or that a client gave up on."""


def _fits(thing: dict[str, Any], query: dict[str, list[str]]) -> bool:
    labels = thing["metadata"].get("labels") or {}
    for part in query.get("labelSelector", [""])[0].split(","):
        key, _, value = part.partition("=")
        if key and labels.get(key) != value:
            return False
    for part in query.get("fieldSelector", [""])[0].split(","):
        key, _, value = part.partition("=")
        found: Any = thing
        for name in key.split(".") if key else ():
            found = (found or {}).get(name)
        if key and found != value:
            return False
    return True


def _handler(cluster: Cluster, closing: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, code: int, document: Any, headers: dict[str, str] | None = None) -> None:
            plain = isinstance(document, str)
            content = document.encode() if plain else json.dumps(document).encode()
            self.send_response(code, _REASONS.get(code))
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            cluster.asked.append((self.command, self.path))
            fault = self._fault()
            if fault is not None and fault.does == "drop":
                self.connection.close()
                return
            if fault is not None and fault.does == "hang":
                closing.wait()
                return
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in cluster.tokens and "fake" not in cluster.tokens:
                self._answer(401, failure(401, "Unauthorized", "Unauthorized"))
                return
            if fault is not None and isinstance(fault.does, int):
                reason = fault.reason or _REASONS.get(fault.does, "ServiceUnavailable")
                document = failure(fault.does, reason, fault.message)
                self._answer(fault.does, document, fault.headers)
                return
            if self.command != "GET":
                cluster.requests.append((self.command, self.path))
            place = urlsplit(self.path)
            # One namespace, whatever it is called.
            parts = place.path.partition("/namespaces/")[2].split("/")[1:]
            parts = parts or [place.path.rpartition("/")[2]]  # of no namespace, or of all
            kind, name = parts[0], parts[1] if len(parts) > 1 else ""
            code, document = self._do(kind, name, parts[2:], body, parse_qs(place.query))
            if fault is not None:
                self.connection.close()
            else:
                self._answer(code, document)

        def _fault(self) -> Fault | None:
            with cluster.lock:
                for fault in cluster.faults:
                    hits = fault.method == self.command and fault.path in self.path
                    if hits and fault.times > 0:
                        fault.times -= 1
                        return fault
            return None

        def _do(
            self, kind: str, name: str, more: list[str], body: Any, query: dict[str, list[str]]
        ) -> tuple[int, Any]:
            with cluster.lock:
                if self.command == "GET":
                    return self._get(kind, name, more, query)
                if self.command == "POST" and kind == "jobs":
                    return cluster.create(body)
                if self.command == "DELETE" and kind == "jobs":
                    return cluster.delete_job(name)
                if self.command == "POST" and kind == "jobsets":
                    given = body["metadata"]["name"]
                    if given in cluster.jobsets:
                        return 409, failure(409, "AlreadyExists", f'jobsets "{given}" exists')
                    cluster.jobsets[given] = {
                        **body,
                        "metadata": cluster.metadata(body["metadata"]),
                        "status": {},
                    }
                    return 201, cluster.jobsets[given]
                if self.command == "DELETE" and kind == "jobsets" and name not in cluster.jobsets:
                    return 404, failure(404, "NotFound", f'jobsets "{name}" not found')
                if self.command == "DELETE" and kind == "jobsets":
                    return 200, jobsets.delete(cluster, name)
                if self.command == "DELETE" and kind == "pods":
                    return cluster.delete_pod(name)
                return (201 if self.command == "POST" else 200), body

        def _get(
            self, kind: str, name: str, more: list[str], query: dict[str, list[str]]
        ) -> tuple[int, Any]:
            things: dict[str, dict[str, Any]] = {}
            if kind in ("jobs", "pods"):
                things = cluster.jobs if kind == "jobs" else cluster.pods
            elif kind == "nodes":
                things = cluster.nodes
            elif kind == "jobsets":
                things = cluster.jobsets
            elif kind == "events":
                things = {event["metadata"]["name"]: event for event in cluster.events}
            if not name:
                found = [_shown(thing) for thing in things.values() if _fits(thing, query)]
                return 200, {"kind": "List", "apiVersion": "v1", "items": found}
            if more == ["log"]:
                log = cluster.folder / f"{name}.log"
                return 200, log.read_text() if log.exists() else ""
            if name in things:
                return 200, _shown(things[name])
            word = "jobs.batch" if kind == "jobs" else kind
            return 404, failure(404, "NotFound", f'{word} "{name}" not found')

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _handle  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _shown(thing: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in thing.items() if not key.startswith("_")}


@contextlib.contextmanager
def running(folder: Path, *, runs: bool = False) -> Iterator[Cluster]:
    """A fake cluster on the loopback, and a kubeconfig whose token stands in a file."""
    cluster, closing = Cluster(folder, runs), threading.Event()
    server = _Server(("127.0.0.1", 0), _handler(cluster, closing))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    cluster.token_file.write_text("fake")
    context = {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "fake", "user": {"tokenFile": str(cluster.token_file)}}],
        "contexts": [{"name": "fake", "context": context}],
        "current-context": "fake",
    }
    Path(cluster.kubeconfig).write_text(yaml.safe_dump(document))

    def work() -> None:
        while not closing.wait(TURN_SECONDS):
            cluster.work()

    for target in (server.serve_forever, work):
        threading.Thread(target=target, daemon=True).start()
    try:
        yield cluster
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        cluster.kubelet.close()
        assert cluster.wrong == []
