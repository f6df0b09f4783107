"""A real HTTP receiver of alerts, in a thread, that can be told to misbehave."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Document = dict[str, Any]


@dataclass
class Receiver:
    """What was received, and how it is answered.

    Attributes:
        answer: status by document; None: the connection is kept open without an answer.
        headers: sent along with each answer.
        asked: every document that was posted, whatever was answered.
        taken: those that were answered with a 2xx.
        on_post: called before a document is answered.
        drip: header bytes that are sent one by one before the answer goes on.
    """

    port: int = 0
    answer: Callable[[Document], int | None] = lambda _: 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[Document] = field(default_factory=list)
    taken: list[Document] = field(default_factory=list)
    on_post: Callable[[], None] = lambda: None
    drip: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/SECRET"

    def ids(self) -> list[str]:
        return [document["id"] for document in self.taken]

    def kinds(self) -> list[str]:
        return [document["kind"] for document in self.taken]


@contextmanager
def receiving(**how: Any) -> Iterator[Receiver]:
    """A receiver on a free port of this machine."""
    receiver = Receiver(**how)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.asked.append(document)
            receiver.on_post()
            status = receiver.answer(document)
            if status is None:
                receiver.released.wait(60)
                return
            if 200 <= status < 300:
                receiver.taken.append(document)
            with suppress(OSError):  # whoever asked did not wait for the end of it
                self._respond(status)

        def _respond(self, status: int) -> None:
            if receiver.drip:
                self.wfile.write(f"HTTP/1.1 {status} Fine\r\nX-Slow: ".encode())
                for _ in range(receiver.drip):
                    self.wfile.write(b".")
                    self.wfile.flush()
                    receiver.released.wait(0.1)
                self.wfile.write(b"\r\nContent-Length: 0\r\n\r\n")
                return
            self.send_response(status)
            for name, value in {"Content-Length": "0", **receiver.headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", receiver.port), Handler)
    server.daemon_threads = True
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found: int = taken.getsockname()[1]
    return found
