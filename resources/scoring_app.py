"""MLflow's own scoring server for a model's files, with one more route: what it serves."""

from pathlib import Path
from typing import Any

from platform_assets.domain.serving import Served
from resources.serving import ROUTE
from resources.tracking.client import quiet_mlflow


def scoring_app(folder: Path, model: str, served: Served) -> Any:
    """The application (FastAPI) that `mlflow models serve` runs, and `/signalbox`.

    Args:
        folder: of the model's files, verified; they are loaded here, once.
        served: version and digest of exactly these files.
    """
    quiet_mlflow()
    from mlflow.pyfunc import load_model, scoring_server

    app = scoring_server.init(load_model(str(folder)))
    told = {"model": model, **served.model_dump()}

    async def signalbox() -> dict[str, Any]:
        return told

    app.get(ROUTE)(signalbox)
    return app
