"""The quick look at the registry agrees with MLflow's client, on a file and on a real server."""

from typing import Any

import pytest

from platform_assets.domain.errors import TransientError
from resources.tracking import Tracking
from resources.tracking.registry import RegistryView, drop_alias, look
from tests.test_tracking_stores import client_of, logged, name, prepared, server, tracking

__all__ = ["name", "prepared", "server", "tracking"]  # fixtures


def by_client(client: Any, model: str) -> RegistryView:
    """What MLflow itself says: the guard, should a release change its tables or its interface."""
    aliases = client.get_registered_model(model).aliases
    versions = client.search_model_versions(f"name='{model}'")
    return RegistryView(
        {alias: int(v) for alias, v in aliases.items()}, frozenset(int(v.version) for v in versions)
    )


def test_a_look_sees_what_mlflow_sees(tracking: Tracking, name: str) -> None:
    assert look(tracking.uri, name) == RegistryView({}, frozenset())
    with tracking.run(name, "r", {}) as run:
        logged(run, name)
        logged(run, name)
    client = client_of(tracking)
    for alias in ("champion", "previous"):
        tracking.set_alias(name, alias, 1)
    assert look(tracking.uri, name) == by_client(client, name)
    assert look(tracking.uri, name) == RegistryView(
        {"champion": 1, "previous": 1}, frozenset({1, 2})
    )
    drop_alias(tracking.uri, name, "previous")
    client.delete_model_version(name, "2")
    assert look(tracking.uri, name) == by_client(client, name)
    assert look(tracking.uri, name) == RegistryView({"champion": 1}, frozenset({1}))


def test_a_store_that_is_away_is_no_empty_one(tmp_path: Any) -> None:
    """Nothing must be taken for deleted because nobody answers."""
    with pytest.raises(TransientError, match="cannot be read"):
        look(f"sqlite:///{tmp_path}/none.db", "m")
    with pytest.raises(TransientError, match="does not answer"):
        look("http://127.0.0.1:9", "m")
