"""Where a Chromium for the browser tests can be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

VARIABLE = "SIGNALBOX_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DOWNLOAD_SECONDS = 300


def find_browser() -> Path | None:
    """The Chromium that is installed: the one in SIGNALBOX_CHROMIUM, else one on the PATH."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen) if os.access(chosen, os.X_OK) else None
    found = (shutil.which(name) for name in NAMES)
    return next((Path(path) for path in found if path), None)


def fetch_browser() -> Path | None:
    """Let Playwright fetch its own Chromium; None where it cannot."""
    place = _own_browser()
    if place is not None and place.exists():
        return place
    try:
        done = subprocess.run(
            [sys.executable, "-m", "playwright", "install", "chromium"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return place if done.returncode == 0 and place is not None and place.exists() else None


def _own_browser() -> Path | None:
    from playwright.sync_api import Error, sync_playwright

    try:
        with sync_playwright() as playwright:
            return Path(playwright.chromium.executable_path)
    except Error:
        return None
