"""The project's image, built, pushed and run for real: buildah, a registry, podman with runc.

No cluster is here, but what a node does with a pod is: an unmodified pod template of a Job, wrapped
as a Pod (podman knows no Job), is pulled by digest from a registry and run, as the user, with the
read-only root and without the capabilities that it asks for.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "image"
"""What is fetched once: Debian's packages of the base, and the wheels."""

PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap", "docker-registry")
ADVICE = (
    "NOT RUN: the tests that build the image and run its pods; as root, get what they need with "
    "`apt-get install --no-install-recommends buildah podman runc conmon catatonit mmdebstrap "
    "docker-registry netavark`, then run `make test ARGS=--heavy`"
)
NEEDS_ROOT = (
    "NOT RUN: the tests that build the image and run its pods need root, which this user is not: "
    "buildah and podman mount layers, and pods run as the image's user; run "
    "`make test ARGS=--heavy` as root"
)
PACKAGES = "python3,python3-venv,ca-certificates,libgomp1"
SUITE = "bookworm"
EPOCH = "1761955200"
HOME_VOLUME = "signalbox-home"


def missing() -> list[str]:
    """What these tests need and this machine has not."""
    found = [p for p in PROGRAMS if shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return found if os.geteuid() == 0 else [*found, "root"]


def is_there() -> bool:
    return not missing()


def advice(lacking: Sequence[str]) -> str:
    """What to do about what is missing."""
    if list(lacking) == ["root"]:
        return NEEDS_ROOT
    return f"{ADVICE} (there is no {', '.join(lacking)})"


@dataclass
class Engine:
    """buildah and podman with a storage of their own, and one registry that they speak to."""

    folder: Path
    host: str
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        runc = shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin")
        # runc and not crun, which refuses the hybrid cgroups of many CI machines.
        (self.folder / "containers.conf").write_text(
            '[containers]\ndefault_ulimits=["nofile=20000:20000","nproc=20000:20000"]\n'
            '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
            f'[engine.runtimes]\nrunc=["{runc}"]\n'
        )
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver="overlay"\ngraphroot="{self.folder}/storage"\n'
            f'runroot="{self.folder}/run"\n'
        )
        (self.folder / "registries.conf").write_text(
            f'[[registry]]\nlocation="{self.host}"\ninsecure=true\n'
        )
        (self.folder / "policy.json").write_text(
            json.dumps({"default": [{"type": "insecureAcceptAnything"}]})
        )

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"),
        }
        return {**os.environ, **own}

    def run(self, *command: str, check: bool = True) -> str:
        """A command's stdout; what it says on stderr is in the error."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            tail = (done.stdout + done.stderr)[-3000:]
            raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}: {tail}")
        return done.stdout.strip()

    def push(self, image: str) -> str:
        """The digest under which the registry has it."""
        place = self.folder / "digest"
        self.run(
            *("buildah", "push", "--quiet", "--tls-verify=false", "--compression-level=1"),
            *(f"--digestfile={place}", image),
        )
        return place.read_text().strip()

    def base(self) -> str:
        """A base image of Debian's packages, pushed; its reference by digest."""
        container = self.run("buildah", "from", "scratch")
        self.run("buildah", "add", "--quiet", container, str(base_archive()), "/")
        image = f"{self.host}/base:{SUITE}"
        self.run("buildah", "commit", "--quiet", "--timestamp=0", container, image)
        self.run("buildah", "rm", container)
        return f"{self.host}/base@{self.push(image)}"

    def build(self, base: str, tag: str) -> str:
        """The project's image as `make image` builds it, but with pip on a folder; its ID."""
        lock = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
        arguments = {
            "BASE": base,
            "BASE_DIGEST": base.rpartition("@")[2],
            "LOCK_DIGEST": f"sha256:{lock}",
            "PIP_OPTIONS": "--no-index --find-links /wheels",
        }
        given = [part for pair in arguments.items() for part in ("--build-arg", "=".join(pair))]
        self.run(
            *("buildah", "bud", "--isolation=chroot", "--network=host", "--timestamp=0"),
            *("--no-cache", "--layers=false", f"--volume={wheels()}:/wheels:ro", *given),
            *("--tag", f"{self.host}/signalbox:{tag}", str(ROOT)),
        )
        name = f"{self.host}/signalbox:{tag}"
        return self.run("buildah", "inspect", "--format={{.FromImageID}}", "--type=image", name)

    def secret(self, name: str, values: Mapping[str, str]) -> None:
        """A Secret that pods may name, as this podman keeps those of a cluster."""
        place = self.folder / "secret"
        told = {key: base64.b64encode(text.encode()).decode() for key, text in values.items()}
        place.write_text(json.dumps(told))
        self.run("podman", "secret", "create", name, str(place))
        place.unlink()

    def play(self, name: str, documents: Sequence[dict[str, Any]]) -> int:
        """Run a pod to its end; its exit code. What it printed is in `folder`/NAME.log."""
        place = self.folder / f"{name}.yaml"
        place.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        try:
            self.run("podman", "play", "kube", "--quiet", "--network=host", str(place))
            code = self.run("podman", "wait", f"{name}-dagster")
            said = subprocess.run(
                ["podman", "logs", f"{name}-dagster"],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            ).stdout
        except RuntimeError as error:
            code, said = "125", str(error)
        (self.folder / f"{name}.log").write_text(said)
        self.log.append(f"--- {name} ended with {code}\n{said[-3000:]}")
        return int(code or 1)

    def image_id(self, name: str) -> str:
        """What the container of a pod really runs: the digest of the image's configuration."""
        return self.run("podman", "inspect", "--format={{.Image}}", f"{name}-dagster")

    def pull(self, image: str) -> str:
        """Have an image by digest in the storage; the digest of its configuration, as podman says.

        It is what a kubelet would report as the imageID, and is known before anything starts.
        """
        self.run("podman", "pull", "--quiet", image)
        return f"sha256:{self.run('podman', 'image', 'inspect', '--format={{.Id}}', image)}"

    def close(self) -> None:
        self.run("podman", "pod", "rm", "--all", "--force", check=False)
        self.run("podman", "volume", "rm", "--all", "--force", check=False)
        self.run("podman", "secret", "rm", "--all", check=False)
        self.run("podman", "system", "reset", "--force", check=False)


