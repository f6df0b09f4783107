"""Loading the code location imports Dagster and little else; what is heavy waits for its run."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"mlflow", "lightgbm", "pandas", "sklearn", "kubernetes", "torch"}

PROBE = """
import json, sys
import platform_assets.definitions as location
repository = location.defs.get_repository_def()
assert repository.has_job("flights_train"), repository.job_names
if sys.argv[1:]:
    __import__(sys.argv[1])
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def loaded(*extra: str, catalog: Path | None = None) -> set[str]:
    """The packages that a fresh process has, once the code location is loaded and resolved."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("SIGNALBOX_CATALOG", None)
    if catalog is not None:
        environment["SIGNALBOX_CATALOG"] = str(catalog)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *extra],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_code_location_loads_without_anything_heavy() -> None:
    found = loaded()
    assert "dagster" in found
    assert not found & HEAVY


def test_a_trainer_of_the_users_own_is_not_imported_either(tmp_path: Path) -> None:
    catalog = ROOT / "platform_assets" / "catalog" / "flights.yaml"
    text = catalog.read_text()
    (tmp_path / "flights.yaml").write_text(
        text.replace("platform_assets.trainers.lightgbm_tabular:LightGBMTrainer", "this:d")
    )
    assert text != (tmp_path / "flights.yaml").read_text()
    assert "this" not in loaded(catalog=tmp_path), "a module that prints when it is imported"


def test_a_heavy_import_would_be_seen() -> None:
    assert "sklearn" in loaded("sklearn") & HEAVY
