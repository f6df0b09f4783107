"""Jobs to be forked: loaded by a zygote from this file, as a code location would be."""

import json
import os
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy.sql.compiler import SQLCompiler

from platform_assets.instance import connections


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


SEEN = dg.AssetKey("seen")


@dg.op(config_schema={"folder": str})
def record(context: dg.OpExecutionContext) -> None:
    """Tells which files were opened, and what was compiled, for five events of an asset."""
    opened: Counter[str] = Counter()
    compiled: list[str] = []
    connect, compile_ = connections.sqlite3.connect, SQLCompiler.__init__

    def opening(path: str, **how: Any) -> sqlite3.Connection:
        opened[Path(path).name] += 1
        return connect(path, **how)

    def compiling(self: SQLCompiler, *rest: Any, **how: Any) -> None:
        compile_(self, *rest, **how)
        compiled.append(str(self))

    connections.sqlite3.connect = opening
    SQLCompiler.__init__ = compiling
    for number in range(5):
        context.log_event(dg.AssetObservation(SEEN, partition=f"2013-01-0{number + 1}"))
    connections.sqlite3.connect = connect
    SQLCompiler.__init__ = compile_
    found = {"opened": opened, "compiled": compiled, "idle": list(connections._idle)}
    Path(context.op_config["folder"], context.run_id).write_text(json.dumps(found))


@dg.job
def recording() -> None:
    record()


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


defs = dg.Definitions(
    jobs=[telling, waiting, failing, vanishing, recording], executor=dg.in_process_executor
)
