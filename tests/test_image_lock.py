"""The image lock against a real registry: pin, verify, diff, bump."""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from platform_assets.cli.app import main
from platform_assets.domain.errors import RefusedError, TransientError, UsageError
from platform_assets.domain.images import ImageRef, TaggedImage
from resources.images import VARIABLE, change_lock, load_lock
from resources.oci import Registry, exists, packages, resolve
from resources.oci.registry import BASE_DIGEST, CREDENTIALS, LOCK_DIGEST
from tests import oci

BASE = "sha256:" + "b" * 64
LOCKED = "sha256:" + "d" * 64
PLATFORM = "linux/amd64"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oci.RunningRegistry]:
    with oci.running(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "images.lock.yaml"
    monkeypatch.setenv(VARIABLE, str(place))
    monkeypatch.setenv(CREDENTIALS, str(tmp_path / "no-credentials.json"))
    return place


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["images", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    return json.loads(said.out) if "--json" in arguments and said.out else said.out + said.err


def test_a_tag_is_pinned_by_the_digest_that_it_has_now(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    labels = {LOCK_DIGEST: LOCKED}
    one = registry.push_image("one/train", "1", labels=labels, annotations={BASE_DIGEST: BASE})
    name = f"{registry.host}/one/train"
    refused = run(capsys, "pin", "train", f"{name}:1", code=1)
    assert f"registry {registry.host} is not among the allowed (none)" in refused
    assert not lock.exists()
    told = run(capsys, "pin", "train", f"{name}:1", "--allow-registry", "--by", "ada", "--json")
    assert (told["digest"], told["resolved_by"], told["tag"]) == (one["digest"], "ada", "1")
    assert (told["lock_digest"], told["base"], told["index"]) == (LOCKED, BASE, "")
    assert told["config"] == one["manifest"]["config"]["digest"]
    assert str(load_lock().named("train").ref) == f"{name}@{one['digest']}"
    assert run(capsys, "--json")["images"]["train"]["digest"] == one["digest"]
    assert "as locked" in run(capsys, "verify")


def test_an_index_is_pinned_by_the_manifest_of_the_platform(
    registry: oci.RunningRegistry,
) -> None:
    intel = registry.push_image("multi", "amd64")
    arm = registry.push_image("multi", "arm64", platform="linux/arm64/v8")
    nothing = registry.push_image("multi", "sbom", platform="unknown/unknown")
    images = {"unknown/unknown": nothing, PLATFORM: intel, "linux/arm64/v8": arm}
    index = registry.push_index("multi", "1", images)
    image = TaggedImage(f"{registry.host}/multi", "1")
    found = resolve(image, PLATFORM)
    assert (found.digest, found.index) == (intel["digest"], index)
    assert resolve(image, "linux/arm64").digest == arm["digest"]
    with pytest.raises(UsageError, match=r"nothing for linux/s390x; it is for linux/amd64, linux/"):
        resolve(image, "linux/s390x")
    with pytest.raises(UsageError, match="is for linux/amd64, not for linux/arm64"):
        resolve(TaggedImage(f"{registry.host}/multi", "amd64"), "linux/arm64")


def test_skopeo_names_the_same_digests(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Somebody else's program, of index and platform: it reads the registry in its own way."""

    def skopeo(*arguments: str) -> str:
        done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    if shutil.which("skopeo") is None:
        pytest.skip(oci.NO_SKOPEO)
    images = {
        PLATFORM: registry.push_image("seen", "amd64"),
        "linux/arm64/v8": registry.push_image("seen", "arm64", platform="linux/arm64/v8"),
    }
    registry.push_index("seen", "1", images)
    name = f"{registry.host}/seen:1"
    told = run(capsys, "pin", "train", name, "--allow-registry", "--json")
    plain, source = "--tls-verify=false", f"docker://{name}"
    assert skopeo("inspect", plain, "--format", "{{.Digest}}", source) == told["index"]
    # The manifest that it takes for the platform, with its blobs, and what it makes of its bytes.
    place = tmp_path / "copied"
    platform = ("--override-os", "linux", "--override-arch", "amd64")
    copied = ("copy", "--quiet", "--src-tls-verify=false", source, f"dir:{place}")
    skopeo("--insecure-policy", *platform, *copied)
    assert skopeo("manifest-digest", str(place / "manifest.json")) == told["digest"]
    (config,) = (p for p in place.iterdir() if told["config"] == f"sha256:{p.name}")
    assert oci.sha256(config.read_bytes()) == told["config"]


def test_drift_is_told_and_not_followed_until_it_is_bumped(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{registry.host}/drift"
    base = {**oci.status(libc6="2.36-9", zlib1g="1.2"), **oci.metadata("numpy", "2.3.4")}
    old = registry.push_image("drift", "stable", {**base, **oci.metadata("opencv", "4.8.0")})
    run(capsys, "pin", "train", f"{name}:stable", "--allow-registry")
    new = registry.push_image(
        "drift",
        "stable",
        {**base, **oci.metadata("opencv", "4.8.0")},
        {
            "usr/lib/python3.11/site-packages/.wh.opencv-4.8.0.dist-info": "",
            **oci.metadata("opencv", "4.8.1"),
            **oci.status(libc6="2.36-10", openssl="3.0"),
        },
    )
    # A reference by tag starts the other image from now on; what is locked does not move.
    image = TaggedImage(name, "stable")
    assert resolve(image, PLATFORM).digest == new["digest"] != old["digest"]
    told = run(capsys, "verify", "--json", code=1)["images"]
    assert [(one["image"], one["state"]) for one in told] == [("train", "drifted")]
    assert new["digest"] in told[0]["reason"]
    assert load_lock().named("train").digest == old["digest"]

    text = run(capsys, "diff", "train", f"{name}:stable")
    for line in (
        "opencv 4.8.0 -> 4.8.1 (Python, usr/lib/python3.11/site-packages)",
        "libc6 2.36-9 -> 2.36-10 (Debian)",
        "openssl 3.0 added (Debian)",
        "zlib1g 1.2 removed (Debian)",
    ):
        assert line in text
    assert "numpy" not in text

    told = run(capsys, "pin", "train", f"{name}:stable", code=1)
    assert "a change of it is reviewed" in told
    told = run(capsys, "bump", "train", "--by", "ben", "--json")
    assert told["bumped"]
    assert told["packages"]["changed"] == {
        "debian:libc6": ["2.36-9", "2.36-10"],
        "python:opencv@usr/lib/python3.11/site-packages": ["4.8.0", "4.8.1"],
    }
    assert load_lock().named("train").resolved_by == "ben"
    assert run(capsys, "verify", "--json")["images"][0]["state"] == "as locked"
    assert "nothing was changed" in run(capsys, "bump", "train")


def test_what_runs_is_kept_under_a_second_name_by_its_digest(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{registry.host}/kept"
    old = registry.push_image("kept", "2026-11", oci.metadata("one", "1"))
    index = registry.push_index("kept", "2026-11", {PLATFORM: old})
    run(capsys, "pin", "train", f"{name}:2026-11", "--allow-registry", "--by", "ada")
    new = registry.push_image("kept", "2026-11", oci.metadata("one", "2"))
    # By its tag it is what the tag has become, and not what runs.
    assert run(capsys, "pin", "moved", f"{name}:2026-11", "--json")["digest"] == new["digest"]
    told = run(capsys, "pin", "train-before", f"{name}@{old['digest']}", "--by", "ben", "--json")
    assert (told["digest"], told["resolved_by"]) == (old["digest"], "ben")
    kept, train = (load_lock().named(one) for one in ("train-before", "train"))
    assert (kept.tag, kept.index, kept.ids) == ("2026-11", index, train.ids)
    assert "is reviewed" in run(capsys, "pin", "train", f"{name}@{new['digest']}", code=1)
    run(capsys, "bump", "train")
    assert load_lock().named("train-before").digest == old["digest"]
    assert load_lock().named("train").digest == new["digest"]


def test_a_digest_that_no_entry_has_is_pinned_without_a_tag(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{registry.host}/alone"
    images = {PLATFORM: registry.push_image("alone", "amd64")}
    index = registry.push_index("alone", "1", images)
    registry.push_image("alone", "2", oci.metadata("one", "1"))
    run(capsys, "pin", "index", f"{name}@{index}", "--allow-registry")
    run(capsys, "pin", "train", f"{name}@{images[PLATFORM]['digest']}")
    entries = [load_lock().named(one) for one in ("index", "train")]
    assert {entry.digest for entry in entries} == {images[PLATFORM]["digest"]}
    assert [(entry.tag, entry.index) for entry in entries] == [("", index), ("", "")]
    assert "no tag is looked at" in run(capsys, "verify")
    assert "has no tag to look up anew" in run(capsys, "bump", "train", code=2)
    run(capsys, "bump", "train", "--tag", "2")
    assert load_lock().named("train").tag == "2"


def test_what_is_gone_is_told(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    name = f"{registry.host}/gone"
    registry.push_image("gone", "1")
    run(capsys, "pin", "train", f"{name}:1", "--allow-registry")
    there = load_lock().named("train")
    assert exists(there.ref)
    lock.write_text(lock.read_text().replace(there.digest, "sha256:" + "0" * 64))
    (told,) = run(capsys, "verify", "train", "--json", code=1)["images"]
    assert (told["state"], "no training in it can be repeated" in told["reason"]) == ("gone", True)
    lock.write_text(lock.read_text().replace("sha256:" + "0" * 64, there.digest))
    lock.write_text(lock.read_text().replace("tag: '1'", "tag: '2'"))
    (told,) = run(capsys, "verify", "--json", code=1)["images"]
    assert told["state"] == "untagged"
    assert "no image 'serve'" in run(capsys, "verify", "serve", code=2)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("pin", "train", "HOST/nothing:1", "--allow-registry"), 2, "there is no"),
        (("pin", "train", "train:1"), 2, "names no tag of a repository"),
        (("pin", "train", f"HOST/rubbish@{BASE}", "--allow-registry"), 2, "there is no"),
        (("pin", "train", f"HOST/rubbish:1@{BASE}"), 2, "it has a tag and a digest"),
        (("pin", "train", "HOST/rubbish@sha256:0"), 2, "is no digest"),
        (("pin", "Train", "HOST/rubbish:1", "--allow-registry"), 2, "is no name of an image"),
        (("pin", "train", "127.0.0.1:1/x:1", "--allow-registry"), 1, "cannot be reached"),
        (("bump", "train"), 2, "no image 'train'; it has none"),
        (("diff", "train", "serve"), 2, "no image 'train'"),
        (("diff", f"HOST/rubbish@{BASE}", "serve"), 2, "no image 'serve'"),
    ],
)
def test_wrong_use_is_one_sentence_and_writes_nothing(
    registry: oci.RunningRegistry,
    capsys: pytest.CaptureFixture[str],
    lock: Path,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    registry.push_image("rubbish", "1")
    told = run(capsys, *(a.replace("HOST", registry.host) for a in arguments), code=code)
    assert says in told
    assert "Traceback" not in told
    assert not lock.exists() or not load_lock().images


def test_layers_are_read_as_a_runtime_lays_them(registry: oci.RunningRegistry) -> None:
    site = "usr/lib/python3.11/site-packages"
    image = registry.push_image(
        "layers",
        "1",
        {**oci.metadata("one", "1"), **oci.metadata("two", "1"), **oci.status(a="1")},
        {f"{site}/.wh..wh..opq": "", **oci.metadata("three", "3"), "etc/METADATA": "Name: no"},
        {"var/lib/dpkg/status.d/base": "Package: base\nVersion: 12\n"},
        packed=False,
    )
    ref = ImageRef(f"{registry.host}/layers", image["digest"])
    assert packages(ref) == {f"python:three@{site}": "3", "debian:a": "1", "debian:base": "12"}


VENV, DEBIAN = "opt/signalbox/lib/python3.11/site-packages", "usr/lib/python3/dist-packages"


def numpy(site: str, version: str, kind: str = "dist-info/METADATA") -> dict[str, str]:
    return {f"{site}/numpy-{version}.{kind}": f"Name: numpy\nVersion: {version}\n"}


def libc6(*architectures: str, version: str = "1") -> dict[str, str]:
    state = "Status: install ok installed"
    told = (
        f"Package: libc6\n{state}\nArchitecture: {a}\nVersion: {version}\n" for a in architectures
    )
    return {"var/lib/dpkg/status": "\n".join(told)}


def test_packages_of_one_name_in_two_places_are_two(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    own, theirs = numpy(VENV, "2.3.4"), numpy(DEBIAN, "1.24.2", "egg-info/PKG-INFO")
    both = {**own, **theirs, **libc6("amd64", "i386")}
    name = f"{registry.host}/places"
    registry.push_image("places", "1", both)
    for tag, changed, sentence in (
        ("venv", numpy(VENV, "2.3.5"), f"numpy 2.3.4 -> 2.3.4, 2.3.5 (Python, {VENV})"),
        ("debian", numpy(DEBIAN, "1.25"), f"numpy 1.24.2 -> 1.24.2, 1.25 (Python, {DEBIAN})"),
        ("arch", libc6("amd64"), "libc6 1 removed (Debian, i386)"),
    ):
        registry.push_image("places", tag, both, changed)
        text = run(capsys, "diff", f"{name}:1", f"{name}:{tag}")
        assert text.splitlines()[2:] == [sentence]


def test_a_hard_link_is_read_where_it_leads(registry: oci.RunningRegistry) -> None:
    def linked(*links: tuple[str, str], **files: str) -> bytes:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as archive:
            for place, text in files.items():
                member = tarfile.TarInfo(place)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
            for place, leads_to in links:
                member = tarfile.TarInfo(place)
                member.type, member.linkname = tarfile.LNKTYPE, leads_to
                archive.addfile(member)
        return target.getvalue()

    def pushed(tag: str, *layers: bytes) -> ImageRef:
        base = registry.push_image("linked", tag, numpy(VENV, "2.3.4"), packed=False)
        manifest = dict(base["manifest"])
        kind = manifest["layers"][0]["mediaType"]
        for layer in layers:
            digest = registry.push_blob("linked", layer)
            one = {"mediaType": kind, "digest": digest, "size": len(layer)}
            manifest["layers"] = [*manifest["layers"], one]
        digest = registry.push_document("linked", f"{tag}-more", manifest)
        return ImageRef(f"{registry.host}/linked", digest)

    (old,) = numpy(VENV, "2.3.4")
    # As pip and uv leave them where their cache is on the same disk.
    new, text = "root/.cache/a1b2", "Name: numpy\nVersion: 2.3.5\n"
    assert packages(pushed("same", linked((old, new), **{new: text}))) == {
        f"python:numpy@{VENV}": "2.3.5"
    }
    by_another = linked(("root/other", new), (old, "root/other"), **{new: text})
    assert packages(pushed("two", by_another)) == {f"python:numpy@{VENV}": "2.3.5"}
    again = f"{DEBIAN}/numpy-2.3.4.dist-info/METADATA"
    found = packages(pushed("below", linked((again, old))))
    assert found == dict.fromkeys((f"python:numpy@{VENV}", f"python:numpy@{DEBIAN}"), "2.3.4")
    ring = [(again, "root/ring"), ("root/ring", again)]
    for links, end in (([(old, "nowhere")], "nowhere"), (ring, again)):
        with pytest.raises(RefusedError, match=f"is a hard link to {end}, which is not in that"):
            packages(pushed("lost", linked(*links)))


def test_a_layer_that_cannot_be_read_is_refused(registry: oci.RunningRegistry) -> None:
    image = registry.push_image("odd", "1", oci.metadata("one", "1"))
    for number, (kind, says) in enumerate(
        [
            ("application/vnd.oci.image.layer.v1.tar+zstd", "cannot be read here"),
            ("application/vnd.oci.image.layer.v1.tar", "no readable archive"),
        ]
    ):
        manifest = dict(image["manifest"])
        manifest["layers"] = [{**manifest["layers"][0], "mediaType": kind}]
        digest = registry.push_document("odd", f"x{number}", manifest)
        with pytest.raises(RefusedError, match=says):
            packages(ImageRef(f"{registry.host}/odd", digest))


def test_bytes_that_are_not_of_the_digest_are_not_taken(registry: oci.RunningRegistry) -> None:
    image = registry.push_image(
        "tampered", "1", oci.metadata("tampered", "1"), labels={"own": "blob"}
    )
    config = image["manifest"]["config"]["digest"]
    for digest in (config, image["manifest"]["layers"][0]["digest"]):
        algorithm, value = digest.split(":")
        folder = registry.folder / "data/docker/registry/v2/blobs" / algorithm / value[:2] / value
        content = (folder / "data").read_bytes()
        (folder / "data").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    # The registry itself does not notice.
    url = f"http://{registry.host}/v2/tampered/blobs/{config}"
    assert httpx.get(url).status_code == httpx.codes.OK
    with pytest.raises(RefusedError, match="sends other bytes"):
        resolve(TaggedImage(f"{registry.host}/tampered", "1"), PLATFORM)
    with pytest.raises(RefusedError, match="sends other bytes"):
        packages(ImageRef(f"{registry.host}/tampered", image["digest"]))


def test_a_registry_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    auth = ("ada", "secret")
    with oci.running(tmp_path / "own", htpasswd=oci.HTPASSWD) as found:
        registry = oci.RunningRegistry(found.host, found.folder, auth)
        pushed = registry.push_image("train", "1")
        image = TaggedImage(f"{found.host}/train", "1")
        with pytest.raises(RefusedError, match=r"without a name \(HTTP 401\); log in with"):
            resolve(image, PLATFORM)
        file = oci.login(tmp_path / "auth.json", found.host, ("ada", "wrong"))
        monkeypatch.setenv(CREDENTIALS, str(file))
        with pytest.raises(RefusedError, match="as ada"):
            resolve(image, PLATFORM)
        oci.login(file, found.host, auth)
        assert resolve(image, PLATFORM).digest == pushed["digest"]
        assert "secret" not in repr(Registry(found.host))
        file.write_text(json.dumps({"credHelpers": {found.host: "desktop"}}))
        with pytest.raises(RefusedError, match="leaves the credentials"):
            resolve(image, PLATFORM)
        file.write_text("[]")
        with pytest.raises(RefusedError, match="cannot be read as credentials"):
            resolve(image, PLATFORM)
    with pytest.raises(TransientError, match="cannot be reached"):
        Registry(found.host, "ada", "secret").manifest("train", "1")


def test_pins_at_the_same_time_all_stand(
    registry: oci.RunningRegistry, capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    registry.push_image("many", "1")
    run(capsys, "pin", "first", f"{registry.host}/many:1", "--allow-registry")
    entry = load_lock().named("first")
    names = [f"image-{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for name in names:
            pool.submit(change_lock, lambda found, n=name: found.with_image(n, entry))
    assert sorted(load_lock().images) == sorted(["first", *names])
    assert [p.name for p in lock.parent.glob(".*")] == []
