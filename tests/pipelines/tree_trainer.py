"""A trainer of the user's own: a decision tree by scikit-learn, for regression."""

from collections.abc import Mapping
from typing import Any


class TreeTrainer:
    """One tree; the only parameter is max_depth."""

    flavor = "sklearn"
    requirements = ("scikit-learn", "pandas", "numpy")

    def fit(
        self, frame: Any, target: Any, *, kind: str, parameters: Any, seed: int, on_round: Any
    ) -> object:
        from sklearn.compose import make_column_transformer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder
        from sklearn.tree import DecisionTreeRegressor

        categories = list(frame.select_dtypes("category").columns)
        columns = make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), categories), remainder="passthrough"
        )
        return make_pipeline(columns, DecisionTreeRegressor(random_state=seed, **parameters)).fit(
            frame, target
        )

    def predict(self, model: Any, frame: Any) -> Any:
        return model.predict(frame)

    def importance(self, model: Any) -> Mapping[str, float]:
        names = model[0].get_feature_names_out()
        return dict(zip(names, model[-1].feature_importances_.tolist(), strict=True))
