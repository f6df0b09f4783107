"""How a run's work on a partition ended, for the partition's history."""

from collections.abc import Callable
from datetime import UTC, datetime

from platform_assets.domain.checkpoints import TrainingInterruptedError
from platform_assets.domain.completeness import CLEAR, REFUSED, CompletenessReport
from platform_assets.domain.errors import HeldError, RefusedError
from platform_assets.domain.lease import LeaseLostError
from platform_assets.domain.partition import PartitionKey
from platform_assets.line.clearance import judged_for
from platform_assets.line.services import Outcome, Services
from resources.ledger.records import VerdictRecord


def noted(
    services: Services, stage: str, key: PartitionKey, run_id: str, work: Callable[[], Outcome]
) -> Outcome:
    """Do the work on a partition; what keeps it from being made is written down, with the run.

    Rows that a run refuses are a verdict on the partition: it is not clear, whatever its hours
    are, until they are others or a run has built it.

    Raises:
        what the work raises.
    """
    asset, name = services.spec.asset(stage), str(key)
    try:
        outcome = work()
    except HeldError as error:
        reason = error.held.get(name, str(error))
        services.note_outcome(asset, name, "held", reason, run_id)
        raise
    except LeaseLostError as error:
        services.note_outcome(asset, name, "failed", str(error), run_id)
        raise
    except RefusedError as error:
        if stage != "features" or not _refuse(services, name, str(error), run_id):
            services.note_outcome(asset, name, REFUSED, str(error), run_id)
        raise
    except TrainingInterruptedError as error:
        services.note_outcome(asset, name, "interrupted", str(error), run_id)
        raise
    except Exception as error:
        services.note_outcome(asset, name, "failed", f"{type(error).__name__}: {error}", run_id)
        raise
    if stage == "features":
        _settle(services, name)
    return outcome


def _refuse(services: Services, name: str, reason: str, run_id: str) -> bool:
    """Record that the rows of a partition were refused; tells whether it was clear until then."""
    record = services.ledger.verdict(services.spec.pipeline, services.spec.asset("features"), name)
    if record is None or record.verdict not in {*CLEAR, REFUSED}:
        return False
    completeness = {k: v for k, v in record.report.items() if k != REFUSED}
    report = CompletenessReport.model_validate({**completeness, "as_of": record.as_of})
    refusal = {"reason": reason, "run_id": run_id, "inputs": judged_for(services, report)}
    _record(services, record, REFUSED, {**completeness, REFUSED: refusal}, reason, run_id)
    return True


def _settle(services: Services, name: str) -> None:
    """What was refused and has been built is as clear as its hours are."""
    asset = services.spec.asset("features")
    found = services.ledger.verdicts_being(services.spec.pipeline, asset, REFUSED, [name])
    for record in found.values():
        completeness = {k: v for k, v in record.report.items() if k != REFUSED}
        report = CompletenessReport.model_validate({**completeness, "as_of": record.as_of})
        _record(services, record, report.verdict, completeness, report.reason(), None)


def _record(
    services: Services,
    before: VerdictRecord,
    verdict: str,
    report: dict[str, object],
    reason: str,
    run_id: str | None,
) -> None:
    now, as_of = datetime.now(UTC), services.clock.as_of()
    services.ledger.record_verdicts(
        [
            VerdictRecord(
                before.pipeline, before.asset, before.partition, verdict, report, as_of, now
            )
        ],
        [services.transition(before.asset, before.partition, verdict, reason, as_of, now, run_id)],
    )
