"""Copies of homes: folders, and for homes on Postgres their databases too."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from platform_assets.line.services import owner_of
from resources.adopting import rewrite_locations
from resources.home import Home
from resources.tracking.store import OWNER_TAG
from tests import postgres

DATABASES = "databases.json"
"""In a home on Postgres: the URLs of its ledger and of Dagster's storage."""


def note_databases(root: Path, ledger: str, dagster: str) -> None:
    """Write down where a home on Postgres has its databases."""
    (root / DATABASES).write_text(json.dumps({"ledger_url": ledger, "dagster_url": dagster}))


def home_at(root: Path) -> Home:
    """The home in a folder, with its databases."""
    noted = root / DATABASES
    found = Home.locate(root)
    return replace(found, **json.loads(noted.read_text())) if noted.exists() else found


def copy_home(source: Path, root: Path) -> Home:
    """Copy a home that nothing works on, and adopt the copy."""
    shutil.copytree(source, root)
    before = home_at(source)
    if (root / DATABASES).exists():
        assert before.dagster_url is not None
        note_databases(root, *map(postgres.copy_database, (before.ledger_url, before.dagster_url)))
    found = home_at(root)
    made_at = found.made_at()
    assert made_at is not None
    tag = (OWNER_TAG, owner_of(before.ledger_url), owner_of(found.ledger_url))
    rewrite_locations(found, made_at, tag)
    found.settle()
    return found


def drop_home(root: Path) -> None:
    """Give back the databases of a copy; its folder stays."""
    if (root / DATABASES).exists():
        home = home_at(root)
        assert home.dagster_url is not None
        for url in (home.ledger_url, home.dagster_url):
            postgres.drop_database(url)
