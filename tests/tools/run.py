"""What `make test` runs: the suite in parts, one closing line, and what could not run.

First everything that may run side by side, then, one test at a time, what drives a real daemon or
a browser; and in CI (or with --heavy) both again for what takes longer. In CI (or with
--postgres) the first part runs once more with the ledger and Dagster's storage on a real Postgres.
Other arguments go to pytest.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
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
    """A part of the suite: which tests, and whether they may run side by side."""

    marker: str
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


SIDE_BY_SIDE = "not e2e and not browser and not heavy"


def parts(*, browser: bool, heavy: bool, postgres: bool = False) -> list[Part]:
    """The parts in their order."""
    serial = "e2e or browser" if browser else "e2e and not browser"
    found = [
        Part(SIDE_BY_SIDE, ("-n", "2")),
        Part(f"({serial}) and not heavy"),
    ]
    if heavy:
        found.append(Part("heavy and not e2e and not browser", ("-n", "2")))
        found.append(Part(f"heavy and ({serial})"))
    if postgres:
        found.append(Part(f"({SIDE_BY_SIDE}) and store", ("-n", "2"), (STORE,)))
    return found


def run_part(part: Part, arguments: Sequence[str]) -> tuple[int, Counter[str]]:
    """Run a part; its exit code and counts."""
    with tempfile.TemporaryDirectory() as folder:
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
            check=False,
        )
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
    total: Counter[str] = Counter()
    codes = []
    there = postgres.is_there()
    with postgres.server() if there else contextlib.nullcontext() as url:
        if url is not None:
            os.environ[postgres.VARIABLE] = url
        wanted = parts(browser=browser is not None, heavy=heavy, postgres=on_postgres and there)
        for part in wanted:
            code, counts = run_part(part, rest)
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
    if not oci.is_there():
        print(oci.ADVICE)
    if heavy and not podman.is_there():
        print(f"{podman.ADVICE} (there is no {', '.join(podman.missing())})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
