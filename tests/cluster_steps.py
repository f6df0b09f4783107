"""Steps that run as pods of the fake cluster, under dagster-k8s's executor and the pinned one."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from platform_assets.domain.interruptions import SAVED_TAG
from platform_assets.domain.processes import ProcessesSpec
from platform_assets.instance.kubernetes.step_pod import STEP_KEY, step_pod_executor
from resources.checkpoints import (
    CheckpointKey,
    CheckpointsSpec,
    CheckpointStore,
    Interrupted,
    Notice,
    Saver,
)

LASTS = 25
"""Seconds; a step that lasts is ended by something else."""

PATIENCE = 4.0
"""Seconds that a step waits for the executor's word."""

STEPS = "FAKE_STEPS"
"""Variable of the pods: the folder in which a step notes that it has started."""

if os.environ.get(STEP_KEY):
    stock = pinned = never = step_pod_executor()  # the pod of a step starts no other
else:
    from tests.cluster_executors import never, pinned, stock


def started(name: str) -> int:
    """Note that a step has started; which time it is."""
    folder = Path(os.environ[STEPS])
    number = len(list(folder.glob(f"{name}-*"))) + 1
    (folder / f"{name}-{number}").touch()
    return number


@dg.op
def lasts_once() -> int:
    """Its first attempt lasts until somebody ends it."""
    number = started("step")
    if number == 1:
        time.sleep(LASTS)
    return number


@dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
def fails_once_later(context: dg.OpExecutionContext) -> int:
    """It is interrupted, then its code fails, then it is well: its op allows for one failure."""
    number = started("step")
    if number == 1:
        time.sleep(LASTS)
    if number == 2:
        raise ValueError("the code's own")
    return context.retry_number


@dg.op
def leaves() -> int:
    """Its process ends without a word."""
    started("step")
    os._exit(3)


@dg.op
def leaves_well_once() -> int:
    """Its first process ends well, and records nothing: as a second pod of the same Job does."""
    number = started("step")
    if number == 1:
        os._exit(0)
    return number


@dg.op
def beside() -> int:
    """It ends when the step that comes after another one runs."""
    started("beside")
    for _ in range(10 * LASTS):
        if any(Path(os.environ[STEPS]).glob("after-*")):
            return 1
        time.sleep(0.1)
    raise RuntimeError("the other step never came")


@dg.op
def after(x: int) -> int:
    started("after")
    return x


@dg.op
def trivial() -> int:
    started("step")
    return 1


@dg.op(tags={"signalbox/gpus": '{"shapes": ["1x2", "1x1"]}'})
def with_gpus() -> int:
    started("step")
    return 1


@dg.op
def records(context: dg.OpExecutionContext) -> None:
    """It takes no time, and writes what it is told that its container runs."""
    from platform_assets.factory.events import what_ran  # the other steps' pods start without

    started("step")
    ran = what_ran(context, patience=PATIENCE)
    (Path(os.environ[STEPS]) / f"recorded {ran.get('image_id', '')}".replace("/", " ")).touch()


NODES = ProcessesSpec(min=1, max=2, nodes=2, keep_alive_seconds=5)


@dg.op(tags={"signalbox/processes": NODES.model_dump_json()})
def trains_on_two_nodes(context: dg.OpExecutionContext) -> list[list[int]]:
    """A model of made-up rows, by the trainer of the catalog; what goes wrong says TEST_ACT."""
    from resources.distributed.launching import Processes
    from tests.test_torch_trainer import SMALL, rows
    from tests.torch_ranks import ByEnvironment

    folder, (frame, target) = Path(os.environ[STEPS]), rows()
    number = started("step")
    store = CheckpointStore(
        folder / "checkpoints", CheckpointKey("flights/model", "2013-01-28", "f" * 64), token=number
    )
    ranks, notice = Processes(NODES, tell=context.log.info), Notice()
    try:
        with notice.on_sigterm():
            model = ByEnvironment().fit(
                frame,
                target,
                kind="binary_classification",
                seed=7,
                parameters=SMALL,
                on_round=lambda _step, _metrics: None,
                processes=ranks,
                checkpointer=Saver(store, "the training", CheckpointsSpec(), notice),
            )
    except Interrupted as error:
        raise DagsterExecutionInterruptedError from error
    weights = {n: t.numpy().tobytes().hex() for n, t in model.module.state_dict().items()}
    (folder / "model.json").write_text(json.dumps(weights))
    (folder / "teams.json").write_text(json.dumps(ranks.history.teams))
    (folder / "lost.json").write_text(json.dumps(ranks.history.lost))
    return [list(team) for team in ranks.history.teams]


MORE = {
    "container_config": {
        "security_context": {
            "privileged": True,
            "allow_privilege_escalation": True,
            "read_only_root_filesystem": False,
            "capabilities": {"add": ["SYS_ADMIN"], "drop": ["KILL"]},
            "proc_mount": "Unmasked",
            "run_as_user": 0,
            "windows_options": {"host_process": True},
            "app_armor_profile": {"type": "Unconfined"},
            "se_linux_options": {"role": "system_r"},
        },
        "ports": [{"container_port": 1, "host_port": 1}],
        "liveness_probe": {"http_get": {"host": "10.0.0.1", "port": 1}},
        "lifecycle": {"pre_stop": {"tcp_socket": {"host": "10.0.0.1", "port": 1}}},
    },
    "pod_spec_config": {
        "host_network": True,
        "host_pid": True,
        "host_ipc": True,
        "priority_class_name": "system-node-critical",
        "service_account_name": "signalbox",
        "volumes": [
            {"name": "v", "host_path": {"path": "/"}},
            {"name": "v", "nfs": {"server": "s", "path": "/"}},
        ],
        "security_context": {
            "run_as_non_root": False,
            "run_as_user": 0,
            "sysctls": [{"name": "kernel.msgmax", "value": "1"}],
            "seccomp_profile": {"type": "Unconfined"},
            "app_armor_profile": {"type": "Unconfined"},
            "se_linux_options": {"user": "system_u", "type": "spc_t"},
            "windows_options": {"host_process": True},
        },
    },
    "pod_template_spec_metadata": {
        "annotations": {"container.apparmor.security.beta.kubernetes.io/dagster": "unconfined"}
    },
}
"""All that a pod of a step may not have, and an op's tag may ask for."""


