"""The environment as one value: equal where nothing is different, and what is, in words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.canary import (
    CanaryReport,
    Crossing,
    EnvironmentTerms,
    Measure,
    judge_environment,
    measures,
)
from platform_assets.domain.environments import (
    Distribution,
    EnvironmentFingerprint,
    changes,
    in_short,
)
from resources import surroundings
from resources.environment import IMAGE
from resources.surroundings import environment_fingerprint, machine

ROOT = Path(__file__).resolve().parents[1]
PLAIN = EnvironmentFingerprint(python="3.11.9 (CPython)", platform="Linux-x86_64-glibc2.36")
IMAGES = ("sha256:" + "1" * 64, "sha256:" + "2" * 64)
HOLD = EnvironmentTerms(on_change="hold")

words = st.sampled_from(["1.0", "1.1", "2.0"])
names = st.sampled_from(["numpy", "opencv-python-headless", "scipy"])
environments = st.builds(
    EnvironmentFingerprint,
    python=words,
    platform=words,
    image=st.sampled_from(["", *IMAGES]),
    distributions=st.dictionaries(
        names, st.builds(Distribution, version=words, files=st.sampled_from(["", "ab", "cd"]))
    ),
    debian=st.dictionaries(st.sampled_from(["libc6:amd64", "zlib1g:amd64"]), words),
    cpu=st.lists(st.sampled_from(["avx2", "avx512f"]), unique=True).map(lambda x: tuple(sorted(x))),
    threads=st.dictionaries(st.sampled_from(["OMP_NUM_THREADS", "MKL_NUM_THREADS"]), words),
    cores=st.none() | st.integers(1, 3),
    gpus=st.lists(st.sampled_from(["A100", "T4"]), max_size=3).map(lambda x: tuple(sorted(x))),
    driver=st.sampled_from(["", "535.1"]),
    cuda=st.sampled_from(["", "12.2"]),
)


# --- the value and the words


@given(environments, environments)
def test_words_are_there_exactly_where_the_value_is_another(
    then: EnvironmentFingerprint, now: EnvironmentFingerprint
) -> None:
    said = changes(then, now)
    assert bool(said) == (then.value != now.value)
    assert len(said) == len(set(said)) == len(changes(now, then))
    back = EnvironmentFingerprint.model_validate(then.document())
    assert (back, back.value) == (then, then.value)


def test_the_words_name_what_was_and_what_is() -> None:
    then = PLAIN.model_copy(
        update={
            "image": IMAGES[0],
            "distributions": {
                "gone": Distribution(version="1"),
                "numpy": Distribution(version="2.3.4", files="a" * 32),
                "opencv-python-headless": Distribution(version="4.8.0"),
            },
            "debian": {"libc6:amd64": "2.36-9"},
            "cpu": ("avx2", "fma"),
            "threads": {"OMP_NUM_THREADS": "2"},
            "gpus": ("T4",),
        }
    )
    now = PLAIN.model_copy(
        update={
            "python": "3.11.10 (CPython)",
            "image": IMAGES[1],
            "distributions": {
                "new": Distribution(version="3"),
                "numpy": Distribution(version="2.3.4", files="b" * 32),
                "opencv-python-headless": Distribution(version="4.8.1"),
            },
            "debian": {"libc6:amd64": "2.36-10"},
            "cpu": ("avx2", "avx512f"),
            "threads": {"OMP_NUM_THREADS": "8", "MKL_CBWR": "AVX2"},
            "gpus": ("A100", "A100"),
            "driver": "535.1",
        }
    )
    assert changes(then, now) == (
        f"image {IMAGES[0]} -> {IMAGES[1]}",
        "Python 3.11.9 (CPython) -> 3.11.10 (CPython)",
        "gone 1 removed",
        "new 3 added",
        "numpy 2.3.4 has other files (aaaaaaaaaaaa -> bbbbbbbbbbbb)",
        "opencv-python-headless 4.8.0 -> 4.8.1",
        "libc6:amd64 2.36-9 -> 2.36-10 (Debian)",
        "CPU without fma and with avx512f",
        "MKL_CBWR not set -> AVX2",
        "OMP_NUM_THREADS 2 -> 8",
        "GPU 1 x T4 -> 2 x A100",
        "GPU driver none -> 535.1",
    )
    assert in_short(changes(then, now), 2).endswith("(CPython); and 10 more")


# --- this process


def test_what_is_installed_is_named_with_a_digest_of_its_files(tmp_path: Path) -> None:
    def put(version: str, folder: str, code: str = "sha256=abc", extra: str = "") -> Path:
        own = tmp_path / folder / f"prep-{version}.dist-info"
        own.mkdir(parents=True)
        (own / "RECORD").write_text(
            f"prep/__init__.py,{code},10\nprep/__pycache__/x.pyc,,\n{own.name}/METADATA,sha256=m,3\n"
            + extra
        )
        return own.parent

    def found(*folders: Path) -> Distribution:
        return dict(surroundings.distributions(tuple(map(str, folders))))["prep"]

    one = put("1.0.0", "one")
    same = put("1.0.0", "two", extra=(
        "../../../bin/prep,sha256=of-this-venv,9\nprep-1.0.0.dist-info/INSTALLER,sha256=uv,2\n"
    ))  # fmt: skip
    other = put("1.0.0", "three", code="sha256=xyz")
    assert found(one).version == "1.0.0"
    assert found(one) == found(same), "who installed it, and where, is no part of it"
    assert found(one) != found(other), "the same version of other files"
    assert found(put("1.0.1", "four"), one).version == "1.0.1", "what is imported comes first"
    sources, site = tmp_path / "sources", tmp_path / "dist-packages"
    for folder in (sources, site):
        (folder / "other-2.0-py3.11.egg-info").mkdir(parents=True)
    assert surroundings.distributions((str(sources),)) == (), "the rest of a build"
    assert dict(surroundings.distributions((str(site),)))["other"].version == "2.0"


def test_debian_packages_are_those_that_are_installed(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n"
        "Description: C\n Version: 9 of nothing\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n"
    )
    more = tmp_path / "var/lib/dpkg/status.d"
    more.mkdir()
    (more / "tzdata").write_text("Package: tzdata\nVersion: 2024a\n")
    assert dict(surroundings.debian(tmp_path)) == {"libc6:amd64": "2.36-9", "tzdata": "2024a"}
    assert surroundings.debian(tmp_path / "nowhere") == ()


def test_cpu_and_gpu_are_read_from_what_kernel_and_driver_tell(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(
        "processor : 0\nmodel name : A CPU\nflags : fpu md_clear sse2 smep avx2 avx512f fma\n\n"
        "processor : 1\nmodel name : A CPU\nflags : fpu\n"
    )
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information").write_text(
        "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 34\n"
    )
    (tmp_path / "usr/local/cuda").mkdir(parents=True)
    (tmp_path / "usr/local/cuda/version.json").write_text(
        '{"cuda" : {"name" : "CUDA SDK", "version" : "12.2.1"}, "cudart": {"version": "12.0"}}'
    )
    found = environment_fingerprint(tmp_path)
    assert found.cpu == ("avx2", "avx512f", "fma", "sse2"), "mitigations of the kernel are not"
    assert (found.gpus, found.driver, found.cuda) == (
        ("NVIDIA A100-SXM4-40GB",), "535.104.05", "12.2.1",
    )  # fmt: skip
    assert machine(tmp_path).cpu == "A CPU"
    assert found.debian == {}


def test_threads_and_image_are_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*surroundings.THREAD_VARIABLES, IMAGE):
        monkeypatch.delenv(name, raising=False)
    bare = environment_fingerprint()
    assert bare.cores == surroundings.usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    set_ = environment_fingerprint()
    assert (set_.threads, set_.cores) == ({"OMP_NUM_THREADS": "8"}, None)
    monkeypatch.setattr(surroundings, "usable_cores", lambda: 96)
    assert environment_fingerprint().value == set_.value, "the variable says how many threads"
    monkeypatch.setenv(IMAGE, f"registry/train@{IMAGES[0]}")
    assert changes(set_, environment_fingerprint()) == (f"image none -> {IMAGES[0]}",)


def test_a_fresh_process_of_the_same_environment_has_the_same_value() -> None:
    code = (
        "from resources.surroundings import environment_fingerprint; "
        "print(environment_fingerprint().value)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]


def test_loading_the_code_location_reads_no_packages() -> None:
    code = (
        "import builtins, io, os, pathlib\n"
        "read = []\n"
        "real = io.open\n"
        "def watched(file, *a, **k):\n"
        "    read.append(str(file)); return real(file, *a, **k)\n"
        "io.open = builtins.open = watched\n"
        "import platform_assets.definitions as d\n"
        "assert d.defs.get_repository_def()\n"
        "bad = [f for f in read if 'dpkg' in f or f.endswith('RECORD') or 'cpuinfo' in f]\n"
        "assert not bad, bad[:3]\n"
        "import resources.surroundings as s\n"
        "s.environment_fingerprint()\n"
        "assert [f for f in read if 'cpuinfo' in f], 'the watch works'\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )


# --- the decision


def report(
    *differences: tuple[float | None, float | None], identical: bool = False, problem: str = ""
) -> CanaryReport:
    return CanaryReport(
        identical=identical,
        measures=tuple(
            Measure(on="10 rows", metric=f"m{n}", recorded=then, canary=now)
            for n, (then, now) in enumerate(differences)
        ),
        predictions=None,
        changes=(),
        problem=problem,
    )


def decided(terms: EnvironmentTerms, canary: CanaryReport | None = None, **changes: object):  # type: ignore[no-untyped-def]
    given: dict[str, object] = {"then": "a", "now": "b", "changed": ("x 1 -> 2",), "champion": 4}
    return judge_environment(
        terms=terms,
        canary=(9, canary) if canary else None,
        **(given | changes),  # type: ignore[arg-type]
    )


def test_nothing_is_asked_where_nothing_has_changed_or_nobody_is_champion() -> None:
    assert decided(HOLD, now="a").crossing is Crossing.SAME
    assert decided(HOLD, champion=None).crossing is Crossing.SAME


def test_a_change_warns_or_holds_as_the_catalog_says() -> None:
    warned = decided(EnvironmentTerms())
    assert (warned.crossing, warned.free, warned.changes) == (Crossing.WARNED, True, ("x 1 -> 2",))
    held = decided(HOLD)
    assert (held.crossing, held.free) == (Crossing.HELD, False)
    assert "x 1 -> 2" in held.reason
    assert "no canary has trained" in held.reason


@pytest.mark.parametrize("unknown", ["then", "now"])
def test_what_nobody_recorded_counts_as_changed(unknown: str) -> None:
    found = decided(HOLD, **{unknown: ""})
    assert found.crossing is Crossing.HELD
    assert "nobody has recorded" in found.reason
    both = decided(HOLD, then="", now="")
    assert both.crossing is Crossing.HELD, "unknown twice is not the same"


def test_a_canary_of_the_same_metrics_opens_the_way() -> None:
    shown = decided(HOLD, report((0.5, 0.5), identical=True))
    assert (shown.crossing, shown.free, shown.canary) == (Crossing.SHOWN, True, 9)
    assert "by canary 9 it gave the same files and the same metrics" in shown.reason


@pytest.mark.parametrize(
    "canary",
    [
        report((0.5, 0.51)),
        report((0.5, None)),
        report((None, 0.5)),
        report((0.5, float("nan"))),
        report((0.5, 0.5), problem="it was never judged"),
        report(),
        report((None, None)),
    ],
)
def test_whatever_is_not_the_same_holds(canary: CanaryReport) -> None:
    found = decided(HOLD, canary)
    assert found.crossing is Crossing.HELD
    assert "canary 9 is against it" in found.reason


def test_the_tolerance_is_that_of_now() -> None:
    canary = report((0.5, 0.5005))
    assert decided(EnvironmentTerms(on_change="hold", tolerance=1e-3), canary).free
    assert not decided(EnvironmentTerms(on_change="hold", tolerance=1e-4), canary).free


@given(
    st.lists(st.tuples(st.none() | st.floats(), st.none() | st.floats()), max_size=4),
    st.floats(0, 10),
    st.floats(0, 10),
)
def test_a_larger_tolerance_never_refuses_what_a_smaller_one_lets_pass(
    pairs: list[tuple[float | None, float | None]], one: float, other: float
) -> None:
    small, large = sorted((one, other))
    found = report(*pairs)
    assert not found.same(small) or found.same(large)
    assert found.reason(small)


def test_metrics_are_compared_by_name() -> None:
    found = measures("r", {"auc": float("nan"), "log_loss": 0.5}, {"auc": float("nan")})
    assert [m.difference for m in found] == [0, float("inf")]
