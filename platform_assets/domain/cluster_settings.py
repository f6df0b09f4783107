"""What deploy/ is made for: the settings of one cluster, beside the lanes and the image lock."""

import re
from collections.abc import Mapping
from decimal import Decimal
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from platform_assets.domain.errors import UsageError
from platform_assets.domain.gpu_shapes import shape_of
from platform_assets.domain.image_spec import DEFAULT_IMAGE
from platform_assets.domain.lanes import Lane
from platform_assets.domain.source_spec import Frozen

LABEL = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
PLACE = r"s3://[a-z0-9][a-z0-9.-]*(?:/[^\s]+)?"
_CPU = re.compile(r"(?:[1-9][0-9]*m|[1-9][0-9]*)", re.ASCII)
_MEMORY = re.compile(r"([1-9][0-9]*)(Mi|Gi|Ti)", re.ASCII)
_MEBIBYTES = {"Mi": 1, "Gi": 1024, "Ti": 1024**2}


def millicores(text: str) -> int:
    """`500m` or `2` as thousandths of a core.

    Raises:
        ValueError: it is neither.
    """
    if not _CPU.fullmatch(text):
        raise ValueError(f"{text!r} is no amount of CPU; allowed are cores as in 2, and 500m")
    return int(text[:-1]) if text.endswith("m") else int(text) * 1000


def mebibytes(text: str) -> int:
    """`512Mi` or `4Gi` in MiB.

    Raises:
        ValueError: it is neither; `4G`, `4000000000` and `4g` are not taken.
    """
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory; allowed are 512Mi, 4Gi, 1Ti")
    return int(found[1]) * _MEBIBYTES[found[2]]


def _cpu(text: str) -> str:
    millicores(text)
    return text


def _memory(text: str) -> str:
    mebibytes(text)
    return text


def _network(text: str) -> str:
    return str(ip_network(text))


def _shape(text: str) -> str:
    return str(shape_of(text)) if text else ""


Cpu = Annotated[str, AfterValidator(_cpu)]
Memory = Annotated[str, AfterValidator(_memory)]
Network = Annotated[str, AfterValidator(_network)]
Label = Annotated[str, Field(pattern=LABEL)]
Port = Annotated[int, Field(ge=1, le=65535)]
Place = Annotated[str, Field(pattern=rf"^{PLACE}$")]


class Resources(Frozen):
    """Of one container, as request and as limit: what it may have it also has."""

    cpu: Cpu
    memory: Memory

    def section(self) -> dict[str, Any]:
        """As a container has it."""
        amounts = {"cpu": self.cpu, "memory": self.memory}
        return {"requests": dict(amounts), "limits": dict(amounts)}


class Containers(Frozen):
    """What containers have, by what they are.

    Attributes:
        platform: webserver, daemon and code location.
        run: a run worker, which only waits for its steps.
        step: a step whose asset says nothing of its own.
        largest: the most that any container may ask for.
    """

    platform: Resources
    run: Resources
    step: Resources
    largest: Resources


class Door(Frozen):
    """A server that pods may speak to: addresses and port."""

    cidr: Network
    port: Port


class Postgres(Door):
    """Ledger and Dagster's storage.

    Attributes:
        secret: Secret that holds SIGNALBOX_LEDGER_URL and SIGNALBOX_DAGSTER_URL; for the Helm
            chart also `postgresql-password`.
        host: its name, for the Helm chart, as are user and database.
    """

    secret: Label
    host: str
    user: str
    dagster_database: str


class Bucket(Door):
    """Where the datasets' tables lie, and the checkpoints of trainings.

    Attributes:
        lake: `s3://bucket/folder`.
        checkpoints: the same for the checkpoints; empty: in the home, which is the volume.
        endpoint: of a server that is not Amazon's; empty for Amazon's.
        secret: Secret that holds AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    """

    lake: Place
    checkpoints: Annotated[str, Field(pattern=rf"^(?:{PLACE})?$")] = ""
    region: str
    endpoint: Annotated[str, Field(pattern=r"^(?:https?://\S+)?$")] = ""
    secret: Label