@dg.op(tags={"dagster-k8s/config": MORE})
def asks_for_more() -> int:
    started("step")
    return 1


@dg.op
def until_told() -> int:
    """Its first attempt ends when it is told so."""
    number = started("step")
    for _ in range(50 * LASTS):  # a second run worker may take its time to start
        if number > 1 or (Path(os.environ[STEPS]) / "end").exists():
            return number
        time.sleep(0.1)
    raise RuntimeError("nobody told it to end")


@dg.op
def trains(context: dg.OpExecutionContext) -> int:
    """Six rounds with checkpoints; its first attempt stands at the third until it is ended."""
    folder = Path(os.environ[STEPS])
    number = len(list(folder.glob("begun-*"))) + 1
    key = CheckpointKey("flights/model", "2013-01-28", "f" * 64)
    store = CheckpointStore(folder / "checkpoints", key, token=number)
    notice = Notice()
    run_id = context.run_id

    def durable() -> None:
        context.instance.add_run_tags(run_id, {SAVED_TAG: run_id})  # as the line does

    saver = Saver(store, "the training", CheckpointsSpec(), notice, first=durable)
    try:
        with notice.on_sigterm():
            found = saver.load()
            begun = found.step if found is not None else 0
            (folder / f"begun-{number}-{begun}").touch()
            for step in range(begun + 1, 7):
                if step == begun + 1 + 2 * (number == 1):
                    started("step")  # the signal comes now
                for _ in range(10 * LASTS if (number, step) == (1, 3) else 0):
                    if notice.given:
                        break
                    time.sleep(0.1)
                if saver.due(step) or step == 2:
                    saver.save(step, {"state": b"%d" % step})
                    saver.wait()
                    saver.stop_if_interrupted(step)
    except Interrupted as error:
        raise DagsterExecutionInterruptedError from error  # as the line does (factory/events.py)
    return begun


@dg.job(executor_def=pinned)
def pinned_trains() -> None:
    trains()


@dg.job(executor_def=pinned)
def pinned_two_nodes() -> None:
    trains_on_two_nodes()


@dg.job(executor_def=stock)
def stock_lasts_once() -> None:
    lasts_once()


@dg.job(executor_def=pinned)
def pinned_lasts_once() -> None:
    lasts_once()


@dg.job(executor_def=stock)
def stock_fails_once_later() -> None:
    fails_once_later()


@dg.job(executor_def=pinned)
def pinned_fails_once_later() -> None:
    fails_once_later()


@dg.job(executor_def=pinned)
def pinned_with_gpus() -> None:
    with_gpus()


@dg.job(executor_def=stock)
def stock_leaves() -> None:
    leaves()


@dg.job(executor_def=pinned)
def pinned_leaves() -> None:
    leaves()


@dg.job(executor_def=stock)
def stock_leaves_well_once() -> None:
    leaves_well_once()


@dg.job(executor_def=pinned)
def pinned_leaves_well_once() -> None:
    leaves_well_once()


@dg.job(executor_def=stock)
def stock_two() -> None:
    beside()
    after(trivial())


@dg.job(executor_def=pinned)
def pinned_two() -> None:
    beside()
    after(trivial())


@dg.job(executor_def=stock)
def stock_chain() -> None:
    after(trivial())


@dg.job(executor_def=pinned)
def pinned_chain() -> None:
    after(trivial())


@dg.op(out={"perhaps": dg.Out(int, is_required=False)})
def gives_nothing() -> Iterator[dg.Output[int]]:
    yield from ()


@dg.op
def gives() -> int:
    return 1


@dg.op
def takes(x: int) -> int:
    return x


@dg.op
def until_told_after(xs: list[int]) -> int:
    number = started("step")
    for _ in range(50 * LASTS):
        if (Path(os.environ[STEPS]) / "end").exists():
            return number
        time.sleep(0.1)
    raise RuntimeError("nobody told it to end")


@dg.job(executor_def=stock)
def stock_skips() -> None:
    until_told_after([takes(gives_nothing()), gives()])


@dg.job(executor_def=pinned)
def pinned_skips() -> None:
    until_told_after([takes(gives_nothing()), gives()])


@dg.job(executor_def=stock)
def stock_long() -> None:
    until_told_after([gives()])


@dg.job(executor_def=pinned)
def pinned_long() -> None:
    until_told_after([gives()])


@dg.job(executor_def=stock)
def stock_told() -> None:
    after(until_told())


@dg.job(executor_def=pinned)
def pinned_told() -> None:
    after(until_told())


@dg.job(executor_def=pinned)
def pinned_alone() -> None:
    until_told()


@dg.job(executor_def=stock)
def stock_trivial() -> None:
    trivial()


@dg.job(executor_def=pinned)
def pinned_trivial() -> None:
    trivial()


@dg.job(executor_def=stock)
def stock_records() -> None:
    records()


@dg.job(executor_def=never)
def never_records() -> None:
    records()


@dg.job(executor_def=never)
def never_records_beside() -> None:
    records()
    until_told()


@dg.job(executor_def=stock)
def stock_more() -> None:
    asks_for_more()


@dg.job(executor_def=pinned)
def pinned_more() -> None:
    asks_for_more()
