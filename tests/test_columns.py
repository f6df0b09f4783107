"""The columns of a dataset and their lineage, from the spec alone."""

import pytest

from platform_assets.domain.errors import UsageError
from resources.columns import output_columns
from tests.nyc import changed, flights_spec

SPEC = flights_spec()


def test_lineage_goes_through_derived_columns() -> None:
    spec = changed(
        SPEC,
        dataset={
            "derive": {"a": "distance + temp", "b": "a * 2"},
            "features": ["airport", "b", "humid"],
            "categories": ["airport"],
        },
    )
    columns = {column.name: column for column in output_columns(spec)}
    assert columns["b"].inputs == (("flights", "distance"), ("weather", "temp"))
    assert columns["humid"].inputs == (("weather", "humid"),)
    assert columns["humid"].description == "per cent"
    assert columns["airport"].inputs == ()
    assert columns["delayed"].inputs == (("flights", "arr_delay"),)
    assert columns["b"].nullable
    assert not columns["delayed"].nullable


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"derive": {"relevance": "distance"}, "features": ["relevance"]}, "'relevance' twice"),
        ({"derive": {"date": "distance"}, "features": ["date"]}, "'date' twice"),
        (
            {
                "target": {"name": "relevance", "expression": "arr_delay > 1"},
                "features": ["distance"],
            },
            "'relevance' twice",
        ),
        ({"features": ["tailnum"]}, "'tailnum' is a string, a model reads numbers and categories"),
        ({"features": ["time_hour"]}, "'time_hour' is a timestamp"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused_before_any_data(
    dataset: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        output_columns(changed(SPEC, dataset={"categories": [], **dataset}))
