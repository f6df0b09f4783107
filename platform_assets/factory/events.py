"""Outcomes as Dagster events, the same for a run of one partition and of many."""

import base64
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from platform_assets.domain.checkpoints import TrainingInterruptedError
from platform_assets.domain.errors import HeldError, RefusedError, TransientError
from platform_assets.domain.interruptions import SAVED_TAG
from platform_assets.domain.partition import PartitionKey
from platform_assets.domain.spec import PipelineSpec
from platform_assets.factory.grid import asset_key, partition_tags
from platform_assets.instance.claiming import RETRIES, RETRY_SECONDS, in_lane
from platform_assets.instance.kubernetes.step_pod import STEP_KEY
from platform_assets.line.features import SourceChange
from platform_assets.line.services import Outcome, Services

NO_AUTOMATIC_EVENT = "__source_asset_observation__"
"""With this metadata on an output, Dagster logs no materialization of its own for it.

A run over several partitions would otherwise log one more event a partition, all with the same
data version, and hide ours. Dagster uses the key for the same purpose; a test guards it.
"""

HELD_CHECK = "clear"
"""The asset check that shows whether the last run's partitions were clear or held."""

RESTATE_TAG = "signalbox/restate"
"""A run with this tag set to "true" makes its partitions again, though nothing has changed."""

Checks = Callable[[Sequence[Outcome]], Iterable[dg.AssetCheckResult]]

_PLACE = re.compile(r"(?P<pod>[^/\s]+)/(?P<container>\S+) on (?P<node>\S+) runs ")
"""How the executor of the cluster words what it has seen start."""

MAIN_CONTAINER = "dagster"
"""Name that dagster-k8s gives to the container that a step is in."""

POD = "HOSTNAME"
"""Variable in which a container finds the name of its pod, unless the pod asks for another one."""

PATIENCE_SECONDS, LOOK_SECONDS = 15.0, 0.2
"""How long a step waits for what its container runs to be compared, and between two looks."""

_WAITED: set[tuple[str, str]] = set()
"""Run and pod for which that has been waited once, in vain or not."""

CANCELED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
"""States of a run that somebody has asked to be ended."""


def opened(context: dg.AssetExecutionContext, spec: PipelineSpec) -> Services:
    """The services of a pipeline for a run: its log, and whether it restates."""
    tags = context.run.tags
    # A retry belongs to the same restatement: what the first try has made again stands.
    asked_by = tags.get("dagster/backfill") or context.run.root_run_id or context.run.run_id
    restate = asked_by if tags.get(RESTATE_TAG) == "true" else ""
    run_id, instance = context.run.run_id, context.instance

    def canceled() -> bool:
        found = instance.get_run_by_id(run_id)
        return found is None or found.status in CANCELED

    return Services.open(
        spec,
        restate=restate,
        tell=context.log.info,
        ran=partial(what_ran, context),
        canceled=canceled,
        saved=lambda: instance.add_run_tags(run_id, {SAVED_TAG: run_id}),
    )


def what_ran(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, patience: float | None = None
) -> dict[str, str]:
    """What the executor has noted on this run of the container that the step is in.

    It asks the cluster as soon as the step has begun, and in the pod of a step that is waited for:
    once in a process, for who asks has not written anything yet. Outside of a cluster, nothing.
    Of init containers and sidecars, and of the pods of other attempts, it notes the same.

    Args:
        patience: seconds; None: PATIENCE_SECONDS.
    """
    if not os.environ.get("SIGNALBOX_IMAGE"):
        return {}
    found = _noted(context)
    attempt = (context.run.run_id, os.environ.get(POD, ""))
    if found or not os.environ.get(STEP_KEY) or attempt in _WAITED:
        return found
    patience = PATIENCE_SECONDS if patience is None else patience
    end = time.monotonic() + patience
    while not found and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        found = _noted(context)
    _WAITED.add(attempt)
    if not found:
        context.log.warning(
            f"nobody has compared this container with images.lock.yaml within {patience:.0f} s: "
            "the cluster, or the run's worker, is away. What is made stands without its imageID, "
            "and is compared when the step ends"
        )
    return found


def _noted(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> dict[str, str]:
    pod = os.environ.get(POD)
    step = context.get_step_execution_context().step.key
    records = context.instance.get_records_for_run(
        context.run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT
    ).records
    for record in reversed(records):
        event = record.event_log_entry.dagster_event
        if event is None or event.step_key != step:
            continue
        metadata = event.engine_event_data.metadata
        place = _PLACE.match(event.message or "")
        if "imageID" not in metadata or place is None or place["container"] != MAIN_CONTAINER:
            continue
        if place["pod"] == (pod or place["pod"]):
            return {"image_id": str(metadata["imageID"].value), **place.groupdict()}
    return {}


def as_metadata(values: Mapping[str, Any], figures: Mapping[str, bytes]) -> dict[str, Any]:
    """Plain values and images as Dagster metadata."""
    metadata: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict | list | tuple):
            metadata[name] = dg.MetadataValue.json(value)
        elif isinstance(value, str) and value.startswith(("http://", "https://")):
            metadata[name] = dg.MetadataValue.url(value)
        elif value is not None:
            metadata[name] = value
    if isinstance(values.get("rows"), int):
        metadata["dagster/row_count"] = values["rows"]
    for title, png in figures.items():
        encoded = base64.b64encode(png).decode()
        metadata[title] = dg.MetadataValue.md(f"![{title}](data:image/png;base64,{encoded})")
    return metadata


