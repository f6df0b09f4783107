"""Migration scripts of Dagster and MLflow read once a process, not at each look at a revision.

Opening Dagster's storage, and a run's own SQLite file, makes alembic read and execute all of
Dagster's migration scripts to find the newest one: a fifth of a small run's CPU. MLflow does the
same as it opens its store. They are part of the installed packages and do not change while a
process lives.
"""

from functools import cache
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.sql import get_alembic_config

OWN = "dagster:"
"""How the place of Dagster's scripts begins: inside of its package."""

_others: set[str] = set()
"""Places of other packages' scripts that are kept too."""


@cache
def remember_migrations() -> None:
    """Have alembic keep the script directories of Dagster, and read the one of SQLite now.

    The one thing here that is put in another's place: `ScriptDirectory.from_config`, for Dagster's
    own scripts, and MLflow's if they are remembered, only. Where a release changes their place, it
    does nothing.
    """
    read: Any = ScriptDirectory.__dict__["from_config"].__func__
    known: dict[str, ScriptDirectory] = {}

    def from_config(cls: type[ScriptDirectory], config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location") or ""
        if cls is not ScriptDirectory or not (place.startswith(OWN) or place in _others):
            return read(cls, config)  # type: ignore[no-any-return]
        if place not in known:
            known[place] = read(cls, config)
        return known[place]

    ScriptDirectory.from_config = classmethod(from_config)  # type: ignore[assignment,method-assign]
    config = get_alembic_config(sqlite_event_log.__file__)
    ScriptDirectory.from_config(config).as_revision_number("head")


def remember_migrations_of_mlflow() -> None:
    """Have alembic keep MLflow's scripts as well, and read them now; this imports MLflow."""
    import mlflow
    from mlflow.store.db import utils

    _others.add(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    remember_migrations()
    newest = getattr(utils, "_get_latest_schema_revision", None)
    if newest is not None:
        newest()
