"""A registry by the OCI distribution specification (v2): manifests and blobs, each verified.

Nothing that a registry says is believed by its word: a manifest or blob is taken if its bytes have
the digest that it was asked for by, and what a tag points at is named by the digest of the bytes
that came, not by the header that came with them.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from platform_assets.domain.errors import RefusedError, TransientError, UsageError
from platform_assets.domain.images import DIGEST, ImageRef, Resolved, TaggedImage, shown

if TYPE_CHECKING:
    import httpx

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
BASE_DIGEST = "org.opencontainers.image.base.digest"
LOCK_DIGEST = "io.signalbox.requirements-lock.digest"
"""Label of an image: `sha256:` of the requirements.lock that it was built from."""

LARGEST_DOCUMENT = 4 * 2**20
SECONDS = 30.0
CREDENTIALS = "REGISTRY_AUTH_FILE"
PLAIN_HTTP = "SIGNALBOX_INSECURE_REGISTRIES"
"""Variable: hosts, with commas, that are spoken to without TLS; loopback always is."""

_LOOPBACK = re.compile(r"(?:localhost|127\.[0-9.]+)(?::[0-9]+)?")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass
class Registry:
    """One registry, by its host.

    Attributes:
        host: with its port.
        user, password: for it; by default those of the file that `docker login` writes.
    """

    host: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    _tokens: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.user is None:
            self.user, self.password = credentials(self.host)

    def manifest(self, repository: str, reference: str) -> tuple[str, dict[str, Any]]:
        """A manifest or index and its digest.

        Args:
            repository: without the host.
            reference: a tag or a digest.

        Raises:
            UsageError: there is none.
            RefusedError: the registry does not let us, or sends other bytes than were asked for.
            TransientError: it cannot be reached, or is busy.
        """
        path = f"/v2/{repository}/manifests/{reference}"
        with self._get(path, repository, ", ".join((*INDEXES, *MANIFESTS))) as answer:
            content = _whole(answer, LARGEST_DOCUMENT, f"{self.host}{path}")
        digest = _sha256(content)
        if re.fullmatch(DIGEST, reference) and digest != reference:
            raise _other_bytes(f"{self.host}/{repository}", reference, digest)
        return digest, _document(content, f"{self.host}/{repository}@{digest}")

    def blob(self, repository: str, digest: str) -> bytes:
        """A small blob, such as an image's configuration; raises as `manifest` does."""
        path = f"/v2/{repository}/blobs/{digest}"
        with self._get(path, repository) as answer:
            content = _whole(answer, LARGEST_DOCUMENT, f"{self.host}{path}")
        if _sha256(content) != digest:
            raise _other_bytes(f"{self.host}/{repository}", digest, _sha256(content))
        return content

    def copy_blob(self, repository: str, digest: str, target: IO[bytes]) -> None:
        """A blob of any size into a file, which is read from its start afterwards."""
        found = hashlib.sha256()
        with self._get(f"/v2/{repository}/blobs/{digest}", repository) as answer:
            for chunk in answer.iter_bytes(2**20):
                found.update(chunk)
                target.write(chunk)
        if f"sha256:{found.hexdigest()}" != digest:
            raise _other_bytes(f"{self.host}/{repository}", digest, f"sha256:{found.hexdigest()}")
        target.seek(0)

    @contextmanager
    def _get(self, path: str, repository: str, accept: str = "*/*") -> Iterator["httpx.Response"]:
        import httpx

        url = f"{_scheme(self.host)}://{self.host}{path}"
        try:
            with httpx.Client(timeout=SECONDS, follow_redirects=True) as client:
                for attempt in (1, 2):
                    headers = {"Accept": accept, **self._authorization(repository)}
                    with client.stream("GET", url, headers=headers) as answer:
                        if answer.status_code == httpx.codes.UNAUTHORIZED and attempt == 1:
                            challenge = answer.headers.get("WWW-Authenticate", "")
                            self._log_in(client, challenge, repository)
                            continue
                        self._check(answer, path)
                        yield answer
                        return
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise TransientError(
                f"registry {self.host} cannot be reached ({error or type(error).__name__}); "
                f"correct the address, or try again; one without TLS is to be named in {PLAIN_HTTP}"
            ) from error

    def _check(self, answer: "httpx.Response", path: str) -> None:
        import httpx

        code = answer.status_code
        where = f"{self.host}{path}"
        if code == httpx.codes.NOT_FOUND:
            raise UsageError(
                f"there is no {where}; name a repository and a tag or digest that the registry has"
            )
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            who = f"as {self.user}" if self.user else "without a name"
            raise RefusedError(
                f"the registry refuses {where} {who} (HTTP {code}); log in with `docker login "
                f"{self.host}` or `skopeo login`, or name the file of credentials in {CREDENTIALS}"
            )
        if code == httpx.codes.TOO_MANY_REQUESTS or code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise TransientError(f"the registry answers HTTP {code} for {where}; try again later")
        if code != httpx.codes.OK:
            raise RefusedError(f"the registry answers HTTP {code} for {where}; 200 is expected")

    def _authorization(self, repository: str) -> dict[str, str]:
        token = self._tokens.get(repository)
        return {"Authorization": token} if token else {}

    def _log_in(self, client: "httpx.Client", challenge: str, repository: str) -> None:
        """Answer a challenge: Basic, or a token from the server that it names."""
        import httpx

        kind, _, rest = challenge.partition(" ")
        own = (self.user or "", self.password or "") if self.user else None
        if kind.lower() == "basic" and own:
            text = base64.b64encode(":".join(own).encode()).decode()
            self._tokens[repository] = f"Basic {text}"
        elif kind.lower() == "bearer":
            asked = dict(_CHALLENGE.findall(rest))
            realm = asked.pop("realm", "")
            if _scheme(self.host) == "https" and not realm.startswith("https://"):
                raise RefusedError(
                    f"registry {self.host} wants credentials sent to {shown(realm)}; only an "
                    "address with TLS is allowed"
                )
            asked.setdefault("scope", f"repository:{repository}:pull")
            answer = client.get(realm, params=asked, auth=own)
            if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                return  # the registry has the last word, and says how to log in
            token = _token(answer, f"the token server {shown(realm)} of registry {self.host}")
            self._tokens[repository] = f"Bearer {token}"


