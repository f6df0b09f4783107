"""What the drill image-drift does with images: builds them, pins them, pulls them.

As `signalbox images` does, by the same functions, on a lock and a registry of the drill's own.
"""

import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from platform_assets.domain.errors import RefusedError
from platform_assets.domain.image_changes import ImageReport, judge_image, package_changes
from platform_assets.domain.images import ImageLock, ImageRef, LockedImage, TaggedImage
from platform_assets.drills import prep_package as prep
from platform_assets.drills.loopback_registry import Store, push
from resources.images import change_lock, load_lock
from resources.oci import Registry, exists, packages, resolve

IMAGE_NAME, PLATFORM = "train", "linux/amd64"


def rebuilt(store: Store, tagged: TaggedImage, version: str) -> str:
    """Build the image with a release of the package, and push it under the tag."""
    base = {"var/lib/dpkg/status": b"Package: libc6\nStatus: install ok installed\nVersion: 2.36\n"}
    repository = tagged.repository.partition("/")[2]
    return push(store, repository, tagged.tag, [base, prep.installed(version)])


def by_tag(tagged: TaggedImage) -> ImageRef:
    """What a pull by tag gets now."""
    return ImageRef(tagged.repository, resolve(tagged, PLATFORM).digest)


def _locked(tagged: TaggedImage) -> LockedImage:
    return resolve(tagged, PLATFORM).locked(tagged, at=datetime.now(UTC), by="drill")


def pin(lock: Path, tagged: TaggedImage) -> None:
    host = tagged.repository.partition("/")[0]

    def add(found: ImageLock) -> ImageLock:
        allowed = found.model_copy(update={"registries": (*found.registries, host)})
        return allowed.with_image(IMAGE_NAME, _locked(tagged))

    change_lock(add, lock)


def bump(lock: Path, tagged: TaggedImage) -> list[str]:
    """Have the lock follow the tag; what is different, in words."""
    then, entry = load_lock(lock).named(IMAGE_NAME), _locked(tagged)
    change_lock(lambda found: found.with_image(IMAGE_NAME, entry), lock)
    return package_changes(packages(then.ref), packages(entry.ref)).sentences()


def verified(lock: Path) -> ImageReport:
    image = load_lock(lock).named(IMAGE_NAME)
    now = resolve(TaggedImage(image.repository, image.tag), image.platform)
    return judge_image(IMAGE_NAME, image, there=exists(image.ref), now=now)


def pulled(image: ImageRef, folder: Path) -> Path:
    """The packages of an image, out of its layers; pulled by digest."""
    site = folder / prep.SITE
    if site.exists():
        return site
    host, _, repository = image.repository.partition("/")
    registry = Registry(host)
    _, manifest = registry.manifest(repository, image.digest)
    for layer in manifest["layers"]:
        with tempfile.TemporaryFile() as content:
            registry.copy_blob(repository, str(layer["digest"]), content)
            with tarfile.open(fileobj=content, mode="r:gz") as archive:
                unpacked(archive, folder)
    return site


def unpacked(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack files and folders, as the filter `data` does, which Debian's Python 3.11 has not.

    Raises:
        RefusedError: an entry is of another kind, or leads out of the folder.
    """
    for entry in archive:
        inside = (folder / entry.name).resolve().is_relative_to(folder.resolve())
        if not inside or not (entry.isfile() or entry.isdir()):
            raise RefusedError(
                f"a layer of the image holds {entry.name!r}, which is no file or folder inside of "
                "it; it was not unpacked: build the image again"
            )
        archive.extract(entry, folder)
