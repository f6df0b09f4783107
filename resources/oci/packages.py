"""Which packages are in an image: Debian's and Python's, read from its layers.

The files are those that the package managers themselves go by: dpkg's status, and the metadata of
installed distributions. An SBOM says what somebody wrote down when the image was built.
"""

import posixpath
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from email.parser import HeaderParser
from typing import IO, Any

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.images import ImageRef
from resources.oci.registry import Registry

LARGEST_FILE = 64 * 2**20
GZIP = ("tar+gzip", "tar.gzip")
_OPAQUE, _WHITEOUT = ".wh..wh..opq", ".wh."
_STATUS = "var/lib/dpkg/status"
_STATUS_FOLDER = "var/lib/dpkg/status.d"
_SITES = ("site-packages", "dist-packages")


def packages(ref: ImageRef, registry: Registry | None = None) -> dict[str, str]:
    """Version by package, as in `{"debian:libc6": "2.36-9", "python:numpy": "2.3.4"}`.

    Raises:
        UsageError: there is no such image.
        RefusedError: a layer is packed in a way that cannot be read, or its bytes are others.
        TransientError: the registry cannot be reached.
    """
    host, _, repository = ref.repository.partition("/")
    registry = registry or Registry(host)
    _, manifest = registry.manifest(repository, ref.digest)
    files: dict[str, bytes] = {}
    for layer in manifest.get("layers") or ():
        with tempfile.TemporaryFile() as content:
            registry.copy_blob(repository, str(layer.get("digest")), content)
            _apply(files, content, layer, str(ref))
    return _read(files)


def _apply(files: dict[str, bytes], content: IO[bytes], layer: Mapping[str, Any], ref: str) -> None:
    """What a layer puts in the place of what was there, and what it takes away."""
    kind = str(layer.get("mediaType", ""))
    if not kind.endswith(("tar", *GZIP)):
        raise RefusedError(
            f"{ref} has a layer of kind {kind!r}, which cannot be read here; build it with layers "
            "that are not compressed, or with gzip"
        )
    added: dict[str, bytes] = {}
    try:
        mode = "r:gz" if kind.endswith(GZIP) else "r:"
        with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
            for member in archive:
                path = posixpath.normpath(member.name).lstrip("/")
                folder, name = posixpath.split(path)
                if name == _OPAQUE:
                    _remove(files, folder + "/")
                elif name.startswith(_WHITEOUT):
                    gone = posixpath.join(folder, name.removeprefix(_WHITEOUT))
                    files.pop(gone, None)
                    _remove(files, gone + "/")
                elif member.isfile() and _matters(path):
                    added[path] = _bytes(archive, member, ref)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RefusedError(f"a layer of {ref} is no readable archive ({error})") from error
    files.update(added)


def _remove(files: dict[str, bytes], under: str) -> None:
    for path in [path for path in files if path.startswith(under)]:
        del files[path]


def _matters(path: str) -> bool:
    if path == _STATUS or posixpath.dirname(path) == _STATUS_FOLDER:
        return True
    folder, name = posixpath.split(path)
    site, own = posixpath.split(folder)
    return posixpath.basename(site) in _SITES and (
        (name == "METADATA" and own.endswith(".dist-info"))
        or (name == "PKG-INFO" and own.endswith(".egg-info"))
    )


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo, ref: str) -> bytes:
    if member.size > LARGEST_FILE:
        raise RefusedError(
            f"{member.name} of {ref} has {member.size} bytes; at most 64 MiB is read"
        )
    opened = archive.extractfile(member)
    assert opened is not None
    return opened.read()


def _read(files: Mapping[str, bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, content in sorted(files.items()):
        text = content.decode("utf-8", "replace")
        if path.startswith("var/lib/dpkg/"):
            for name, version in _debian(text):
                found[f"debian:{name}"] = version
        else:
            said = HeaderParser().parsestr(text)
            name = str(said["Name"] or "").lower().replace("_", "-").replace(".", "-")
            if name:
                found[f"python:{name}"] = str(said["Version"] or "")
    return found


def _debian(text: str) -> Iterator[tuple[str, str]]:
    for paragraph in text.split("\n\n"):
        said = HeaderParser().parsestr(paragraph.strip() + "\n\n")
        state = str(said["Status"] or "install ok installed")
        if said["Package"] and state.endswith(" installed"):
            yield str(said["Package"]), str(said["Version"] or "")