def resolve(
    image: TaggedImage | ImageRef, platform: str, registry: Registry | None = None
) -> Resolved:
    """What a tag points at now, or what a digest is of, for one platform.

    Args:
        image: repository and tag, or digest of an image or of an index.
        platform: `linux/amd64`, or with a variant `linux/arm/v7`.

    Raises:
        UsageError: there is no such tag or digest, or nothing for the platform behind it.
        RefusedError: the registry does not let us, or its answer does not hold together.
        TransientError: it cannot be reached.
    """
    host, _, repository = image.repository.partition("/")
    registry = registry or Registry(host)
    wanted = image.tag if isinstance(image, TaggedImage) else image.digest
    digest, document = registry.manifest(repository, wanted)
    index = ""
    if _kind(document) in INDEXES:
        index = digest
        digest = _of_platform(document, platform, str(image))
        _, document = registry.manifest(repository, digest)
    if _kind(document) not in MANIFESTS:
        raise RefusedError(f"{image} is of kind {shown(_kind(document))}, which is no image")
    config = str(document.get("config", {}).get("digest", ""))
    if not re.fullmatch(DIGEST, config):
        raise RefusedError(f"{image} names no configuration by a digest; build and push it again")
    said = _document(registry.blob(repository, config), f"configuration of {image}")
    found = "/".join(
        part for part in (said.get("os"), said.get("architecture"), said.get("variant")) if part
    )
    # arm64 is always of variant v8, which some builders write down and some do not.
    if found.removesuffix("/v8") != platform.removesuffix("/v8"):
        raise UsageError(f"{image} is for {found or 'no platform'}, not for {platform}")
    labels = (said.get("config") or {}).get("Labels") or {}
    notes = {**labels, **(document.get("annotations") or {})}
    return Resolved(
        digest=digest,
        index=index,
        config=config,
        platform=platform,
        lock_digest=_digest_or_nothing(notes.get(LOCK_DIGEST)),
        base=_digest_or_nothing(notes.get(BASE_DIGEST)),
    )