def materialization(
    spec: PipelineSpec, outcome: Outcome, code_version: str, backfill_id: str | None
) -> dg.AssetMaterialization:
    """The event of one partition, with its own data version and provenance."""
    partition = PartitionKey.parse(outcome.partition) if outcome.partition else None
    tags = {
        "dagster/data_version": outcome.data_version,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": code_version,
        **{
            f"dagster/input_data_version/{upstream}": version
            for upstream, version in outcome.inputs.items()
        },
    }
    if backfill_id:
        tags["dagster/backfill"] = backfill_id
    return dg.AssetMaterialization(
        asset_key=asset_key(outcome.asset),
        partition=_key(spec, partition),
        metadata=as_metadata(outcome.metadata, outcome.figures),
        tags={**tags, **(partition_tags(spec, partition) if partition else {})},
    )


def _key(spec: PipelineSpec, partition: PartitionKey | None) -> str | None:
    from platform_assets.factory.grid import dagster_key

    return dagster_key(spec, partition) if partition else None


def source_event(
    spec: PipelineSpec, change: SourceChange
) -> dg.AssetMaterialization | dg.AssetObservation:
    """What the landing zone now holds of a source partition.

    Whole: the producer has materialized it. Else it is an observation, hours of hours.
    """
    report = change.report
    partition = PartitionKey.parse(change.partition)
    metadata = {
        "verdict": report.verdict.value,
        "hours": f"{report.observed} of {report.expected}",
        "hours_observed": report.observed,
        "rows": report.rows,
        "missing": [hour.isoformat() for hour in report.missing],
        "not_due": [hour.isoformat() for hour in report.not_due],
        "rejected": dict(report.rejected),
    }
    kind = dg.AssetMaterialization if report.verdict == "complete" else dg.AssetObservation
    return kind(
        asset_key=asset_key(change.asset),
        partition=_key(spec, partition),
        metadata=as_metadata(metadata, {}),
        tags={
            "dagster/data_version": change.data_version,
            "dagster/data_version_is_user_provided": "true",
            **partition_tags(spec, partition),
        },
    )


def _image() -> dict[str, str]:
    named = os.environ.get("SIGNALBOX_IMAGE", "").strip()
    return {"image": named} if named else {}


def refusal_event(
    spec: PipelineSpec, stage: str, name: str, verdict: str, reason: str, run_id: str
) -> dg.AssetObservation:
    """What kept a run from making a partition, as it is seen on the partition in the UI.

    The asset check speaks of an asset; of a partition it would tell only the run that came last.
    """
    partition = PartitionKey.parse(name)
    return dg.AssetObservation(
        asset_key=asset_key(spec.asset(stage)),
        partition=_key(spec, partition),
        description=f"{verdict}: {reason}",
        metadata={"verdict": verdict, "reason": reason, "run": run_id},
        tags=partition_tags(spec, partition),
    )