class Mlflow(Door):
    """The tracking server."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]


class Volume(Frozen):
    """The volume of the home: landing zone, manifests of snapshots, what steps print.

    Attributes:
        storage_class: empty for the cluster's default; it must let several nodes write.
    """

    size: Memory
    storage_class: Annotated[str, Field(pattern=r"^(?:[a-z0-9][a-z0-9.-]*)?$")] = ""


class ClusterSettings(Frozen):
    """One cluster.

    Attributes:
        namespace: of everything that is not the whole cluster's.
        image: name in the lock of the image of webserver, daemon, code location and run workers.
        home: folder of the home in every container.
        steps_at_once: steps of one run.
        gpus: at once by lane, of `nvidia.com/gpu`; without one a lane has none.
        gpu_inventory: whether run workers may list nodes and all pods, to plan by (docs/gpus.md).
        gpu_reserve: GPU shape that is kept for the daily lane; empty for none.
        kueue: whether Kueue queues the steps (components/kueue).
        jobset: whether the cluster has JobSet, for trainings on several nodes (model.processes).
        pull_secret: Secret of the registry; empty where nodes need none.
        ui_from: namespaces from which the webserver may be reached.
        other_doors: further servers that pods may speak to (the receiver of alerts).
    """

    namespace: Label = "signalbox"
    image: Label = DEFAULT_IMAGE
    home: Annotated[str, Field(pattern=r"^/[a-z0-9/_-]*[a-z0-9]$")] = "/var/lib/signalbox"
    volume: Volume
    containers: Containers
    steps_at_once: int = Field(ge=1, le=64)
    gpus: Mapping[Lane, Annotated[int, Field(ge=0)]] = {}
    gpu_inventory: bool = False
    gpu_reserve: Annotated[str, AfterValidator(_shape)] = ""
    kueue: bool = False
    jobset: bool = False
    pull_secret: Annotated[str, Field(pattern=rf"^(?:{LABEL[1:-1]})?$")] = ""
    postgres: Postgres
    s3: Bucket
    mlflow: Mlflow
    api_server: Door
    ui_from: tuple[Label, ...] = ()
    other_doors: tuple[Door, ...] = ()

    def of_lane(self, runs: int) -> dict[str, str]:
        """What so many runs need at once with all their steps: pods, CPU and memory."""
        one, step, steps = self.containers.run, self.containers.step, self.steps_at_once
        cpu = millicores(one.cpu) + steps * millicores(step.cpu)
        memory = mebibytes(one.memory) + steps * mebibytes(step.memory)
        return {
            "pods": str(runs * (1 + steps)),
            "cpu": f"{runs * cpu}m",
            "memory": f"{runs * memory}Mi",
        }


def parse_settings(document: Any, origin: str) -> ClusterSettings:
    """A document as settings.

    Raises:
        UsageError: names each wrong field.
    """
    refused = f"{origin} is refused, nothing is rendered: "
    if not isinstance(document, Mapping):
        raise UsageError(f"{refused}found {type(document).__name__}, not a mapping")
    try:
        return ClusterSettings.model_validate(document)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False)
        ]
        raise UsageError(refused + "; ".join(problems)) from None


def quantity(text: str) -> Decimal:
    """A quantity of Kubernetes as a number.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(
        r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))((?:[KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?)",
        text,
        re.ASCII,
    )
    if found is None:
        raise ValueError(f"{text!r} is no quantity; allowed are 500m, 2, 512Mi, 4Gi")
    number, suffix = Decimal(found[1]), str(found[2])
    powers = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
    if suffix.endswith("i"):
        return number * Decimal(1024 ** (1 + "KMGTPE".index(suffix[0])))
    if suffix[:1] in ("e", "E") and len(suffix) > 1:
        return number.scaleb(int(suffix[1:]))
    return number.scaleb(powers[suffix])
