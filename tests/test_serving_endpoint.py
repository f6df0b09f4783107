"""A server that says what it serves, beside MLflow's own on the same folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from platform_assets.domain.errors import RefusedError
from platform_assets.line.alerting import update
from platform_assets.line.projection import project, reconcile
from platform_assets.line.serving import verified_slot
from resources.serving import Endpoint
from resources.tracking.client import QUIET
from tests.ports import free_port
from tests.small import Line, small_spec
from tests.test_projection import LAST, alerts, line, promote, rewritten, served, templates, version

__all__ = ["line", "templates"]  # fixtures
READY_SECONDS = 180


@contextmanager
def serving(line: Line, *command: str) -> Iterator[str]:
    """A server in a process of its own; its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, *command, "--port", str(port)],
        env={**os.environ, **QUIET, **line.home.environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr:
            process.stderr.close()


def predictions(url: str, rows: str) -> Sequence[float]:
    kind = {"content-type": "application/json"}
    answer = httpx.post(
        f"{url}/invocations", content=rows, headers=kind, timeout=60, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    found: Sequence[float] = answer.json()["predictions"]
    return found


def ours(line: Line) -> tuple[str, ...]:
    return ("-c", "from platform_assets.cli import main; main()", "serve", line.spec.pipeline)


@pytest.mark.heavy
def test_predictions_are_those_of_mlflow_and_the_digest_is_of_what_was_loaded(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # MLflow's own starts uvicorn by its name.
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    slot = line.services.slot
    rows = (slot.files / "serving_input_example.json").read_text()
    first = slot.serves()
    assert first is not None
    with serving(line, *ours(line)) as url:
        mine = predictions(url, rows)
        with serving(
            line, "-m", "mlflow", "models", "serve", "-m", str(slot.files), "--env-manager", "local"
        ) as plain:
            assert predictions(plain, rows) == mine
            # MLflow's own does not say what it serves.
            assert httpx.get(f"{plain}/signalbox", trust_env=False).status_code == 404
        watched = Line(line.home, small_spec(serving={"endpoint": url}), line.instance)
        assert Endpoint(url).serves() == first
        assert reconcile(watched.services).drifts == ()
        promote(line, LAST)
        project(line.services)  # the slot is swapped, the server has loaded the one before
        assert Endpoint(url).serves() == first
        assert predictions(url, rows) == mine
        found = reconcile(watched.services).remaining
        assert [d.what for d in found] == ["endpoint"]
        assert f"serves {first}, the ledger says version {version(line, LAST)}" in found[0].reason
        assert alerts(line) == [("drift", "flight-delay endpoint")]
    assert "does not tell what it serves" in reconcile(watched.services).remaining[0].reason
    with serving(line, *ours(line)) as url:
        assert Endpoint(url).serves() == served(line, LAST)
        assert predictions(url, rows) != mine
        watched = Line(line.home, small_spec(serving={"endpoint": url}), line.instance)
        assert reconcile(watched.services).drifts == ()
        update(watched.services)
        assert alerts(line) == []


def test_files_that_were_changed_in_the_slot_are_not_loaded(line: Line, tmp_path: Path) -> None:
    with verified_slot(line.services) as (folder, what):
        assert (folder / "MLmodel").exists()
        assert what == line.services.slot.serves()
    rewritten(line)
    with (
        pytest.raises(RefusedError, match="nothing of them was loaded"),
        verified_slot(line.services),
    ):
        raise AssertionError("unreachable")
    root = line.services.slot.root
    (root / "current").unlink()
    with pytest.raises(RefusedError, match="it takes a champion"), verified_slot(line.services):
        raise AssertionError("unreachable")
    (root / "current").symlink_to(tmp_path)
    with pytest.raises(RefusedError, match="never was champion"), verified_slot(line.services):
        raise AssertionError("unreachable")
