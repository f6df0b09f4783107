"""What one training writes down."""

from __future__ import annotations

import base64
import json
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.domain.errors import RefusedError, SignalboxError, TransientError, UsageError
from resources.tracking.client import AwayError, storage_errors
from resources.tracking.messages import DIGEST_TAG, Begun, Link, Message
from resources.tracking.models import LoggedModel, save_model
from resources.tracking.spool import Entry

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MODEL_KEY_TAG = "signalbox.model_key"
PARAMETER_LENGTH = 6000  # MLflow's limit, in characters
METRICS_PER_BATCH = 1000  # MLflow's limit
FLUSH_SECONDS = 5.0  # how far the charts of a running training may lag

REFUSALS = (UsageError, RefusedError)
"""What MLflow will not take, however often it is told."""

logger = logging.getLogger(__name__)

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
    """One MLflow run, open as long as `Tracking.run` is entered. Not for several threads.

    What it is told goes to the store at once, rounds every 5 s. Where the store is a server that
    does not answer, it waits in order (messages.py) and the training goes on; only registering
    the model needs the server, and waits for it.
    """

    def __init__(self, link: Link, begun: Begun, entry: Entry | None) -> None:
        self.begun = begun
        self._link = link
        self._entry = entry
        self._outbox: list[Message] = []
        self._pending: list[Message] = []
        self._flushed = link.patience.clock()
        self._away_until: float | None = None
        self._parameters: dict[str, str] = {}
        self._long: dict[str, str] = {}
        self._model_id: str | None = None

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits for a server that is away."""
        if self.begun.run_id is None:
            self.drain(wait=True)
        assert self.begun.run_id is not None
        return self.begun.run_id

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Parameters as text; what is too long is cut with a mark, whole in parameters.json."""
        texts = {
            key: value if isinstance(value, str) else _text(value)
            for key, value in parameters.items()
        }
        long = {key: text for key, text in texts.items() if len(text) > PARAMETER_LENGTH}
        self._long.update(long)
        short = {key: _cut(text, PARAMETER_LENGTH) for key, text in texts.items()}
        self._tell("parameters", values=short)
        if long:
            self._write("parameters.json", json.dumps(self._long, indent=2).encode())
        self._parameters.update(short)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics, at once; those logged after `log_model` show on the model too."""
        self._collect(metrics, step or 0)
        self.flush()

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run; one that is there is replaced."""
        self._tell("tags", values=dict(tags))

    def reopen(self, messages: Sequence[Message]) -> None:
        """Go on with a run that another process had begun.

        Args:
            messages: what that process could not tell; its last word is not the run's any more.
        """
        self._outbox.append({"kind": "reopen", "values": dict(self.begun.tags)})
        self._outbox += [message for message in messages if message["kind"] != "end"]

    def log_round(self, round_: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one training round, sent in batches (every 5 s, and when the run ends)."""
        self._collect(metrics, round_)
        waited = self._link.patience.clock() - self._flushed
        if len(self._pending) >= METRICS_PER_BATCH or waited >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends the rounds collected so far."""
        while self._pending:
            batch = self._pending[:METRICS_PER_BATCH]
            self._outbox.append({"kind": "metrics", "values": batch})
            del self._pending[: len(batch)]
        self._flushed = self._link.patience.clock()
        self.drain()

    def drain(self, *, wait: bool = False) -> bool:
        """Sends what is to be sent; tells whether all of it was.

        Args:
            wait: for a server that is away; else what it does not take is kept for later.

        Raises:
            AwayError: it was waited for in vain.
        """
        clock = self._link.patience.clock
        started = clock()
        if not wait and self._away_until is not None and started < self._away_until:
            self._keep()
            return False
        try:
            self._send()
        except AwayError as error:
            if self._away_until is None:
                logger.warning("%s. The training goes on; what it logs is kept.", error)
            # A server that hangs shall cost no more than a fifth of the training's time.
            self._away_until = clock() + max(FLUSH_SECONDS, 4 * (clock() - started))
            self._keep()
            if not wait:
                return False
            self._link.patience.wait(self._send)
        if self._away_until is not None:
            self._away_until = None
            self._keep()
        return True

    def tell(self, last: str | None = None) -> tuple[bool, list[str]]:
        """Sends what it can, past what is refused for good, for a process that is gone.

        Args:
            last: its last word, to be sent too.

        Returns:
            whether the server answered, and why of each that it refused.

        Raises:
            UsageError, RefusedError: it will not have the run itself.
        """
        if last is not None:
            self._tell_last(last)
        refused: list[str] = []
        while True:
            waiting = len(self._outbox)
            try:
                return self.drain(), refused
            except REFUSALS as error:
                if len(self._outbox) == waiting:
                    raise
                refused.append(str(error))

    def end(self, state: str) -> bool:
        """The run's last word; tells whether MLflow has it, or it is kept."""
        self._tell_last(state)
        done = self.drain(wait=self._entry is None)
        if self._entry is not None and done:
            self._entry.discard()
        return done

    def fail(self, state: str) -> None:
        """As `end`, for a run that an exception has left: its state comes first."""
        self._outbox += [{"kind": "metrics", "values": self._pending}] if self._pending else []
        self._pending = []
        self._outbox.insert(0, _end_message(state))
        try:
            done = self.drain()
        except BaseException:
            self._keep()
            raise
        if done and self._entry is not None:
            self._entry.discard()

    def release(self) -> None:
        """Leave what is still to be told to settling.py."""
        if self._entry is not None:
            self._entry.release()

    def restore(self, messages: Sequence[Message]) -> str | None:
        """Take over what another process could not tell; gives its last word, if it had one."""
        self._outbox += messages
        return next((str(m["state"]) for m in messages if m["kind"] == "end"), None)

    def log_snapshot(self, name: str, digest: str, source: str, rows: int) -> None:
        """The dataset that this run trains on, as an MLflow input.

        Args:
            digest: SHA-256 of the snapshot, 64 hexadecimal digits. MLflow's own digest of a
                frame samples it.
            source: where it can be read: a path or URI.
            rows: number of rows that the training reads.
        """
        self._tell(
            "dataset",
            name=name,
            short=dataset_digest(digest),
            digest=digest,
            source=source,
            rows=rows,
        )

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
        self.drain(wait=True)
        client, link = self._link.client, self._link
        experiment = self.begun.experiment_id
        mine = {MODEL_KEY_TAG: uuid.uuid4().hex}

        def find() -> Any:
            condition = f"tags.`{MODEL_KEY_TAG}` = '{mine[MODEL_KEY_TAG]}'"
            return next(iter(client.search_logged_models([experiment], condition)), None)

        entry = link.make(
            lambda: client.create_logged_model(
                experiment,
                name=name,
                source_run_id=self.run_id,
                params=self._parameters,
                tags=mine,
            ),
            find,
        )
        finish = partial(client.finalize_logged_model, entry.model_id)
        try:
            with storage_errors():
                digest = self._upload(
                    entry, model, flavor, input_example, predictions, requirements=requirements
                )
        except BaseException:
            with suppress(Exception):  # the reason must arrive, not what follows from it
                finish("FAILED")
            raise
        link.must(partial(finish, "READY"))
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
            client, link = self._link.client, self._link
            link.must(lambda: client.log_model_artifacts(entry.model_id, str(folder)))
        output = LoggedModelOutput(entry.model_id, step=0)

        def find() -> Any:
            outputs = client.get_run(self.run_id).outputs
            listed = outputs.model_outputs if outputs else ()
            return next((True for found in listed if found.model_id == entry.model_id), None)

        link.make(lambda: client.log_outputs(self.run_id, [output]) or True, find)
        self._tag_model(entry.model_id, DIGEST_TAG, digest)
        return digest

    def _register(self, name: str, entry: Any, digest: str) -> int:
        from mlflow.exceptions import MlflowException

        client, link = self._link.client, self._link
        try:
            link.must(lambda: client.create_registered_model(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

        def find() -> Any:
            versions = client.search_model_versions(f"run_id = '{self.run_id}'")
            place = entry.artifact_location
            return next((v for v in versions if (v.name, v.source) == (name, place)), None)

        made = link.make(
            lambda: client.create_model_version(
                name,
                # Its place, not models:/<id>: MLflow resolves that through the process's global
                # tracking URI, which may be another store.
                source=entry.artifact_location,
                run_id=self.run_id,
                tags={DIGEST_TAG: digest},
                model_id=entry.model_id,
            ),
            find,
        )
        version = int(made.version)
        # The key by which MLflow's UI links a logged model to its registered version.
        shown = json.dumps([{"name": name, "version": version}])
        self._tag_model(entry.model_id, "mlflow.modelVersions", shown)
        return version

    def _tag_model(self, model_id: str, key: str, value: str) -> None:
        client = self._link.client
        self._link.must(lambda: client.set_logged_model_tags(model_id, {key: value}))

    def _collect(self, metrics: Mapping[str, float], step: int) -> None:
        now = time.time_ns() // 1_000_000
        self._pending.extend(
            {"key": key, "value": float(value), "at": now, "step": step, "model": self._model_id}
            for key, value in metrics.items()
        )

    def _write(self, name: str, content: bytes, folder: str | None = None) -> None:
        text = base64.b64encode(content).decode()
        self._tell("artifact", name=name, folder=folder, content=text)

    def _tell(self, kind: str, **body: Any) -> None:
        self._outbox.append({"kind": kind, **body})
        self.drain()

    def _tell_last(self, state: str) -> None:
        if self._pending:
            self._outbox.append({"kind": "metrics", "values": self._pending})
            self._pending = []
        self._outbox.append(_end_message(state))

    def _send(self) -> None:
        link = self._link
        if self.begun.run_id is None:
            link.begin(self.begun)
            self._keep()
        while self._outbox:
            try:
                link.send(str(self.begun.run_id), self._outbox[0])
            except TransientError:
                raise
            except Exception:
                del self._outbox[0]  # refused for good: what follows shall arrive all the same
                raise
            del self._outbox[0]

    def _keep(self) -> None:
        if self._entry is not None:
            waiting = [{"kind": "metrics", "values": self._pending}] if self._pending else []
            try:
                self._entry.keep(asdict(self.begun), [*self._outbox, *waiting])
            except SignalboxError as error:  # it still has all of it, as long as it lives
                logger.warning("what MLflow has yet to be told is not kept: %s", error)


def _end_message(state: str) -> Message:
    return {"kind": "end", "state": state, "at": time.time_ns() // 1_000_000}


def _text(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return str(value)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = f"... [cut, {len(text)} characters, whole in parameters.json]"
    return text[: limit - len(mark)] + mark
