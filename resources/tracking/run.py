"""What one training writes down."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import UsageError
from resources.tracking.client import attempt, storage_errors
from resources.tracking.models import LoggedModel, save_model

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow import MlflowClient

DIGEST_TAG = "signalbox.digest"
ROWS_TAG = "signalbox.rows"
SNAPSHOT_TAG = "signalbox.snapshot."
PARAMETER_LENGTH = 6000  # MLflow's limit, in characters
METRICS_PER_BATCH = 1000  # MLflow's limit
FLUSH_SECONDS = 5.0  # how far the charts of a running training may lag

_NAME = re.compile(r"\w[\w. -]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def dataset_digest(digest: str) -> str:
    """A dataset's digest as MLflow can hold it: "sb1:" and 32 hexadecimal digits.

    MLflow allows 36 characters, a SHA-256 has 64: this keeps its first 128 bits. The whole
    digest stands beside it as a tag.
    """
    if not _SHA256.fullmatch(digest):
        raise UsageError(
            f"the dataset digest {digest!r} is not a SHA-256, 64 lower-case hexadecimal digits "
            "are allowed: pass the digest of the snapshot's manifest"
        )
    return f"sb1:{digest[:32]}"


class TrackedRun:
    """One MLflow run, open as long as `Tracking.run` is entered. Not for several threads."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._uri = uri
        self._experiment_id = experiment_id
        self._pending: list[Any] = []
        self._flushed = time.monotonic()
        self._parameters: dict[str, str] = {}
        self._long: dict[str, str] = {}
        self._model_id: str | None = None

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Parameters as text; what is too long is cut with a mark, whole in parameters.json."""
        from mlflow.entities import Param

        texts = {
            key: value if isinstance(value, str) else _text(value)
            for key, value in parameters.items()
        }
        long = {key: text for key, text in texts.items() if len(text) > PARAMETER_LENGTH}
        self._long.update(long)
        short = {key: _cut(text, PARAMETER_LENGTH) for key, text in texts.items()}
        listed = [Param(key, text) for key, text in short.items()]
        attempt(self._uri, lambda: self._client.log_batch(self.run_id, params=listed))
        if long:
            self._write("parameters.json", json.dumps(self._long, indent=2).encode())
        self._parameters.update(short)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics, at once; those logged after `log_model` show on the model too."""
        self._collect(metrics, step or 0)
        self.flush()

    def log_round(self, round_: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one training round, sent in batches (every 5 s, and when the run ends)."""
        self._collect(metrics, round_)
        waited = time.monotonic() - self._flushed
        if len(self._pending) >= METRICS_PER_BATCH or waited >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends the rounds collected so far."""
        while self._pending:
            batch = self._pending[:METRICS_PER_BATCH]
            attempt(self._uri, partial(self._client.log_batch, self.run_id, batch))
            del self._pending[: len(batch)]
        self._flushed = time.monotonic()

    def log_snapshot(self, name: str, digest: str, source: str, rows: int) -> None:
        """The dataset that this run trains on, as an MLflow input.

        Args:
            digest: SHA-256 of the snapshot, 64 hexadecimal digits. MLflow's own digest of a
                frame samples it.
            source: where it can be read: a path or URI.
            rows: number of rows that the training reads.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=dataset_digest(digest),
            source_type="s3" if source.startswith("s3:") else "local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": rows}),
        )
        tags = [
            InputTag("mlflow.data.context", "training"),
            InputTag(DIGEST_TAG, digest),
            InputTag(ROWS_TAG, str(rows)),
        ]
        listed = [DatasetInput(dataset, tags)]
        attempt(self._uri, lambda: self._client.log_inputs(self.run_id, listed))
        tag = SNAPSHOT_TAG + name
        attempt(self._uri, lambda: self._client.set_tag(self.run_id, tag, digest))

    def log_model(
        self,
        model: object,
        flavor: str,
        *,
        name: str,
        input_example: pd.DataFrame,
        predictions: np.ndarray[Any, Any],
        requirements: Sequence[str],
    ) -> LoggedModel:
        """Stores the model on this run and registers it as the next version of `name`.

        Args:
            flavor: MLflow's name of the kind of model: "lightgbm", "sklearn".
            input_example: rows as the model takes them; the signature is inferred from them.
            predictions: the model's output for those rows, shape (rows,).
            requirements: distributions needed to load it, pinned to the installed versions.
        """
        self.flush()
        entry = attempt(
            self._uri,
            lambda: self._client.create_logged_model(
                self._experiment_id,
                name=name,
                source_run_id=self.run_id,
                params=self._parameters,
            ),
        )
        finish = partial(self._client.finalize_logged_model, entry.model_id)
        try:
            with storage_errors():
                digest = self._upload(
                    entry, model, flavor, input_example, predictions, requirements=requirements
                )
        except BaseException:
            with suppress(Exception):  # the reason must arrive, not what follows from it
                finish("FAILED")
            raise
        attempt(self._uri, partial(finish, "READY"))
        version = self._register(name, entry, digest)
        self._model_id = entry.model_id
        return LoggedModel(version=version, uri=f"models:/{name}/{version}", digest=digest)

    def log_document(self, name: str, document: Mapping[str, object]) -> None:
        """A JSON document, stored under that name."""
        self._write(name, json.dumps(document, indent=2, sort_keys=True).encode())

    def log_figure(self, name: str, png: bytes) -> None:
        """A picture, stored as figures/<name>.png."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"the figure name {name!r} is no file name, letters, digits, '_', '.', '-' and "
                "spaces are allowed: rename it"
            )
        self._write(f"{name}.png", png, folder="figures")

    def _upload(
        self,
        entry: Any,
        model: object,
        flavor: str,
        input_example: pd.DataFrame,
        predictions: np.ndarray[Any, Any],
        *,
        requirements: Sequence[str],
    ) -> str:
        from mlflow.entities import LoggedModelOutput

        with tempfile.TemporaryDirectory(prefix="signalbox-") as temporary:
            folder = Path(temporary, "model")
            digest = save_model(
                folder,
                model,
                flavor,
                identity={
                    "run_id": self.run_id,
                    "model_id": entry.model_id,
                    "artifact_path": entry.artifact_location,
                },
                input_example=input_example,
                predictions=predictions,
                requirements=requirements,
            )
            attempt(
                self._uri,
                lambda: self._client.log_model_artifacts(entry.model_id, str(folder)),
            )
        output = LoggedModelOutput(entry.model_id, step=0)
        attempt(self._uri, lambda: self._client.log_outputs(self.run_id, [output]))
        self._tag_model(entry.model_id, DIGEST_TAG, digest)
        return digest

    def _register(self, name: str, entry: Any, digest: str) -> int:
        from mlflow.exceptions import MlflowException

        try:
            attempt(self._uri, lambda: self._client.create_registered_model(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = attempt(
            self._uri,
            lambda: self._client.create_model_version(
                name,
                # Its place, not models:/<id>: MLflow resolves that through the process's global
                # tracking URI, which may be another store.
                source=entry.artifact_location,
                run_id=self.run_id,
                tags={DIGEST_TAG: digest},
                model_id=entry.model_id,
            ),
        )
        version = int(made.version)
        # The key by which MLflow's UI links a logged model to its registered version.
        link = json.dumps([{"name": name, "version": version}])
        self._tag_model(entry.model_id, "mlflow.modelVersions", link)
        return version

    def _tag_model(self, model_id: str, key: str, value: str) -> None:
        attempt(self._uri, lambda: self._client.set_logged_model_tags(model_id, {key: value}))

    def _collect(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._pending.extend(
            Metric(key, float(value), now, step, model_id=self._model_id)
            for key, value in metrics.items()
        )

    def _write(self, name: str, content: bytes, folder: str | None = None) -> None:
        with storage_errors(), tempfile.TemporaryDirectory(prefix="signalbox-") as temporary:
            path = Path(temporary, name)
            path.write_bytes(content)
            attempt(self._uri, lambda: self._client.log_artifact(self.run_id, str(path), folder))


def _text(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return str(value)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = f"... [cut, {len(text)} characters, whole in parameters.json]"
    return text[: limit - len(mark)] + mark
