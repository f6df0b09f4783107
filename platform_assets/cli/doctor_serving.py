"""What the doctor finds of ledger, aliases, slot and clocks."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from platform_assets.line.services import Services
from resources.ledger.promotions import PromotionRecord
from resources.tracking.registry import look

SKEW = timedelta(minutes=5)
"""How far clocks of machines may be apart before it is called a jump."""


def serving_findings(
    services: Services, now: datetime | None = None
) -> Iterator[tuple[bool, str, str]]:
    """What was found, whether it is good, and what to do: (good, found, advice).

    Args:
        now: of this machine's clock.
    """
    yield from _projection(services)
    yield from _deleted(services)
    yield from _clocks(services, now or datetime.now(UTC))


def _projection(services: Services) -> Iterator[tuple[bool, str, str]]:
    from platform_assets.line.projection import differences

    pipeline = services.spec.pipeline
    _, drifts = differences(services)
    for drift in drifts:
        yield (
            False,
            drift.reason,
            f"`signalbox reconcile {pipeline} --mend` sets aliases and slot right; restart an "
            "endpoint, roll back from a deleted version",
        )
    if not drifts:
        yield True, "aliases, slot and endpoint are as the ledger says", ""


def _deleted(services: Services) -> Iterator[tuple[bool, str, str]]:
    """Versions that were trained and that the registry has no more, champions or not."""
    spec = services.spec
    trained = {
        int(record.detail["model_version"]): record.partition
        for record in services.ledger.versions(spec.asset("model"))
    }
    gone = sorted(set(trained) - look(services.home.mlflow_uri, spec.model.name).versions)
    if gone:
        listed = ", ".join(f"{version} (of {trained[version]})" for version in gone)
        yield (
            False,
            f"in the ledger and deleted in MLflow: version {listed}",
            f"train their dates again if they are needed: materialize {spec.asset('model')}",
        )


def _clocks(services: Services, now: datetime) -> Iterator[tuple[bool, str, str]]:
    """The order of changes is that of their counter; times that contradict it tell of a clock."""
    history = services.ledger.promotions(services.spec.model.name)
    advice = (
        "set the clocks of the machines right (NTP); who is champion does not depend on them, "
        "holds that have an end do"
    )
    for earlier, later in pairwise(history):
        if later.decided_at < earlier.decided_at:
            yield (
                False,
                f"{_dated(later)}, before change {earlier.counter} "
                f"({earlier.decided_at:%Y-%m-%d %H:%M}Z): a clock jumped back",
                advice,
            )
    if history and history[-1].decided_at > now + SKEW:
        yield False, f"{_dated(history[-1])}, in the future of this machine's clock", advice


def _dated(change: PromotionRecord) -> str:
    return f"change {change.counter} of the champion is dated {change.decided_at:%Y-%m-%d %H:%M}Z"
