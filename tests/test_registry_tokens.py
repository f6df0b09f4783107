"""A registry that wants a token of another server, as hosted ones do: both are stubs here."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from platform_assets.domain.errors import RefusedError, TransientError
from resources.oci import Registry
from tests.oci import MANIFEST, sha256

TOKEN = "a.b.c"
CONTENT = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST}).encode()


@dataclass
class Stub:
    """Registry and token server on one port.

    Attributes:
        code, body: of the token server's answer.
        asked: query and credentials of each request for a token.
    """

    host: str = ""
    code: int = 200
    body: bytes = json.dumps({"token": TOKEN}).encode()
    asked: list[tuple[dict[str, list[str]], str]] = field(default_factory=list)


@contextlib.contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place, told = urlsplit(self.path), self.headers.get("Authorization", "")
            if place.path == "/token":
                stub.asked.append((parse_qs(place.query), told))
                self._answer(stub.code, stub.body)
            elif told == f"Bearer {TOKEN}":
                self._answer(200, CONTENT)
            else:
                realm = f'Bearer realm="http://{stub.host}/token",service="registry.example"'
                self._answer(401, b"{}", {"WWW-Authenticate": realm})

        def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub()) as found:
        yield found


def test_a_token_is_asked_for_once_and_for_the_repository(stub: Stub) -> None:
    registry = Registry(stub.host, "ada", "secret")
    for _ in range(2):
        assert registry.manifest("team/train", "1")[0] == sha256(CONTENT)
    ((query, told),) = stub.asked
    assert query == {"service": ["registry.example"], "scope": ["repository:team/train:pull"]}
    assert base64.b64decode(told.removeprefix("Basic ")) == b"ada:secret"
    assert TOKEN not in repr(registry)


def test_a_public_image_needs_no_name(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/nonexistent")
    stub.body = json.dumps({"access_token": TOKEN}).encode()
    assert Registry(stub.host).manifest("train", "1")[0] == sha256(CONTENT)
    assert [told for _, told in stub.asked] == [""]


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"", b"[]", b"{}", b'{"token": {}}'])
def test_an_answer_without_a_token_is_refused_in_words(stub: Stub, body: bytes) -> None:
    stub.body = body
    words = rf"token server 'http://{stub.host}/token' of registry .* and no token in it"
    with pytest.raises(RefusedError, match=words):
        Registry(stub.host, "ada", "secret").manifest("train", "1")


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (401, RefusedError, "refuses .* as ada .*log in with"),
        (403, RefusedError, "refuses .* as ada .*log in with"),
        (404, RefusedError, "answers HTTP 404 .* no token in it"),
        (429, TransientError, "answers HTTP 429; try again later"),
        (503, TransientError, "answers HTTP 503; try again later"),
    ],
)
def test_a_token_server_that_does_not_give_one(
    stub: Stub, code: int, kind: type[Exception], words: str
) -> None:
    stub.code = code
    with pytest.raises(kind, match=words):
        Registry(stub.host, "ada", "secret").manifest("train", "1")


def test_a_token_of_another_kind_opens_nothing(stub: Stub) -> None:
    stub.body = json.dumps({"token": "another"}).encode()
    with pytest.raises(RefusedError, match=r"HTTP 401\); log in with"):
        Registry(stub.host, "ada", "secret").manifest("train", "1")
    assert len(stub.asked) == 1


def test_credentials_are_sent_over_tls_alone(stub: Stub) -> None:
    registry = Registry("registry.example", "ada", "secret")
    challenge = f'Bearer realm="http://{stub.host}/token"'
    with httpx.Client() as client, pytest.raises(RefusedError, match="an address with TLS"):
        registry._log_in(client, challenge, "train")
    assert stub.asked == []
