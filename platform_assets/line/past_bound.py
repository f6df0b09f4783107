"""A champion past its bound that nobody can take over from: written down and alerted while so."""

from datetime import UTC, date, datetime

from platform_assets.domain.alert import Alert, Kind
from platform_assets.line.launching import PAST_BOUND, shortened
from platform_assets.line.services import Services
from resources.ledger.records import FailureRecord


def note(services: Services, run_id: str, version: int, day: date, reason: str) -> None:
    """Keep that the champion is past its bound, and why it is not rolled back from.

    Args:
        services: of the pipeline.
        run_id: of the run that has scored it; it did not fail.
        version: of the champion.
        day: the newest date that it was scored on.
        reason: with the figures.
    """
    before = _known(services)
    record = FailureRecord(
        pipeline=services.spec.pipeline,
        job=PAST_BOUND,
        partition=str(version),
        run_key=f"{services.spec.pipeline}/{PAST_BOUND}/{version}/{day}",
        run_id=run_id,
        state="SUCCESS",
        attempts=1,
        step="left",
        cause="",
        reason=shortened(reason),
        ended_at=datetime.now(UTC),
    )
    services.failures.note([record], [old for old in before if old.partition != record.partition])


def forget(services: Services) -> None:
    """The champion was scored, and is not past its bound."""
    services.failures.note([], _known(services))


def past_bound_alerts(services: Services) -> tuple[Alert, ...]:
    """The alert that should be open while the version that was found so is champion."""
    spec = services.spec
    known = _known(services) if spec.serving.rollback else []
    state = services.ledger.alias_state(spec.model.name) if known else None
    return tuple(
        Alert(
            pipeline=spec.pipeline,
            kind=Kind.PAST_BOUND,
            subject=f"{spec.model.name} version {record.partition}",
            text=f"the champion stays in use, it was not rolled back from: {record.reason}",
            advice=f"find out why; `signalbox promotions {spec.pipeline}` has the history, "
            f"`signalbox promote {spec.pipeline} VERSION --evaluate --by YOU` makes another one "
            f'champion, `signalbox rollback {spec.pipeline} --to VERSION --reason "…" --by YOU` '
            f"goes back by hand; run {record.run_id} has the figures",
        )
        for record in known
        if state is not None and record.partition == str(state.version)
    )


def _known(services: Services) -> list[FailureRecord]:
    return [r for r in services.failures.all(services.spec.pipeline) if r.job == PAST_BOUND]
