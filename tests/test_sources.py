"""Source assets: observed, owned, and green where their producer has delivered every hour."""

from collections.abc import Callable

import dagster as dg

from platform_assets.factory.sources import build_source
from platform_assets.line.services import Services

WEATHER = dg.AssetKey(["flights", "landed_weather"])


def test_a_source_is_observed_and_has_owners(services: Services, land: Callable[..., None]) -> None:
    land("2013-01-02", "2013-01-02", airports=["JFK"])
    source = build_source(services.spec, "weather")
    node = dg.Definitions(assets=[source]).resolve_asset_graph().get(WEATHER)
    assert node.is_observable
    assert not node.is_materializable
    assert list(node.owners) == list(services.spec.owners)
    assert node.group_name == "flights"
    assert "dagster/column_schema" in node.metadata
    with dg.DagsterInstance.from_config(str(services.home.dagster)) as instance:
        job = dg.Definitions(
            assets=[source], jobs=[dg.define_asset_job("observe", selection=[WEATHER])]
        ).resolve_job_def("observe")
        assert job.execute_in_process(instance=instance).success
        (found,) = instance.fetch_observations(WEATHER, limit=5).records
        assert found.partition_key == "JFK|2013-01-02"
        observation = found.asset_observation
        assert observation is not None
        assert observation.tags["dagster/data_version"]
