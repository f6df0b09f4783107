"""A trainer with checkpoints: gradient descent by scikit-learn, for regression."""

import pickle
from collections.abc import Mapping
from typing import Any


class DescentTrainer:
    """One pass over the rows a step; the only parameter is steps."""

    flavor = "sklearn"
    requirements = ("scikit-learn", "pandas", "numpy")

    def fit(
        self,
        frame: Any,
        target: Any,
        *,
        kind: str,
        parameters: Any,
        seed: int,
        on_round: Any,
        checkpointer: Any = None,
    ) -> object:
        from sklearn.linear_model import SGDRegressor

        model, begun = SGDRegressor(random_state=seed, eta0=0.001), 0
        if checkpointer and (found := checkpointer.load()):
            model, begun = pickle.loads(found.state["model"]), found.step
        for step in range(begun + 1, parameters["steps"] + 1):
            model.partial_fit(frame.to_numpy(), target)
            error = float(((model.predict(frame.to_numpy()) - target) ** 2).mean())
            on_round(step, {"train_squared_error": error})
            if checkpointer and step < parameters["steps"] and checkpointer.due(step):
                checkpointer.save(step, {"model": pickle.dumps(model)})
                checkpointer.stop_if_interrupted(step)
        return model

    def predict(self, model: Any, frame: Any) -> Any:
        return model.predict(frame.to_numpy())

    def importance(self, model: Any) -> Mapping[str, float]:
        return {}
