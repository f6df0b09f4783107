"""Expressions of the catalog, computed over the columns of one partition by pandas."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import RefusedError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class Columns:
    """What expressions read. Nullable dtypes: a comparison with null is null, not false."""

    series: "dict[str, pd.Series]"
    index: "pd.Index"
    origin: str

    @classmethod
    def of(cls, table: "pa.Table", origin: str) -> "Columns":
        import pandas as pd
        import pyarrow as pa

        mapping = {
            pa.int64(): pd.Int64Dtype(),
            pa.float64(): pd.Float64Dtype(),
            pa.bool_(): pd.BooleanDtype(),
            pa.string(): pd.StringDtype("python"),
        }
        for at, field in enumerate(table.schema):
            if pa.types.is_floating(field.type):
                table = table.set_column(at, field.name, without_nan(table.column(at)))
        frame = table.to_pandas(types_mapper=mapping.get)
        return cls(dict(frame.items()), pd.RangeIndex(table.num_rows), origin)

    def filter(self, kept: Any) -> "Columns":
        series = {name: values[kept] for name, values in self.series.items()}
        return Columns(series, self.index[kept], self.origin)

    def evaluate(self, name: str, expression: str) -> "pd.Series":
        import pandas as pd

        try:
            # Not DataFrame.eval, which makes a Series of every column for each expression.
            result = pd.eval(
                expression,
                engine="python",
                resolvers=[self.series],
                local_dict={},
                global_dict={},
            )
        except Exception as error:
            raise RefusedError(
                f"{self.origin}: {name} = {expression} cannot be computed "
                f"({type(error).__name__}: {error}); correct the expression in the catalog"
            ) from error
        if not isinstance(result, pd.Series):
            return pd.Series(result, index=self.index)
        if not result.index.equals(self.index):
            raise RefusedError(
                f"{self.origin}: {name} = {expression} gives {len(result)} values in another "
                f"order than the {len(self.index)} rows; one value a row, in its place, is needed"
            )
        return result


def nullable(values: "pd.Series") -> "pd.Series":
    """A derived number that is NaN is a missing one to whoever reads it."""
    import numpy as np
    import pandas as pd

    if not pd.api.types.is_float_dtype(values.dtype):
        return values
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    return pd.Series(pd.arrays.FloatingArray(numbers, np.isnan(numbers)), index=values.index)


def without_nan(array: Any) -> Any:
    """NaN is how some producers write that a value is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    odd = pc.is_nan(array)
    if not pc.any(odd).as_py():
        return array
    return pc.if_else(pc.fill_null(odd, False), pa.scalar(None, array.type), array)
