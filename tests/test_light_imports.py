"""Loading the code location stays cheap: what is heavy is imported where it is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "alembic", "dagster", "deltalake", "httpx", "kubernetes", "lightgbm", "matplotlib", "mlflow",
    "numpy", "pandas", "pandera", "pyarrow", "sklearn", "sqlalchemy", "torch",
)  # fmt: skip

IMPORT_ALL = """
import importlib, json, pkgutil, sys

package = importlib.import_module(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "loaded": sorted({m.split(".")[0] for m in sys.modules})}))
"""


def import_all(package: str) -> tuple[list[str], set[str]]:
    """Import every module of a package in a fresh process: their names, and what came along."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["imported"], set(found["loaded"])


@pytest.mark.parametrize(
    ("package", "some"),
    [
        ("platform_assets.domain", {"spec", "completeness", "manifest", "partition", "promotion"}),
        ("resources", {"home", "catalog", "ledger.store", "ledger.tables", "lake", "tracking"}),
    ],
)
def test_importing_all_of_a_package_loads_nothing_heavy(package: str, some: set[str]) -> None:
    imported, loaded = import_all(package)
    assert {f"{package}.{name}" for name in some} <= set(imported), "all modules were found"
    assert not loaded & set(HEAVY)


def test_the_domain_reads_no_yaml_either() -> None:
    assert not import_all("platform_assets.domain")[1] & {"yaml", "resources", "sensors"}


def test_opening_a_good_home_again_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from resources.home import Home, initialise;"
        "initialise(Home.locate(Path(sys.argv[1])), dagster_yaml=Path('dagster.yaml'));"
        "print(sorted({'sqlalchemy', 'alembic'} & set(sys.modules)))"
    )
    args = [sys.executable, "-c", code, tmp_path / "home"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    outputs = [
        subprocess.run(args, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        for _ in range(2)
    ]
    assert outputs == [b"['alembic', 'sqlalchemy']\n", b"[]\n"]


def test_a_heavy_import_would_be_noticed() -> None:
    assert "sqlalchemy" in import_all("sqlalchemy.event")[1]
