"""What a run has to tell its MLflow store, as plain data, and how each is told.

A message may be sent twice: what was not answered may have been carried out. MLflow takes the
same metric (key, value, time, step) once, the same parameter again, and replaces tags, artifacts,
inputs and the end; a run is looked for by its key before it is made a second time.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from resources.tracking.client import attempt, storage_errors
from resources.tracking.patience import Patience

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

Message = dict[str, Any]
"""`kind` (parameters, metrics, tags, dataset, artifact, reopen, end) and its own fields; JSON."""

DIGEST_TAG = "signalbox.digest"
ROWS_TAG = "signalbox.rows"
SNAPSHOT_TAG = "signalbox.snapshot."
RUN_KEY_TAG = "signalbox.run_key"
"""Made before the run is, so that it is found if nobody heard the server's answer."""


@dataclass
class Begun:
    """A run as it was begun, whether MLflow has heard of it or not.

    Attributes:
        key: ours, unique.
        started: milliseconds since 1970.
        experiment_id, run_id: MLflow's, once it has.
        tried: whether MLflow was asked to make it.
    """

    key: str
    experiment: str
    name: str
    tags: Mapping[str, str]
    started: int
    experiment_id: str | None = None
    run_id: str | None = None
    tried: bool = False


@dataclass(frozen=True)
class Link:
    """One store: its client, and how long it is waited for.

    Attributes:
        experiment: makes or finds an experiment by its name; gives its id.
    """

    uri: str
    client: MlflowClient
    patience: Patience
    experiment: Callable[[str], str]

    def must(self, call: Callable[[], T]) -> T:
        """An answer that the caller cannot do without; `call` may be made twice."""
        return self.patience.wait(partial(attempt, self.uri, call))

    def make(self, make: Callable[[], T], find: Callable[[], T | None]) -> T:
        """What `make` makes, once; see `Patience.make`."""
        return self.patience.make(
            partial(attempt, self.uri, make), partial(attempt, self.uri, find)
        )

    def begin(self, begun: Begun) -> None:
        """Have MLflow make the run, or find it if it has."""
        if begun.experiment_id is None:
            begun.experiment_id = self.experiment(begun.experiment)
        experiments = [begun.experiment_id]
        if begun.tried:
            condition = f"tags.`{RUN_KEY_TAG}` = '{begun.key}'"
            listed = attempt(
                self.uri, lambda: self.client.search_runs(experiments, condition, max_results=1)
            )
            if listed:
                begun.run_id = str(listed[0].info.run_id)
                return
        begun.tried = True
        made = attempt(
            self.uri,
            lambda: self.client.create_run(
                experiments[0],
                start_time=begun.started,
                tags={**begun.tags, RUN_KEY_TAG: begun.key},
                run_name=begun.name,
            ),
        )
        begun.run_id = str(made.info.run_id)

    def send(self, run_id: str, message: Message) -> None:
        """Tell the store one message.

        Raises:
            AwayError: it did not answer.
        """
        attempt(self.uri, partial(_SENDERS[message["kind"]], self.client, run_id, message))


def _parameters(client: MlflowClient, run_id: str, message: Message) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(*item) for item in message["values"].items()])


def _metrics(client: MlflowClient, run_id: str, message: Message) -> None:
    from mlflow.entities import Metric

    client.log_batch(
        run_id,
        [
            Metric(v["key"], v["value"], v["at"], v["step"], model_id=v["model"])
            for v in message["values"]
        ],
    )


def _dataset(client: MlflowClient, run_id: str, message: Message) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, digest = str(message["source"]), str(message["digest"])
    dataset = Dataset(
        name=message["name"],
        digest=message["short"],
        source_type="s3" if source.startswith("s3:") else "local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({"num_rows": message["rows"]}),
    )
    tags = [
        InputTag("mlflow.data.context", "training"),
        InputTag(DIGEST_TAG, digest),
        InputTag(ROWS_TAG, str(message["rows"])),
    ]
    client.log_inputs(run_id, [DatasetInput(dataset, tags)])
    client.set_tag(run_id, SNAPSHOT_TAG + message["name"], digest)


def _artifact(client: MlflowClient, run_id: str, message: Message) -> None:
    with storage_errors(), tempfile.TemporaryDirectory(prefix="signalbox-") as temporary:
        path = Path(temporary, message["name"])
        path.write_bytes(base64.b64decode(message["content"]))
        client.log_artifact(run_id, str(path), message["folder"])


def _tags(client: MlflowClient, run_id: str, message: Message) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(*item) for item in message["values"].items()])


def _reopen(client: MlflowClient, run_id: str, message: Message) -> None:
    client.update_run(run_id, status="RUNNING")
    _tags(client, run_id, message)


def _end(client: MlflowClient, run_id: str, message: Message) -> None:
    client.set_terminated(run_id, status=message["state"], end_time=message["at"])


_SENDERS: Mapping[str, Callable[[MlflowClient, str, Message], None]] = {
    "parameters": _parameters,
    "metrics": _metrics,
    "dataset": _dataset,
    "tags": _tags,
    "reopen": _reopen,
    "artifact": _artifact,
    "end": _end,
}
