"""A quick look at a registered model: its aliases and versions, without importing MLflow.

A look each few seconds must not keep MLflow (2 CPU-seconds, 200 MB) in the process. A sqlite store
is read by SQL, a server by its REST interface; tests compare both with MLflow's own client.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from platform_assets.domain.errors import TransientError
from resources.tracking.client import attempt, open_client, shown, sqlite_path

DELETED = "Deleted_Internal"
"""Stage of a version that was deleted: its row stays."""

SECONDS = 5.0
_WORKSPACE = "default"


@dataclass(frozen=True)
class RegistryView:
    """What the registry says of one model.

    Attributes:
        aliases: version by alias.
        versions: those that were not deleted.
    """

    aliases: Mapping[str, int]
    versions: frozenset[int]


def look(uri: str, model: str) -> RegistryView:
    """Aliases and versions of a model; empty where it is not registered.

    Raises:
        TransientError: the store cannot be read now.
    """
    path = sqlite_path(uri)
    if path is not None:
        try:
            address = f"{path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(address, timeout=5, uri=True)) as connection:
                return _by_sql(connection, model)
        except sqlite3.Error as error:
            raise TransientError(
                f"the MLflow store {path} cannot be read ({error}); run `signalbox doctor`, then "
                "try again"
            ) from error
    if uri.startswith(("http://", "https://")):
        try:
            return _by_rest(uri, model)
        except (URLError, OSError, ValueError, KeyError) as error:
            raise TransientError(
                f"the tracking server {shown(uri)} does not answer ({error}); start it, or try "
                "again when it is back"
            ) from error
    return _by_client(uri, model)


def drop_alias(uri: str, model: str, alias: str) -> None:
    """Have no version carry an alias any more."""
    client = open_client(uri)
    attempt(uri, lambda: client.delete_registered_model_alias(model, alias))


def _by_sql(connection: sqlite3.Connection, model: str) -> RegistryView:
    mine = "WHERE name = ? AND workspace = ?"
    aliases = connection.execute(
        f"SELECT alias, version FROM registered_model_aliases {mine}",  # noqa: S608
        (model, _WORKSPACE),
    ).fetchall()
    versions = connection.execute(
        f"SELECT version FROM model_versions {mine} AND current_stage != ?",  # noqa: S608
        (model, _WORKSPACE, DELETED),
    ).fetchall()
    return RegistryView(
        {alias: int(version) for alias, version in aliases},
        frozenset(int(version) for (version,) in versions),
    )


def _by_rest(uri: str, model: str) -> RegistryView:
    try:
        found = _get(uri, "registered-models/get", {"name": model})["registered_model"]
    except HTTPError as error:
        if error.code == 404:
            return RegistryView({}, frozenset())
        raise
    aliases = {a["alias"]: int(a["version"]) for a in found.get("aliases", ())}
    quoted = model.replace("'", "''")
    query: dict[str, str] = {"filter": f"name='{quoted}'", "max_results": "1000"}
    versions: set[int] = set()
    while True:
        page = _get(uri, "model-versions/search", query)
        versions |= {int(v["version"]) for v in page.get("model_versions", ())}
        if not page.get("next_page_token"):
            return RegistryView(aliases, frozenset(versions))
        query["page_token"] = page["next_page_token"]


def _get(uri: str, path: str, query: Mapping[str, str]) -> Any:
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/{path}?{urlencode(query)}"
    with urlopen(address, timeout=SECONDS) as answer:  # noqa: S310 - http by the caller
        return json.load(answer)


def _by_client(uri: str, model: str) -> RegistryView:
    client = open_client(uri)
    listed = attempt(uri, lambda: client.search_registered_models(f"name='{model}'"))
    if not listed:
        return RegistryView({}, frozenset())
    versions = attempt(uri, lambda: client.search_model_versions(f"name='{model}'"))
    return RegistryView(
        {alias: int(version) for alias, version in listed[0].aliases.items()},
        frozenset(int(v.version) for v in versions),
    )
