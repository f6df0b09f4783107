"""A champion that could not be scored on the days since: written down and alerted until it was."""

from datetime import UTC, datetime

from platform_assets.domain.alert import Alert, Kind
from platform_assets.domain.attempts import Attempt
from platform_assets.line.launching import UNSCORED, describe, shortened
from platform_assets.line.services import Services
from resources.ledger.records import FailureRecord


def note(services: Services, key: str, found: Attempt, cause: str) -> None:
    """Keep that nobody tries again by himself to score the champion on what `key` names."""
    run, before = found.failed, _known(services)
    assert run is not None
    record = FailureRecord(
        pipeline=services.spec.pipeline,
        job=UNSCORED,
        partition=key.split("/")[-2],
        run_key=key,
        run_id=run.run_id,
        state=run.state,
        attempts=found.attempts,
        step=found.step,
        cause=shortened(cause),
        reason=found.reason,
        ended_at=(run.ended_at or datetime.now(UTC)).astimezone(UTC),
    )
    services.failures.note([record], [old for old in before if old.partition != record.partition])


def forget(services: Services) -> None:
    """The champion was scored, by whichever run."""
    services.failures.note([], _known(services))


def unscored_alerts(services: Services) -> tuple[Alert, ...]:
    """The alert that should be open while the champion is not watched."""
    spec = services.spec
    return tuple(
        Alert(
            pipeline=spec.pipeline,
            kind=Kind.FAILED,
            subject=f"{spec.model.name} champion",
            concerns=(record.partition,),
            text=f"the champion was not scored on the days up to {record.partition}, and would "
            f"not be rolled back from: {describe(record)}",
            advice=f"see run {record.run_id} in Dagster, mend its cause, then re-execute it there; "
            f'`signalbox rollback {spec.pipeline} --reason "…"` goes back by hand',
        )
        for record in _known(services)
    )


def _known(services: Services) -> list[FailureRecord]:
    return [r for r in services.failures.all(services.spec.pipeline) if r.job == UNSCORED]
