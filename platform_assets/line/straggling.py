"""Ranks that kept the others waiting: written down and alerted until a training has none."""

from datetime import UTC, datetime

from platform_assets.domain.alert import Alert, Kind
from platform_assets.domain.stragglers import Straggler
from platform_assets.line.launching import STRAGGLER, shortened
from platform_assets.line.services import Services
from resources.ledger.records import FailureRecord


def note(
    services: Services, run_id: str, partition: str, straggler: Straggler, *, replaced: bool
) -> None:
    """Keep that a rank of a training is slow; of the same rank and place once.

    Args:
        services: of the pipeline.
        run_id: of the run that trains; it goes on.
        partition: that it trains.
        straggler: who, where and why.
        replaced: whether another rank takes its place.
    """
    place = straggler.place
    done = "it was replaced" if replaced else "it was left alone"
    record = FailureRecord(
        pipeline=services.spec.pipeline,
        job=STRAGGLER,
        partition=f"{partition} rank {place.rank}",
        run_key=f"{services.spec.pipeline}/{STRAGGLER}/{partition}/{run_id}/{place.pid}",
        run_id=run_id,
        state="STARTED",
        attempts=1,
        step=done,
        cause=place.node or place.host,
        reason=shortened(f"{straggler.reason}; {done}"),
        ended_at=datetime.now(UTC),
    )
    services.failures.note([record], [])


def forget(services: Services, since: datetime) -> None:
    """A training that began then had several ranks, and none of them was slow."""
    services.failures.note([], [r for r in _known(services) if r.ended_at < since])


def straggler_alerts(services: Services) -> tuple[Alert, ...]:
    """The alerts that should be open."""
    spec = services.spec
    return tuple(
        Alert(
            pipeline=spec.pipeline,
            kind=Kind.STRAGGLER,
            subject=f"{spec.asset('model')} {record.partition}",
            concerns=(record.cause,),
            text=record.reason,
            advice=f"see what else runs on {record.cause}, and its disks, network and heat; on "
            f"Kubernetes `kubectl cordon {record.cause}` keeps later trainings away from it; "
            "model.processes.straggler.action: replace has ranks replaced. The step times are on "
            f"the model's page of run {record.run_id}",
        )
        for record in _known(services)
    )


def _known(services: Services) -> list[FailureRecord]:
    return [r for r in services.failures.all(services.spec.pipeline) if r.job == STRAGGLER]
