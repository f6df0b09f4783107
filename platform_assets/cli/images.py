"""`signalbox images`: what may run, looked up once and then by digest."""

import contextlib
import getpass
from typing import Annotated, Any

import typer

from platform_assets.domain.clock import WallClock
from platform_assets.domain.errors import RefusedError, UsageError
from platform_assets.domain.image_changes import (
    ImageReport,
    PackageChanges,
    judge_image,
    package_changes,
)
from platform_assets.domain.images import ImageLock, ImageRef, LockedImage, Resolved, TaggedImage
from platform_assets.terminal import print_json, print_table
from resources.images import change_lock, load_lock, lock_file

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Platform = Annotated[
    str, typer.Option("--platform", help="Of the nodes, as in linux/amd64 or linux/arm64.")
]
By = Annotated[str | None, typer.Option("--by", help="Who looks it up; default: who is logged in.")]
Name = Annotated[str, typer.Argument(help="Logical name, as the catalog has it: train.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names in the lock; default: all.")]
Pinned = Annotated[
    str,
    typer.Argument(
        metavar="REPO:TAG|REPO@DIGEST", help="registry.example/train:2026-11, or a digest of it"
    ),
]
Meant = Annotated[str, typer.Argument(help="A name in the lock, REPO:TAG, or REPO@sha256:…")]

commands = typer.Typer(
    name="images",
    help="The image lock: which images may run, by digest.",
    invoke_without_command=True,
)


@commands.callback()
def show(context: typer.Context, as_json: AsJson = False) -> None:
    """The image lock: which images may run, by digest."""
    if context.invoked_subcommand is not None:
        return
    lock = load_lock()
    if as_json:
        print_json({"file": str(lock_file()), **lock.model_dump(mode="json")})
        return
    rows = [
        (name, str(image.ref), image.tag, image.platform, image.resolved_at, image.resolved_by)
        for name, image in sorted(lock.images.items())
    ]
    print_table(str(lock_file()), ("image", "runs as", "tag", "platform", "looked up", "by"), rows)


