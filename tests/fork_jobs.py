"""Jobs to be forked: loaded by a zygote from this file, as a code location would be."""

import os
import sys
import time
from pathlib import Path

import dagster as dg


@dg.op(config_schema={"folder": str})
def tell(context: dg.OpExecutionContext) -> None:
    folder = Path(context.op_config["folder"])
    numpy = sys.modules["numpy"]
    text = f"{os.getpid()} {os.getppid()} {numpy.random.random()} {'mlflow' in sys.modules}"
    (folder / context.run_id).write_text(text)
    print(f"said by {context.run_id}")
    os.write(2, b"written past Python\n")


@dg.op(config_schema={"folder": str})
def wait(context: dg.OpExecutionContext) -> None:
    folder = Path(context.op_config["folder"])
    (folder / context.run_id).write_text(str(os.getpid()))
    while not (folder / "enough").exists():
        time.sleep(0.02)


@dg.op(config_schema={"folder": str})
def fail(context: dg.OpExecutionContext) -> None:
    raise ValueError("as it must")


@dg.op(config_schema={"folder": str})
def vanish(context: dg.OpExecutionContext) -> None:
    os.kill(os.getpid(), 9)


@dg.job
def telling() -> None:
    tell()


@dg.job
def waiting() -> None:
    wait()


@dg.job
def failing() -> None:
    fail()


@dg.job
def vanishing() -> None:
    vanish()


defs = dg.Definitions(jobs=[telling, waiting, failing, vanishing], executor=dg.in_process_executor)
