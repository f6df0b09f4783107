"""What this process computes in: packages, instruction sets, threads, GPUs.

Read from the files that package managers, kernel and driver themselves go by, once a process:
what was installed since a process has begun is not what it computes with. No program is started.
"""

import hashlib
import os
import platform
import re
import socket
import sys
from functools import cache
from pathlib import Path

from packaging.utils import canonicalize_name

from platform_assets.domain.environments import (
    THREADS,
    Distribution,
    EnvironmentFingerprint,
    Machine,
)
from platform_assets.domain.placing import NODE
from resources.environment import image_digest, platform_name

THREAD_VARIABLES = (
    *(THREADS, "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_SCHEDULE"),
    *("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "BLIS_NUM_THREADS", "GOTO_NUM_THREADS"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    *("NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "NPY_DISABLE_CPU_FEATURES"),
    *("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "LOKY_MAX_CPU_COUNT"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED"),
)
"""What decides in how many parts, in which order and by which code numbers are added."""

# x86 and ARM; not what the kernel adds and drops with its mitigations.
_SETS = re.compile(
    r"(mmx|sse\w*|ssse3|pni|avx\w*|amx\w*|fma4?|f16c|bmi[12]|popcnt|abm|adx|aes|vaes|sha_ni|gfni"
    r"|pclmulqdq|vpclmulqdq|xop|neon|asimd\w*|sve\w*|fphp|bf16|i8mm|sme[2fbi]\w+)"
)
# Of a distribution's files: not who installed it, and not what is made on the machine itself.
_BY_INSTALLER = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")
_DIGITS = 32
_SITES = ("site-packages", "dist-packages")


def environment_fingerprint(root: Path = Path("/")) -> EnvironmentFingerprint:
    """The environment of this process.

    Args:
        root: of the file system, for tests.

    Raises:
        HomeError: SIGNALBOX_IMAGE is no digest.
    """
    threads = tuple((name, os.environ[name]) for name in THREAD_VARIABLES if os.environ.get(name))
    cores = None if os.environ.get(THREADS) else usable_cores()
    return _fingerprint(root, tuple(sys.path), image_digest(), threads, cores)


@cache
def _fingerprint(
    root: Path,
    path: tuple[str, ...],
    image: str,
    threads: tuple[tuple[str, str], ...],
    cores: int | None,
) -> EnvironmentFingerprint:
    """Made once; what may change while a process lives is among the arguments."""
    _, sets = _cpu(root)
    gpus, driver, cuda = _gpu(root)
    return EnvironmentFingerprint(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=platform_name(),
        image=image,
        distributions=dict(distributions(path)),
        debian=dict(debian(root)),
        cpu=sets,
        threads=dict(threads),
        cores=cores,
        gpus=gpus,
        driver=driver,
        cuda=cuda,
    )


def machine(root: Path = Path("/")) -> Machine:
    """Where this process runs."""
    name = os.environ.get(NODE, "").strip() or socket.gethostname()
    return Machine(node=name, cpu=_cpu(root)[0], cores=usable_cores())


def usable_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Python -----------------------------------------------------------------------------------


def distributions(path: tuple[str, ...]) -> tuple[tuple[str, Distribution], ...]:
    """What is installed along a path of imports, sorted; of equal names the first is imported."""
    found: dict[str, Distribution] = {}
    for place in path:
        for name, distribution in _installed_in(place or str(Path.cwd())):
            found.setdefault(name, distribution)
    return tuple(sorted(found.items()))


@cache
def _installed_in(place: str) -> tuple[tuple[str, Distribution], ...]:
    """What is installed in one folder; each is looked at once, for a run's path may be longer than
    that of the process which it was forked from.

    Not by importlib.metadata: parsing the metadata of 200 distributions takes four times as long.
    """
    folder, found = Path(place), []
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except OSError:
        return ()  # an archive, or nothing
    for name in names:
        own, dot, kind = name.rpartition(".")
        # In a folder of sources an egg-info is what some build has left there.
        if dot and (kind == "dist-info" or (kind == "egg-info" and folder.name in _SITES)):
            what, _, version = own.partition("-")
            version = version.partition("-py")[0] if kind == "egg-info" else version
            listed = _record(folder / name) if kind == "dist-info" else ""
            found.append((canonicalize_name(what), Distribution(version=version, files=listed)))
    return tuple(found)


def _record(folder: Path) -> str:
    """Digest over the list of files that the installer has left, by its own digests.

    Only of what lies beside the distribution: the scripts of a virtual environment name its place.
    """
    try:
        text = (folder / "RECORD").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    skipped = tuple(f"{folder.name}/{name}," for name in _BY_INSTALLER)
    # A line is path, digest and size; without a digest it is the list itself or byte code.
    kept = sorted(
        line.rpartition(",")[0]
        for line in text.splitlines()
        if ",sha256=" in line and not line.startswith((*skipped, "../", "/"))
    )
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:_DIGITS]


# --- Debian -----------------------------------------------------------------------------------


@cache
def debian(root: Path) -> tuple[tuple[str, str], ...]:
    """Name with architecture, and version, of what dpkg has installed, sorted."""
    status = root / "var/lib/dpkg/status"
    files = [status, *sorted((root / "var/lib/dpkg/status.d").glob("*"))]
    found: dict[str, str] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for paragraph in text.split("\n\n"):
            said = dict(
                line.split(": ", 1)
                for line in paragraph.splitlines()
                if line.startswith(("Package: ", "Version: ", "Architecture: ", "Status: "))
            )
            # Images without dpkg keep a file a package, and no state.
            if "Package" in said and said.get("Status", " installed").endswith(" installed"):
                architecture = said.get("Architecture", "")
                name = f"{said['Package']}:{architecture}" if architecture else said["Package"]
                found[name] = said.get("Version", "")
    return tuple(sorted(found.items()))


# --- the machine ------------------------------------------------------------------------------


@cache
def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    """Model, and the instruction sets that matter, sorted."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor(), ()
    said: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    flags = said.get("flags", said.get("Features", "")).split()
    model = said.get("model name") or said.get("CPU part") or platform.processor()
    return model, tuple(sorted(flag for flag in flags if _SETS.fullmatch(flag)))


@cache
def _gpu(root: Path) -> tuple[tuple[str, ...], str, str]:
    """Models, driver and CUDA, from what NVIDIA's driver and its images leave in files."""
    proc = root / "proc/driver/nvidia"
    models = []
    for file in sorted(proc.glob("gpus/*/information")):
        found = re.search(r"^Model:\s*(.+)$", _text(file), re.MULTILINE)
        models.append(found[1].strip() if found else "unknown")
    driver = re.search(r"Kernel Module\D*?([0-9]+(?:\.[0-9]+)+)", _text(proc / "version"))
    cuda = re.search(
        r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([^"]+)"',
        _text(root / "usr/local/cuda/version.json"),
    )
    named = cuda[1] if cuda else os.environ.get("CUDA_VERSION", "").strip()
    return tuple(sorted(models)), driver[1] if driver else "", named


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
