"""A real Postgres of the tests' own: started on the loopback, thrown away afterwards."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tests.ports import free_port

VARIABLE = "SIGNALBOX_TEST_POSTGRES"
"""URL of a server that runs already, without a database: `postgresql://postgres@127.0.0.1:5433`."""

READY_SECONDS = 60.0
ADVICE = "install it with `apt-get install postgresql`"


def programs() -> Path:
    """The folder of initdb and postgres: Debian keeps them out of the PATH.

    Raises:
        RuntimeError: there is no Postgres.
    """
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise RuntimeError(f"no Postgres server is installed; {ADVICE}")


def is_there() -> bool:
    """Whether there is a server, or the programs to start one."""
    try:
        return VARIABLE in os.environ or bool(programs())
    except RuntimeError:
        return False


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A running server; its URL without a database."""
    given = os.environ.get(VARIABLE)
    if given:
        yield given
        return
    binaries = programs()
    folder = Path(tempfile.mkdtemp(prefix="signalbox-pg-"))
    # A Postgres never runs as root.
    other = {"user": "postgres", "group": "postgres", "extra_groups": []} if _is_root() else {}
    if other:
        entry = pwd.getpwnam("postgres")
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    data = folder / "data"
    port = free_port()
    url = f"postgresql://postgres@127.0.0.1:{port}"
    log = folder / "log"
    process = None
    try:
        subprocess.run(
            [
                *(binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust"),
                *("-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd="/",
            **other,
        )
        # What is lost when the machine stops is of no use to anybody.
        settings = {
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "300",
            "unix_socket_directories": str(folder),
            "listen_addresses": "127.0.0.1",
            "port": str(port),
        }
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                **other,
            )
        _wait_for(url, process, log)
        yield url
    finally:
        if process is not None:
            process.terminate()  # waits for no client's leave: what they do is aborted below
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.send_signal(3)  # SIGQUIT: at once
                process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def create_database(url: str, name: str | None = None) -> str:
    """A new, empty database of a server; its URL."""
    name = name or f"t{uuid.uuid4().hex}"
    _execute(url, f"CREATE DATABASE {name}")
    return f"{url}/{name}"


def copy_database(url: str) -> str:
    """A copy of a database that nobody works on; its URL."""
    base, _, template = url.rpartition("/")
    name = f"t{uuid.uuid4().hex}"
    # A pool may still hold a connection, and of a database with connections there is no copy.
    _execute(
        base,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
        f"'{template}' AND pid <> pg_backend_pid()",
    )
    _execute(base, f"CREATE DATABASE {name} TEMPLATE {template}")
    return f"{base}/{name}"


def drop_database(url: str) -> None:
    base, _, name = url.rpartition("/")
    _execute(base, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _execute(url: str, statement: str) -> None:
    engine = sa.create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            _execute(url, "SELECT 1")
        except sa.exc.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Postgres did not start:\n{log.read_text()}") from error
            time.sleep(0.1)
        else:
            return


def _is_root() -> bool:
    return os.geteuid() == 0