def exists(ref: ImageRef, registry: Registry | None = None) -> bool:
    """Whether the registry has the image, with the bytes of that digest; raises as `resolve`."""
    host, _, repository = ref.repository.partition("/")
    try:
        (registry or Registry(host)).manifest(repository, ref.digest)
    except UsageError:
        return False
    return True


def credentials(host: str) -> tuple[str | None, str | None]:
    """Name and password for a registry, of the file that `docker login` and `skopeo login` write.

    Raises:
        RefusedError: the file cannot be read, or leaves them to a helper program.
    """
    named = os.environ.get(CREDENTIALS)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [Path(named)] if named else [Path.home() / ".docker" / "config.json"]
    if runtime and not named:
        places.insert(0, Path(runtime) / "containers" / "auth.json")
    for place in places:
        if not place.is_file():
            continue
        try:
            document = json.loads(place.read_text())
            entry = document.get("auths", {}).get(host)
            if entry and entry.get("auth"):
                user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
                return user, password
            helper = document.get("credHelpers", {}).get(host)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise RefusedError(
                f"{place} cannot be read as credentials of registries ({error}); log in again, or "
                f"name another file in {CREDENTIALS}"
            ) from error
        if helper:
            raise RefusedError(
                f"{place} leaves the credentials of {host} to the program {shown(str(helper))}, "
                f"which Signalbox does not run; log in into a file and name it in {CREDENTIALS}"
            )
    return None, None


def _of_platform(index: Mapping[str, Any], platform: str, image: str) -> str:
    offered: dict[str, str] = {}
    for entry in index.get("manifests") or ():
        own = entry.get("platform") or {}
        parts = (own.get("os"), own.get("architecture"), own.get("variant"))
        name = "/".join(part for part in parts if part)
        if name != "unknown/unknown":  # an attestation, not an image
            offered.setdefault(name.removesuffix("/v8"), str(entry.get("digest")))
    digest = offered.get(platform.removesuffix("/v8"), "")
    if not re.fullmatch(DIGEST, digest):
        raise UsageError(
            f"{image} has nothing for {platform}; it is for {', '.join(sorted(offered)) or 'none'}"
        )
    return digest


def _kind(document: Mapping[str, Any]) -> str:
    said = document.get("mediaType")
    if said:
        return str(said)
    return INDEXES[0] if "manifests" in document else MANIFESTS[0]


def _digest_or_nothing(text: Any) -> str:
    return str(text) if isinstance(text, str) and re.fullmatch(DIGEST, text) else ""


def _scheme(host: str) -> str:
    plain = {part.strip() for part in os.environ.get(PLAIN_HTTP, "").split(",")}
    return "http" if _LOOPBACK.fullmatch(host) or host in plain else "https"


def _token(answer: "httpx.Response", who: str) -> str:
    import httpx

    code = answer.status_code
    if code == httpx.codes.TOO_MANY_REQUESTS or code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise TransientError(f"{who} answers HTTP {code}; try again later")
    try:
        said = answer.json() if answer.is_success else None
    except ValueError:
        said = None
    found = (said.get("token") or said.get("access_token")) if isinstance(said, dict) else None
    if not isinstance(found, str):
        kind = str(answer.headers.get("Content-Type", "nothing"))
        raise RefusedError(
            f"{who} answers HTTP {code} with {shown(kind)} and no token in it; a JSON object with "
            "`token` or `access_token` is expected: mend the registry's address or its auth"
        )
    return found


def _whole(answer: "httpx.Response", largest: int, where: str) -> bytes:
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > largest:
            raise RefusedError(f"{where} has more than {largest} bytes, which no manifest has")
    return bytes(content)


def _document(content: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise RefusedError(f"{what} is no JSON ({error}); push the image again") from error
    if not isinstance(document, dict):
        raise RefusedError(f"{what} is {type(document).__name__}, not an object; push it again")
    return document


def _other_bytes(where: str, wanted: str, found: str) -> RefusedError:
    return RefusedError(
        f"the registry sends other bytes for {where}@{wanted} (digest {found}); they are not "
        "taken: the registry, or something between, is broken or was tampered with"
    )


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
