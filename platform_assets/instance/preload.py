"""What a zygote imports before it forks: all that a run of the line would import, used nowhere.

Importing is allowed, using is not, but for what `rehearsal` does in a folder of its own: delta-rs,
pyarrow, OpenMP and MLflow's stores start threads or open files when they are used for the first
time, and neither survives a fork.
"""

import importlib
import logging
from collections.abc import Iterable
from contextlib import suppress

from platform_assets.domain.errors import SignalboxError
from platform_assets.instance.migrations import remember_migrations_of_mlflow
from platform_assets.instance.rehearsal import rehearse, rehearse_expressions
from resources.catalog import load_catalog
from resources.environment import installed
from resources.ledger.tables import tables
from resources.surroundings import environment_fingerprint
from resources.tracking.client import quiet_environment
from resources.training import load_trainer

logger = logging.getLogger(__name__)

OF_DAGSTER = (
    "dagster._cli.api",
    "dagster._core.storage.event_log.sqlite",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.storage.runs.sqlite",
    "dagster._core.storage.schedules.sqlite",
    "dagster._core.storage.sqlite_storage",
    "dagster._grpc.impl",
    "alembic.command",
    "alembic.runtime.migration",
    "sqlalchemy.dialects.sqlite.pysqlite",
)
OF_OUR_INSTANCE = (
    "platform_assets.instance.compute_logs",
    "platform_assets.instance.connections",
    "platform_assets.instance.steered",
    "platform_assets.instance.storage",
)
OF_THE_LINE = (
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "deltalake",
    "deltalake.fs",
    "deltalake.writer",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow",
    "mlflow.artifacts",
    "mlflow.models",
    "mlflow.pyfunc",
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "pandas",
    "pandera.backends.pandas.builtin_checks",
    "pandera.backends.pandas.register",
    "pandera.pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.fs",
    "pyarrow.parquet",
    "sklearn.metrics",
)
OF_A_FLAVOR = {"sklearn": ("skops.io",)}


def preload() -> list[str]:
    """Import what the catalog's pipelines will need; the names of what could not be imported.

    What is missing is not an error here: the run that needs it says so better.
    """
    quiet_environment()
    missing = _import([*OF_DAGSTER, *OF_OUR_INSTANCE, *OF_THE_LINE])
    remember_migrations_of_mlflow()
    _remember_distributions()
    _remember_fonts_and_mappers()
    with suppress(SignalboxError):  # the run says so better
        environment_fingerprint()
    tables()  # of the ledger: declared once, in SQLAlchemy's way
    for prepare in (rehearse, rehearse_expressions):
        try:
            if prepare() is False:
                logger.warning("runs begin without a rehearsal: its job failed")
        except Exception:
            # A run costs more then, and works: a full /tmp must not keep runs from being forked.
            logger.warning("runs begin without a rehearsal", exc_info=True)
    try:
        specs = load_catalog().values()
    except SignalboxError:
        return missing  # the definitions say what is wrong with it
    for entry_point in sorted({spec.model.trainer for spec in specs}):
        try:
            trainer = load_trainer(entry_point)
        except SignalboxError:
            missing.append(entry_point)
            continue
        wanted = getattr(trainer, "imports", ())
        with suppress(SignalboxError):  # the run says so better
            installed(trainer.requirements)
        missing += _import(
            [f"mlflow.{trainer.flavor}", *OF_A_FLAVOR.get(trainer.flavor, ()), *wanted]
        )
    return missing


def _remember_distributions() -> None:
    """Have MLflow find out now which distribution holds which module.

    It keeps that for the life of a process, and looks at every installed file for it when the
    first model is saved: more than a quarter of what training a small model costs.
    """
    from mlflow.utils import requirements_utils

    find = getattr(requirements_utils, "_init_modules_to_packages_map", None)
    if find is not None:
        find()


def _remember_fonts_and_mappers() -> None:
    """What every training would find out anew: fonts for its plots, the tables of MLflow's store.

    Neither starts a thread nor keeps a connection; a file of a font is only read.
    """
    from sqlalchemy.orm import configure_mappers

    from resources import plots

    plots.training_curve("loss", [1.0, 0.5])
    plots.importance({"feature": 1.0, "other": 0.5})
    configure_mappers()


def _import(names: Iterable[str]) -> list[str]:
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing
