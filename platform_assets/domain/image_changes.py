"""What has become of a locked image, and what is different in another."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from platform_assets.domain.images import LockedImage, Resolved


class ImageState(StrEnum):
    """What a registry says of a locked image."""

    AS_LOCKED = "as locked"
    DRIFTED = "drifted"
    UNTAGGED = "untagged"
    GONE = "gone"


@dataclass(frozen=True)
class ImageReport:
    """A locked image and what the registry says of it.

    Attributes:
        name: in the lock.
        state: what has become of it.
        reason: for a person, and what to do.
    """

    name: str
    state: ImageState
    reason: str

    @property
    def as_locked(self) -> bool:
        """Whether the digest is there and the tag, if it has one, points at it."""
        return self.state is ImageState.AS_LOCKED


def judge_image(
    name: str, locked: LockedImage, *, there: bool, now: Resolved | None
) -> ImageReport:
    """What has become of a locked image. Drift is told, never followed.

    Args:
        name: in the lock.
        locked: its entry.
        there: whether the registry has the locked digest.
        now: what its tag points at; None: the registry has no such tag any more, or the entry none.
    """
    if not there:
        return ImageReport(
            name,
            ImageState.GONE,
            f"the registry has no {locked.ref} any more: nothing of it can start on a machine that "
            "has not pulled it, no training in it can be repeated; push it again, or bump the lock",
        )
    if not locked.tag:
        reason = f"{locked.ref} is there; it was pinned by its digest, and no tag is looked at"
        return ImageReport(name, ImageState.AS_LOCKED, reason)
    tag = f"{locked.repository}:{locked.tag}"
    if now is None:
        return ImageReport(
            name, ImageState.UNTAGGED, f"there is no {tag} any more; the locked digest still runs"
        )
    if now.digest != locked.digest:
        return ImageReport(
            name,
            ImageState.DRIFTED,
            f"{tag} is {now.digest} by now, another image than {locked.digest}, which goes on "
            f"running; see `signalbox images diff {name} {tag}`, then `signalbox images bump "
            f"{name}` if it is wanted",
        )
    return ImageReport(name, ImageState.AS_LOCKED, f"{tag} is {locked.digest}")


@dataclass(frozen=True)
class PackageChanges:
    """What is different between the packages of two images.

    Attributes:
        added, removed: version by package, `debian:libc6:amd64` or
            `python:numpy@usr/lib/python3/dist-packages`.
        changed: version then and now by package.
    """

    added: Mapping[str, str]
    removed: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def sentences(self) -> list[str]:
        """One line a package: `libc6 2.36-9 -> 2.36-10 (Debian, amd64)`."""
        lines = {name: f"{then} -> {now}" for name, (then, now) in self.changed.items()}
        lines |= {name: f"{version} added" for name, version in self.added.items()}
        lines |= {name: f"{version} removed" for name, version in self.removed.items()}
        return [_sentence(package, text) for package, text in sorted(lines.items())]


def package_changes(then: Mapping[str, str], now: Mapping[str, str]) -> PackageChanges:
    """Compare two images by their packages."""
    return PackageChanges(
        added={name: now[name] for name in sorted({*now} - {*then})},
        removed={name: then[name] for name in sorted({*then} - {*now})},
        changed={
            name: (then[name], now[name])
            for name in sorted({*then} & {*now})
            if then[name] != now[name]
        },
    )


def _sentence(package: str, text: str) -> str:
    kind, _, named = package.partition(":")
    name, _, where = named.partition("@" if kind == "python" else ":")
    return f"{name} {text} ({', '.join(filter(None, (kind.capitalize(), where)))})"
