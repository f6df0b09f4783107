"""Dagster's own checks of the code location: each must pass, one after the other."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKS = (
    ("dg", "check", "defs"),
    ("dg", "list", "defs"),
    ("dagster", "definitions", "validate", "-w", "workspace.yaml"),
)


def main() -> int:
    bin_folder = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "DAGSTER_HOME": home,
            "SIGNALBOX_HOME": home,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        }
        for command in CHECKS:
            done = subprocess.run(
                [str(bin_folder / command[0]), *command[1:]],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            print(f"{' '.join(command)}: {'ok' if done.returncode == 0 else 'FAILED'}")
            if done.returncode != 0:
                print(done.stdout + done.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
