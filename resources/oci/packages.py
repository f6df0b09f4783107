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
    """Version by package, its place and its architecture.

    As in `{"debian:libc6:amd64": "2.36-9", "python:numpy@usr/lib/python3/dist-packages": "1.24"}`:
    a virtual environment's numpy and Debian's own are two, and each may change. Where one place
    says a package twice, as by an egg-info and a dist-info, its version is all that is said.

    Raises:
        UsageError: there is no such image.
        RefusedError: a layer is packed in a way that cannot be read, its bytes are others, or it
            has what is read here as a hard link to a file of a layer below.
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
    below = dict(files)
    links: dict[str, str] = {}
    there: dict[str, tarfile.TarInfo] = {}
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
                elif member.isfile():
                    there[path] = member
                    links.pop(path, None)
                    if _matters(path):
                        added[path] = _bytes(archive, member, ref)
                elif _matters(path) or member.islnk():
                    added.pop(path, None)
                    files.pop(path, None)
                    if member.islnk():
                        links[path] = posixpath.normpath(member.linkname).lstrip("/")
            for path in filter(_matters, links):
                target = _end_of(links, path)
                if target in there:
                    added[path] = _bytes(archive, there[target], ref)
                elif target in below:
                    added[path] = below[target]
                else:
                    raise RefusedError(
                        f"{path} in a layer of {ref} is a hard link to {target}, which is not in "
                        "that layer: what it says cannot be read here; build the image without "
                        "hard links between layers"
                    )
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RefusedError(f"a layer of {ref} is no readable archive ({error})") from error
    files.update(added)


def _end_of(links: Mapping[str, str], path: str) -> str:
    """What a hard link leads to, by way of others; a link of the ring where they lead round."""
    seen: set[str] = set()
    while path in links and path not in seen:
        seen.add(path)
        path = links[path]
    return path


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
    found: dict[str, set[str]] = {}
    for path, content in files.items():
        text = content.decode("utf-8", "replace")
        if path.startswith("var/lib/dpkg/"):
            for package, version in _debian(text):
                found.setdefault(f"debian:{package}", set()).add(version)
        else:
            said = HeaderParser().parsestr(text)
            name = str(said["Name"] or "").lower().replace("_", "-").replace(".", "-")
            if name:
                site = posixpath.dirname(posixpath.dirname(path))
                found.setdefault(f"python:{name}@{site}", set()).add(str(said["Version"] or ""))
    return {package: ", ".join(sorted(versions)) for package, versions in found.items()}


def _debian(text: str) -> Iterator[tuple[str, str]]:
    for paragraph in text.split("\n\n"):
        said = HeaderParser().parsestr(paragraph.strip() + "\n\n")
        state = str(said["Status"] or "install ok installed")
        if said["Package"] and state.endswith(" installed"):
            named = (str(said[field]) for field in ("Package", "Architecture") if said[field])
            yield ":".join(named), str(said["Version"] or "")
