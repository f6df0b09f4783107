"""A pytest plugin that writes down how many tests passed, failed and were skipped."""

import json
import os
from pathlib import Path

import pytest

VARIABLE = "SIGNALBOX_TALLY"
COUNTS = {
    "passed": ("passed",),
    "failed": ("failed", "error", "xpassed"),
    "skipped": ("skipped", "xfailed"),
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the reports of the whole session, those of parallel workers included."""
    stats = terminalreporter.stats
    counts = {
        word: sum(len(stats.get(kind, ())) for kind in kinds) for word, kinds in COUNTS.items()
    }
    Path(os.environ[VARIABLE]).write_text(json.dumps(counts))