class Node(threading.Thread):
    """A node of the fake cluster: it runs the pods of its Jobs with podman.

    Attributes:
        there: the ConfigMaps that pods may name.
        ran: the Jobs, by name, in the order in which they were started.
        image_ids: of what each of them ran, as podman says of the container once it has ended.
    """

    def __init__(self, cluster: Cluster, engine: Engine, there: Sequence[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self._cluster, self._engine, self.there = cluster, engine, there
        self._over = threading.Event()
        self.ran: dict[str, dict[str, Any]] = {}
        self.image_ids: dict[str, str] = {}

    def prepare(self, image: str) -> None:
        """Pull an image, so that what pods of it report is podman's word from their start on.

        The fake has a pod run, and names its imageID, in the request that creates the Job.
        """
        found = self._engine.pull(image)
        with self._cluster.lock:
            self._cluster.image_ids[image] = found

    def run(self) -> None:
        """Start what is new, each pod in a thread of its own."""
        while not self._over.wait(0.1):
            with self._cluster.lock:
                new = {n: j for n, j in self._cluster.jobs.items() if n not in self.ran}
                pods = {name: self._cluster.of_job(name) for name in new}
            for name, job in new.items():
                if pods[name]:
                    self.ran[name] = job
                    started = (name, job, pods[name][0])
                    threading.Thread(target=self._run, args=started, daemon=True).start()

    def _run(self, name: str, job: dict[str, Any], started: dict[str, Any]) -> None:
        template = job["spec"]["template"]
        inside = on_node(template, started["spec"]["nodeName"])
        pod = {"apiVersion": "v1", "kind": "Pod", **inside}
        pod["metadata"] = {**template["metadata"], "name": name}
        code = self._engine.play(name, [*self.there, pod])
        with contextlib.suppress(
            RuntimeError
        ):  # it was never made, and has an exit code that says so
            self.image_ids[name] = f"sha256:{self._engine.image_id(name)}"
        with self._cluster.lock:
            self._cluster.kubelet.ended(started, code)

    def end(self) -> None:
        self._over.set()
        self.join()


def on_node(template: Mapping[str, Any], node: str = "podman") -> dict[str, Any]:
    """A pod's template with what a kubelet tells its containers and podman does not.

    That is the name of the node, as podman takes `fieldRef: spec.nodeName` for an error. All else
    stays as it is: `HOSTNAME`, which is the pod's name on a cluster, is the machine's here.
    """
    field = {"fieldRef": {"fieldPath": "spec.nodeName"}}
    spec = dict(template["spec"])
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            spec[kind] = [
                {
                    **container,
                    "env": [
                        *(
                            {"name": one["name"], "value": node}
                            if one.get("valueFrom") == field
                            else one
                            for one in container.get("env") or ()
                        ),
                    ],
                }
                for container in spec[kind]
            ]
    return {**template, "spec": spec}


def base_archive() -> Path:
    """Debian's packages as an archive, the same bytes each time."""
    named = hashlib.sha256(f"{PACKAGES} {SUITE} {EPOCH}".encode()).hexdigest()[:12]
    place = CACHE / f"base-{named}.tar"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = place.with_suffix(".part.tar")
        subprocess.run(
            ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(draft)],
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
            check=True,
            capture_output=True,
        )
        draft.replace(place)
    return place


def left_out() -> set[str]:
    """The distributions that the Dockerfile leaves out."""
    found = re.search(r'^ARG WITHOUT="(.*)"$', (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return set(found[1].split())


def image_requirements() -> str:
    """The lock without what is left out, as the Dockerfile has it."""
    kept, skip = [], False
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name = re.match(r"[a-z0-9._-]+", line)
        if name is not None:
            skip = name[0] in left_out()
        if not skip:
            kept.append(line)
    return "\n".join(kept) + "\n"


def wheels() -> Path:
    """The distributions of the image as files, by whatever index the machine's pip has."""
    text = image_requirements()
    place = CACHE / f"wheels-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=CACHE))
        listed = draft / "requirements.lock"
        listed.write_text(text)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "--no-deps", "--require-hashes", "-r", str(listed), "-d", str(draft)],
            check=True,
            capture_output=True,
        )
        draft.replace(place)
    return place


@contextlib.contextmanager
def engine(host: str) -> Iterator[Engine]:
    """podman and buildah; the test is skipped where they are not there, and in CI fails."""
    lacking = missing()
    if lacking:
        pytest.skip(advice(lacking))
    with tempfile.TemporaryDirectory(prefix="sb-", ignore_cleanup_errors=True) as folder:
        found = Engine(Path(folder), host)
        try:
            yield found
        finally:
            found.close()


def wait_for(condition: Any, seconds: float, what: str) -> None:
    """Until something holds.

    Raises:
        AssertionError: it did not in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.2)
