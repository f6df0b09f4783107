"""What would be refused of steps that are not there yet: by the plan of a run, or by definitions.

Admission has the last word, on each Job as it would be sent. What is found here is found before the
first Job of a run is created, and before the code location is loaded at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.definition_config_schema import ConfiguredDefinitionConfigSchema
from dagster._core.definitions.executor_definition import multi_or_in_process_executor

from platform_assets.domain.admission import Admission, Found, Layer, Violation, foresee
from platform_assets.domain.errors import UsageError
from platform_assets.domain.image_spec import IMAGE_TAG
from platform_assets.domain.images import ImageLock
from platform_assets.instance.kubernetes.step_pod import NAME
from resources.images import load_lock

CONFIG_TAG = "dagster-k8s/config"

WITHOUT_CONTAINERS = (
    dg.in_process_executor,
    dg.multiprocess_executor,
    multi_or_in_process_executor,
)
"""Executors whose steps run where the run does."""


@dataclass(frozen=True)
class Planned:
    """A step that would be started.

    Attributes:
        what: for a person, as in "step train" or "op train of job nightly".
        tags: of the op.
    """

    what: str
    tags: Mapping[str, str]


def read_tag(tags: Mapping[str, str]) -> Any:
    """What a tag `dagster-k8s/config` says, as Dagster reads it."""
    text = tags.get(CONFIG_TAG)
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def bad_steps(
    steps: Sequence[Planned], config: Mapping[str, Any], lock: ImageLock, of: str = ""
) -> tuple[Violation, ...]:
    """What of the steps would be refused.

    Args:
        steps: those that would be started.
        config: of the executor.
        lock: the images that may run.
        of: whose executor it is, for a person; empty if that is clear.
    """
    whose = f"{of} executor's" if of else "the executor's"
    layers = [
        Layer(f"{whose} step_k8s_config", config.get("step_k8s_config")),
        Layer(f"{whose} volumes", {"volumes": config.get("volumes")}),
    ]
    # A step may be called as a field is: each entry is looked at by itself.
    by_step = config.get("per_step_k8s_config")
    entries = by_step.values() if isinstance(by_step, Mapping) else ()
    layers += [Layer(f"{whose} per_step_k8s_config", content) for content in entries]
    layers += [Layer(f"the tag {CONFIG_TAG} of {s.what}", read_tag(s.tags)) for s in steps]
    names = [(f"the tag {IMAGE_TAG} of {s.what}", s.tags.get(IMAGE_TAG)) for s in steps]
    names.append((f"{whose} image", config.get("image")))
    return (*_unknown(names, lock), *foresee(layers, lock))


def require_steps(instance: dg.DagsterInstance, run: dg.DagsterRun, lock: ImageLock) -> None:
    """Refuse a run with a step that would be refused, before anything of it is created.

    Raises:
        RefusedError: names each step, image and source.
    """
    plan = run.execution_plan_snapshot_id
    if plan is None:
        return  # of the steps of a run without a plan each is judged when it is asked for
    snapshot = instance.get_execution_plan_snapshot(plan)
    wanted = set(snapshot.step_keys_to_execute)
    steps = [Planned(f"step {s.key}", s.tags or {}) for s in snapshot.steps if s.key in wanted]
    execution = run.run_config.get("execution") or {}
    config = execution.get("config") if isinstance(execution, Mapping) else None
    found = bad_steps(steps, config if isinstance(config, Mapping) else {}, lock)
    Admission({}, found).require(f"run {run.run_id}")


def require_definitions(defs: dg.Definitions, pinned: dg.ExecutorDefinition) -> None:
    """Refuse definitions whose steps would be refused.

    Args:
        defs: all of a code location.
        pinned: the executor that judges what it starts.

    Raises:
        RefusedError: names each op, job, image and source, and each executor that is not judged.
    """
    found = tuple(bad_definitions(defs, pinned, load_lock()))
    Admission({}, found).require("the code location")


def bad_definitions(
    defs: dg.Definitions, pinned: dg.ExecutorDefinition, lock: ImageLock
) -> Iterator[Violation]:
    """What of the definitions would be refused; what is in several jobs is told once."""
    told: set[Violation] = set()
    judging = {executor.executor_creation_fn for executor in (*WITHOUT_CONTAINERS, pinned)}
    for job in defs.get_repository_def().get_all_jobs():
        found: list[Violation] = []
        executor = job.executor_def
        if executor.executor_creation_fn not in judging:
            allowed = ", ".join([NAME, *(e.name for e in WITHOUT_CONTAINERS)])
            why = f"nobody judges what it starts; allowed are {allowed}"
            found.append(Violation(Found("executor", executor.name, None), why, f"job {job.name}"))
        run = Layer(f"the tag {CONFIG_TAG} of job {job.name}", read_tag(job.run_tags))
        found += foresee([run], lock)
        steps = [Planned(f"op {name}", tags) for name, tags in _ops(job.graph)]
        found += bad_steps(steps, _config(job), lock, f"job {job.name}'s")
        yield from (one for one in found if one not in told)
        told.update(found)


def bad_surroundings(
    config: Mapping[str, Any], variables: Mapping[str, str], lock: ImageLock
) -> tuple[Violation, ...]:
    """What a run launcher's config and a code location's variables name that would be refused."""
    config = {name: _said(value, variables) for name, value in config.items()}
    context = variables.get("DAGSTER_CONTAINER_CONTEXT")
    image = variables.get("DAGSTER_CURRENT_IMAGE")
    try:
        inside = json.loads(context) if context else {}
    except ValueError as error:
        raise UsageError(f"DAGSTER_CONTAINER_CONTEXT is no JSON: {error}") from None
    layers = [
        Layer("the run launcher's run_k8s_config", config.get("run_k8s_config")),
        Layer("the run launcher's volumes", {"volumes": config.get("volumes")}),
        Layer("the run launcher's job_image", {"image": config.get("job_image")}),
        Layer("the code location's container context", inside),
        Layer("the code location's image (DAGSTER_CURRENT_IMAGE)", {"image": image}),
    ]
    return (
        *_unknown([("the run launcher's image", config.get("image"))], lock),
        *foresee(layers, lock),
    )


def _said(value: Any, variables: Mapping[str, str]) -> Any:
    """A value of dagster.yaml, which may be the name of a variable."""
    if isinstance(value, Mapping) and set(value) == {"env"}:
        return variables.get(str(value["env"]))
    return value


def _unknown(names: Sequence[tuple[str, Any]], lock: ImageLock) -> Iterator[Violation]:
    for source, name in names:
        if isinstance(name, str):
            try:
                lock.named(name)
            except UsageError as error:
                yield Violation(Found("its name in the lock", name, None), str(error), source)


def _ops(graph: dg.GraphDefinition) -> Iterator[tuple[str, Mapping[str, str]]]:
    for node in graph.nodes:
        if isinstance(node.definition, dg.GraphDefinition):
            yield from ((f"{node.name}.{name}", tags) for name, tags in _ops(node.definition))
        else:
            yield node.name, node.tags


def _config(job: dg.JobDefinition) -> Mapping[str, Any]:
    """What the job's executor would be given by itself, `configured` included.

    A function that `configured` was given may need what only a launch has: then that has the word.
    """
    said = {"config": ((job.run_config or {}).get("execution") or {}).get("config") or {}}
    try:
        result = job.executor_def.apply_config_mapping(said)
    except dg.DagsterConfigMappingFunctionError:
        return {}
    if result.success:
        config = (result.value or {}).get("config")
    else:
        # As with a variable that is set on the cluster alone: what is there stands as it was given.
        config = _given(job.executor_def, said)
    return config if isinstance(config, Mapping) else {}


def _given(executor: dg.ExecutorDefinition, said: Mapping[str, Any]) -> Any:
    schema = executor.config_schema
    if isinstance(schema, ConfiguredDefinitionConfigSchema):
        return schema._config_fn(said["config"])
    return said["config"]
