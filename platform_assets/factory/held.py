"""What is held among the live days as an asset check: it stays seen although no run says it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import dagster as dg

from platform_assets.domain.completeness import CLEAR, HOUR, Verdict
from platform_assets.domain.digests import digest_of
from platform_assets.domain.partition import PartitionKey, local_hours
from platform_assets.factory.events import HELD_CHECK
from platform_assets.factory.grid import asset_key
from platform_assets.line.services import Services

DIGEST = "signalbox/held"
"""Metadata of the check by which the next look knows whether anything has changed."""

ROWS = 100
"""Of the table; the JSON beside it has all."""

FILLING = (Verdict.ABSENT, Verdict.PARTIAL)


def held_check(
    instance: dg.DagsterInstance, services: Services, held: Mapping[str, str]
) -> list[dg.AssetCheckEvaluation]:
    """The check `clear` of the features, if it has to say something else than it does.

    A partition whose day is not over and that lacks nothing but time waits: it does not fail the
    check. A run's own verdict is left alone as long as nothing is held.

    Args:
        instance: holds what the check said last.
        services: of the pipeline.
        held: why partitions may not leave; those of other assets are left out.
    """
    spec, as_of = services.spec, services.clock.as_of()
    asset = spec.asset("features")
    reasons = {name: why for name, why in held.items() if PartitionKey.parse(name).key is not None}
    standing = services.ledger.verdicts_but(spec.pipeline, asset, CLEAR) if reasons else {}
    found = {name: standing[name].verdict for name in reasons.keys() & standing.keys()}
    found |= services.ledger.verdict_words(spec.pipeline, asset, reasons.keys() - found.keys())
    verdicts = {name: found.get(name, "unknown") for name in reasons}

    def waits(name: str) -> bool:
        if verdicts[name] not in FILLING:
            return False
        hours = local_hours(PartitionKey.parse(name).date, spec.partitions.timezone)
        return hours[-1] + HOUR > as_of

    waiting = {name: why for name, why in sorted(reasons.items()) if waits(name)}
    stuck = {name: why for name, why in sorted(reasons.items()) if name not in waiting}
    digest = digest_of({"held": stuck, "waiting": sorted(waiting)})
    key = dg.AssetCheckKey(asset_key(asset), HELD_CHECK)
    shown = _shown(instance, key)
    if shown == digest or (shown is None and not stuck):
        return []
    return [
        dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=not stuck,
            description=f"{len(stuck)} live partition(s) are held, {len(waiting)} wait for hours "
            "that are not due yet",
            metadata={
                "held": dg.MetadataValue.json(stuck),
                "reasons": dg.MetadataValue.md(_table(stuck, verdicts)),
                "verdicts": dg.MetadataValue.json(dict(Counter(verdicts[n] for n in stuck))),
                "waiting": dg.MetadataValue.json(waiting),
                "as_of": as_of.isoformat(),
                DIGEST: digest,
            },
        )
    ]


def _shown(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> str | None:
    """The digest of what the check says, if it is a look that said it and not a run."""
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    event = latest.event.dagster_event if latest and latest.event else None
    said: Any = event.event_specific_data if event else None
    if not isinstance(said, dg.AssetCheckEvaluation) or DIGEST not in said.metadata:
        return None
    return str(said.metadata[DIGEST].value)


def _table(held: Mapping[str, str], verdicts: Mapping[str, str]) -> str:
    lines = ["| partition | verdict | what it lacks |", "|---|---|---|"]
    for name, why in list(held.items())[:ROWS]:
        cells = (name, verdicts[name], why)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if len(held) > ROWS:
        lines.append(f"\n{len(held) - ROWS} more stand in `held`.")
    return "\n".join(lines)