def run_partitions(
    context: dg.AssetExecutionContext,
    spec: PipelineSpec,
    stage: str,
    code_version: str,
    work: Callable[[PartitionKey, HeldError | None], Outcome],
    follower: str | None = None,
    ask: Callable[[PartitionKey], object] | None = None,
    also: Checks | None = None,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
    """Do the work of a run's partitions, in a slot of its lane; see `work_in_turn`.

    A run of which nothing is clear needs no slot: it is refused before it would wait for one.

    Args:
        work: is handed the refusal of a partition that is not to be worked on, which it raises.
        ask: raises HeldError for a partition that is not clear now; the work asks again itself.

    Raises:
        dagster.RetryRequested, dagster.Failure: as `in_lane`; nothing was done.
    """
    refusals = _held_alike(map(PartitionKey.parse, context.partition_keys), ask)
    if refusals:
        yield from work_in_turn(
            context, spec, stage, code_version, lambda key: work(key, refusals[key]), follower, also
        )
        return
    with in_lane(context):
        yield from work_in_turn(
            context, spec, stage, code_version, lambda key: work(key, None), follower, also
        )


def _held_alike(
    keys: Iterable[PartitionKey], ask: Callable[[PartitionKey], object] | None
) -> dict[PartitionKey, HeldError]:
    """Why partitions are held, if all of them are; nothing as soon as one is clear."""
    held: dict[PartitionKey, HeldError] = {}
    if ask is None:
        return held
    for key in keys:
        try:
            ask(key)
        except HeldError as error:
            held[key] = error
            continue
        except Exception:  # noqa: BLE001 - the work meets it again, and its neighbours go on
            return {}
        return {}
    return held


def work_in_turn(
    context: dg.AssetExecutionContext,
    spec: PipelineSpec,
    stage: str,
    code_version: str,
    work: Callable[[PartitionKey], Outcome],
    follower: str | None = None,
    also: Checks | None = None,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
    """Do the work of a run's partitions one by one; each counts as soon as it is done.

    Refused and failing partitions do not stop their neighbours: what is ready is committed, then
    the run fails and names the refused and the failed, the first error that nobody expected being
    its cause. Where some failed for a transient reason and none for another, the step is tried
    again.

    Args:
        follower: a stage that holds whatever this one holds. Where the same run goes on to it,
            the run fails there: a failure here would keep it from the neighbours too. What is
            refused for another reason it might take as it was before: then the run fails here.
        also: further checks, of what was done.
    """
    name = spec.asset(stage)
    followed = follower is not None and (
        asset_key(spec.asset(follower)) in context.job_def.asset_layer.selected_asset_keys
    )
    held: dict[str, str] = {}
    refused: dict[str, str] = {}
    failed: dict[str, Exception] = {}
    short: dict[str, Any] = {}
    outcomes: list[Outcome] = []

    def refuse(key: str, verdict: str, reason: str) -> None:
        context.log_event(refusal_event(spec, stage, key, verdict, reason, context.run.run_id))

    keys = sorted(context.partition_keys, key=PartitionKey.parse)
    for text in keys:
        try:
            outcome = work(PartitionKey.parse(text))
        except HeldError as error:
            held |= error.held
            refuse(text, "held", error.held.get(text, str(error)))
            context.log.error(str(error))
            continue
        except RefusedError as error:
            refused[text] = str(error)
            refuse(text, "refused", str(error))
            context.log.error(str(error))
            continue
        except TrainingInterruptedError as error:
            # No failure, and no time for the neighbours: the process is to go.
            context.log.warning(str(error))
            raise DagsterExecutionInterruptedError from error
        except Exception as error:  # noqa: BLE001 - raised below, after the neighbours
            failed[text] = error
            refuse(text, "failed", f"{type(error).__name__}: {error}")
            context.log.error(f"{text} failed: {''.join(traceback.format_exception(error))}")
            continue
        outcomes.append(outcome)
        where = {**_image(), **what_ran(context)}
        outcome = replace(outcome, metadata={**outcome.metadata, **where})
        if outcome.metadata.get("short"):
            short[text] = outcome.metadata["short"]
            context.log.warning(f"{name} {text} is short of something: {short[text]}")
        context.log_event(
            materialization(spec, outcome, code_version, context.run.tags.get("dagster/backfill"))
        )
    done = len(outcomes)
    yield dg.AssetCheckResult(
        asset_key=asset_key(name),
        check_name=HELD_CHECK,
        passed=not (held or refused or failed),
        description=f"{done} of {len(keys)} partition(s) were clear"
        + (f", {len(short)} of them by acceptance or waiver" if short else ""),
        metadata={
            "short": dg.MetadataValue.json(short),
            "held": dg.MetadataValue.json({**held, **refused}),
            "failed": dg.MetadataValue.json({key: str(why) for key, why in failed.items()}),
            "partitions": len(keys),
        },
    )
    if also is not None:
        yield from also(outcomes)
    lasting = [error for error in failed.values() if not isinstance(error, TransientError)]
    named = _failure(name, {**held, **refused}, failed)
    if lasting:
        if len(keys) == 1:
            raise lasting[0]
        raise named from lasting[0]
    if failed:
        named.__cause__ = next(iter(failed.values()))
        raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=RETRY_SECONDS) from named
    if refused or (held and not (done and followed)):
        raise named
    yield dg.MaterializeResult(asset_key=asset_key(name), metadata={NO_AUTOMATIC_EVENT: True})


def _failure(asset: str, held: Mapping[str, str], failed: Mapping[str, Exception]) -> dg.Failure:
    """The end of a run of which some partitions were not made: all of them, each with its reason.

    A refusal is not tried again by any policy of a job: trying again brings no hour.
    """
    said = [str(HeldError(asset, held))] if held else []
    if failed:
        listed = "; ".join(f"{key}: {type(why).__name__}: {why}" for key, why in failed.items())
        said.append(f"{asset} failed for {len(failed)} partition(s). {listed}")
    return dg.Failure(
        description=" ".join(said),
        metadata={
            "held": dg.MetadataValue.json(dict(held)),
            "failed": dg.MetadataValue.json({key: str(why) for key, why in failed.items()}),
        },
        allow_retries=bool(failed),
    )
