"""kill -9 at random points of a backfill: the heavy form of tests/e2e/test_storm.py.

Run workers, zygote, daemon, code server and webserver are killed in turns, each at a random
moment; Dagster is started again whenever it has ended, and the same backfill launched again. At
the end every partition is compared, row for row, with that of a home that nobody touched.

    python -m benchmarks.kill_points [--points 200] [--seed 1] [--json]
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from platform_assets.factory.instance import make_home
from resources.home import Home
from tests.e2e.test_storm import require_as_undisturbed, ride_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signalbox-") as temporary:
        folder = Path(temporary)
        make_home(Home.locate(folder / "template"))
        started = time.monotonic()
        storm, undisturbed, launches = ride_out(
            folder / "template",
            folder,
            arguments.points,
            arguments.seed,
            lambda line: print(line, file=sys.stderr),
        )
        require_as_undisturbed(storm, undisturbed)
        found = {
            "killed": dict(storm.killed),
            "launches_afterwards": launches,
            "wall_seconds": round(time.monotonic() - started),
            "equal_to_undisturbed": True,
        }
        shutil.rmtree(folder / "template")
    print(json.dumps(found, indent=2) if arguments.json else found)


if __name__ == "__main__":
    main()
