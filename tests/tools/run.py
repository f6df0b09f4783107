"""What `make test` runs: the suite in parts, one closing line, and what could not run.

First everything that may run side by side, then, one test at a time, what drives a real daemon or
a browser; and in CI (or with --heavy) both again for what takes longer, the latter two files at a
time. Beside that last part, which waits for daemons most of its time, the project's image is built
and run, and in CI (or with --postgres) what works on a home runs once more with the ledger and
Dagster's storage on a real Postgres; what needs PyTorch runs there too, where it is installed. What
they say is printed when they have ended. After them comes what takes longer of what works on a
home, on Postgres: the registry of models in CI, for its time is limited, and all with --heavy.
Other arguments go to pytest.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import oci, podman, postgres
from tests.tools import tally
from tests.tools.browser import VARIABLE, fetch_browser, find_browser

ROOT = Path(__file__).resolve().parents[2]
NOTHING_COLLECTED = 5
STORE = ("SIGNALBOX_TEST_STORE", "postgres")
ADVICE = (
    "NOT RUN: the browser tests, for want of a Chromium; get one with `apt-get install chromium`, "
    f"or name yours in {VARIABLE}, then run `make test` again"
)


@dataclass(frozen=True)
class Part:
    """A part of the suite.

    Attributes:
        marker: which tests.
        options: of pytest; whether they may run side by side.
        environment: variables that they run with.
        beside: whether it runs beside the part before, its output kept until it has ended.
    """

    marker: str
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    beside: bool = False


SIDE_BY_SIDE = "not e2e and not browser and not heavy and not torch"
NO_TORCH = (
    "NOT RUN: the tests of PyTorch; install it with `make setup-torch`, then run `make test` again"
)
HEAVY_ON_POSTGRES = {
    "registry": "heavy and registry and not e2e and not browser and not torch and store",
    "all": "heavy and not e2e and not browser and not torch and store",
}


def parts(*, browser: bool, heavy: bool, postgres: str = "", torch: bool = False) -> list[Part]:
    """The parts in their order.

    Args:
        browser: whether there is one.
        heavy: whether to run what takes longer.
        postgres: which of the heavy tests run on Postgres too: none, registry or all; empty where
            no test does.
        torch: whether PyTorch is installed.
    """
    serial = "e2e or browser" if browser else "e2e and not browser"
    found = [
        Part(SIDE_BY_SIDE, ("-n", "2")),
        Part(f"({serial}) and not heavy"),
    ]
    if heavy:
        found.append(Part("heavy and not e2e and not browser and not torch", ("-n", "2")))
        # They wait more than they work; a file's tests share what they have started.
        found.append(
            Part(
                f"heavy and ({serial}) and not image and not torch", ("-n", "2", "--dist=loadfile")
            )
        )
        found.append(Part("heavy and e2e and image", beside=True))
    if postgres:
        # One worker: the parts beside it need the other core.
        found.append(Part(f"({SIDE_BY_SIDE}) and store", ("-n", "1"), (STORE,), beside=True))
    if torch:
        # Beside what waits for daemons; without these, after all the others.
        found.append(Part("torch" if heavy else "torch and not heavy", beside=heavy))
    if postgres in HEAVY_ON_POSTGRES:
        found.append(Part(HEAVY_ON_POSTGRES[postgres], ("-n", "2"), (STORE,)))
    return found


def run_parts(wanted: Sequence[Part], arguments: Sequence[str]) -> list[tuple[int, Counter[str]]]:
    """Run parts in their order; exit code and counts of each."""
    found = []
    waiting = list(wanted)
    with ThreadPoolExecutor() as pool:
        while waiting:
            first, beside = waiting.pop(0), []
            while waiting and waiting[0].beside:
                beside.append(pool.submit(run_part, waiting.pop(0), arguments))
            found.append(run_part(first, arguments))
            found += [part.result() for part in beside]
    return found


def run_part(part: Part, arguments: Sequence[str]) -> tuple[int, Counter[str]]:
    """Run a part; its exit code and counts."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        said = stack.enter_context(Path(folder, "said").open("w+")) if part.beside else None
        counts = Path(folder) / "counts.json"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            tally.VARIABLE: str(counts),
            **dict(part.environment),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", tally.__name__]
        done = subprocess.run(
            [*command, *part.options, "-m", part.marker, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=said and subprocess.STDOUT,
            check=False,
        )
        if said is not None:
            said.seek(0)
            print(said.read(), flush=True)
        found = json.loads(counts.read_text()) if counts.exists() else {}
    return done.returncode, Counter(found)


def main(arguments: list[str]) -> int:
    in_ci = os.environ.get("CI", "").lower() == "true"
    heavy = in_ci or "--heavy" in arguments
    on_postgres = in_ci or "--postgres" in arguments
    rest = [argument for argument in arguments if argument not in ("--heavy", "--postgres")]
    browser = find_browser() or (None if in_ci else fetch_browser())
    if browser is None and in_ci:
        print(f"{ADVICE} (in CI they must run)", flush=True)
        return 1
    if browser is not None:
        os.environ[VARIABLE] = str(browser)
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch and in_ci:
        print(f"{NO_TORCH} (in CI they must run)", flush=True)
        return 1
    total: Counter[str] = Counter()
    codes = []
    there = postgres.is_there()
    with postgres.server() if there else contextlib.nullcontext() as url:
        if url is not None:
            os.environ[postgres.VARIABLE] = url
        of_heavy = "all" if "--heavy" in arguments else "registry" if in_ci else "none"
        postgres_too = of_heavy if on_postgres and there else ""
        wanted = parts(
            browser=browser is not None, heavy=heavy, postgres=postgres_too, torch=has_torch
        )
        for code, counts in run_parts(wanted, rest):
            codes.append(code)
            total += counts
    failed = any(code not in (0, NOTHING_COLLECTED) for code in codes) or not total["passed"]
    if in_ci and total["skipped"]:
        print(f"{total['skipped']} test(s) were skipped; in CI every test must run")
        failed = True
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    if browser is None:
        print(ADVICE)
    if not there:
        print(f"NOT RUN: the tests on Postgres; {postgres.ADVICE}, then run `make test` again")
    if not has_torch:
        print(NO_TORCH)
    if not oci.is_there():
        print(oci.ADVICE)
    if shutil.which("skopeo") is None:
        print(oci.NO_SKOPEO)
    if heavy and not podman.is_there():
        print(podman.advice(podman.missing()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
