"""One training over all its attempts: what it had saved, how often it was interrupted, the cost."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from typing import Any

from platform_assets.domain.checkpoints import CheckpointKey
from platform_assets.domain.errors import SignalboxError, TransientError
from platform_assets.domain.lease import Lease
from platform_assets.line.services import Services
from resources.checkpoints import CheckpointStore, Notice, Saver
from resources.checkpoints.port import Checkpoint, Checkpointer
from resources.tracking.messages import Begun
from resources.tracking.run import TrackedRun
from resources.training import Trainer, takes_checkpointer

TRAINING = "training"
"""Key of a model version's detail: seconds of training, and how often it was interrupted."""

ROUNDS = "signalbox-rounds.json"
"""Part of a checkpoint: the metrics of the rounds so far."""

INTERRUPTED, FAILED, CANCELED = "interrupted", "failed", "canceled"
"""How an attempt ended, as it noted it; one that noted nothing was killed."""

LOOKED_AT = 50
"""So many models of the asset say how often trainings are interrupted."""

Rounds = list[dict[str, float]]


class Course:
    """A training from its first attempt to its model. Without checkpoints it has one attempt.

    Args:
        services: of the pipeline.
        trainer: is given a checkpointer if it names one, and the model's declaration has them on.
        partition: of the model.
        fingerprint: `RunFingerprint.value`.
        lease: of the partition; its token fences older attempts.
        log: for people.
    """

    def __init__(
        self,
        services: Services,
        trainer: Trainer,
        partition: str,
        fingerprint: str,
        lease: Lease,
        log: Callable[[str], None],
    ) -> None:
        spec = services.spec.model.checkpoints
        self.rounds: Rounds = []
        self._log, self._services, self._lease = log, services, lease
        self._run: TrackedRun | None = None
        self._before: dict[str, Any] = {}
        self._lost = 0.0
        self._resumed = 0
        self._started = 0.0
        self.notice = Notice(services.canceled)
        self.saver: Saver | None = None
        if not spec.enabled or not takes_checkpointer(trainer):
            return
        asset = services.spec.asset("model")
        store = CheckpointStore(
            services.home.checkpoints,
            CheckpointKey(asset, partition, fingerprint),
            token=lease.token,
            keep=spec.keep,
        )
        attempts = store.attempts()
        self._before = attempts[-1] if attempts else {}
        interruptions, observed = _seen(services, asset)
        self.saver = Saver(
            store,
            f"the training of {asset} {partition}",
            spec,
            self.notice,
            interruptions=interruptions + self.interruptions,
            observed_seconds=observed,
            guard=lambda: services.leases.require(lease),
            tell=log,
            extra=self._extra,
            loaded=self._loaded,
            first=services.saved,
        )

    @property
    def interruptions(self) -> int:
        """How often the training was interrupted before this attempt.

        An error of its code is no interruption, nor is a person's word.
        """
        return int(self._before.get("interruptions", 0)) + self._interrupted_before

    @property
    def _interrupted_before(self) -> bool:
        return bool(self._before) and self._before.get("ended", INTERRUPTED) == INTERRUPTED

    @property
    def mlflow(self) -> Begun | None:
        """The MLflow run of the attempt before, to be gone on with."""
        known = self._before.get("mlflow")
        names = {field.name for field in fields(Begun)}
        if not isinstance(known, dict) or set(known) != names:
            return None
        return Begun(**known)

    def argument(self) -> dict[str, Checkpointer]:
        """The further argument of the trainer's `fit`."""
        return {"checkpointer": self.saver} if self.saver is not None else {}

    @contextmanager
    def under_way(self, run: TrackedRun) -> Iterator[None]:
        """Have SIGTERM interrupt it, and the next attempt find it, until the block is left."""
        if self.saver is None:
            yield
            return
        self._run = run
        self._note()
        with self.notice.on_sigterm():
            try:
                yield
            except BaseException as error:
                self._note(self._end(error))
                raise

    def told(self) -> dict[str, Any]:
        """For people: on the asset, and on the MLflow run; empty where there is nothing to say."""
        if self.saver is None:
            return {}
        account = self.saver.account
        if account.declined:
            return {"checkpoints_declined": account.declined}
        if not (account.taken or account.failed or self.interruptions or self._resumed):
            return {}
        return {
            "checkpoints": account.taken,
            "checkpoint_seconds": round(account.cost_seconds, 3),
            "checkpoint_interval": self.saver.interval.reason,
            "checkpoints_failed": account.failed,
            "interruptions": self.interruptions,
            "resumed_from_step": self._resumed,
            "seconds_lost": round(self._lost, 1),
        }

    def detail(self) -> dict[str, Any]:
        """For the detail of the model's version: what the next training's interval follows from."""
        if self.saver is None:
            return {}
        trained = round(self.saver.trained_seconds, 1)
        return {TRAINING: {"seconds": trained, "interruptions": self.interruptions, **self.told()}}

    def log_metrics(self, run: TrackedRun) -> None:
        """On the MLflow run."""
        told = self.told()
        numbers = {key: float(v) for key, v in told.items() if isinstance(v, int | float)}
        if numbers:
            run.log_metrics(numbers)
            run.log_tags({f"signalbox.{key}": str(value) for key, value in told.items()})

    def over(self) -> None:
        """Remove the checkpoints: the model is registered."""
        if self.saver is None:
            return
        try:
            self.saver.store.discard()
        except (OSError, SignalboxError) as error:
            self._log(f"the checkpoints in {self.saver.folder} were not removed: {error}")

    def _note(self, ended: str = "") -> None:
        """Write down how far this attempt is, or how it ended."""
        assert self.saver is not None
        assert self._run is not None
        if not ended:
            self._started = time.time()
        document = {
            "run_id": self._lease.holder.run_id,
            "mlflow": asdict(self._run.begun),
            "started_at": self._started,
            "interruptions": self.interruptions,
            "seconds_lost": self._lost,
        }
        try:
            if ended:
                self.saver.store.note_end({**document, "ended": ended})
            else:
                self.saver.store.note(document)
        except (OSError, TransientError) as error:
            goes = "" if ended else "; the training goes on"
            self._log(f"{self.saver.folder} cannot be written ({error}){goes}")

    def _end(self, error: BaseException) -> str:
        if isinstance(error, SignalboxError):
            return INTERRUPTED if error.retryable else FAILED
        if isinstance(error, Exception):
            return FAILED
        with suppress(Exception):  # the error that is on its way is the one to be told
            if self._services.canceled():
                return CANCELED
        return INTERRUPTED

    def _loaded(self, found: Checkpoint | None) -> None:
        if found is not None:
            self._resumed = found.step
            with suppress(KeyError, ValueError):
                self.rounds[:] = json.loads(found.state[ROUNDS])
        if self._before and not self._interrupted_before:
            self._lost = float(self._before.get("seconds_lost", 0.0))
            self._log(f"the attempt before ended as {self._before['ended']}: no interruption")
            self._note()
        elif self._before:
            since = self._before.get("started_at") if found is None else found.about.get("saved_at")
            gone = max(0.0, time.time() - float(since)) if since else 0.0
            self._lost = float(self._before.get("seconds_lost", 0.0)) + gone
            self._log(f"interrupted {self.interruptions} time(s), {gone:.1f} s were lost this time")
            self._note()

    def _extra(self) -> Mapping[str, bytes]:
        # What the next attempt does not tell again has to be in MLflow, or in the home's spool.
        if self._run is not None:
            self._run.flush()
        return {ROUNDS: json.dumps(self.rounds).encode()}


def _seen(services: Services, asset: str) -> tuple[int, float]:
    """Interruptions and seconds of the asset's trainings before."""
    seen = [v.detail.get(TRAINING) for v in services.ledger.versions(asset)[-LOOKED_AT:]]
    known = [found for found in seen if isinstance(found, dict)]
    return (
        sum(int(found.get("interruptions", 0)) for found in known),
        sum(float(found.get("seconds", 0.0)) for found in known),
    )
