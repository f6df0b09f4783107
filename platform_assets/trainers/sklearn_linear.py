"""Linear models by scikit-learn."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError
from platform_assets.domain.promotion import Kind
from resources.training import OnRound, Parameters, require_trainable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_ALLOWED = {
    "binary_classification": ("C", "max_iter", "tol"),
    "regression": ("alpha", "max_iter", "tol"),
}


class LinearTrainer:
    """Logistic regression, or ridge regression, over scaled numbers and one-hot categories.

    Missing numbers become the mean, missing or unseen categories no category. Parameters: C
    (classification) or alpha (regression), max_iter, tol. There are no rounds to report.
    """

    flavor = "sklearn"
    requirements = ("scikit-learn", "pandas", "numpy")
    imports = (
        "sklearn.compose",
        "sklearn.impute",
        "sklearn.linear_model",
        "sklearn.pipeline",
        "sklearn.preprocessing",
    )

    def fit(
        self,
        frame: "pd.DataFrame",
        target: "pd.Series[float]",
        *,
        kind: Kind,
        parameters: Parameters,
        seed: int,
        on_round: OnRound,
    ) -> object:
        from sklearn.compose import make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        require_trainable(target, kind)
        for name in parameters:
            if name not in _ALLOWED[kind]:
                raise UsageError(
                    f"model.parameters.{name} is no parameter of LinearTrainer; allowed for "
                    f"{kind} are {', '.join(_ALLOWED[kind])}"
                )
        settings: dict[str, Any] = dict(parameters)
        categories = list(frame.select_dtypes("category").columns)
        numbers = [name for name in frame.columns if name not in categories]
        columns = make_column_transformer(
            (
                make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()),
                numbers,
            ),
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), categories),
        )
        if kind == "binary_classification":
            settings = {"max_iter": 1000, **settings}
            last = LogisticRegression(solver="lbfgs", random_state=seed, **settings)
        else:
            last = Ridge(solver="cholesky", random_state=seed, **settings)
        values = target.to_numpy()
        if kind == "binary_classification":
            values = values.astype("int8")
        return make_pipeline(columns, last).fit(frame, values)

    def predict(self, model: object, frame: "pd.DataFrame") -> "np.ndarray":
        import numpy as np

        if not len(frame):
            return np.empty(0)
        pipeline: Any = model
        if hasattr(pipeline, "predict_proba"):
            return np.asarray(pipeline.predict_proba(frame)[:, 1], dtype=np.float64)
        return np.asarray(pipeline.predict(frame), dtype=np.float64)

    def importance(self, model: object) -> Mapping[str, float]:
        """Absolute coefficients on the scaled columns; each category counts for itself."""
        pipeline: Any = model
        names = pipeline[0].get_feature_names_out()
        weights = pipeline[-1].coef_.ravel()
        return {
            str(name).partition("__")[2]: abs(float(weight))
            for name, weight in zip(names, weights, strict=True)
        }
