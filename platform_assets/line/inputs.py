"""What a version was made of: code and inputs as one digest, and whether it has to be made again.

The rule for whoever comes second, in one place: docs/exactly-once.md.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from platform_assets.domain.digests import digest_of
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Outcome, Services
from resources.ledger.records import VersionRecord
from resources.versions import code_version, module_file, trainer_file

INPUTS, RESTATED_BY = "inputs", "restated_by"
"""Keys of a version's detail: the digest of what it was made of, and who asked for it again."""

_MODULES: Mapping[str, tuple[str, ...]] = {
    # Those that make a dataset's rows of landed ones.
    "features": ("resources.dataset", "resources.expressions", "resources.columns"),
    "day": ("platform_assets.domain.manifest",),
    "snapshot": ("platform_assets.domain.manifest",),
    "model": (),
    "evaluation": ("resources.scoring",),
    "champion": ("platform_assets.domain.gate", "resources.evidence"),
}


def stage_version(spec: PipelineSpec, stage: str, origin: str = "") -> str:
    """The code version of a stage: over its declarations and its source files.

    Args:
        spec: the pipeline.
        stage: features, day, snapshot, model, evaluation, champion.
        origin: where the spec stands, for messages.

    Raises:
        SpecError: the trainer does not exist.
    """
    declared: Mapping[str, tuple[BaseModel, ...]] = {
        "features": (spec.dataset, *spec.sources.values()),
        "snapshot": (spec.model,),
        "model": (spec.model,),
        "evaluation": (spec.evaluation.judgement,),
        "champion": (spec.evaluation.gate,),
    }
    files = []
    for module in _MODULES[stage]:
        file = module_file(module)
        assert file is not None, module
        files.append(file)
    if stage == "model":
        files.append(trainer_file(spec.model.trainer, origin))
    return code_version(*declared.get(stage, ()), *files)


def inputs_of(services: Services, stage: str, **inputs: Any) -> str:
    """One digest over the code of a stage and what it is given, 64 hexadecimal digits."""
    return digest_of({"code": stage_version(services.spec, stage), "inputs": inputs})


def made_of(services: Services, inputs: str) -> dict[str, str]:
    """What a version's detail says of how it came to be."""
    return {INPUTS: inputs, **({RESTATED_BY: services.restate} if services.restate else {})}


def done_before(
    services: Services, asset: str, partition: str, inputs: str
) -> VersionRecord | None:
    """The current version, if it was made of these very inputs; else the work has to be done.

    A restatement is asked for by name: it makes the version again, once.
    """
    record = services.ledger.current_version(asset, partition)
    if record is None or record.detail.get(INPUTS) != inputs:
        return None
    if services.restate and record.detail.get(RESTATED_BY) != services.restate:
        return None
    return record


def already_done(
    services: Services,
    record: VersionRecord,
    metadata: Mapping[str, Any],
    upstream: Mapping[str, str],
) -> Outcome:
    """What is told of a partition that another run, or an earlier try, has made of the same."""
    services.tell(
        f"{record.asset} {record.partition} was made of the same inputs by run {record.run_id} "
        f"at {record.committed_at:%Y-%m-%d %H:%M:%S}Z; nothing is to be done"
    )
    return Outcome(
        record.asset,
        record.partition,
        record.data_version,
        changed=False,
        metadata={
            **metadata,
            "rows": record.rows,
            "already_done_by": record.run_id,
        },
        inputs=upstream,
    )