@commands.command()
def pin(
    name: Name,
    image: Pinned,
    platform: Platform = "linux/amd64",
    by: By = None,
    allow_registry: Annotated[
        bool, typer.Option("--allow-registry", help="Put its registry among the allowed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look a tag up, or a digest, and write what it is now into the lock, under a name."""
    named = ImageRef.parse(image) if "@" in image else TaggedImage.parse(image)
    host = named.repository.partition("/")[0]
    _registry_of(load_lock(), host, allow_registry)
    entry = _looked_up(named, platform, by)

    def add(lock: ImageLock) -> ImageLock:
        known = lock.images.get(name)
        if known is not None and known.ref != entry.ref:
            how = (
                f"then `signalbox images bump {name} --tag {named.tag}`"
                if isinstance(named, TaggedImage)
                else "then `signalbox images bump` by a tag of it, or pin it under another name"
            )
            raise RefusedError(
                f"{name} is {known.ref} in the lock; a change of it is reviewed: see `signalbox "
                f"images diff {name} {named}`, {how}"
            )
        return _registry_of(lock, host, allow_registry).with_image(name, lock.known(entry))

    _told(name, change_lock(add).named(name), as_json)


@commands.command()
def verify(names: Names = None, as_json: AsJson = False) -> None:
    """Whether the registry still has what is locked, and the tag still points at it.

    Drift is told, not followed. Exit code 1: something is not as it was locked.
    """
    lock = load_lock()
    reports = [_verified(name, lock.named(name)) for name in names or sorted(lock.images)]
    if as_json:
        told = [{"image": r.name, "state": str(r.state), "reason": r.reason} for r in reports]
        print_json({"file": str(lock_file()), "images": told})
    else:
        rows = [(report.name, str(report.state), report.reason) for report in reports]
        print_table(str(lock_file()), ("image", "state", "what was found"), rows)
    if not all(report.as_locked for report in reports):
        raise typer.Exit(1)


@commands.command()
def diff(
    old: Meant, new: Meant, platform: Platform = "linux/amd64", as_json: AsJson = False
) -> None:
    """Packages added, removed and changed between two images: Python's and Debian's."""
    lock = load_lock()
    then, now = (_meant(lock, text, platform) for text in (old, new))
    changes = _changes(then, now)
    if as_json:
        print_json({"old": str(then), "new": str(now), "packages": _document(changes)})
        return
    print(f"from {then}\n  to {now}")
    print("\n".join(changes.sentences() or ["the same packages in the same versions"]))


@commands.command()
def bump(
    name: Name,
    tag: Annotated[str | None, typer.Option("--tag", help="Another tag than the last one.")] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Look a locked image's tag up anew, write what it is now, and say what is different."""
    before = load_lock().named(name)
    if not (tag or before.tag):
        raise UsageError(
            f"{name} was pinned by its digest, {before.ref}, and has no tag to look up anew; name "
            f"one: `signalbox images bump {name} --tag TAG`"
        )
    tagged = TaggedImage.parse(f"{before.repository}:{tag or before.tag}")
    entry = _looked_up(tagged, before.platform, by)
    if entry.ref == before.ref and entry.tag == before.tag:
        if as_json:
            print_json({"image": name, "bumped": False, "new": str(entry.ref)})
        else:
            print(f"{name} is {entry.ref} already; nothing was changed")
        return
    changes = _changes(before.ref, entry.ref)

    def renew(lock: ImageLock) -> ImageLock:
        if lock.named(name) != before:
            raise RefusedError(f"{name} was changed meanwhile; look at it and bump it again")
        return lock.with_image(name, entry)

    change_lock(renew)
    if as_json:
        told = {"image": name, "bumped": True, "old": str(before.ref), "new": str(entry.ref)}
        print_json({**told, "packages": _document(changes)})
        return
    print(f"{name} in {lock_file()}\nfrom {before.ref}\n  to {entry.ref}")
    print("\n".join(changes.sentences() or ["the same packages in the same versions"]))
    print("review the change and commit it")


def _looked_up(image: TaggedImage | ImageRef, platform: str, by: str | None) -> LockedImage:
    from resources.oci import resolve

    found = resolve(image, platform)
    return found.locked(image, at=WallClock().as_of(), by=by or getpass.getuser())


def _registry_of(lock: ImageLock, host: str, allow: bool) -> ImageLock:
    """The lock, with the registry if that was wished."""
    if host in lock.registries:
        return lock
    if not allow:
        raise RefusedError(
            f"registry {host} is not among the allowed ({', '.join(lock.registries) or 'none'}); "
            f"add it under `registries` in {lock_file()}, or with --allow-registry"
        )
    return lock.model_copy(update={"registries": (*lock.registries, host)})


def _verified(name: str, image: LockedImage) -> ImageReport:
    from resources.oci import exists, resolve

    now: Resolved | None = None
    with contextlib.suppress(UsageError):
        if image.tag:
            now = resolve(TaggedImage(image.repository, image.tag), image.platform)
    return judge_image(name, image, there=exists(image.ref), now=now)


def _meant(lock: ImageLock, text: str, platform: str) -> ImageRef:
    from resources.oci import resolve

    if text in lock.images:
        return lock.images[text].ref
    if "@" in text:
        return ImageRef.parse(text)
    if "/" not in text:
        return lock.named(text).ref
    tagged = TaggedImage.parse(text)
    return ImageRef(tagged.repository, resolve(tagged, platform).digest)


def _changes(then: ImageRef, now: ImageRef) -> PackageChanges:
    from resources.oci import packages

    return package_changes(packages(then), packages(now))


def _document(changes: PackageChanges) -> dict[str, Any]:
    return {
        "added": dict(changes.added),
        "removed": dict(changes.removed),
        "changed": {name: list(both) for name, both in changes.changed.items()},
    }


def _told(name: str, entry: LockedImage, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(lock_file()), "image": name, **entry.model_dump(mode="json")})
    else:
        print(f"{name} is {entry.ref} in {lock_file()}; review the change and commit it")
